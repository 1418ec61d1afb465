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
        """@return: whether each port accepts."""
        return [port.reading for port in self.ports]

    def test_close(self) -> None:
        """Closed, it has no port accept, and says so."""
        self.gate.close()
        self.assertEqual((self.gate.isClosed, self.reading()), (True, [False, False]))

    def test_open(self) -> None:
        """Opened, all accept at once, and no timer is left."""
        self.gate.close()
        self.gate.open()
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_byItself(self) -> None:
        """It opens by itself after a quarter of a second, counted from when it was closed last."""
        self.gate.close()
        self.clock.advance(0.2)
        self.gate.open()
        self.gate.close()
        self.clock.advance(0.2)
        self.assertEqual(self.reading(), [False, False])
        self.clock.advance(0.05)
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))

    def test_openAlready(self) -> None:
        """To open what is open does nothing: a port may have reasons of its own to wait."""
        self.gate.open()
        self.assertEqual([port.turns for port in self.ports], [0, 0])

    def test_willOpen(self) -> None:
        """It will open by itself as long as it is closed."""
        self.assertFalse(self.gate.willOpen)
        self.gate.close()
        self.assertTrue(self.gate.willOpen)
        self.clock.advance(0.25)
        self.assertFalse(self.gate.willOpen)

    def test_removed(self) -> None:
        """A port that is removed is left alone."""
        self.gate.remove(self.ports[0])
        self.gate.close()
        self.clock.advance(1)
        self.assertEqual([port.turns for port in self.ports], [0, 2])

    def test_notWatched(self) -> None:
        """A port that the reactor cannot watch is told of; all are tried again in a moment."""
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
        """Where a port cannot accept again for now, all are tried again in a moment."""
        self.gate.close()
        patch = self.patch(self.ports[0], "startReading", lambda: [].pop())
        for _ in range(3):
            self.assertRaises(IndexError, self.clock.advance, 0.25)
        patch.restore()
        self.clock.advance(0.25)
        self.assertEqual((self.gate.isClosed, self.reading()), (False, [True, True]))
        self.assertEqual(self.clock.getDelayedCalls(), [])
