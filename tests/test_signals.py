"""Tests for L{fastpoetry.command.signals}."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from processes import Workplace, fetchFrom, findFreePort, findTwistd, finish, waitUntil
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.command.signals import endOnce, ignoreHangup
from fastpoetry.tap import Options


class SignalCase(SynchronousTestCase):
    """Handlers that are as they were when the test ends."""

    def setHandler(self, number: int, handler: Callable[..., object] | int | None) -> None:
        """Have another handler for now."""
        self.addCleanup(signal.signal, number, signal.signal(number, handler))


class HangupTests(SignalCase):
    """Tests for a SIGHUP that comes before anybody can reload."""

    def test_ignored(self) -> None:
        """It does nothing, from when twistd hands us our options."""
        self.setHandler(signal.SIGHUP, signal.SIG_DFL)
        options = Options()
        options.parent = Options()
        options.parseOptions(["--anthology"])
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    def test_parsedByOthers(self) -> None:
        """Whoever else parses options has the signals left alone."""
        self.setHandler(signal.SIGHUP, signal.SIG_DFL)
        Options().parseOptions(["--anthology"])
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_DFL)

    def test_somebodyElses(self) -> None:
        """A handler that is there stays."""

        def handler(*_: object) -> None:
            raise AssertionError("nobody hangs up")

        self.setHandler(signal.SIGHUP, handler)
        ignoreHangup()
        self.assertIs(signal.getsignal(signal.SIGHUP), handler)


class EndTests(SignalCase):
    """Tests for being told to end."""

    def setUp(self) -> None:
        self.told: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            self.setHandler(number, lambda number, _: self.told.append(number))
        self.reactor = MemoryReactor()
        endOnce(self.reactor)

    def start(self) -> None:
        """Have the reactor run."""
        for call, args, kwargs in self.reactor.whenRunningHooks:
            call(*args, **kwargs)

    def test_once(self) -> None:
        """Whoever says it again, by whichever signal, says it to nobody."""
        self.start()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        self.assertEqual(self.told, [signal.SIGTERM])

    def test_endsAlready(self) -> None:
        """Nor is a program told that ends by itself, for want of readers."""
        self.start()
        for call, args, kwargs in self.reactor.triggers["before"]["shutdown"]:
            call(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(self.told, [])

    def test_atOnce(self) -> None:
        """Told again and again within a moment, a real server ends as if told once."""
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
    """@return: whether a process stands still."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
