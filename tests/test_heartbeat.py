"""Tests for L{fastpoetry.systemd.heartbeat}."""

from __future__ import annotations

from asyncio import CancelledError

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd.heartbeat import repeat


class LoopTests(SynchronousTestCase):
    """Tests for repeated calls."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: list[float] = []

    def call(self) -> None:
        """Record the time."""
        self.calls.append(self.clock.seconds())

    def callAndRaise(self) -> None:
        """Record the time, and raise."""
        self.call()
        raise LookupError

    def test_repeated(self) -> None:
        """A call is repeated, from now on or from a later time."""
        repeat(self.clock, 2, self.call)
        repeat(self.clock, 3, self.call, now=True)
        self.clock.pump([1] * 6)
        self.assertEqual(self.calls, [0, 2, 3, 4, 6, 6])

    def test_raises(self) -> None:
        """A call that raises makes a record each time, and is repeated."""
        repeat(self.clock, 1, self.callAndRaise)
        self.clock.pump([1] * 3)
        self.assertEqual(self.calls, [1, 2, 3])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 3)

    def test_cancelled(self) -> None:
        """Neither does an asyncio task that was cancelled end the calls."""

        def call() -> None:
            self.call()
            raise CancelledError

        repeat(self.clock, 1, call)
        self.clock.pump([1] * 3)
        self.assertEqual(self.calls, [1, 2, 3])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 3)

    def test_stopped(self) -> None:
        """A stopped call leaves the clock empty."""
        repeat(self.clock, 1, self.call).stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
