"""Tests for L{fastpoetry.systemd.signals}."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread

from processes import Workplace, fetchFrom, findFreePort, findTwistd, finish, waitUntil
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd.signals import Handlers, ignoreHangup
from fastpoetry.tap import Options


class SignalCase(SynchronousTestCase):
    """A test case that restores all handlers at its end."""

    def setHandler(self, number: int, handler: Callable[..., object] | int | None) -> None:
        """Set a handler until the test ends."""
        self.addCleanup(signal.signal, number, signal.signal(number, handler))


class HangupTests(SignalCase):
    """Tests for a SIGHUP before the program can reload."""

    def test_ignored(self) -> None:
        """SIGHUP is ignored from when twistd passes us our options."""
        self.setHandler(signal.SIGHUP, signal.SIG_DFL)
        options = Options()
        options.parent = Options()
        options.parseOptions(["--anthology"])
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    def test_parsedByOthers(self) -> None:
        """Options parsed by another program leave the signals unchanged."""
        self.setHandler(signal.SIGHUP, signal.SIG_DFL)
        Options().parseOptions(["--anthology"])
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_DFL)

    def test_somebodyElses(self) -> None:
        """A handler already set stays."""

        def handler(*_: object) -> None:
            raise AssertionError("nobody hangs up")

        self.setHandler(signal.SIGHUP, handler)
        ignoreHangup()
        self.assertIs(signal.getsignal(signal.SIGHUP), handler)


class Reactor:
    """A running reactor that records the signals that stop it."""

    _stopped = False

    def __init__(self) -> None:
        self.told: list[int] = []

    def stop(self, number: int, _frame: object) -> None:
        """Record a signal."""
        self.told.append(number)


class StopTests(SignalCase):
    """Tests for signals that stop the program."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.setHandler(number, self.reactor.stop)
        self.handlers = Handlers(signal.signal)
        self.addCleanup(self.handlers.restore)

    def test_once(self) -> None:
        """A reactor gets only the first of several signals."""
        self.handlers.stopOnce(self.reactor)
        self.assertFalse(self.handlers.hasStopped)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        self.assertEqual(self.reactor.told, [signal.SIGTERM])
        self.assertTrue(self.handlers.hasStopped)

    def test_stopsAlready(self) -> None:
        """A reactor that is already stopping gets no signal."""
        self.handlers.stopOnce(self.reactor)
        self.reactor._stopped = True
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(self.reactor.told, [])
        self.assertFalse(self.handlers.hasStopped)

    def test_somebodyElses(self) -> None:
        """A handler that is not the reactor's gets every signal."""
        told: list[int] = []
        self.setHandler(signal.SIGINT, lambda number, _: told.append(number))
        self.handlers.stopOnce(self.reactor)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(told, [signal.SIGINT] * 2)

    def test_restored(self) -> None:
        """The earlier handlers are restored."""
        self.handlers.stopOnce(self.reactor)
        self.handlers.restore()
        self.assertEqual(signal.getsignal(signal.SIGTERM), self.reactor.stop)

    def test_setSince(self) -> None:
        """A handler that the program has set since then stays."""
        own = Reactor().stop
        self.handlers.set(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGTERM, own)
        self.handlers.restore()
        self.assertEqual(signal.getsignal(signal.SIGTERM), own)

    def test_otherThread(self) -> None:
        """In another thread than the first, handlers stay as they are."""
        self.handlers.set(signal.SIGTERM, lambda *_: None)
        errors: list[BaseException] = []

        def restore() -> None:
            try:
                self.handlers.restore()
            except ValueError as why:
                errors.append(why)

        other = Thread(target=restore)
        other.start()
        other.join()
        self.assertEqual(errors, [])

    def test_atOnce(self) -> None:
        """A real server with several signals in one moment ends as with one."""
        place = Workplace(self)
        port = findFreePort()
        options = ["--nodaemon", "--pidfile=", "fastpoetry", f"--port={port}"]
        process = place.begin(*findTwistd(), *options, "--poem=poetry/ecstasy.txt")
        fetchFrom(process, ("127.0.0.1", port))
        process.send_signal(signal.SIGSTOP)
        waitUntil(lambda: isStopped(process.pid), "the process to stand still")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        status, output, errors = finish(process)
        self.assertIn(status, (-signal.SIGTERM, -signal.SIGINT))
        self.assertEqual(errors, "")
        self.assertNotIn("Traceback", output)


def isStopped(pid: int) -> bool:
    """@return: whether a process is stopped."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
