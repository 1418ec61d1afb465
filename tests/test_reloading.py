"""Tests for L{fastpoetry.systemd.reloading} and L{fastpoetry.systemd.reload}, its client."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import tempfile
from typing import Any
from unittest import SkipTest

from messages import RELOAD_FAILED, RELOAD_GIVEN_UP, RELOAD_SLOW
from processes import ownNetwork
from test_notify import NotifyCase
from test_notify_process import Programs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd import reload
from fastpoetry.systemd.notify import NotifyService, ReloadError

ASKING = """
import os, subprocess, sys
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from fastpoetry.systemd.notify import NotifyService
service = NotifyService(reactor, reload=HOOK)
def ask():
    command = [sys.executable, "-m", "fastpoetry.systemd.reload"]
    environ = {**os.environ, "MAINPID": str(os.getpid())}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    print(done.returncode, done.stderr.strip())
service.startService()
reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
reactor.callWhenRunning(lambda: deferToThread(ask).addBoth(lambda _: reactor.stop()))
reactor.run()
"""


class LimitTests(NotifyCase):
    """Tests for a reload that does not end."""

    def setUp(self) -> None:
        super().setUp()
        self.reloads: list[Deferred[Any]] = []
        self.started(reload=self.reload)

    def reload(self) -> Deferred[Any]:
        """Reload for as long as the test needs."""
        self.reloads.append(Deferred())
        return self.reloads[-1]

    def wait(self, seconds: int) -> list[str]:
        """@return: the ids of the records made in that time."""
        with capturedLogs() as events:
            self.reactor.pump([1] * seconds)
        return [event["message_id"] for event in events]

    def test_quick(self) -> None:
        """A reload that ends soon makes no record, also later."""
        self.hangUp()
        self.assertEqual(self.wait(9), [])
        self.reloads[0].callback(None)
        self.assertEqual(self.wait(100), [])

    def test_slow(self) -> None:
        """After ten seconds one record says that the reload still runs."""
        self.hangUp()
        self.assertEqual((self.wait(10), self.wait(40)), ([RELOAD_SLOW], []))
        self.reloads[0].callback(None)
        self.assertEqual(self.systemd.heard()[1:], ["READY=1"])

    def test_limit(self) -> None:
        """After the limit the reload is cancelled and has failed, and the next one starts anew."""
        self.hangUp()
        self.hangUp()
        self.assertEqual(self.wait(60), [RELOAD_SLOW, RELOAD_GIVEN_UP])
        self.assertTrue(self.reloads[0].called)
        self.assertEqual(len(self.reloads), 2)
        self.reloads[1].callback(None)
        self.assertEqual(self.systemd.heard()[-1], "READY=1")

    def test_deaf(self) -> None:
        """A hook that ignores cancellation has also failed after the limit."""

        async def stubborn() -> None:
            while True:
                with contextlib.suppress(CancelledError):
                    await self.reload()

        self.started(reload=stubborn)
        for count in (1, 3):
            self.hangUp()
            self.assertEqual(len(self.reloads), count)
            self.assertEqual(self.wait(60), [RELOAD_SLOW, RELOAD_GIVEN_UP])

    def test_late(self) -> None:
        """The end of a reload that was given up has no effect, even if it cleaned up for long."""
        cleaning: Deferred[None] = Deferred()

        async def tidy() -> None:
            with contextlib.suppress(CancelledError):
                await Deferred()
            await cleaning

        self.started(reload=tidy)
        self.hangUp()
        self.assertEqual(self.wait(60), [RELOAD_SLOW, RELOAD_GIVEN_UP])
        with capturedLogs() as events:
            cleaning.callback(None)
        self.assertEqual(events, [])

    def test_recordOfCause(self) -> None:
        """
        An unexpected failure makes a record with its traceback; one already recorded does not.
        """
        for failure, ids in ((MemoryError(), [RELOAD_FAILED]), (ReloadError("no poem"), [])):
            self.hangUp()
            with capturedLogs() as events:
                self.reloads.pop().errback(failure)
            self.assertEqual([event["message_id"] for event in events], ids)
        self.flushLoggedErrors(MemoryError)


class EarlyTests(NotifyCase):
    """Tests for a reload before the program is ready."""

    def test_notReady(self) -> None:
        """The program reloads, and systemd does not mistake the reload's end for the start's."""
        reloads: list[int] = []
        ready: Deferred[None] = Deferred()
        service = NotifyService(
            self.reactor,
            ready=ready,
            reload=lambda: reloads.append(1),
            clock=self.reactor,
            environ=self.systemd.environ,
            setHandler=self.handlers.__setitem__,
        )
        service.startService()
        self.reactor.run()
        self.hangUp()
        self.assertEqual((reloads, self.systemd.heard()), ([1], []))
        ready.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])


class ClientTests(SynchronousTestCase):
    """
    Tests for the command that C{systemctl reload} runs, in a network namespace with other
    processes.
    """

    def setUp(self) -> None:
        self.environ = {"MAINPID": str(os.getpid()), "INVOCATION_ID": f"test{os.getpid()}"}
        self.patch(reload, "_SILENCE_SECONDS", 0.05)

    def listen(self, name: str, backlog: int = 16) -> socket.socket:
        """Bind a name, as any process may."""
        taken = socket.socket(socket.AF_UNIX)
        self.addCleanup(taken.close)
        taken.bind(f"\0{reload.portPrefix(self.environ)}{name}")
        taken.listen(backlog)
        return taken

    def ask(self) -> tuple[int, str]:
        """@return: the exit status, and the printed line."""
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = reload.main(self.environ)
        return status, said.getvalue()

    def test_silent(self) -> None:
        """The command stops waiting for a silent program after the limit of silence."""
        self.listen("a")
        self.assertEqual(self.ask(), (1, "reload failed: the program has not answered for 0 s\n"))

    def test_priority(self) -> None:
        """In the journal, a cause that no program has logged is an error."""
        with tempfile.TemporaryFile("w+") as stream, contextlib.redirect_stderr(stream):
            found = os.fstat(stream.fileno())
            self.patch(os, "environ", {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
            reload.main({})
            stream.seek(0)
            self.assertTrue(stream.read().startswith("<3>reload failed: only systemd"))

    def test_full(self) -> None:
        """The command stops waiting for a full queue too."""
        full = self.listen("a", 0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(full.getsockname())
            status, said = self.ask()
        self.assertEqual((status, "cannot be asked" in said), (1, True))

    def test_others(self) -> None:
        """Another process is ignored, whatever name it has bound."""
        self.listen("a")
        self.environ["MAINPID"] = "1"
        status, said = self.ask()
        self.assertEqual((status, "cannot be asked" in said), (1, True))


class ProgramTests(Programs):
    """Tests with real programs."""

    def test_taken(self) -> None:
        """
        A process that has bound names first, even with a full queue, does not block the reload.
        """
        environ = {"INVOCATION_ID": f"taken{os.getpid()}"}
        name = f"\0{reload.portPrefix(environ)}"
        with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
            full.bind(f"{name}0")
            full.listen(0)
            first.connect(f"{name}0")
            done = self.start(["-c", ASKING.replace("HOOK", "lambda: None")], **environ)
        self.assertEqual(done.stdout, "0 \n")

    def test_ended(self) -> None:
        """If the program has ended, the line says so, even while its parent has not yet seen it."""
        with subprocess.Popen(["true"]) as ended:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
            environ = {"MAINPID": str(ended.pid), "INVOCATION_ID": "x"}
            with contextlib.redirect_stderr(io.StringIO()) as told:
                self.assertEqual(reload.main(environ), 1)
        self.assertEqual(told.getvalue(), "reload failed: the program ended meanwhile\n")

    def test_otherNetwork(self) -> None:
        """
        In another network than the program's, as in a user's unit with C{PrivateNetwork=}, the line
        says what to do.
        """
        with subprocess.Popen(["sleep", "60"]) as program:
            environ = {"MAINPID": str(program.pid), "INVOCATION_ID": "x"}
            try:
                with ownNetwork(), contextlib.redirect_stderr(io.StringIO()) as told:
                    if os.path.samefile(f"/proc/{program.pid}/ns/net", "/proc/self/ns/net"):
                        raise SkipTest("no permission to make a network")
                    self.assertEqual(reload.main(environ), 1)
            finally:
                program.kill()
        self.assertIn("use ExecReload=/bin/kill -HUP", told.getvalue())

    def test_nothingToReload(self) -> None:
        """A program without a hook reports that it cannot reload."""
        done = self.start(["-c", ASKING.replace("HOOK", "None")], INVOCATION_ID="1")
        self.assertEqual(done.stdout, "1 reload failed: there is nothing to reload\n")

    def test_cause(self) -> None:
        """The command prints an unexpected failure."""
        hook = "lambda: bytearray(1 << 62)"
        done = self.start(["-c", ASKING.replace("HOOK", hook)], INVOCATION_ID="1")
        self.assertEqual(done.stdout, "1 reload failed: MemoryError\n")

    def test_mute(self) -> None:
        """A hook whose error cannot be printed has failed, and the command gets its answer."""
        error = "type('E', (Exception,), {'__str__': lambda _: 1 // 0})()"
        hook = f"lambda: (_ for _ in ()).throw({error})"
        done = self.start(["-c", ASKING.replace("HOOK", hook)], INVOCATION_ID="1")
        self.assertTrue(done.stdout.startswith("1 reload failed: "), done.stdout)

    def test_exit(self) -> None:
        """A hook that would end the program has failed, and the command gets its answer."""
        hook = "lambda: sys.exit('no such file')"
        done = self.start(["-c", ASKING.replace("HOOK", hook)], INVOCATION_ID="1")
        self.assertEqual(done.stdout, "1 reload failed: no such file\n")

    def test_cutName(self) -> None:
        """The kernel may cut the program's name in the middle of a letter."""
        name = "open('/proc/self/comm', 'wb').write(b'abcdefghijklmn\\xc3')"
        program = f"{name}\n{ASKING.replace('HOOK', 'lambda: None')}"
        done = self.start(["-c", program], INVOCATION_ID="1")
        self.assertEqual(done.stdout, "0 \n")
