"""
Tests for L{fastpoetry.proxy.service}: waiting readers, reloads, the stop, and random sequences of
events.
"""

from __future__ import annotations

from hashlib import sha256
from unittest import mock

from fakes import records, said
from hypothesis import given
from hypothesis import strategies as st
from messages import FETCHED
from proxies import UPSTREAM, FakeUpstream, ProxyCase
from twisted.application.service import IService
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from fastpoetry.poem import Poem
from fastpoetry.proxy.fetch import UpstreamError


class FetchTests(ProxyCase):
    """Tests for one fetch and the readers that wait for it."""

    def test_interfaces(self) -> None:
        """The proxy is a service, and the upstream of these tests is an endpoint."""
        verifyObject(IService, self.service)
        verifyObject(IStreamClientEndpoint, self.upstream)

    def test_nobody(self) -> None:
        """Without a reader the poem is not fetched."""
        self.reactor.advance(10_000)
        self.assertEqual(self.upstream.attempts, [])

    def test_whole(self) -> None:
        """
        The bytes received, in any number of pieces, are the poem once the upstream has closed
        cleanly, and not before.
        """
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"Where, like ")
        self.upstream.send(b"a pillow")
        self.assertNoResult(waiting)
        self.assertIsNone(self.served)
        self.upstream.close()
        self.threads.work()
        self.assertEqual(self.successResultOf(waiting).text, b"Where, like a pillow")
        self.assertEqual(self.served, b"Where, like a pillow")

    @given(st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=10))
    def test_exact(self, pieces: list[bytes]) -> None:
        """Any bytes are served unchanged."""
        self.restart()
        waiting = self.wait()
        self.give(*pieces)
        self.assertEqual(self.successResultOf(waiting).text, b"".join(pieces))

    def test_digest(self) -> None:
        """The poem knows its SHA-256, whatever the number of pieces."""
        waiting = self.wait()
        self.give(b"a ", b"poem")
        self.assertEqual(self.successResultOf(waiting).digest, sha256(b"a poem").hexdigest())

    def test_cancelledMeanwhile(self) -> None:
        """
        A reader that leaves while another one gets the poem is not an error, and gets no poem.
        """
        one, other = self.wait(), self.wait()
        one.addCallback(lambda _: other.cancel())
        self.give(b"a poem")
        self.failureResultOf(other, CancelledError)
        self.assertEqual(self.served, b"a poem")

    def test_unforeseen(self) -> None:
        """Whatever error keeps one poem from being stored, the next fetch brings another."""
        keeper = mock.Mock(save=mock.Mock(side_effect=MemoryError), load=lambda: succeed(None))
        self.restart(keeper=keeper)
        self.fetch()
        keeper.save = mock.Mock()
        keeper.finish = lambda: None
        self.reactor.advance(2)
        self.fetch(b"another")
        self.assertEqual(self.served, b"another")

    def test_coalesced(self) -> None:
        """One fetch serves all waiting readers, and each gets its result."""
        waiting = [self.wait() for _ in range(1000)]
        self.give(b"a poem")
        self.assertEqual({self.successResultOf(each).text for each in waiting}, {b"a poem"})
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_atOnce(self) -> None:
        """A reader that comes when there is a poem does not wait."""
        self.fetch()
        self.assertEqual(self.successResultOf(self.wait()).text, b"a poem")

    def test_leaves(self) -> None:
        """
        A reader that leaves, even the first one, ends neither the fetch nor the wait of others.
        """
        first, second = self.wait(), self.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(second).text, b"a poem")

    def test_allLeave(self) -> None:
        """When all readers have left, the fetch goes on and its poem serves the next reader."""
        self.ask()
        self.give(b"a poem")
        self.assertEqual(self.served, b"a poem")

    def test_comesBetween(self) -> None:
        """A reader that is called back and asks again gets the same poem, without another fetch."""
        again: list[Deferred[Poem]] = []
        self.wait().addCallback(lambda _: again.append(self.wait()))
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(again[0]).text, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_record(self) -> None:
        """One record names the poem fetched and its upstream."""
        with capturedLogs() as events:
            self.fetch()
        poem = self.service.poem
        assert poem is not None
        self.assertEqual(
            records(events),
            [
                {
                    "text": f"fetched 6 bytes of poetry from {UPSTREAM}",
                    "level": "info",
                    "bytes": 6,
                    "upstream": UPSTREAM,
                    "digest": poem.digest,
                    "message_id": FETCHED,
                }
            ],
        )

    def test_description(self) -> None:
        """The description says in plain words what poem it has."""
        self.assertEqual(self.service.description, f"{UPSTREAM} (not fetched yet)")
        self.fetch()
        self.assertEqual(self.service.description, f"{UPSTREAM} (6 bytes)")


class ReloadTests(ProxyCase):
    """Tests for the reload."""

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")
        self.upstream.attempts.clear()

    def test_anew(self) -> None:
        """
        A reload fetches even a fresh poem anew; the old poem is served until the new one is whole.
        """
        reloaded = self.service.reload()
        self.assertEqual(self.upstream.attempts, [0])
        self.assertEqual(self.served, b"old")
        self.assertNoResult(reloaded)
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")
        self.assertEqual(self.upstream.attempts, [0])

    def test_fails(self) -> None:
        """
        If its fetch fails, a reload fails with the cause. The old poem stays, and another attempt
        follows.
        """
        reloaded = self.service.reload()
        self.upstream.refuse()
        why = self.failureResultOf(reloaded, UpstreamError)
        self.assertEqual(why.getErrorMessage(), "upstream refused")
        self.assertEqual(self.served, b"old")
        self.reactor.advance(2)
        self.assertEqual(self.served, b"old")
        self.assertEqual(len(self.upstream.attempts), 2)
        self.give(b"new")
        self.assertEqual(self.served, b"new")

    def test_duringAFetch(self) -> None:
        """
        A fetch that began before the reload may bring an older poem, so another fetch follows.
        """
        self.reactor.advance(60)
        self.assertEqual(self.served, b"old")
        reloaded = self.service.reload()
        self.assertEqual(len(self.upstream.attempts), 1)
        self.give(b"middle")
        self.assertNoResult(reloaded)
        self.assertEqual(self.served, b"middle")
        self.assertEqual(len(self.upstream.attempts), 2)
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")

    def test_inAnOutage(self) -> None:
        """
        In an outage a reload does not wait for the next scheduled attempt, only for a second after
        the last.
        """
        for _ in range(8):
            reloaded = self.service.reload()
            self.upstream.refuse()
            self.failureResultOf(reloaded, UpstreamError)
            self.reactor.advance(1)
        reloaded = self.service.reload()
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.upstream.attempts, list(range(9)))

    def test_notTwiceASecond(self) -> None:
        """Reloads in quick succession try a failing upstream no more often than once a second."""
        reloaded = self.service.reload()
        self.upstream.refuse()
        self.failureResultOf(reloaded, UpstreamError)
        again = [self.service.reload() for _ in range(10)]
        self.assertEqual(self.upstream.attempts, [0])
        self.reactor.advance(1)
        self.assertEqual(self.upstream.attempts, [0, 1])
        self.give(b"new")
        for each in again:
            self.successResultOf(each)

    def test_cold(self) -> None:
        """Before the first poem a reload fetches it."""
        self.restart()
        reloaded = self.service.reload()
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")


class StopTests(ProxyCase):
    """Tests for the stop."""

    def test_connecting(self) -> None:
        """A stop cancels a connection attempt, and makes no record of an outage."""
        self.ask()
        with capturedLogs() as events:
            self.service.stopService()
        self.assertFalse(self.upstream.isBusy)
        self.assertEqual(said(events), [])

    def test_fetching(self) -> None:
        """A stop cancels a fetch."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a")
        self.service.stopService()
        self.assertTrue(self.upstream.isAborted)

    def test_waiting(self) -> None:
        """A stop ends the wait of readers."""
        waiting = self.wait()
        self.service.stopService()
        self.failureResultOf(waiting, CancelledError)

    def test_reloading(self) -> None:
        """A stop ends a reload."""
        reloaded = self.service.reload()
        self.service.stopService()
        self.successResultOf(reloaded)

    def test_reloadingLater(self) -> None:
        """A stop ends a reload that waits for the next attempt."""
        first = self.service.reload()
        self.upstream.refuse()
        self.failureResultOf(first, UpstreamError)
        second = self.service.reload()
        self.service.stopService()
        self.successResultOf(second)

    def test_afterwards(self) -> None:
        """After a stop a reader gets the present poem, and no fetch begins."""
        self.fetch()
        self.service.stopService()
        self.reactor.advance(100)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_cold(self) -> None:
        """After a stop no fetch begins even without a poem."""
        self.service.stopService()
        self.assertIsNone(self.served)
        self.assertEqual(self.upstream.attempts, [])


class StoryTests(ProxyCase):
    """Tests for rules that hold in any sequence of events."""

    @given(
        st.lists(
            st.integers(1, 400)
            | st.sampled_from(["ask", "reload", "accept", "refuse", "break"])
            | st.binary(min_size=1, max_size=9),
            max_size=40,
        )
    )
    def test_anyStory(self, story: list[int | str | bytes]) -> None:
        """
        There is one fetch at a time, and none for a second after a failure. Only whole poems are
        served. No reader waits longer than the timeout. At the end no connection or timer is left.
        """
        upstream = self.upstream = FakeUpstream(self.reactor)
        self.restart()
        whole: set[bytes | None] = {None}
        self.waiting.clear()
        for step in story:
            isConnected = upstream._protocol is not None and not upstream.isAborted
            if isinstance(step, int):
                self.reactor.advance(step / 10)
            elif step == "ask":
                self.wait()
            elif step == "reload":
                self.service.reload().addErrback(lambda why: why.trap(UpstreamError) and None)
            elif isConnected and isinstance(step, bytes):
                whole.add(step)
                upstream.send(step)
                upstream.close()
                self.threads.work()
            elif isConnected and step == "break":
                upstream.send(b"half a poem")
                upstream.close(ConnectionLost())
            elif upstream._connecting is not None and step == "accept":
                upstream.accept()
            elif upstream._connecting is not None and step == "refuse":
                upstream.refuse()
            self.assertIn(self.served, whole)
        self.reactor.advance(30)
        ended: list[bytes | None] = []

        def onlyTimeout(why: Failure) -> None:
            why.trap(defer.TimeoutError)
            ended.append(None)

        for each in self.waiting:
            each.addCallback(lambda poem: ended.append(poem.text))
            each.addErrback(onlyTimeout)
        self.assertEqual(len(ended), len(self.waiting))
        self.assertLessEqual(set(ended), whole)
        self.end()
