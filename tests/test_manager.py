"""Tests for L{fastpoetry.systemd.manager}, with a small systemd in a thread."""

from __future__ import annotations

import errno
import os

from test_store import Systemd
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fastpoetry.systemd.manager import Manager, ManagerError
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.systemd.steps import drive, driveNow


def raiseOSError(number: int) -> None:
    """Fail as a call of the system does."""
    raise OSError(number, os.strerror(number))


class TellTests(SynchronousTestCase):
    """Tests for messages that wait for systemd."""

    def setUp(self) -> None:
        self.before = set(os.listdir("/proc/self/fd"))
        self.systemd = Systemd(self, 0)
        self.manager = Manager(self.systemd.environ["NOTIFY_SOCKET"])
        self.addCleanup(self.manager.close)

    def test_afterDeclared(self) -> None:
        """Messages that did not fit the queue are read before a later one, in order."""
        declared = [f"ERRNO={n}" for n in range(2000)]
        for each in declared:
            self.manager.declare(each)
        self.systemd.start()
        driveNow(self.manager.tell([("X_LAST=1", ())]), 30)
        self.assertEqual(self.systemd.messages, [*declared, "X_LAST=1"])

    def test_late(self) -> None:
        """If systemd does not read, the manager raises an error and leaves no descriptor."""
        before = set(os.listdir("/proc/self/fd"))
        why = self.assertRaises(ManagerError, driveNow, self.manager.tell(), 0)
        self.assertEqual(str(why), "systemd has not read its messages for 0 s")
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)

    def test_noMemory(self) -> None:
        """
        If the reactor cannot watch a descriptor, the error comes at once, and the reactor stays
        empty.
        """

        class Reactor:
            def addReader(self, _reader: object) -> None:
                raise MemoryError

        before = set(os.listdir("/proc/self/fd"))
        clock = Clock()
        waiting = drive(self.manager.tell(), 5, Reactor(), clock)
        self.failureResultOf(waiting, MemoryError)
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)

    def test_closed(self) -> None:
        """A manager that is closed while a caller waits for room leaves the reactor empty."""
        for n in range(2000):
            self.manager.declare(f"ERRNO={n}")
        clock = Clock()
        waiting = drive(self.manager.tell(), 5, reactor, clock)
        self.manager.close()
        clock.advance(5)
        self.failureResultOf(waiting, ManagerError)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_shortOfMemory(self) -> None:
        """A message that must arrive is sent later if memory is short."""
        self.systemd.start()
        send = self.manager._send
        self.patch(self.manager, "_send", lambda *_: raiseOSError(errno.ENOBUFS))
        self.manager.declare("READY=1")
        self.patch(self.manager, "_send", send)
        driveNow(self.manager.tell(), 30)
        self.assertEqual(self.systemd.messages, ["READY=1"])

    def test_nobody(self) -> None:
        """Without systemd each wait fails, and an offer makes one record."""
        for address in ("", "@nobody", "/nonexistent", "vsock:2:1"):
            manager = Manager(address)
            self.addCleanup(manager.close)
            self.assertRaises(ManagerError, driveNow, manager.tell(), 5)
            with capturedLogs() as events:
                self.assertTrue(manager.offer("STATUS=1") and manager.offer("STATUS=2"))
            self.assertEqual(len(events), 1)


class SettleTests(TestCase):
    """Tests for L{NotifyService.settle}."""

    def test_told(self) -> Deferred[None]:
        """The Deferred fires when systemd has read the messages."""
        systemd = Systemd(self, 1)
        systemd.start()
        service = NotifyService(reactor, environ=systemd.environ)
        service.startService()
        self.addCleanup(service.stopService)
        service.tell(ERRNO=2)
        settled = service.settle()
        return settled.addCallback(lambda _: self.assertIn("ERRNO=2", systemd.messages))

    def test_nobody(self) -> None:
        """Outside systemd, settling fails with the manager's own error."""
        self.failureResultOf(NotifyService(reactor, environ={}).settle(), ManagerError)
