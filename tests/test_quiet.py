"""Tests for L{fastpoetry.delivery.quiet}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.quiet import Quiet


class QuietTests(SynchronousTestCase):
    """Tests for L{Quiet}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.quiet = Quiet(self.clock)

    def test_first(self) -> None:
        """The first record is told, the others are not until 10 s have passed."""
        told = []
        for _ in range(21):
            told.append(self.quiet.takeTurn("full"))
            self.clock.advance(1)
        self.assertEqual([second for second, isTold in enumerate(told) if isTold], [0, 10, 20])

    def test_kinds(self) -> None:
        """Each kind has turns of its own."""
        self.assertTrue(self.quiet.takeTurn("full"))
        self.assertTrue(self.quiet.takeTurn("lingering"))
        self.assertFalse(self.quiet.takeTurn("full"))
