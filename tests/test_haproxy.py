"""Tests for L{fastpoetry.delivery.haproxy}."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from fakes import POEM, FakeSource, FakeTLS, FakeTransport, Reactor, said
from hypothesis import given
from hypothesis import strategies as st
from ports import lingerOf
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import capturedLogs
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.delivery.haproxy import PatientFactory
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.lingering import LINGER_SECONDS
from fastpoetry.delivery.policy import Policy
from fastpoetry.protocol import PoetryFactory

BALANCER = IPv4Address("TCP", "192.0.2.1", 50000)

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.2 40000 10000\r\n"


def version2(source: str = "192.0.2.7", command: int = 1, extra: bytes = b"") -> bytes:
    """
    Make a header of version 2, as in section 2.2 of the specification.

    @param command: 1 for a client, 0 for the balancer's own check.
    @param extra: bytes after the addresses.
    """
    packed = ip_address(source).packed
    family = 0x11 if len(packed) == 4 else 0x21
    addresses = packed * 2 + struct.pack("!2H", 40000, 10000) + extra
    start = b"\r\n\r\n\0\r\nQUIT\n"
    return start + struct.pack("!BBH", 0x20 | command, family, len(addresses)) + addresses


class ProxiedCase(SynchronousTestCase):
    """A factory as the endpoint C{haproxy:} wraps it, and its connections."""

    limits = Limits(stallSeconds=30.0, drainSeconds=20.0, minRateBytesPerSecond=1)

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.policy = Policy(self.limits, self.reactor)
        self.factory = PatientFactory(PoetryFactory(FakeSource(), self.policy))

    def connect(self, peer: Any = BALANCER, handle: Any = None) -> FakeTransport:
        """@return: the transport of a new connection."""
        transport = FakeTransport(peer, handle)
        wrapper: Any = self.factory.buildProtocol(peer)
        wrapper.makeConnection(transport)
        self.wrapper = wrapper
        return transport

    def lose(self) -> None:
        """End the connection."""
        self.wrapper.connectionLost(Failure(ConnectionDone()))

    def pull(self, transport: FakeTransport) -> bytes:
        """
        Make a transport ask for data until its producer ends.

        @return: the data.
        """
        while transport.producer is not None:
            transport.producer.resumeProducing()
        said: bytes = transport.value()
        return said

    def receive(self, *pieces: bytes, peer: Any = BALANCER) -> list[str]:
        """
        Connect, and send bytes.

        @return: the records made, once the poem, if any, has been sent.
        """
        with capturedLogs() as events:
            transport = self.connect(peer)
            for piece in pieces:
                self.wrapper.dataReceived(piece)
            self.sent = self.pull(transport)
        self.did = transport.did
        return said(events)


class HeaderTests(ProxiedCase):
    """Tests for valid headers."""

    def assertSentTo(self, peer: str, *pieces: bytes) -> None:
        """Assert that a client with those bytes gets the poem, and is recorded with an address."""
        expected = [f"sending {len(POEM.text)} bytes of poetry to {peer}"]
        self.assertEqual(self.receive(*pieces), expected)
        self.assertEqual((self.sent, self.did), (POEM.text, ["loseWriteConnection"]))

    def test_interfaces(self) -> None:
        """A protocol behind a header provides its transport's interfaces, and half-close."""
        self.connect()
        verifyObject(IHalfCloseableProtocol, self.wrapper)
        self.assertTrue(ITCPTransport.providedBy(self.wrapper))

    def test_nothingBefore(self) -> None:
        """Nothing is sent before the header has arrived."""
        self.assertEqual(self.receive(), [])
        self.assertEqual((self.sent, self.did), (b"", []))

    def test_version1(self) -> None:
        """A header of version 1 names the client."""
        self.assertSentTo("192.0.2.7:40000", V1)

    def test_version1IPv6(self) -> None:
        """An IPv6 address is recorded in the system's form, whatever the balancer's."""
        header = b"PROXY TCP6 2001:DB8:0:0::7 2001:db8::2 40000 10000\r\n"
        self.assertSentTo("[2001:db8::7]:40000", header)

    def test_version2(self) -> None:
        """A header of version 2 names the client."""
        self.assertSentTo("192.0.2.7:40000", version2())
        self.assertSentTo("[2001:db8::7]:40000", version2("2001:db8::7"))

    def test_version2Extra(self) -> None:
        """Extra fields in a header of version 2 are ignored."""
        self.assertSentTo("192.0.2.7:40000", version2(extra=b"\x04\0\x01x"))

    def test_unspecified(self) -> None:
        """A client whose family the balancer cannot name has the balancer's address."""
        header = bytearray(version2())
        header[13] = 0
        self.assertSentTo("192.0.2.1:50000", bytes(header))

    def test_TLS(self) -> None:
        """A client may come through TLS: its header is the first encrypted data."""
        wrapping = WrappingFactory(self.factory)
        wrapping.protocol = FakeTLS
        lower = FakeTransport(BALANCER)
        upper: Any = wrapping.buildProtocol(BALANCER)
        upper.makeConnection(lower)
        upper.wrappedProtocol.dataReceived(V1)
        self.assertEqual(self.pull(lower), POEM.text)

    def test_inPieces(self) -> None:
        """A header may come in pieces, even in single bytes."""
        for header, peer in (
            (V1, "192.0.2.7:40000"),
            (version2(), "192.0.2.7:40000"),
        ):
            self.start()
            self.assertSentTo(peer, *(bytes([each]) for each in header))

    def test_whatFollows(self) -> None:
        """Bytes that the client writes, with the header or later, are ignored."""
        self.assertSentTo("192.0.2.7:40000", V1 + b"GET / HTTP/1.0\r\n", b"\r\n")

    def test_source(self) -> None:
        """The limit of one source applies to the client, not to the balancer."""
        self.limits = Limits(maxReadersPerSource=1)
        self.start()
        self.connect()
        self.wrapper.dataReceived(version2("192.0.2.7"))
        self.assertTrue(self.policy.isSourceFull(("192.0.2.7", 1)))
        self.assertFalse(self.policy.isSourceFull(("192.0.2.1", 1)))

    def test_noSource(self) -> None:
        """Before the header has named the client, the balancer is not a source."""
        self.limits = Limits(maxReadersPerSource=1)
        self.start()
        transports = [self.connect() for _ in range(3)]
        self.assertEqual([each.did for each in transports], [[], [], []])
        self.assertEqual(self.policy.readers, 0)

    def test_otherEnd(self) -> None:
        """A connection that fails before a byte of its header, as with TLS, is no health check."""
        self.connect()
        self.wrapper.connectionLost(Failure(RuntimeError("no shared cipher")))
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))

    def test_fault(self) -> None:
        """Neither is a connection that an error of ours ends."""
        self.patch(self.policy, "addArrival", lambda _: 1 // 0)
        self.connect()
        self.lose()
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.flushLoggedErrors(ZeroDivisionError)


class OwnProtocolTests(ProxiedCase):
    """Tests for a program's own protocol behind the header."""

    def test_heard(self) -> None:
        """It hears of a connection only after the header, and then of its end."""
        heard: list[str] = []

        class Own(Protocol):
            def connectionMade(self) -> None:
                heard.append("made")

            def dataReceived(self, data: bytes) -> None:
                heard.append("data")

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                heard.append("lost")

        self.factory.wrappedFactory.protocol = Own
        self.connect()
        self.lose()
        self.assertEqual(heard, [])
        self.connect()
        self.wrapper.dataReceived(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\nhello")
        self.lose()
        self.assertEqual(heard, ["made", "lost"])


class RefusalTests(ProxiedCase):
    """Tests for connections without a valid header."""

    def assertRefused(self, *pieces: bytes) -> None:
        """Assert that a connection with those bytes gets a reset, no poem, and one record."""
        expected = ["turned 192.0.2.1:50000 away: no valid PROXY header"]
        self.assertEqual(self.receive(*pieces), expected)
        self.assertEqual((self.sent, self.did[-1]), (b"", "abortConnection"))

    def test_fails(self) -> None:
        """A connection with an unexpected error is reset too."""
        transport = self.connect()
        self.patch(self.wrapper, "_read", lambda _: 1 // 0)
        self.wrapper.dataReceived(b"PROXY TCP4 192.0.2.9 192.0.2.2 1 2\r\n")
        self.assertEqual(transport.did, ["abortConnection"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_noHeader(self) -> None:
        """Bytes that cannot begin a header are refused at once, however few."""
        self.assertRefused(b"\n")
        self.assertRefused(b"GET / HTTP/1.0\r\n\r\n")

    def test_malformed(self) -> None:
        """A malformed header is refused."""
        for header in (
            b"PROXY TCP4 192.0.2.7 192.0.2.2 forty 10000\r\n",
            b"PROXY TCP4 192.0.2.7\r\n",
            b"PROXY TCP4 \xff 192.0.2.2 40000 10000\r\n",
            b"PROXY TCP4 a\nrecord 192.0.2.2 40000 10000\r\n",
            b"PROXY TCP6 \0 2001:db8::2 40000 10000\r\n",
            b"PROXY SCTP 192.0.2.7 192.0.2.2 40000 10000\r\n",
            b"PROXY TCP4 " + b"1" * 200,
            b"PROXY TCP4 192.0.2.7 192.0.2.2 -5 10000\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.2 40000 -5\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.2 " + b"9" * 60 + b" 1\r\n",
            version2()[:14] + struct.pack("!H", 3) + b"abc",
            version2(command=7),
        ):
            self.assertRefused(header)

    def test_once(self) -> None:
        """Bytes after a refusal have no effect."""
        self.assertRefused(b"nonsense\r\n", V1)

    def test_nobodyDisturbed(self) -> None:
        """A client that waits at the same time is served all the same."""
        other = self.connect()
        wrapper = self.wrapper
        self.assertRefused(b"nonsense\r\n")
        wrapper.dataReceived(V1)
        self.assertEqual(self.pull(other), POEM.text)

    @given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([V1, version2()]))))
    def test_anything(self, pieces: list[bytes]) -> None:
        """Whatever bytes come, there is at most one record and one end."""
        self.start()
        self.assertLessEqual(len(self.receive(*pieces)), 1)
        self.assertIn(self.sent, (b"", POEM.text))

    @given(st.text(max_size=40).filter(lambda host: not {" ", "\r"} & set(host)))
    def test_anyAddress(self, host: str) -> None:
        """Whatever the header gives as an address, only an address is recorded."""
        self.start()
        header = b"PROXY TCP4 %s 192.0.2.2 40000 10000\r\n" % host.encode(errors="replace")
        self.assertRefused(header)


class StopTests(ProxiedCase):
    """Tests for headers that come during a stop."""

    def test_noPoem(self) -> None:
        """A client that is named during a stop, when there is no poem, does not delay the stop."""
        self.factory = PatientFactory(PoetryFactory(FakeSource(None), self.policy))
        transport = self.connect()
        stopped = self.policy.drain()
        self.wrapper.dataReceived(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n")
        self.assertIn("abortConnection", transport.did)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.lose()
        self.successResultOf(stopped)


class EndTests(ProxiedCase):
    """Tests for connections that end before the header."""

    def assertCheck(self, events: Sequence[Any]) -> None:
        """Assert that there was one check, and no other count or record."""
        self.assertEqual((said(events), self.policy.readers), ([], 0))
        self.assertEqual(self.policy.ledger.counts, Counts(checks=1))

    def test_check(self) -> None:
        """
        A connection that sends nothing and closes is a check: it is counted, without a record.
        """
        with capturedLogs() as events:
            self.connect()
            self.lose()
        self.assertCheck(events)

    def test_halfClosedCheck(self) -> None:
        """A connection that only closes its own side is a check, and is closed."""
        with capturedLogs() as events:
            transport = self.connect()
            self.wrapper.readConnectionLost()
            self.lose()
        self.assertCheck(events)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_headerOfCheck(self) -> None:
        """A connection whose header names no client is a check: it is closed without a poem."""
        whole = (b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN a b 1 2\r\n", version2(command=0))
        pieces = [tuple(bytes([each]) for each in header) for header in whole]
        for sent in [*((header,) for header in whole), *pieces]:
            self.start()
            with capturedLogs() as events:
                self.receive(*sent)
                self.lose()
            self.assertCheck(events)
            self.assertEqual((self.sent, self.did), (b"", ["loseConnection"]))
            self.reactor.advance(self.limits.stallSeconds)
            self.assertEqual(self.policy.ledger.counts, Counts(checks=1))

    def test_linger(self) -> None:
        """At the end of the process a client gets a reset, and a balancer's check gets an end."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            server, _ = listening.accept()
        with client, server:
            self.connect(handle=server)
            self.assertEqual(lingerOf(server.fileno()), (1, 0))
            self.wrapper.dataReceived(version2(command=0))
            self.assertEqual(lingerOf(server.fileno()), (0, 0))

    def test_halfClosedClient(self) -> None:
        """A client that closes its side first gets the whole poem."""
        transport = self.connect()
        self.wrapper.dataReceived(V1)
        self.wrapper.readConnectionLost()
        self.assertEqual(self.pull(transport), POEM.text)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_timeout(self) -> None:
        """A connection with no header, or a partial one, is refused at the stall timeout."""
        for beginning in (b"", V1[:20]):
            self.start()
            transport = self.connect()
            self.wrapper.dataReceived(beginning)
            with capturedLogs() as events:
                self.reactor.advance(self.limits.stallSeconds)
            expected = ["turned 192.0.2.1:50000 away: no PROXY header came"]
            self.assertEqual((said(events), transport.did), (expected, ["abortConnection"]))

    def test_noTimeoutAfter(self) -> None:
        """After the header only the policy's deadlines apply."""
        self.connect()
        self.wrapper.dataReceived(V1)
        self.lose()
        self.reactor.advance(1.0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_slowReader(self) -> None:
        """The header's timeout does not end a reader that takes its poem slowly."""
        transport = self.connect()
        self.wrapper.dataReceived(V1)
        self.reactor.pump([1.0] * 20)
        transport.producer.resumeProducing()
        self.reactor.pump([1.0] * 15)
        self.assertEqual(transport.did, [])

    def test_halfClosesWithin(self) -> None:
        """A client that closes its side in the middle of its header is reset, with a record."""
        for beginning in (V1[:10], V1[:20]):
            transport = self.connect()
            self.wrapper.dataReceived(beginning)
            with capturedLogs() as events:
                self.wrapper.readConnectionLost()
            expected = ["turned 192.0.2.1:50000 away: it left in the middle of its PROXY header"]
            self.assertEqual((said(events), transport.did), (expected, ["abortConnection"]))

    def test_leaves(self) -> None:
        """A client that leaves in the middle of its header is counted, with a record."""
        self.connect()
        self.wrapper.dataReceived(V1[:20])
        with capturedLogs() as events:
            self.lose()
        expected = ["turned 192.0.2.1:50000 away: it left in the middle of its PROXY header"]
        self.assertEqual(said(events), expected)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))

    def test_stop(self) -> None:
        """A stop waits a moment for headers in transit, and for the poems after them."""
        transport = self.connect()
        stopped = self.policy.drain()
        self.wrapper.dataReceived(V1)
        self.assertNoResult(stopped)
        self.assertEqual(self.pull(transport), POEM.text)
        self.lose()
        self.successResultOf(stopped)

    def test_stopAtLast(self) -> None:
        """After that moment a stop waits no longer for headers."""
        transport = self.connect()
        stopped = self.policy.drain()
        self.reactor.advance(LINGER_SECONDS)
        self.assertEqual(transport.did, ["abortConnection"])
        self.lose()
        self.successResultOf(stopped)


class FactoryTests(SynchronousTestCase):
    """Tests for L{PatientFactory}."""

    def test_others(self) -> None:
        """A factory that reads no header is unchanged."""
        factory = ServerFactory()
        PatientFactory(factory)
        self.assertEqual(vars(factory), {})
