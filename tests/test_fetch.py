"""Tests for L{fastpoetry.proxy.fetch}, by way of the service that fetches."""

from __future__ import annotations

from collections.abc import Callable

from fakes import said
from proxies import UPSTREAM, ProxyCase
from twisted.internet import defer, error
from twisted.internet.address import IPv4Address
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionLost,
    DNSLookupError,
)
from twisted.logger import capturedLogs

from fastpoetry.apart.threads import ThreadError
from fastpoetry.poem import Poem


class TimeTests(ProxyCase):
    """Tests for how long a fetch and its readers may take."""

    def assertCause(self, cause: str) -> None:
        """Assert that the fetch has failed, and why."""
        self.assertFalse(self.upstream.isBusy)
        self.assertTrue(self.service.description.endswith(f" s: {cause}"), self.service.description)

    def test_connect(self) -> None:
        """An upstream that does not answer is left after the time for that."""
        self.ask()
        self.reactor.advance(4)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_endpointsWord(self) -> None:
        """Whatever an endpoint says when it is told that it took too long, that is the cause."""
        for why in (
            ConnectingCancelledError(IPv4Address("TCP", "192.0.2.1", 10000)),
            DNSLookupError("Couldn't find the hostname 'poems.example'"),
        ):
            self.ask()
            self.upstream.whenCancelled = why
            self.reactor.advance(5)
            self.assertCause("upstream took too long")
            self.reactor.advance(10)

    def test_idle(self) -> None:
        """One that accepts and is silent is left after the time between two pieces."""
        self.ask()
        self.upstream.accept()
        self.reactor.advance(9)
        self.upstream.send(b"a")
        self.reactor.advance(9)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream sent nothing for 10 s")

    def test_total(self) -> None:
        """One that never pauses for long and never ends is left after the time for a whole poem."""
        self.ask()
        self.upstream.accept()
        for _ in range(29):
            self.reactor.advance(1)
            self.upstream.send(b"a")
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_endless(self) -> None:
        """One that sends more than a poem may have is left at once."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1000)
        self.assertTrue(self.upstream.isBusy)
        self.upstream.send(b"a")
        self.assertCause("upstream sends more than 1000 bytes")

    def test_nothingComesAfter(self) -> None:
        """How a connection ends that was left already makes no difference."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1001)
        self.upstream.close()
        self.assertCause("upstream sends more than 1000 bytes")
        self.assertIsNone(self.served)

    def test_readers(self) -> None:
        """
        Readers wait as long as a fetch may take, each from when it came, and then there is none.
        """
        first = self.wait()
        self.upstream.refuse()
        self.advanceTo(0.5)
        second = self.wait()
        self.advanceTo(29.5)
        self.assertNoResult(first)
        self.advanceTo(30)
        self.failureResultOf(first, defer.TimeoutError)
        self.assertNoResult(second)
        self.advanceTo(30.5)
        self.failureResultOf(second, defer.TimeoutError)

    def test_readersAreKeptThroughAttempts(self) -> None:
        """Readers who wait while the upstream is away get the poem as soon as it is back."""
        waiting = self.wait()
        self.upstream.refuse()
        self.reactor.advance(2)
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(waiting).text, b"a poem")


class FailureTests(ProxyCase):
    """Tests for upstreams that give no whole poem."""

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")
        self.advanceTo(60)

    def assertKept(self, cause: str, fail: Callable[[], object]) -> None:
        """Assert that the old poem stays when a fetch fails, and what the cause is called."""
        self.ask()
        with capturedLogs() as events:
            fail()
            self.threads.work()
        self.assertEqual(said(events), [f"no poem from {UPSTREAM} for 0 s: {cause}"])
        self.assertFalse(self.upstream.isBusy)
        self.assertEqual(self.served, b"old")

    def connected(self, text: bytes, why: Exception | None) -> Callable[[], object]:
        """@return: what sends something and ends."""

        def fail() -> None:
            self.upstream.accept()
            if text:
                self.upstream.send(text)
            self.upstream.close(why)

        return fail

    def test_reset(self) -> None:
        """A connection that is reset half-way is no whole poem."""
        self.assertKept(
            "upstream broke off after 3 bytes", self.connected(b"new", ConnectionLost())
        )

    def test_distrusted(self) -> None:
        """One that is ended for another reason, as for its certificate, has that in its cause."""
        self.assertKept(
            "upstream broke off after 0 bytes: no trust",
            self.connected(b"", ValueError("no trust")),
        )

    def test_empty(self) -> None:
        """Nothing and a clean end is no poem."""
        self.assertKept("upstream sent nothing and closed", self.connected(b"", None))

    def test_refused(self) -> None:
        """A connection that is refused has a short cause."""
        self.assertKept("upstream refused", self.refusing())

    def refusing(self, why: Exception | None = None) -> Callable[[], object]:
        """@return: what does not connect."""
        return lambda: self.upstream.refuse(why)

    def test_unknown(self) -> None:
        """So has a name without an address."""
        self.assertKept("upstream has no address", self.refusing(DNSLookupError()))

    def test_systemTimeout(self) -> None:
        """So has the system's own time for a connection."""
        self.assertKept("upstream took too long", self.refusing(error.TimeoutError()))

    def test_system(self) -> None:
        """So has a UNIX socket that is not there, and all else that the system has a word for."""
        self.assertKept(
            "upstream cannot be reached: No such file or directory",
            self.refusing(ConnectError(2, "gone")),
        )

    def test_noThread(self) -> None:
        """So has a machine that has no thread for it."""
        self.assertKept(
            "no thread can be had: none is left",
            self.refusing(ThreadError("no thread can be had: none is left")),
        )

    def test_other(self) -> None:
        """Anything else has the cause that it says itself."""
        self.assertKept("upstream failed: no luck", self.refusing(ValueError("no luck")))


class ExpectedTests(ProxyCase):
    """Tests for a poem whose digest is known."""

    def setUp(self) -> None:
        super().setUp()
        self.digest = Poem("", b"known", "").digest
        self.restart(expectedDigest=self.digest)

    def test_known(self) -> None:
        """The known poem is taken."""
        self.fetch(b"known")
        self.assertEqual(self.served, b"known")

    def test_another(self) -> None:
        """Another one, such as half of it, is not, and the cause has its digest."""
        self.fetch(b"kno")
        self.assertIsNone(self.served)
        digest = Poem("", b"kno", "").digest
        cause = f"upstream sent another poem, SHA-256 {digest}"
        self.assertIn(cause, self.service.description)
