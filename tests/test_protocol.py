"""Tests for L{fastpoetry.protocol}."""

from __future__ import annotations

import os
import socket
import struct
from itertools import pairwise
from typing import Any

from fakes import (
    LONG,
    POEM,
    SECONDS,
    FakeSource,
    FakeTLS,
    FakeTransport,
    Reactor,
    makeFolder,
    receiveAll,
    said,
)
from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocolFactory,
    IPullProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.logger import capturedLogs
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.lingering import LINGER_SECONDS
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem
from fastpoetry.protocol import PoetryFactory, PoetryProtocol

THREE_PIECES = Poem("three", bytes(range(250)) * 160, "/poetry/three.txt")
"""40,000 bytes."""

PEER = IPv4Address("TCP", "192.0.2.7", 40000)


class ProtocolCase(SynchronousTestCase):
    """A factory, and what connects to it."""

    limits = Limits()

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.source = FakeSource()
        self.policy = Policy(self.limits, self.reactor)
        self.factory = PoetryFactory(self.source, self.policy)

    def connect(self, transport: FakeTransport | None = None) -> FakeTransport:
        """@return: the transport of a new connection."""
        transport = transport or FakeTransport(PEER)
        protocol: Any = self.factory.buildProtocol(PEER)
        protocol.makeConnection(transport)
        self.protocol = protocol
        return transport

    def pull(self, transport: FakeTransport) -> list[int]:
        """
        Have a transport ask for data until it is told that this was all.

        @return: how long each piece was.
        """
        lengths = [0]
        while transport.producer is not None:
            transport.producer.resumeProducing()
            lengths.append(len(transport.value()))
        return [later - each for each, later in pairwise(lengths) if later > each]

    def pairOfSockets(self) -> tuple[socket.socket, socket.socket]:
        """@return: the server's and the client's end of a TCP connection."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.create_connection(listening.getsockname())
            server, _ = listening.accept()
        for each in (client, server):
            self.addCleanup(each.close)
        return server, client

    def lingerOf(self, connection: socket.socket) -> tuple[int, ...]:
        """@return: what a close means: C{(1, 0)} is a reset."""
        option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return struct.unpack("ii", option)

    def wait(self, seconds: int) -> None:
        """Let time pass, a second at a time."""
        self.reactor.pump([1.0] * seconds)


class InterfaceTests(ProtocolCase):
    """Tests for what the protocol is to others, and others are to it."""

    def test_interfaces(self) -> None:
        """The factory makes protocols that can be half-closed and send when they are asked to."""
        verifyObject(IProtocolFactory, self.factory)
        self.connect()
        self.assertIsInstance(self.protocol, PoetryProtocol)
        verifyObject(IPullProducer, self.protocol)
        verifyObject(IHalfCloseableProtocol, self.protocol)

    def test_fakes(self) -> None:
        """The transports that they are tested with have what transports have."""
        verifyObject(ITCPTransport, FakeTransport())

    def test_quiet(self) -> None:
        """The factory does not log that it starts: the service says where it listens."""
        with capturedLogs() as events:
            self.factory.doStart()
            self.factory.doStop()
        self.assertEqual(events, [])


class SendTests(ProtocolCase):
    """Tests for a poem on its way."""

    def test_fails(self) -> None:
        """
        One whose serving fails as nobody expects is reset: Twisted would shut it down, and that
        looks like an end.
        """
        self.patch(self.policy, "isTooMany", lambda _: 1 // 0)
        self.assertEqual(self.connect().did, ["abortConnection"])
        self.protocol.connectionLost()
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_failsHalfWay(self) -> None:
        """So is one in mid-poem, and it is counted when it is closed."""
        transport = self.connect()
        self.patch(transport, "write", lambda _: 1 // 0)
        transport.producer.resumeProducing()
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost()
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_everything(self) -> None:
        """The whole poem is sent, then the sending half is closed."""
        transport = self.connect()
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseWriteConnection"])

    def test_whenAsked(self) -> None:
        """Nothing is written before the transport asks for it."""
        transport = self.connect()
        self.assertEqual((transport.value(), transport.streaming), (b"", False))

    def test_pieces(self) -> None:
        """A long poem is copied in pieces, each when the one before is gone."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        self.assertEqual(self.pull(transport), [16384, 16384, 7232])
        self.assertEqual(transport.value(), THREE_PIECES.text)

    def test_counted(self) -> None:
        """It is counted when the last byte is written, with a record that says to whom."""
        transport = self.connect()
        transport.producer.resumeProducing()
        self.assertEqual(self.policy.ledger.counts, Counts())
        with capturedLogs() as events:
            self.pull(transport)
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))
        self.assertEqual(said(events), ["sending 310 bytes of poetry to 192.0.2.7:40000"])

    def test_peers(self) -> None:
        """Whatever the transport, the record says to whom."""
        for peer, name in (
            (IPv6Address("TCP", "2001:db8::7", 40000), "[2001:db8::7]:40000"),
            (UNIXAddress(b""), "unix"),
            (object(), "unix"),
        ):
            with capturedLogs() as events:
                self.pull(self.connect(FakeTransport(peer)))
            self.assertEqual(said(events), [f"sending 310 bytes of poetry to {name}"])

    def test_onePoem(self) -> None:
        """A connection goes on with the poem it has begun, whatever there is now."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        transport.producer.resumeProducing()
        self.source.poem = POEM
        self.pull(transport)
        self.assertEqual(transport.value(), THREE_PIECES.text)


class ClientTests(ProtocolCase):
    """Tests for what a client may do."""

    def test_writes(self) -> None:
        """What it writes is thrown away, and it gets everything."""
        transport = self.connect()
        self.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.pull(transport)
        self.protocol.dataReceived(b"more")
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseWriteConnection"])

    def test_halfClosesFirst(self) -> None:
        """If it has closed its side first, it gets everything, and then both are closed."""
        transport = self.connect()
        self.protocol.readConnectionLost()
        self.assertEqual(transport.did, [])
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_halfClosesAfterwards(self) -> None:
        """When it closes its side after ours, nothing is left to wait for."""
        transport = self.connect()
        self.pull(transport)
        self.protocol.writeConnectionLost()
        self.protocol.readConnectionLost()
        self.assertEqual(transport.did, ["loseWriteConnection", "loseConnection"])
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))

    def test_leaves(self) -> None:
        """If it leaves before, that is counted."""
        transport = self.connect()
        transport.producer.stopProducing()
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))

    def test_stalls(self) -> None:
        """If it takes nothing, the connection is aborted."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        self.wait(30)
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))


class PolicyTests(ProtocolCase):
    """Tests for the rules, which are those of the fast port."""

    limits = Limits(maxReadersPerSource=1)

    def test_tooMany(self) -> None:
        """A client whose source has enough under way is reset, counted, and sent nothing."""
        self.connect()
        transport = self.connect()
        self.assertEqual((transport.did, transport.value()), (["abortConnection"], b""))
        self.assertIsNone(transport.producer)
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 1)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))

    def test_drain(self) -> None:
        """A stop waits for it, and cuts it short when it has waited long enough."""
        transport = self.connect()
        drained = self.policy.drain()
        self.assertNoResult(drained)
        self.wait(20)
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(drained)


class SocketTests(ProtocolCase):
    """Tests for a connection with nothing between it and its socket."""

    def test_linger(self) -> None:
        """Until the last byte is written the end of the process is a reset; then it is none."""
        server, _ = self.pairOfSockets()
        transport = self.connect(FakeTransport(PEER, server))
        self.assertEqual(self.lingerOf(server), (1, 0))
        self.pull(transport)
        self.assertEqual(self.lingerOf(server), (0, 0))

    def test_reset(self) -> None:
        """A reset is one, whatever closes the socket, though the last byte was written before."""
        server, _ = self.pairOfSockets()
        self.pull(self.connect(FakeTransport(PEER, server)))
        self.protocol.reset()
        self.assertEqual(self.lingerOf(server), (1, 0))

    def test_memory(self) -> None:
        """For a stopped reader no more than a part of a long poem waits in the kernel."""
        self.source.poem = LONG
        server, _ = self.pairOfSockets()
        self.connect(FakeTransport(PEER, server))
        option = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        self.assertEqual(option, 128 * 1024)

    def test_UNIX(self) -> None:
        """On a UNIX socket, which knows no reset, that is left alone."""
        server, client = socket.socketpair()
        self.addCleanup(server.close)
        self.addCleanup(client.close)
        transport = self.connect(FakeTransport(UNIXAddress(b""), server))
        self.assertEqual(self.lingerOf(server), (0, 0))
        self.pull(transport)
        self.assertEqual(self.protocol.countTaken(), 310)

    def test_measure(self) -> None:
        """What waits in the kernel is not taken yet."""
        self.source.poem = THREE_PIECES
        server, _ = self.pairOfSockets()
        transport = self.connect(FakeTransport(PEER, server))
        transport.producer.resumeProducing()
        self.assertEqual(self.protocol.countTaken(), 16384)
        server.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                server.send(bytes(65536))
        self.assertEqual(self.protocol.countTaken(), 0)

    def test_closed(self) -> None:
        """A client that has everything and does not close is closed after a while, not reset."""
        server, _ = self.pairOfSockets()
        transport = self.connect(FakeTransport(PEER, server))
        self.pull(transport)
        self.wait(1)
        self.assertEqual(transport.did, ["loseWriteConnection"])
        self.wait(3)
        self.assertEqual(set(transport.did), {"loseWriteConnection", "loseConnection"})


class TLSTests(ProtocolCase):
    """Tests for connections with a layer in between, such as TLS."""

    def setUp(self) -> None:
        super().setUp()
        self.server, _ = self.pairOfSockets()
        self.lower = FakeTransport(PEER, self.server)
        wrapping = WrappingFactory(self.factory)
        wrapping.protocol = FakeTLS
        upper: Any = wrapping.buildProtocol(PEER)
        upper.makeConnection(self.lower)
        upper.wrappedProtocol.handshakeCompleted()
        self.upper: FakeTLS = upper

    def fill(self) -> None:
        """Have the client read no more."""
        self.server.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                self.server.send(bytes(65536))

    def test_fake(self) -> None:
        """The layer that they are tested with is one."""
        verifyObject(ISSLTransport, self.upper)

    def test_handshakeIsRead(self) -> None:
        """The transport underneath is never told to stop reading: the layer has to read, too."""
        self.assertEqual(self.lower.producerState, "producing")

    def test_ends(self) -> None:
        """TLS, which has an end of its own and no half-close, is closed after the last byte."""
        self.pull(self.lower)
        self.assertEqual(self.lower.value(), POEM.text)
        self.assertEqual((self.upper.did, self.lower.did), (["loseConnection"], []))

    def test_linger(self) -> None:
        """Until then the end of the process is a reset underneath."""
        self.assertEqual(self.lingerOf(self.server), (1, 0))
        self.pull(self.lower)
        self.assertEqual(self.lingerOf(self.server), (0, 0))

    def test_noAnswer(self) -> None:
        """A client that has everything and does not answer the end is closed underneath."""
        self.pull(self.lower)
        self.wait(5)
        self.assertIn("loseConnection", self.lower.did)

    def test_endsByADeadline(self) -> None:
        """A client that reads no more is reset underneath in time, though all is written."""
        self.fill()
        self.pull(self.lower)
        self.wait(20)
        self.assertEqual(self.lower.did, [])
        self.wait(15)
        self.assertEqual(self.lower.did[-1], "abortConnection")

    def test_notLeftToSystem(self) -> None:
        """A stop leaves no reader to the system, which may not have the rest from the layer."""
        self.fill()
        self.pull(self.lower)
        self.policy.drain()
        self.wait(5)
        self.assertEqual(self.lower.did, [])

    def test_buffer(self) -> None:
        """So is one for which the transport still has something."""
        self.lower.dataBuffer = bytes(1000)
        self.pull(self.lower)
        self.wait(20)
        self.assertEqual(self.lower.did, [])
        self.wait(15)
        self.assertEqual(self.lower.did[-1], "abortConnection")


class HandshakeTests(ProtocolCase):
    """Tests for connections that have yet to shake hands."""

    limits = Limits(maxReaders=1, maxReadersPerSource=2)

    def shake(self, host: str) -> tuple[FakeTransport, Any]:
        """@return: the transport of a connection through TLS, and its protocol."""
        lower = FakeTransport(IPv4Address("TCP", host, 40000))
        wrapping = WrappingFactory(self.factory)
        wrapping.protocol = FakeTLS
        upper: Any = wrapping.buildProtocol(lower.getPeer())
        upper.makeConnection(lower)
        return lower, upper.wrappedProtocol

    def test_silent(self) -> None:
        """They are no readers, and one address has so many of them; more are reset."""
        transports = [self.shake("192.0.2.7")[0] for _ in range(3)]
        other, _ = self.shake("192.0.2.8")
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual([each.did for each in transports], [[], [], ["abortConnection"]])
        self.assertEqual((other.did, self.policy.ledger.counts.turnedAway), ([], 1))

    def test_placesAreGivenBack(self) -> None:
        """Each way out makes room for another of the address: a reset, a time-out, a reader."""
        (_, first), (lower, _), _ = (self.shake("192.0.2.7") for _ in range(3))
        first.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.shake("192.0.2.7")[0].did, [])
        self.reactor.advance(self.limits.stallSeconds)
        self.assertEqual(lower.did, ["abortConnection"])
        (lower, first), (other, _) = (self.shake("192.0.2.7") for _ in range(2))
        first.handshakeCompleted()
        last, _ = self.shake("192.0.2.7")
        self.assertEqual([each.did for each in (lower, other, last)], [[], [], []])

    def test_leaves(self) -> None:
        """One that leaves before leaves no timer behind."""
        _, protocol = self.shake("192.0.2.7")
        protocol.connectionLost(Failure(ConnectionDone()))
        self.reactor.advance(1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """At a stop the last one is reset before the stop ends."""
        lower, _ = self.shake("192.0.2.7")
        seen: list[str] = []
        self.policy.drain().addCallback(lambda _: seen.extend(lower.did))
        self.reactor.advance(LINGER_SECONDS)
        self.assertEqual(seen, ["abortConnection"])

    def test_noPlace(self) -> None:
        """One that has shaken hands waits for a place, and has its poem when there is one."""
        (_, reader), (lower, queued) = (self.shake("192.0.2.7") for _ in range(2))
        reader.handshakeCompleted()
        queued.handshakeCompleted()
        self.assertEqual((self.policy.readers, lower.producer), (1, None))
        reader.connectionLost(Failure(ConnectionDone()))
        self.pull(lower)
        self.assertEqual(lower.value(), POEM.text)


class WaitTests(ProtocolCase):
    """Tests for a source that has no poem yet, as a proxy's."""

    def setUp(self) -> None:
        super().setUp()
        self.source.poem = None

    def test_waits(self) -> None:
        """A client waits until there is a poem."""
        transport = self.connect()
        self.assertIsNone(transport.producer)
        self.assertEqual(self.policy.readers, 1)
        self.source.give(POEM)
        self.assertEqual(self.policy.readers, 1)
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)

    def test_halfClosesMeanwhile(self) -> None:
        """It may close its side meanwhile."""
        transport = self.connect()
        self.protocol.readConnectionLost()
        self.source.give(POEM)
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_fails(self) -> None:
        """Where there will be no poem it is reset."""
        transport = self.connect()
        self.source.giveUp()
        self.assertEqual((transport.did, transport.value()), (["abortConnection"], b""))
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)

    def test_drain(self) -> None:
        """A stop does not let it wait."""
        transport = self.connect()
        drained = self.policy.drain()
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(drained)

    def test_leaves(self) -> None:
        """One that leaves meanwhile waits no more, and is sent nothing."""
        transport = self.connect()
        (waiting,) = self.source.waiting
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(waiting.called)
        self.assertIsNone(transport.producer)
        self.assertEqual(self.policy.readers, 0)

    def test_others(self) -> None:
        """That does not end it for others who wait."""
        transport = self.connect()
        self.connect()
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.source.waiting[0].callback(POEM)
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)


class TransportTests(ProtocolCase):
    """Tests on Twisted's own transports and real sockets."""

    def listen(self, poem: Poem) -> None:
        """Listen with a port of Twisted's own."""
        self.source.poem = poem
        port = tcp.Port(0, self.factory, 50, "127.0.0.1", self.reactor)
        port.startListening()
        self.address: Any = port.socket.getsockname()
        self.addCleanup(self.reactor.advance, 0)
        self.addCleanup(port.stopListening)

    def client(self, family: int = socket.AF_INET) -> socket.socket:
        """@return: a client that has connected."""
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.settimeout(SECONDS)
        client.connect(self.address)
        return client

    def end(self) -> None:
        """Serve who has come until it has gone."""
        while self.policy.readers:
            self.reactor.turn()

    def test_wroteFirst(self) -> None:
        """A client that wrote before gets everything, and no reset."""
        self.listen(POEM)
        client = self.client()
        client.sendall(b"x" * 65536)
        self.assertEqual(self.reactor.fetch(client), POEM.text)
        client.shutdown(socket.SHUT_WR)
        self.end()
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_halfClosedFirst(self) -> None:
        """A client that closed its side before gets everything."""
        self.listen(LONG)
        client = self.client()
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.end()
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_stalls(self) -> None:
        """A client that stops reading is reset: it can tell that it has not everything."""
        self.listen(LONG)
        client = self.client()
        self.reactor.turn()
        self.reactor.turn()
        self.wait(31)
        self.assertEqual(self.policy.readers, 0)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_cutShort(self) -> None:
        """So is one that is there when a stop has waited long enough."""
        self.listen(LONG)
        client = self.client()
        self.reactor.turn()
        drained = self.policy.drain()
        self.wait(20)
        self.reactor.advance(0)
        self.successResultOf(drained)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_UNIX(self) -> None:
        """Clients of a UNIX socket get everything too."""
        self.source.poem = LONG
        self.address = os.path.join(makeFolder(self), "s")
        port = unix.Port(self.address, self.factory, reactor=self.reactor)
        port.startListening()
        client = self.client(socket.AF_UNIX)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.end()
        port.stopListening()
        self.reactor.advance(0)
