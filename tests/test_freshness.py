"""Tests for L{fastpoetry.proxy.freshness}, through the service that uses it."""

from __future__ import annotations

from proxies import ProxyCase

from fastpoetry.proxy.freshness import Freshness


class FreshnessTests(ProxyCase):
    """
    Tests for a poem's freshness: fresh for 60 s, then served for 100 s while it is revalidated, and
    from the start for 1000 s in an outage.
    """

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")

    def check(self, at: float, served: bytes | None, attempts: int) -> None:
        """
        Ask at that time, and return what is served and how many attempts were made since the first.
        """
        self.advanceTo(at)
        self.assertEqual((self.served, len(self.upstream.attempts) - 1), (served, attempts))

    def test_fresh(self) -> None:
        """A fresh poem is served without asking its upstream."""
        self.check(0, b"old", 0)
        self.check(59, b"old", 0)

    def test_freshAt(self) -> None:
        """The time of a fetch is computed from the present wall clock."""
        self.assertIsNone(self.make().freshAt)
        self.advanceTo(59)
        self.wallOffset = 1e9
        self.assertEqual(self.service.freshAt, 1e9)

    def test_revalidated(self) -> None:
        """A stale poem is served while one fetch runs; then the new poem replaces it."""
        self.check(60, b"old", 1)
        self.check(61, b"old", 1)
        self.give(b"new")
        self.check(62, b"new", 1)
        self.check(120, b"new", 1)
        self.check(121, b"new", 2)

    def test_revalidatedLate(self) -> None:
        """In the last moment of revalidation, the old poem is still served."""
        self.check(159, b"old", 1)

    def test_tooOld(self) -> None:
        """An older poem is served only if there is no other: readers wait for the new one."""
        self.check(160, None, 1)
        waiting = self.wait()
        self.give(b"new")
        self.assertEqual(self.successResultOf(waiting).text, b"new")

    def test_becomesTooOld(self) -> None:
        """A poem that becomes too old during a fetch is no longer served."""
        self.check(159, b"old", 1)
        self.check(160, None, 1)

    def test_staleIfError(self) -> None:
        """In an outage a poem is served for its stale-if-error time, and no longer."""
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(60, b"old", 1)
        self.check(1059, b"old", 2)
        self.upstream.refuse()
        self.check(1060, None, 2)

    def test_waitedForAnError(self) -> None:
        """Readers that wait because the poem is too old get it all the same if the fetch fails."""
        self.advanceTo(500)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")

    def test_outageEnds(self) -> None:
        """After an outage the new poem is served, and is fresh."""
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(70, b"old", 2)
        self.give(b"new")
        self.check(129, b"new", 2)
        self.check(130, b"new", 3)

    def test_unchanged(self) -> None:
        """An unchanged poem is fresh again after a fetch."""
        self.check(60, b"old", 1)
        self.give(b"old")
        self.check(119, b"old", 1)

    def test_noFreshness(self) -> None:
        """
        Without any freshness, waiting readers are served all the same: a poem is good for a second.
        """
        self.restart(Freshness(maxAgeSeconds=0, revalidateSeconds=0, errorSeconds=0))
        waiting = self.wait()
        self.give(b"new")
        self.successResultOf(waiting)
        self.assertEqual(self.served, b"new")
        self.reactor.advance(1)
        self.assertIsNone(self.served)
