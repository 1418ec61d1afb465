"""Tests for L{fastpoetry.delivery.drain}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.drain import Drain


class DrainTests(SynchronousTestCase):
    """Tests for L{Drain}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.did: list[tuple[float, str]] = []

    def begin(self, mostSeconds: float = 20.0) -> Drain:
        """@return: a drain that has begun. The test records each call that the drain makes."""

        def remember(what: str) -> None:
            self.did.append((self.clock.seconds(), what))

        return Drain(
            self.clock,
            mostSeconds,
            lambda: remember("look"),
            lambda: remember("cut short"),
        )

    def when(self, what: str) -> list[float]:
        """@return: the seconds at which it was done."""
        return [round(when, 3) for when, each in self.did if each == what]

    def test_looks(self) -> None:
        """The drain looks at readers at once, and then twenty times a second."""
        self.begin()
        self.clock.pump([0, 0.05])
        self.assertEqual(self.when("look"), [0, 0.05])

    def test_grace(self) -> None:
        """
        After a tenth of a second the drain checks whether the remaining readers can be left to the
        system.
        """
        drain = self.begin()
        self.clock.advance(0.09)
        self.assertFalse(drain.isPastGrace)
        self.clock.advance(0.011)
        self.assertTrue(drain.isPastGrace)
        self.assertIn(0.101, self.when("look"))

    def test_cutsShort(self) -> None:
        """Readers left at the end of the drain time are cut short, once."""
        self.begin(2)
        self.clock.pump([0.05] * 100)
        self.assertEqual(self.when("cut short"), [2])

    def test_noTime(self) -> None:
        """With almost no drain time, readers are left to the system all the same."""
        drain = self.begin(0.05)
        self.clock.pump([0.05] * 4)
        self.assertEqual((drain.isPastGrace, self.when("cut short")), (True, [0.05]))

    def test_end(self) -> None:
        """At its end all callers are told, and no call is pending."""
        drain = self.begin()
        waiters = [drain.whenEnded(), drain.whenEnded()]
        self.clock.advance(0)
        self.assertNoResult(waiters[0])
        drain.end()
        for waiter in waiters:
            self.successResultOf(waiter)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oneWaitsNoLonger(self) -> None:
        """A caller that stops waiting does not end the drain for others."""
        drain = self.begin()
        first, second = drain.whenEnded(), drain.whenEnded()
        first.addErrback(lambda _: None)
        first.cancel()
        self.assertNoResult(second)
        drain.end()
        self.successResultOf(second)

    def test_endsWhileItLooks(self) -> None:
        """
        The drain may end during its own look at readers, which often finds that the last one has
        gone.
        """
        drain = Drain(self.clock, 20, lambda: drain.end(), lambda: None)
        waiter = drain.whenEnded()
        self.clock.advance(0)
        self.successResultOf(waiter)
        self.assertEqual(self.clock.getDelayedCalls(), [])
