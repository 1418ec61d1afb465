"""Tests for L{fastpoetry.systemd.notify} and L{fastpoetry.systemd.reload} in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from test_notify import NotifyCase

FAILING = """
import atexit, sys
from twisted.internet import reactor
from twisted.internet.defer import fail
from fastpoetry.systemd.notify import NotifyService
atexit.register(print, "flushed")
NotifyService(reactor, ready=fail(OSError("nothing there"))).startService()
reactor.run()
print("tidied")
"""

STOPPING = """
import os, signal, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from fastpoetry.systemd.notify import NotifyService
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.__stderr__)], redirectStandardIO=False)
ready = Deferred()
NotifyService(reactor, ready=ready).startService()
def end():
    STOP
    END
reactor.callWhenRunning(end)
reactor.run()
"""

SIGNALS = """
import os, signal
from twisted.application.service import MultiService, Service
from twisted.internet import reactor
from twisted.internet.task import deferLater
from fastpoetry.systemd.notify import NotifyService

class Draining(Service):
    def stopService(self):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return deferLater(reactor, 0.01, print, "drained")

def signals():
    STOP

import sys
from twisted.logger import globalLogBeginner, textFileLogObserver
globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.__stderr__)], redirectStandardIO=False)
services = MultiService()
Draining().setServiceParent(services)
NotifyService(reactor).setServiceParent(services)
services.startService()
reactor.addSystemEventTrigger("before", "shutdown", services.stopService)
reactor.callWhenRunning(reactor.callLater, 0, signals)
reactor.run()
"""

CHILD = """
import os, subprocess, sys
from twisted.internet import reactor
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.systemd.store import Store
def look():
    code = "import os; print(*sorted(key for key in os.environ if key.split('_')[0] in FAMILIES))"
    families = ("NOTIFY", "WATCHDOG", "LISTEN")
    subprocess.run([sys.executable, "-c", code.replace("FAMILIES", repr(families))], check=True)
    service.stopService()
    service.startService()
    removed = Store(reactor).remove("a", seconds=0)
    removed.addErrback(lambda failure: print(failure.getErrorMessage()))
    removed.addCallback(lambda _: reactor.stop())
service = NotifyService(reactor)
service.startService()
reactor.callWhenRunning(look)
reactor.run()
"""

LATE = """
import os, signal
from twisted.application.service import MultiService, Service
from twisted.internet import reactor
from twisted.internet.task import deferLater
from fastpoetry.systemd.notify import NotifyService
class Draining(Service):
    def stopService(self):
        os.kill(os.getpid(), signal.SIGHUP)
        return deferLater(reactor, 0.1, print, "drained")
program = MultiService()
Draining().setServiceParent(program)
program.startService()
reactor.addSystemEventTrigger("before", "shutdown", program.stopService)
def join():
    NotifyService(reactor, reload=print).setServiceParent(program)
    print([name for name in vars(program) if name in ("addService", "startService")])
    reactor.callLater(0, os.kill, os.getpid(), signal.SIGTERM)
reactor.callWhenRunning(join)
reactor.run()
"""

EARLY = """
import os, signal
from twisted.internet import reactor
from fastpoetry.systemd.notify import NotifyService
def reload():
    print("reloaded")
    reactor.stop()
service = NotifyService(reactor, reload=reload)
os.kill(os.getpid(), signal.SIGHUP)
service.startService()
reactor.run()
"""

RELOADING = """
import os, subprocess, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from fastpoetry.systemd.notify import NotifyService, ReloadError
outcomes = [None, ReloadError("no such\\npoem"), LookupError()]
async def reload():
    await deferLater(reactor, 0.01, lambda: None)
    outcome = outcomes.pop(0)
    if outcome:
        raise outcome
service = NotifyService(reactor, reload=reload)
def ask():
    command = [sys.executable, "-m", "fastpoetry.systemd.reload"]
    environ = {**os.environ, "MAINPID": str(os.getpid())}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    print(done.returncode, repr(done.stdout), repr(done.stderr))
async def askAll():
    for _ in range(3):
        await deferToThread(ask)
    reactor.stop()
service.startService()
reactor.callWhenRunning(lambda: Deferred.fromCoroutine(askAll()))
reactor.run()
"""


class Programs(NotifyCase):
    """A test case with real programs."""

    def start(self, command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """@return: the outcome of a Python command under our systemd."""
        path = os.pathsep.join(filter(None, sys.path))
        environ = {**os.environ, **self.systemd.environ, "PYTHONPATH": path, **variables}
        environ.pop("PYTHONUNBUFFERED", None)
        return subprocess.run(
            [sys.executable, *command], env=environ, capture_output=True, text=True, timeout=60
        )


class ProcessTests(Programs):
    """Tests for how programs start, reload and end."""

    def test_failedStart(self) -> None:
        """
        A failed start ends the program with status 1, after C{atexit} calls and a flush of stdout.
        """
        done = self.start(["-c", FAILING])
        self.assertEqual((done.returncode, done.stdout.split()), (1, ["tidied", "flushed"]))
        self.assertEqual(self.systemd.heard(), [])

    def test_stopsItself(self) -> None:
        """
        A program that stops its reactor during the start, as Buildbot does, ends with status 1,
        whether its start then succeeds or fails.
        """
        program = STOPPING.replace("STOP", "reactor.stop()")
        for end, error in (
            (
                "ready.callback(None)",
                "NotReady: the program stopped its reactor before it was ready",
            ),
            ("ready.errback(LookupError())", "LookupError: "),
        ):
            done = self.start(["-c", program.replace("END", end)])
            self.assertEqual((done.returncode, done.stderr.count("Traceback")), (1, 1))
            self.assertIn(error, done.stderr)
            self.assertEqual(self.systemd.heard(), [])

    def test_signalled(self) -> None:
        """A start that SIGTERM ends is not a failure, and has no record."""
        program = STOPPING.replace("STOP", "os.kill(os.getpid(), signal.SIGTERM)")
        done = self.start(["-c", program.replace("END", "ready.callback(None)")])
        self.assertEqual((done.returncode, done.stderr.count("Traceback")), (0, 0))
        self.assertEqual(self.systemd.heard(), [])

    def test_signals(self) -> None:
        """
        However often a program is told to end, also by itself, it drains once, without a traceback.
        """
        signals = [f"os.kill(os.getpid(), signal.{each})" for each in ("SIGTERM", "SIGINT")]
        for stop in (*(f"{each}; {each}" for each in signals), "reactor.stop()"):
            done = self.start(["-c", SIGNALS.replace("STOP", stop)])
            self.assertEqual(done.stdout, "drained\n")
            self.assertNotIn("Traceback", done.stderr)
            self.assertNotIn("Unhandled", done.stderr)
            self.assertEqual(self.systemd.heard(), ["READY=1", "STOPPING=1"])

    def test_children(self) -> None:
        """Child processes do not inherit systemd's variables, and the program keeps them."""
        told = {"WATCHDOG_USEC": "9000000", "LISTEN_FDNAMES": "a", "LISTEN_PID": "1"}
        done = self.start(["-c", CHILD], **told)
        child, store = done.stdout.splitlines()
        self.assertEqual((child, done.stderr), ("", ""))
        self.assertIn("systemd has not read its messages for 0 s", store)
        self.assertEqual(self.systemd.heard()[:2], ["READY=1"] * 2)

    def test_joinsLate(self) -> None:
        """
        A service that joins a running program knows the program's end from a stop of its own:
        SIGHUP kills nothing meanwhile. It leaves the program's methods as they were.
        """
        self.assertEqual(self.start(["-c", LATE]).stdout.split(), ["[]", "drained"])

    def test_early(self) -> None:
        """A SIGHUP before the start does not kill the program, which reloads after the start."""
        done = self.start(["-c", EARLY])
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "reloaded\n", ""))

    def test_reloads(self) -> None:
        """The reload command prints the reload's outcome."""
        done = self.start(["-c", RELOADING], INVOCATION_ID="7")
        self.assertEqual(
            done.stdout.splitlines(),
            [
                "0 '' ''",
                r"1 '' 'reload failed: no such poem\n'",
                r"1 '' 'reload failed: LookupError\n'",
            ],
        )
        # systemd 257 would wait for READY, if the program crashed in a reload that it knows of.
        self.assertNotIn("RELOADING", "".join(self.systemd.heard()))

    def test_nobodyReloads(self) -> None:
        """If no program can be asked to reload, one line says why."""
        command = ["-m", "fastpoetry.systemd.reload"]
        without = self.start(command)
        with subprocess.Popen(["sleep", "60"]) as program:
            other = self.start(command, MAINPID=str(program.pid), INVOCATION_ID="none")
            program.kill()
        self.assertEqual((without.returncode, other.returncode), (1, 1))
        self.assertEqual(
            without.stderr,
            "reload failed: only systemd can ask for a reload: MAINPID is not set\n",
        )
        self.assertEqual(
            other.stderr,
            "reload failed: the program cannot be asked: it has no NotifyService, or no "
            "NOTIFY_SOCKET\n",
        )
