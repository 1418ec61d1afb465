"""Tests for L{fastpoetry.systemd.notify}, with a real datagram socket in systemd's place."""

from __future__ import annotations

import os
import signal
import sys
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from socket import AF_UNIX, SOCK_DGRAM, socket
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from messages import NOT_ALIVE, TROUBLE
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.systemd.notify import NotifyService, startNotifying

EXTENDED = "EXTEND_TIMEOUT_USEC=15000000"
"""The request for more time, while the program starts or stops."""


@implementer(IReactorFromThreads)
class Reactor(MemoryReactorClock):
    """A reactor in memory that signal handlers can call."""

    def __init__(self) -> None:
        super().__init__()
        self.hasRun = False  # Twisted 22.4 has True from the start
        self._fromThread: list[Callable[[], object]] = []

    def callWhenRunning(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Call at once if the reactor runs, which the fake of Twisted 22.4 does not do."""
        if self.hasRun:
            callable(*args, **kw)
        else:
            self.whenRunningHooks.append((callable, args, kw))

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Keep the call for the next turn of the reactor."""
        self._fromThread.append(lambda: callable(*args, **kw))

    def turn(self) -> None:
        """Make the calls of signal handlers."""
        calls, self._fromThread = self._fromThread, []
        for call in calls:
            call()

    def shutDown(self, phase: str = "after") -> None:
        """Make the calls for that phase of the shutdown."""
        for f, args, kw in self.triggers.get(phase, {}).get("shutdown", []):
            f(*args, **kw)


class Systemd:
    """The reading end of C{NOTIFY_SOCKET}."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address}
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0"))
        self.close = self._socket.close

    def heard(self) -> list[str]:
        """@return: the datagrams received since the last call."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return datagrams

    def fill(self) -> None:
        """Fill the queue from other sockets, each with as much as one sender may send."""
        while self._fillSome():
            pass

    def _fillSome(self) -> bool:
        messages = 0
        with socket(AF_UNIX, SOCK_DGRAM) as chatterer:
            chatterer.setblocking(False)
            try:
                while True:
                    chatterer.sendto(b"chatter", self._socket.getsockname())
                    messages += 1
            except BlockingIOError:
                return messages > 0


class NotifyCase(SynchronousTestCase):
    """A test case with a reactor, a systemd, and services between them."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.reactor = Reactor()
        self.addCleanup(self.reactor.shutDown)
        self.systemd = Systemd(f"{folder.name}/notify")
        self.addCleanup(self.systemd.close)
        self.handlers: dict[int, Callable[..., None]] = {}

    def service(
        self,
        *,
        status: Callable[[], str] | None = None,
        reload: Callable[[], Awaitable[object] | None] | None = None,
        **environ: str,
    ) -> NotifyService:
        """
        @return: a service that has not started, under systemd unless the environment says
            otherwise.
        """
        return NotifyService(
            self.reactor,
            status=status,
            reload=reload,
            clock=self.reactor,
            environ={**self.systemd.environ, **environ},
            setHandler=self.handlers.__setitem__,
        )

    def started(self, **settings: Any) -> NotifyService:
        """@return: a service that has sent READY, which systemd has read."""
        service = self.service(**settings)
        service.startService()
        self.reactor.run()
        self.systemd.heard()
        return service

    def stop(self, service: NotifyService) -> None:
        """Stop a service as at the end of the program."""
        self.reactor.shutDown("before")
        service.stopService()

    def hangUp(self) -> None:
        """Do what SIGHUP and the reactor's next turn do."""
        self.handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.reactor.turn()


class ReadyTests(NotifyCase):
    """Tests for READY."""

    def test_fake(self) -> None:
        """The reactor of these tests provides what signal handlers need of a real one."""
        verifyObject(IReactorFromThreads, self.reactor)

    def test_running(self) -> None:
        """READY is sent when the reactor runs, not when the service starts."""
        self.service().startService()
        before = self.systemd.heard()
        self.reactor.run()
        self.assertEqual((before, self.systemd.heard()), ([], ["READY=1"]))

    def test_failedStart(self) -> None:
        """READY is not sent if another service fails to start."""

        class Broken(Service):
            def startService(self) -> None:
                raise RuntimeError("no poem")

        services = MultiService()
        Broken().setServiceParent(services)
        self.service().setServiceParent(services)
        self.assertRaises(RuntimeError, services.startService)
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), [])

    def test_addedLater(self) -> None:
        """READY is sent at once if the service is added to a running program."""
        services = MultiService()
        services.startService()
        self.reactor.run()
        self.service().setServiceParent(services)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_abstract(self) -> None:
        """An address that begins with @ is in the abstract namespace."""
        address = f"@fastpoetry-test-{os.getpid()}"
        systemd = Systemd(address)
        self.addCleanup(systemd.close)
        self.service(NOTIFY_SOCKET=address).startService()
        self.reactor.run()
        self.assertEqual(systemd.heard(), ["READY=1"])

    def test_outsideSystemd(self) -> None:
        """Outside systemd the status is not asked for and no timer runs, from start to stop."""
        environs: list[dict[str, str]] = [{}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "3000000"}]
        for environ in environs:
            service = NotifyService(
                self.reactor, status=self.fail, clock=self.reactor, environ=environ
            )
            service.startService()
            self.reactor.run()
            service.stopService()
            self.assertEqual(self.reactor.getDelayedCalls(), [])


class WithoutServicesTests(NotifyCase):
    """Tests for a program without services."""

    def test_started(self) -> None:
        """
        One line makes a program without services send READY, and STOPPING when the reactor stops.
        """
        startNotifying(self.reactor, clock=self.reactor, environ=self.systemd.environ)
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), ["READY=1"])
        self.reactor.shutDown("before")
        self.assertEqual(self.systemd.heard(), ["STOPPING=1"])


class StatusTests(NotifyCase):
    """Tests for the status."""

    def test_beforeReady(self) -> None:
        """A program has sent its status before READY."""
        self.service(status=lambda: "Serving ecstasy").startService()
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), ["STATUS=Serving ecstasy", "READY=1"])

    def test_anything(self) -> None:
        """A status that is not text is sent as text."""
        number: Any = 5
        self.service(status=lambda: number).startService()
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), ["STATUS=5", "READY=1"])

    def test_changes(self) -> None:
        """The status is sent a second later, and only if it has changed."""
        poems = ["0 poems"]
        self.started(status=lambda: poems[-1])
        heard = []
        for told in ("1 poem", "2 poems", "2 poems", "2 poems", "3 poems", "4 poems"):
            poems.append(told)
            self.reactor.advance(0.5)
            heard.append(self.systemd.heard())
        self.assertEqual(heard, [[], ["STATUS=2 poems"], [], [], [], ["STATUS=4 poems"]])

    @given(st.text(st.characters()) | st.text("\n\r\0\x1b\x85\u2028\ud800=🦉", min_size=1500))
    def test_hostile(self, text: str) -> None:
        """Whatever the status contains, it is sent as one printable line, which systemd accepts."""
        reactor = Reactor()
        service = NotifyService(
            reactor, status=lambda: text, clock=reactor, environ=self.systemd.environ
        )
        service.startService()
        reactor.run()
        reactor.shutDown()
        *lines, ready = self.systemd.heard()
        self.assertEqual(ready, "READY=1")
        if text.isprintable() and len(text) <= 1000:
            self.assertEqual(lines, [f"STATUS={text}"] if text else [])
        else:
            (line,) = lines
            self.assertTrue(line.startswith("STATUS=") and line.isprintable(), repr(line))
            self.assertLessEqual(len(line.encode()), 4096)

    def test_failure(self) -> None:
        """A status that raises is logged once and does not affect other messages."""
        self.service(status=lambda: str(1 // 0), WATCHDOG_USEC="3000000").startService()
        self.reactor.run()
        self.reactor.pump([0.5] * 4)
        self.assertEqual(self.systemd.heard(), ["READY=1", "WATCHDOG=1", "WATCHDOG=1"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ReloadTests(NotifyCase):
    """Tests for SIGHUP."""

    def setUp(self) -> None:
        super().setUp()
        self.reloads: list[Deferred[None]] = []

    def slowly(self) -> Deferred[None]:
        """Reload for as long as the test needs."""
        self.reloads.append(Deferred())
        return self.reloads[-1]

    def test_withoutHook(self) -> None:
        """Without a reload function, the handler of SIGHUP is unchanged."""
        self.started()
        self.assertEqual(self.handlers, {})

    def test_anything(self) -> None:
        """A reload may return anything, awaitable or not."""
        self.started(reload=lambda: True)
        self.hangUp()
        self.assertEqual(self.systemd.heard()[1:], ["READY=1"])

    def test_outsideSystemd(self) -> None:
        """SIGHUP reloads outside systemd too."""
        self.started(reload=self.slowly, NOTIFY_SOCKET="")
        self.hangUp()
        self.assertEqual(len(self.reloads), 1)
        self.reloads[0].callback(None)
        self.assertEqual(self.systemd.heard(), [])

    def test_inTheReactor(self) -> None:
        """The signal handler leaves all work to the reactor."""
        self.started(reload=self.slowly)
        self.handlers[signal.SIGHUP](signal.SIGHUP, None)
        self.assertEqual((self.reloads, self.systemd.heard()), ([], []))
        self.reactor.turn()
        self.assertEqual(len(self.reloads), 1)

    def test_told(self) -> None:
        """
        RELOADING is sent with the time at which the reload began, and READY with the new status
        after its end.
        """
        poem = ["ecstasy"]
        self.started(status=lambda: f"Serving {poem[-1]}", reload=self.slowly)
        before = time.monotonic_ns() // 1000
        self.hangUp()
        after = time.monotonic_ns() // 1000
        (reloading,) = self.systemd.heard()
        state, _, then = reloading.partition("\nMONOTONIC_USEC=")
        self.assertEqual(state, "RELOADING=1")
        self.assertTrue(before <= int(then) <= after, (before, then, after))
        poem.append("fascination")
        self.reloads[0].callback(None)
        self.assertEqual(self.systemd.heard(), ["STATUS=Serving fascination", "READY=1"])

    def test_coroutine(self) -> None:
        """The reload function may be an C{async def}."""

        async def reload() -> None:
            await self.slowly()

        self.started(reload=reload)
        self.hangUp()
        self.systemd.heard()
        self.reloads[0].callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_failedAtOnce(self) -> None:
        """A reload that raises is logged once, and the program is READY as before."""

        def reload() -> None:
            raise LookupError

        self.started(reload=reload)
        self.hangUp()
        self.assertEqual(self.systemd.heard()[1:], ["READY=1"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_failedLater(self) -> None:
        """A reload that fails later is logged once, and another can follow."""
        self.started(reload=self.slowly)
        for _ in range(2):
            self.hangUp()
            self.reloads.pop().errback(LookupError())
            self.assertEqual(self.systemd.heard()[1:], ["READY=1"])
            self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_oneMore(self) -> None:
        """
        Any number of SIGHUPs during a reload cause one more, which begins when the first has ended.
        """
        self.started(reload=self.slowly)
        for _ in range(4):
            self.hangUp()
        self.assertEqual((len(self.reloads), len(self.systemd.heard())), (1, 1))
        self.reloads[0].callback(None)
        self.assertEqual(len(self.reloads), 2)
        ready, reloading = self.systemd.heard()
        self.assertEqual((ready, reloading.split("=")[0]), ("READY=1", "RELOADING"))
        self.reloads[1].callback(None)
        self.assertEqual((len(self.reloads), self.systemd.heard()), (2, ["READY=1"]))

    def test_stopping(self) -> None:
        """A SIGHUP during a stop has no effect."""
        service = self.started(reload=self.slowly)
        self.stop(service)
        self.hangUp()
        self.assertEqual((self.reloads, self.systemd.heard()), ([], ["STOPPING=1"]))

    def test_stoppedMeanwhile(self) -> None:
        """
        A program whose stop began during a reload sends no READY afterwards, and reloads no more.
        """
        service = self.started(reload=self.slowly)
        self.hangUp()
        self.hangUp()
        self.stop(service)
        self.systemd.heard()
        self.reloads[0].callback(None)
        self.assertEqual((len(self.reloads), self.systemd.heard()), (1, []))


class StopTests(NotifyCase):
    """Tests for the stop."""

    def test_first(self) -> None:
        """STOPPING is sent before any other service begins to stop."""
        heard = []

        class Other(Service):
            def stopService(other) -> None:
                heard.extend(self.systemd.heard())

        services = MultiService()
        Other().setServiceParent(services)
        self.service().setServiceParent(services)
        services.startService()
        self.reactor.run()
        self.systemd.heard()
        self.reactor.shutDown("before")
        self.successResultOf(services.stopService())
        self.assertEqual(heard, ["STOPPING=1"])

    def test_goesOn(self) -> None:
        """While the program drains, its status and its watchdog pings go on."""
        readers = ["1 reader", "2 readers", "3 readers"]
        service = self.started(status=readers.pop, WATCHDOG_USEC="3000000")
        self.stop(service)
        self.systemd.heard()
        self.reactor.advance(1)
        heard = {*self.systemd.heard()} - {EXTENDED}
        self.assertEqual(heard, {"STATUS=2 readers", "WATCHDOG=1"})

    def test_closed(self) -> None:
        """After the shutdown no descriptor of ours is open."""
        before = os.listdir("/proc/self/fd")
        self.stop(self.started())
        during = os.listdir("/proc/self/fd")
        self.reactor.shutDown()
        self.assertEqual(os.listdir("/proc/self/fd"), before)
        self.assertNotEqual(during, before)


class WatchdogTests(NotifyCase):
    """Tests for the watchdog."""

    def pings(self, **environ: str) -> list[str]:
        """@return: the messages of 10 seconds."""
        self.started(**environ)
        self.reactor.pump([0.1] * 101)
        return self.systemd.heard()

    def test_third(self) -> None:
        """The program pings three times in each watchdog interval."""
        self.assertEqual(self.pings(WATCHDOG_USEC="6000000"), ["WATCHDOG=1"] * 5)

    def test_ours(self) -> None:
        """A watchdog for this process is pinged."""
        pings = self.pings(WATCHDOG_USEC="6000000", WATCHDOG_PID=str(os.getpid()))
        self.assertEqual(len(pings), 5)

    def test_others(self) -> None:
        """A watchdog for another process is not pinged."""
        self.assertEqual(self.pings(WATCHDOG_USEC="6000000", WATCHDOG_PID="1"), [])

    def test_nonsense(self) -> None:
        """An invalid interval means no watchdog."""
        for time_ in ("", "0", "-1", "six", "6e6", "9" * 400, "9" * 5000):
            self.assertEqual((time_, self.pings(WATCHDOG_USEC=time_)), (time_, []))


class AliveTests(NotifyCase):
    """Tests for the check before each ping."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: list[object] = []

    def alive(self) -> bool:
        """Answer as the test says."""
        answer: Any = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return bool(answer)

    def pings(self, *answers: object) -> tuple[list[str], list[str]]:
        """@return: the messages to systemd, and the causes in the records."""
        self.answers = list(answers)
        service = NotifyService(
            self.reactor,
            alive=self.alive,
            clock=self.reactor,
            environ={**self.systemd.environ, "WATCHDOG_USEC": "3000000"},
        )
        service.startService()
        self.reactor.run()
        with capturedLogs() as events:
            self.reactor.pump([1] * len(answers))
        service.stopService()
        self.assertEqual({event["message_id"] for event in events} - {NOT_ALIVE}, set())
        heard = [each for each in self.systemd.heard() if each == "WATCHDOG=1"]
        return heard, [event["cause"] for event in events]

    def test_yes(self) -> None:
        """A program whose check returns true is alive."""
        self.assertEqual(self.pings(True, True), (["WATCHDOG=1"] * 2, []))

    def test_no(self) -> None:
        """A program whose check returns false is not alive; repeated answers make one record."""
        self.assertEqual(
            self.pings(True, False, False, False), (["WATCHDOG=1"], ["its check returned false"])
        )

    def test_raises(self) -> None:
        """A program whose check raises is not alive either, and is checked again."""
        heard, causes = self.pings(LookupError("no port"), True)
        self.assertEqual((heard, causes), (["WATCHDOG=1"], ["LookupError: no port"]))

    def test_cancelled(self) -> None:
        """Neither is one whose check is the result of a cancelled task; it is checked again."""
        heard, causes = self.pings(CancelledError("x"), True)
        self.assertEqual((heard, causes), (["WATCHDOG=1"], ["CancelledError: x"]))

    def test_again(self) -> None:
        """A program that was alive again since the last record makes another one."""
        heard, causes = self.pings(False, True, False)
        self.assertEqual((heard, causes), (["WATCHDOG=1"], ["its check returned false"] * 2))

    def test_tooLong(self) -> None:
        """A message that systemd would drop is refused."""
        service = self.started()
        self.systemd.heard()
        long = {f"X_{number}": "x" * 900 for number in range(5)}
        self.assertRaises(ValueError, service.tell, **long)
        self.assertEqual(self.systemd.heard(), [])

    def test_trouble(self) -> None:
        """
        A program that reports trouble is treated like a hanging one by systemd, and a record says
        why.
        """
        service = self.started()
        with capturedLogs() as events:
            service.tellTrouble("the disk is\nfull")
        self.assertEqual([event["message_id"] for event in events], [TROUBLE])
        self.assertEqual(self.systemd.heard(), ["STATUS=the disk is full\nWATCHDOG=trigger"])


class ManagerTests(NotifyCase):
    """Tests for a systemd that does not read, or is missing."""

    def test_full(self) -> None:
        """Messages that do not fit the queue are sent later, completely and in order."""
        self.systemd.fill()
        service = self.service(status=lambda: "Serving", reload=lambda: None)
        service.startService()
        self.reactor.run()
        self.hangUp()
        self.stop(service)
        self.reactor.advance(1)
        self.assertEqual(set(self.systemd.heard()), {"chatter"})
        self.reactor.advance(1)
        heard = [message.split("\n")[0] for message in self.systemd.heard()]
        heard.remove("STATUS=Serving")
        self.assertEqual(heard, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1", EXTENDED])

    def test_nobody(self) -> None:
        """If no process reads the socket, one warning says so and the program goes on."""
        service = self.service(status=lambda: "Serving", NOTIFY_SOCKET="@nobody\n{here}")
        with capturedLogs() as events:
            service.startService()
            self.reactor.run()
            self.reactor.pump([1] * 3)
            self.stop(service)
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn])
        self.assertEqual(events[0]["cause"], "Connection refused")

    def test_impossible(self) -> None:
        """An impossible address makes one warning too, and the program goes on."""
        for address in ("@" * 200, "vsock:2:1", "notify", "/"):
            with capturedLogs() as events:
                self.service(NOTIFY_SOCKET=address).startService()
                self.reactor.run()
            self.assertEqual([event["address"] for event in events], [address])


PROGRAM = """
import os, signal
from twisted.application.service import MultiService, Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from fastpoetry.systemd.notify import NotifyService

def hangUp():
    os.kill(os.getpid(), signal.SIGHUP)

class Draining(Service):
    def stopService(self):
        hangUp()
        return deferLater(reactor, 0, print, "drained")

def reload():
    print("reloaded")
    reactor.callLater(0, reactor.stop)

services = MultiService()
Draining().setServiceParent(services)
NotifyService(reactor, reload=reload).setServiceParent(services)
services.startService()
reactor.addSystemEventTrigger("before", "shutdown", services.stopService)
reactor.callWhenRunning(hangUp)
reactor.run()
"""


STEPPED = """
import time
offset, real = 0.0, time.time
time.time = lambda: real() + offset
from twisted.application.service import MultiService
from twisted.internet import reactor
from fastpoetry.systemd.notify import NotifyService

statuses = 0

def status():
    global offset, statuses
    statuses += 1
    offset += STEP
    if statuses == 2:
        reactor.stop()
    return f"status {statuses}"

NotifyService(reactor, status=status).startService()
reactor.run()
"""


class ProcessTests(NotifyCase):
    """Tests with a real program."""

    def python(self, program: str, **variables: str) -> str:
        """
        @param variables: of its environment.
        @return: the output of a Python program under our systemd, which must exit with 0.
        """
        path = os.pathsep.join(filter(None, sys.path))
        environ = {**os.environ, **self.systemd.environ, "PYTHONPATH": path, **variables}
        command = [sys.executable, "-c", program]
        done = run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_signals(self) -> None:
        """SIGHUP reloads a running program, and has no effect on one that is draining."""
        self.assertEqual(self.python(PROGRAM).split(), ["reloaded", "drained"])
        heard = [message.split("\n")[0] for message in self.systemd.heard()]
        self.assertEqual(heard, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"])

    def test_steppedClock(self) -> None:
        """Pings and statuses go on whenever the wall clock is stepped."""
        for step in ("-86400", "86400"):
            self.python(STEPPED.replace("STEP", step), WATCHDOG_USEC="900000")
            heard = self.systemd.heard()
            self.assertEqual(
                [each for each in heard if each != "WATCHDOG=1"],
                ["STATUS=status 1", "READY=1", "STATUS=status 2"],
            )
            self.assertIn("WATCHDOG=1", heard)

    def test_alone(self) -> None:
        """The module imports no poetry, no store and no reactor."""
        program = "import sys, fastpoetry.systemd.notify; print(*sys.modules)"
        modules = self.python(program).split()
        ours = {module for module in modules if module.split(".")[0] == "fastpoetry"}
        others = {module for module in ours if not module.startswith("fastpoetry.systemd")}
        self.assertEqual(others, {"fastpoetry"})
        self.assertNotIn("fastpoetry.systemd.store", ours)
        self.assertNotIn("twisted.internet.reactor", modules)
