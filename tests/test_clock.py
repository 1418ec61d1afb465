"""Tests for L{fastpoetry.systemd.clock}, most of them with a wall clock that is stepped."""

from __future__ import annotations

import errno
import heapq
import json
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import run
from typing import Any
from unittest import mock

from fakes import makeFolder
from hypothesis import given
from hypothesis import strategies as st
from processes import Workplace, waitUntil
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.error import TimeoutError as TooLate
from twisted.internet.interfaces import (
    IDelayedCall,
    IHostnameResolver,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.protocol import ClientFactory, Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.systemd import clock as module
from fastpoetry.systemd.clock import MonotonicClock, MonotonicReactor

reactor: Any = _reactor

ROOT = Path(__file__).resolve().parent.parent
DEBIAN_PYTHON = "/usr/bin/python3"

# step() moves the wall clock by so many seconds while Twisted runs. time.time() must be patched
# before Twisted is imported.
STEPPED = """
import json, os, sys, time
offset, real = 0.0, time.time
time.time = lambda: real() + offset
from twisted.internet.{reactor}reactor import install
install()
from twisted.internet import reactor
from fastpoetry.systemd.clock import MonotonicClock
clock = MonotonicClock(reactor)
fired = []
def step(seconds):
    global offset
    offset += seconds
"""

# No timer of the reactor is due before the test's timeout.
BACK = """
def wall():
    fired.append("wall")
def rounds(left):
    fired.append("clock")
    if left:
        clock.callLater(0.01, rounds, left - 1)
    else:
        reactor.stop()
def begin():
    reactor.callLater(0.01, wall)
    clock.callLater(0.02, rounds, 2)
    step(-86400)
reactor.callWhenRunning(begin)
reactor.run()
print(json.dumps(fired))
"""

FORWARD = """
def wall():
    fired.append("wall")
    clock.callLater(0.01, reactor.stop)
def begin():
    reactor.callLater(3600, wall)
    clock.callLater(3600, fired.append, "clock")
    step(86400)
reactor.callWhenRunning(begin)
reactor.run()
print(json.dumps(fired))
"""

TAC = """
from twisted.application.service import Application, Service
from fastpoetry.systemd.clock import MonotonicClock
from twisted.internet import reactor
clock = MonotonicClock(reactor)
clock.callLater(0, lambda: open("before", "w").close())
class Later(Service):
    def startService(self):
        clock.callLater(0.01, lambda: open("after", "w").close())
application = Application("clock")
Later().setServiceParent(application)
"""


def python(program: str, executable: str = sys.executable, **variables: str) -> str:
    """
    Run a Python program to its end.

    @param executable: the Python; another Python has its own modules.
    @param variables: of its environment.
    @return: its output.
    @raise AssertionError: if it fails, or writes to stderr.
    """
    own = filter(None, sys.path) if executable == sys.executable else ()
    path = os.pathsep.join([str(ROOT), *own])
    done = run(
        [executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode or done.stderr:
        raise AssertionError(done)
    return done.stdout


class Kernel:
    """A reactor in memory whose clock is CLOCK_MONOTONIC too, and which reads timers."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.memory = MemoryReactorClock()
        self.now = 1000.0
        self.set: dict[int, float] = {}
        self.timesSet = 0
        self.closed: list[int] = []
        self.refuses = False
        case.patch(module, "_create", self._create)
        case.patch(module, "_set", self._set)
        case.patch(os, "close", self.closed.append)
        case.patch(time, "monotonic", lambda: self.now)

    def _create(self) -> int:
        if self.refuses:
            raise OSError
        return 1000 + len(self.closed)

    def _set(self, number: int, nanoseconds: int) -> None:
        self.timesSet += 1
        self.set[number] = self.now + nanoseconds / 1e9

    def pass_(self, seconds: float) -> None:
        """Let time pass, and let the reactor read the timers that are due."""
        self.now += seconds
        for reader in list(self.memory.readers):
            due = self.set.get(reader.fileno())
            if due is not None and due <= self.now:  # stays readable until it is set again
                reader.doRead()


class CallTests(SynchronousTestCase):
    """Tests for calls, with fake time and timers."""

    def setUp(self) -> None:
        self.kernel = Kernel(self)
        self.clock = MonotonicClock(self.kernel.memory)
        self.called: list[Any] = []

    def later(self, seconds: float, name: Any = None) -> Any:
        """Add a name to C{called}, later."""
        return self.clock.callLater(seconds, self.called.append, name)

    def isClean(self) -> bool:
        """Whether the reactor is empty."""
        memory = self.kernel.memory
        return not memory.readers and not memory.getDelayedCalls()

    def test_interfaces(self) -> None:
        """
        The clock, its calls and its reader provide the interfaces of a clock, of delayed calls and
        of a reader.
        """
        verifyObject(IReactorTime, self.clock)
        verifyObject(IDelayedCall, self.later(1))
        (reader,) = self.kernel.memory.readers
        verifyObject(IReadDescriptor, reader)

    def test_order(self) -> None:
        """Calls are made when due; calls of one time in the order in which they were scheduled."""
        for seconds, name in ((2, "c"), (1, "a"), (1, "b"), (3, "d")):
            self.later(seconds, name)
        seen = []
        for _ in range(6):
            self.kernel.pass_(0.5)
            seen.append("".join(self.called))
        self.assertEqual(seen, ["", "ab", "ab", "abc", "abc", "abcd"])

    def test_arguments(self) -> None:
        """All arguments are passed on."""
        self.clock.callLater(1, lambda *args, **kw: self.called.append((args, kw)), 1, f=2)
        self.kernel.pass_(1)
        self.assertEqual(self.called, [((1,), {"f": 2})])

    def test_atOnce(self) -> None:
        """A call without delay waits for the next turn, even if another call schedules it."""
        self.clock.callLater(0, self.later, 0, "inner")
        self.assertEqual(self.called, [])
        self.kernel.pass_(0.001)
        self.assertEqual(self.called, [])
        self.kernel.pass_(0.001)
        self.assertEqual(self.called, ["inner"])

    def test_again(self) -> None:
        """Calls due at each turn of the reactor set the kernel's timer only once."""

        def again(left: int) -> None:
            self.called.append(left)
            if left:
                self.clock.callLater(0, again, left - 1)

        again(3)
        for _ in range(5):
            self.kernel.pass_(0.001)
        self.assertEqual((self.called, self.kernel.timesSet), ([3, 2, 1, 0], 1))
        self.assertTrue(self.isClean())

    def test_cancel(self) -> None:
        """A cancelled call is not made; the others are."""
        calls = [self.later(1, name) for name in "abc"]
        calls[0].cancel()
        self.kernel.pass_(1)
        self.assertEqual(self.called, ["b", "c"])
        self.assertRaises(AlreadyCancelled, calls[0].cancel)
        self.assertRaises(AlreadyCalled, calls[1].cancel)

    def test_moved(self) -> None:
        """A call that was moved repeatedly is made once, at its last time."""
        call = self.later(5)
        call.reset(2)
        call.delay(4)
        call.reset(1)
        call.delay(2)
        self.assertEqual(call.getTime(), self.kernel.now + 3)
        self.kernel.pass_(2.5)
        self.assertEqual((self.called, call.active()), ([], True))
        self.kernel.pass_(0.5)
        self.assertEqual((self.called, call.active()), ([None], False))
        self.kernel.pass_(10)
        self.assertEqual(self.called, [None])

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 9), st.sampled_from(["cancel", "reset", "delay"]), st.integers(-5, 9)
            )
        )
    )
    def test_asTwisted(self, changes: list[tuple[int, str, int]]) -> None:
        """
        Whatever is done to calls, they are made in the order and at the times of Twisted's clock.
        """
        self.kernel.memory = MemoryReactorClock()
        ours, theirs = MonotonicClock(self.kernel.memory), Clock()
        made: tuple[list[int], list[int]] = ([], [])
        pairs = [
            (ours.callLater(n, made[0].append, n), theirs.callLater(n, made[1].append, n))
            for n in range(10)
        ]
        for number, change, seconds in changes:
            for call in pairs[number]:
                if call.active():
                    getattr(call, change)(*([] if change == "cancel" else [seconds]))
        for _ in range(30):
            self.kernel.pass_(1)
            theirs.advance(1)
            self.assertEqual(sorted(made[0]), sorted(made[1]))

    def test_pending(self) -> None:
        """Pending calls can be listed."""
        first, second, third = (self.later(1) for _ in range(3))
        first.cancel()
        self.assertEqual(set(self.clock.getDelayedCalls()), {second, third})
        self.kernel.pass_(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_noDelay(self) -> None:
        """An invalid delay is refused, as are a time in the past and an invalid time."""
        for delay in (-1, float("nan")):
            self.assertRaises(ValueError, self.clock.callLater, delay, self.fail)
        self.assertTrue(self.isClean())

    def test_never(self) -> None:
        """An infinite delay is accepted."""
        self.later(float("inf"))
        self.kernel.pass_(1e9)
        self.assertEqual(self.called, [])

    def test_failure(self) -> None:
        """Any exception of a call, an exit included, is logged, and the next call is made."""
        for error in (ValueError, SystemExit, KeyboardInterrupt):
            self.clock.callLater(1, self.raiser(error))
        self.later(1)
        self.kernel.pass_(1)
        self.assertEqual(self.called, [None])
        self.assertEqual(len(self.flushLoggedErrors()), 3)

    def raiser(self, error: type[BaseException]) -> Callable[[], None]:
        """@return: a function that raises the exception."""

        def fail() -> None:
            raise error

        return fail

    def test_clean(self) -> None:
        """With no call pending the reactor is empty, and each descriptor was closed once."""
        self.later(1)
        self.kernel.pass_(1)
        self.assertEqual((self.isClean(), self.kernel.closed), (True, [1000]))
        self.later(1).cancel()
        self.assertEqual((self.isClean(), self.kernel.closed), (True, [1000, 1001]))

    def test_lastCall(self) -> None:
        """
        When the last call is made, the reactor is already empty: the call may end a trial test.
        """
        self.clock.callLater(1, lambda: self.called.append(self.isClean()))
        self.kernel.pass_(1)
        self.assertEqual(self.called, [True])

    def test_cancelled(self) -> None:
        """Cancelled calls do not accumulate: a server cancels a deadline for each reader."""
        for _ in range(100):
            self.later(1)
        most = 0
        with mock.patch.object(module, "heapify", wraps=heapq.heapify) as clean:
            for _ in range(10_000):
                self.later(2).cancel()
                most = max(most, len(self.clock._heap))
        self.assertLess(most, 300)
        self.assertLess(clean.call_count, 200)  # each run looks at all calls
        self.kernel.pass_(1)
        self.assertEqual((self.called, self.isClean()), ([None] * 100, True))

    def test_noTimer(self) -> None:
        """With no descriptor left, the reactor's clock makes the calls until there is one again."""
        self.kernel.refuses = True
        self.later(0.5, "a")
        self.later(3, "b")
        self.kernel.now += 1
        self.kernel.memory.advance(1)
        self.assertEqual((self.called, self.kernel.memory.readers), (["a"], set()))
        self.kernel.refuses = False
        self.kernel.now += 1
        self.kernel.memory.advance(1)
        self.kernel.pass_(1)
        self.assertEqual((self.called, self.isClean()), (["a", "b"], True))

    def test_notWatched(self) -> None:
        """
        While the reactor cannot watch the timer, or the timer is not set, the reactor's clock makes
        the calls.
        """
        for owner, name in ((self.kernel.memory, "addReader"), (module, "_set")):
            for error in (OSError(errno.ENOSPC, ""), MemoryError()):
                patch = self.patch(owner, name, mock.Mock(side_effect=error))
                self.later(0.5, name)
                self.later(3, "later")
                self.kernel.now += 1
                self.kernel.memory.advance(1)
                self.assertEqual(self.called, [name])
                patch.restore()
                self.kernel.now += 1
                self.kernel.memory.advance(1)
                self.kernel.pass_(1)
                self.assertEqual((self.called, self.isClean()), ([name, "later"], True))
                self.called.clear()

    def test_timerLost(self) -> None:
        """After an error in reading the timer, pending calls are made all the same."""
        self.later(3, "a")
        (reader,) = self.kernel.memory.readers
        self.kernel.memory.readers.clear()
        reader.connectionLost(Failure(MemoryError()))
        self.kernel.now += 3
        self.kernel.memory.advance(1)
        self.assertEqual((self.called, self.isClean()), (["a"], True))

    def test_notLogged(self) -> None:
        """An error that cannot even be logged does not keep other calls from being made."""
        with mock.patch("fastpoetry.systemd.clock.log.err", side_effect=MemoryError):
            self.clock.callLater(1, self.raiser(ValueError))
            self.later(2, "a")
            self.assertRaises(MemoryError, self.kernel.pass_, 1)
        self.kernel.pass_(1)
        self.assertEqual((self.called, self.isClean()), (["a"], True))

    def test_neverTimer(self) -> None:
        """Without a timer descriptor, a cancelled call leaves the reactor empty too."""
        self.kernel.refuses = True
        self.later(3).cancel()
        self.assertTrue(self.isClean())

    def test_shutdown(self) -> None:
        """
        When the reactor removes everything, the descriptor is closed; a later call opens another.
        """
        self.later(1, "a")
        (reader,) = self.kernel.memory.readers
        self.kernel.memory.readers.clear()
        reader.connectionLost(None)
        self.assertEqual((self.kernel.closed, reader.fileno()), ([1000], -1))
        reader.connectionLost(None)
        self.later(1, "b")
        self.kernel.pass_(1)
        self.assertEqual((self.called, self.kernel.closed), (["a", "b"], [1000, 1001]))


class RealTests(TestCase):
    """Tests with trial's own reactor, which must be clean after each test."""

    def test_called(self) -> Deferred[None]:
        """A call is made after its delay at the earliest, and by the kernel's timer alone."""
        clock = MonotonicClock(reactor)
        made: Deferred[None] = Deferred()
        before, others = clock.seconds(), reactor.getDelayedCalls()
        clock.callLater(0.01, made.callback, None)
        self.assertEqual(reactor.getDelayedCalls(), others)
        return made.addCallback(lambda _: self.assertGreaterEqual(clock.seconds(), before + 0.01))

    def test_cancelled(self) -> None:
        """A cancelled call leaves no descriptor open."""
        before = os.listdir("/proc/self/fd")
        call = MonotonicClock(reactor).callLater(1, self.fail)
        during = os.listdir("/proc/self/fd")
        call.cancel()
        self.assertNotEqual(during, before)
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_noDescriptor(self) -> Deferred[None]:
        """A process without free descriptors makes its calls."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        made: Deferred[None] = Deferred()
        clock = MonotonicClock(reactor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            clock.callLater(0.01, made.callback, None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return made

    def test_noDescriptorInherited(self) -> None:
        """No child process inherits the timer."""
        call = MonotonicClock(reactor).callLater(1, self.fail)
        self.addCleanup(call.cancel)
        (timer,) = (
            int(name)
            for name in os.listdir("/proc/self/fd")
            if "timerfd" in os.path.realpath(f"/proc/self/fd/{name}")
        )
        self.assertFalse(os.get_inheritable(timer))


class StepTests(SynchronousTestCase):
    """Tests for a wall clock that is stepped, in a process of its own, on each reactor."""

    def fired(self, name: str, program: str, executable: str = sys.executable) -> list[str]:
        """@return: the timers that fired in a program."""
        printed = python(STEPPED.format(reactor=name) + program, executable)
        names: list[str] = json.loads(printed)
        return names

    def check(self, name: str, executable: str = sys.executable) -> None:
        """@raise AssertionError: if a timer stood still, or fired at the wrong time."""
        self.assertEqual(self.fired(name, BACK, executable), ["clock"] * 3)
        self.assertEqual(self.fired(name, FORWARD, executable), ["wall"])

    def test_select(self) -> None:
        """With C{select}, timers go on while the reactor's own stand still or fire at once."""
        self.check("select")

    def test_poll(self) -> None:
        """With C{poll}, timers go on."""
        self.check("poll")

    def test_epoll(self) -> None:
        """With C{epoll}, timers go on."""
        self.check("epoll")

    def test_gi(self) -> None:
        """
        With GLib's main loop, timers go on. Pip cannot install it, so this uses Debian's Python.
        """
        executable = sys.executable if find_spec("gi") else DEBIAN_PYTHON
        probe = [executable, "-c", "import gi, twisted"]
        if not shutil.which(executable) or run(probe, capture_output=True).returncode:
            raise SkipTest("no PyGObject beside Twisted; Debian has it in python3-gi")
        self.check("gi", executable)

    def test_asyncio(self) -> None:
        """With asyncio, whose own timers ignore steps too, timers go on."""
        program = BACK.replace("reactor.callLater(0.01, wall)", "")
        self.assertEqual(self.fired("asyncio", program), ["clock"] * 3)

    def test_libfaketime(self) -> None:
        """With a wall clock that libfaketime steps, timers go on."""
        if shutil.which("faketime") is None:
            raise SkipTest("no faketime; Debian has it in a package of that name")
        preload = run(
            ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True
        ).stdout.strip()
        path = Path(makeFolder(self), "offset")
        path.write_text("+0\n")
        program = f"""
def step(seconds):
    with open({str(path)!r}, "w") as file:
        file.write("%+d\\n" % seconds)
"""
        printed = python(
            STEPPED.format(reactor="epoll") + program + BACK,
            LD_PRELOAD=preload,
            FAKETIME_TIMESTAMP_FILE=str(path),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
        )
        self.assertEqual(json.loads(printed), ["clock"] * 3)


class ForkTests(SynchronousTestCase):
    """Tests for twistd, which forks between making a program and starting it."""

    def test_daemon(self) -> None:
        """The daemon makes the calls from before the fork and those from after it."""
        place = Workplace(self)
        (place.folder / "clock.tac").write_text(TAC)
        place.daemon("--logfile=twistd.log", "--python=clock.tac")
        for name in ("before", "after"):
            waitUntil((place.folder / name).exists, f"the call {name} the fork")
        self.assertNotIn("Traceback", place.log)


@implementer(IHostnameResolver)
class Resolver:
    """A resolver with two addresses for every name."""

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: object) -> Any:
        """Return both addresses at once."""
        receiver.resolutionBegan(None)
        for host in ("127.0.0.1", "127.0.0.2"):
            receiver.addressResolved(IPv4Address("TCP", host, portNumber))
        receiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class Memory(MemoryReactorClock):
    """A reactor in memory with a resolver."""

    nameResolver: Any = None

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """Use that resolver from now on."""
        before: IHostnameResolver = self.nameResolver
        self.nameResolver = resolver
        return before


class ReactorTests(SynchronousTestCase):
    """Tests for a reactor with another clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = Memory()
        self.both: Any = MonotonicReactor(self.memory, self.clock)

    def test_clock(self) -> None:
        """The reactor's clock is the other one."""
        verifyObject(IReactorTime, self.both)
        self.clock.advance(7)
        call = self.both.callLater(1, self.fail)
        self.assertEqual((self.both.seconds(), self.both.getDelayedCalls()), (7, [call]))
        self.assertEqual(self.memory.getDelayedCalls(), [])

    def test_rest(self) -> None:
        """Everything else is the reactor's, and it provides the reactor's interfaces."""
        self.assertTrue(IReactorTCP.providedBy(self.both))
        self.both.listenTCP(17, None)
        self.assertEqual(self.memory.tcpServers[0][0], 17)
        self.assertRaises(AttributeError, lambda: self.both.nosuch)
        self.assertTrue(IReactorPluggableNameResolver.providedBy(self.both))

    def test_timeout(self) -> None:
        """A connection attempt times out by the other clock, whatever the reactor's own."""
        both: Any = MonotonicReactor(reactor, self.clock)
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            waiting = [socket.socket() for _ in range(3)]
            for each in waiting:
                self.addCleanup(each.close)
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            failures: list[Failure] = []
            factory = ClientFactory()
            self.patch(factory, "clientConnectionFailed", lambda _, why: failures.append(why))
            both.connectTCP(*full.getsockname(), factory, timeout=3)
            self.clock.advance(0)
            self.clock.advance(2)
            self.assertEqual(failures, [])
            self.clock.advance(1)
            self.assertEqual([why.type for why in failures], [TooLate])
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_hostname(self) -> None:
        """The second address of a name is tried when the other clock has advanced."""
        self.memory.installNameResolver(Resolver())
        connecting = HostnameEndpoint(self.both, "poems.example", 17, attemptDelay=1).connect(
            Factory()
        )
        self.memory.advance(60)
        tried = [client[0] for client in self.memory.tcpClients]
        self.clock.advance(1)
        self.assertEqual((tried, len(self.memory.tcpClients)), (["127.0.0.1"], 2))
        connecting.cancel()
        self.failureResultOf(connecting)
