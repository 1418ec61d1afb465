"""Tests for L{fastpoetry.delivery.gate}."""

from __future__ import annotations

import errno
from unittest import mock

from fakes import FakePort
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.gate import Gate


class GateTests(SynchronousTestCase):
    """Tests for L{Gate}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.gate = Gate(self.clock, self.told.append)
        self.ports = [FakePort(), FakePort()]
        for port in self.ports:
            self.gate.add(port)

    def reading(self) -> list[bool]:
        """@return: for each port, whether it accepts."""
        return [port.reading for port in self.ports]

    def test_close(self) -> None:
        """A closed gate pauses every port."""
        self.gate.close()
        self.assertEqual((self.gate.isClosed, self.reading()), (True, [False, False]))

    def test_open(self) -> None:
        """Opening resumes every port at once, and leaves no timer."""
        self.gate.close()
        self.gate.open()
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_byItself(self) -> None:
        """The gate opens by itself a quarter of a second after it was last closed."""
        self.gate.close()
        self.clock.advance(0.2)
        self.gate.open()
        self.gate.close()
        self.clock.advance(0.2)
        self.assertEqual(self.reading(), [False, False])
        self.clock.advance(0.05)
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))

    def test_openAlready(self) -> None:
        """Opening an open gate has no effect: a port may have its own reason to wait."""
        self.gate.open()
        self.assertEqual([port.turns for port in self.ports], [0, 0])

    def test_willOpen(self) -> None:
        """The gate will open by itself as long as it is closed."""
        self.assertFalse(self.gate.willOpen)
        self.gate.close()
        self.assertTrue(self.gate.willOpen)
        self.clock.advance(0.25)
        self.assertFalse(self.gate.willOpen)

    def test_removed(self) -> None:
        """A removed port is left alone."""
        self.gate.remove(self.ports[0])
        self.gate.close()
        self.clock.advance(1)
        self.assertEqual([port.turns for port in self.ports], [0, 2])

    def test_notWatched(self) -> None:
        """A port that the reactor cannot watch is reported; all ports are retried in a moment."""
        self.gate.close()
        for error in (OSError(errno.ENOSPC, "no space"), MemoryError()):
            patch = self.patch(self.ports[1], "startReading", mock.Mock(side_effect=error))
            self.gate.open()
            self.assertTrue(self.gate.isClosed)
            patch.restore()
        self.assertEqual(self.told, ["[Errno 28] no space", "MemoryError"])
        self.clock.advance(0.25)
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cannotAccept(self) -> None:
        """If a port cannot resume accepting, all ports are retried in a moment."""
        self.gate.close()
        patch = self.patch(self.ports[0], "startReading", lambda: [].pop())
        for _ in range(3):
            self.assertRaises(IndexError, self.clock.advance, 0.25)
        patch.restore()
        self.clock.advance(0.25)
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))
        self.assertEqual(self.clock.getDelayedCalls(), [])
