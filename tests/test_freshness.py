"""Tests for L{fastpoetry.proxy.freshness}, by way of the service that keeps to it."""

from __future__ import annotations

from proxies import ProxyCase

from fastpoetry.proxy.freshness import Freshness


class FreshnessTests(ProxyCase):
    """
    Tests for how long a poem will do: 60 s fresh, then 100 s while it is revalidated, and from the
    first on 1000 s in an outage.
    """

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")

    def check(self, at: float, served: bytes | None, attempts: int) -> None:
        """
        Ask at some time, and see what is served and how many attempts were made since the first.
        """
        self.advanceTo(at)
        self.assertEqual((self.served, len(self.upstream.attempts) - 1), (served, attempts))

    def test_fresh(self) -> None:
        """A fresh poem is served, and its upstream is not asked."""
        self.check(0, b"old", 0)
        self.check(59, b"old", 0)

    def test_freshAt(self) -> None:
        """It is known when it was fetched, by the time of day as it is now."""
        self.assertIsNone(self.make().freshAt)
        self.advanceTo(59)
        self.wallOffset = 1e9
        self.assertEqual(self.service.freshAt, 1e9)

    def test_revalidated(self) -> None:
        """A stale one is served while one new one is fetched, which then takes its place."""
        self.check(60, b"old", 1)
        self.check(61, b"old", 1)
        self.give(b"new")
        self.check(62, b"new", 1)
        self.check(120, b"new", 1)
        self.check(121, b"new", 2)

    def test_revalidatedLate(self) -> None:
        """The last moment of that is as good as the first."""
        self.check(159, b"old", 1)

    def test_tooOld(self) -> None:
        """
        One that is older is not served, unless there is no other: readers wait for the new one.
        """
        self.check(160, None, 1)
        waiting = self.wait()
        self.give(b"new")
        self.assertEqual(self.successResultOf(waiting).text, b"new")

    def test_becomesTooOld(self) -> None:
        """It is not served any more when the fetch takes so long that it gets too old meanwhile."""
        self.check(159, b"old", 1)
        self.check(160, None, 1)

    def test_staleIfError(self) -> None:
        """In an outage it is served for as long as an old one may stand in, and then no longer."""
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(60, b"old", 1)
        self.check(1059, b"old", 2)
        self.upstream.refuse()
        self.check(1060, None, 2)

    def test_waitedForAnError(self) -> None:
        """Who waits because it is too old gets it all the same when there is none to be had."""
        self.advanceTo(500)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")

    def test_outageEnds(self) -> None:
        """After an outage the new poem is served, and is as fresh as any."""
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(70, b"old", 2)
        self.give(b"new")
        self.check(129, b"new", 2)
        self.check(130, b"new", 3)

    def test_unchanged(self) -> None:
        """The same poem fetched again is fresh again."""
        self.check(60, b"old", 1)
        self.give(b"old")
        self.check(119, b"old", 1)

    def test_noFreshness(self) -> None:
        """
        Without any freshness who has waited is served all the same: a poem is good for a second.
        """
        self.restart(Freshness(maxAgeSeconds=0, revalidateSeconds=0, errorSeconds=0))
        waiting = self.wait()
        self.give(b"new")
        self.successResultOf(waiting)
        self.assertEqual(self.served, b"new")
        self.reactor.advance(1)
        self.assertIsNone(self.served)
