"""Tests for L{fastpoetry.proxy.fetch}, through the service that fetches."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from fakes import FakeTransport, receiveAll, said
from proxies import UPSTREAM, ProxyCase
from twisted.internet import defer, error
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionLost,
    DNSLookupError,
)
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.poem import Poem
from fastpoetry.proxy.fetch import fetch
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.upstream import ThreadError


class TimeTests(ProxyCase):
    """Tests for the timeouts of a fetch and of its readers."""

    def assertCause(self, cause: str) -> None:
        """Assert that the fetch has failed with that cause."""
        self.assertFalse(self.upstream.isBusy)
        self.assertTrue(self.service.description.endswith(f" s: {cause}"), self.service.description)

    def test_connect(self) -> None:
        """An upstream that does not answer is given up after the connect timeout."""
        self.ask()
        self.reactor.advance(4)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_endpointsWord(self) -> None:
        """
        The cause of a timeout is the timeout, whatever error the endpoint raises when cancelled.
        """
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
        """An upstream that accepts and stays silent is given up after the idle timeout."""
        self.ask()
        self.upstream.accept()
        self.reactor.advance(9)
        self.upstream.send(b"a")
        self.reactor.advance(9)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream sent nothing for 10 s")

    def test_total(self) -> None:
        """
        An upstream that never pauses for long and never ends is given up after the total timeout.
        """
        self.ask()
        self.upstream.accept()
        for _ in range(29):
            self.reactor.advance(1)
            self.upstream.send(b"a")
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_endless(self) -> None:
        """An upstream that sends more than the size limit is given up at once."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1000)
        self.assertTrue(self.upstream.isBusy)
        self.upstream.send(b"a")
        self.assertCause("upstream sends more than 1000 bytes")

    def test_nothingComesAfter(self) -> None:
        """The later end of a connection that was given up has no effect."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1001)
        self.upstream.close()
        self.assertCause("upstream sends more than 1000 bytes")
        self.assertIsNone(self.served)

    def test_readers(self) -> None:
        """
        Readers wait as long as a fetch may take, each from its own start; then the wait fails.
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
        """Readers that wait while the upstream is down get the poem as soon as it is up."""
        waiting = self.wait()
        self.upstream.refuse()
        self.reactor.advance(2)
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(waiting).text, b"a poem")


class FailureTests(ProxyCase):
    """Tests for upstreams that send no whole poem."""

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")
        self.advanceTo(60)

    def assertKept(self, cause: str, fail: Callable[[], object]) -> None:
        """Assert that the old poem stays when a fetch fails, and that the cause has that text."""
        self.ask()
        with capturedLogs() as events:
            fail()
            self.threads.work()
        self.assertEqual(said(events), [f"no poem from {UPSTREAM} for 0 s: {cause}"])
        self.assertFalse(self.upstream.isBusy)
        self.assertEqual(self.served, b"old")

    def connected(self, text: bytes, why: Exception | None) -> Callable[[], object]:
        """@return: an endpoint that sends something and ends."""

        def fail() -> None:
            self.upstream.accept()
            if text:
                self.upstream.send(text)
            self.upstream.close(why)

        return fail

    def test_reset(self) -> None:
        """A connection that is reset half-way is not a whole poem."""
        self.assertKept(
            "upstream broke off after 3 bytes", self.connected(b"new", ConnectionLost())
        )

    def test_distrusted(self) -> None:
        """
        If a connection ended for another reason, such as its certificate, the cause has that
        reason.
        """
        self.assertKept(
            "upstream broke off after 0 bytes: no trust",
            self.connected(b"", ValueError("no trust")),
        )

    def test_empty(self) -> None:
        """An empty answer with a clean end is not a poem."""
        self.assertKept("upstream sent nothing and closed", self.connected(b"", None))

    def test_refused(self) -> None:
        """A refused connection has a short cause."""
        self.assertKept("upstream refused", self.refusing())

    def refusing(self, why: Exception | None = None) -> Callable[[], object]:
        """@return: an endpoint that does not connect."""
        return lambda: self.upstream.refuse(why)

    def test_unknown(self) -> None:
        """A name without an address has a short cause."""
        self.assertKept("upstream has no address", self.refusing(DNSLookupError()))

    def test_systemTimeout(self) -> None:
        """The system's own connect timeout has a short cause."""
        self.assertKept("upstream took too long", self.refusing(error.TimeoutError()))

    def test_system(self) -> None:
        """
        A missing UNIX socket, like any other system error, has the system's text as its cause.
        """
        self.assertKept(
            "upstream cannot be reached: No such file or directory",
            self.refusing(ConnectError(2, "gone")),
        )

    def test_noNumber(self) -> None:
        """A connection that fails without a system error has a short cause, too."""
        self.assertKept("upstream cannot be reached", self.refusing(ConnectError(string="lost")))

    def test_noThread(self) -> None:
        """A machine without a free thread has a short cause."""
        self.assertKept(
            "no thread can be started: none is left",
            self.refusing(ThreadError("no thread can be started: none is left")),
        )

    def test_other(self) -> None:
        """Any other error has its own text as the cause."""
        self.assertKept("upstream failed: no luck", self.refusing(ValueError("no luck")))


class LocalTests(SynchronousTestCase):
    """Tests for upstreams on UNIX sockets."""

    def written(self, path: bytes) -> bytes:
        """@return: what the proxy sends to an upstream at this path."""
        transport = FakeTransport(UNIXAddress(path))

        class Endpoint:
            def connect(self, factory: Any) -> defer.Deferred[Any]:
                protocol = factory.buildProtocol(None)
                protocol.makeConnection(transport)
                return defer.succeed(protocol)

        endpoint: Any = Endpoint()
        fetching = defer.Deferred.fromCoroutine(fetch(endpoint, Freshness(), Clock()))
        fetching.addErrback(lambda _: None).cancel()
        sent: bytes = transport.value()
        return sent

    def test_byte(self) -> None:
        """It sends a byte to a server of ours only, which reads it after the poem."""
        for path in (b"/run/fastpoetry/a.sock", b"/run/fastpoetry-proxy/a.sock"):
            self.assertEqual(self.written(path), b"\n")
        self.assertEqual(self.written(b"/run/other.sock"), b"")

    def test_killed(self) -> None:
        """A server that ends before it has read that byte resets the connection."""
        server, client = socket.socketpair()
        self.addCleanup(client.close)
        client.send(b"\n")
        server.send(b"half of a poem")
        server.close()
        self.assertRaises(ConnectionResetError, receiveAll, client)


class ExpectedTests(ProxyCase):
    """Tests for a poem whose digest is known."""

    def setUp(self) -> None:
        super().setUp()
        self.digest = Poem("", b"known", "").digest
        self.restart(expectedDigest=self.digest)

    def test_known(self) -> None:
        """A poem with the expected digest is taken."""
        self.fetch(b"known")
        self.assertEqual(self.served, b"known")

    def test_another(self) -> None:
        """
        A poem with another digest, such as half of the poem, is not taken; the cause has its
        digest.
        """
        self.fetch(b"kno")
        self.assertIsNone(self.served)
        digest = Poem("", b"kno", "").digest
        cause = f"upstream sent another poem, SHA-256 {digest}"
        self.assertIn(cause, self.service.description)
