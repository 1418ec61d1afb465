"""Tests for L{fastpoetry.protocol}."""

from __future__ import annotations

import os
import socket
import struct
from itertools import pairwise
from typing import Any
from unittest import mock

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
from twisted.internet import reactor, tcp, unix
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
    """A test case with a factory and its connections."""

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
        Make a transport ask for data until its producer ends.

        @return: the length of each piece.
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
        """@return: the linger option: with C{(1, 0)} a close is a reset."""
        option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return struct.unpack("ii", option)

    def wait(self, seconds: int) -> None:
        """Let time pass, a second at a time."""
        self.reactor.pump([1.0] * seconds)


class InterfaceTests(ProtocolCase):
    """Tests for the interfaces between the protocol and Twisted."""

    def test_interfaces(self) -> None:
        """The factory makes protocols that support half-close and send on request."""
        verifyObject(IProtocolFactory, self.factory)
        self.connect()
        self.assertIsInstance(self.protocol, PoetryProtocol)
        verifyObject(IPullProducer, self.protocol)
        verifyObject(IHalfCloseableProtocol, self.protocol)

    def test_fakes(self) -> None:
        """The fake transports have the attributes of real ones."""
        verifyObject(ITCPTransport, FakeTransport())

    def test_quiet(self) -> None:
        """The factory's start has no record: the service records where it listens."""
        with capturedLogs() as events:
            self.factory.doStart()
            self.factory.doStop()
        self.assertEqual(events, [])


class SendTests(ProtocolCase):
    """Tests for sending a poem."""

    def test_fails(self) -> None:
        """
        A connection with an unexpected error is reset: Twisted would shut it down, which looks like
        a complete poem.
        """
        self.patch(self.policy, "isSourceFull", lambda _: 1 // 0)
        self.assertEqual(self.connect().did, ["abortConnection"])
        self.protocol.connectionLost()
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_failsHalfWay(self) -> None:
        """
        A connection with an unexpected error in mid-poem is reset too, and is not counted as a
        client that left.
        """
        transport = self.connect()
        self.patch(transport, "write", lambda _: 1 // 0)
        transport.producer.resumeProducing()
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost()
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_everything(self) -> None:
        """The whole poem is sent, then the sending half is closed."""
        transport = self.connect()
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseWriteConnection"])

    def test_whenAsked(self) -> None:
        """No byte is written before the transport asks."""
        transport = self.connect()
        self.assertEqual((transport.value(), transport.streaming), (b"", False))

    def test_pieces(self) -> None:
        """A long poem is copied in pieces, each after the previous one has been sent."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        self.assertEqual(self.pull(transport), [16384, 16384, 7232])
        self.assertEqual(transport.value(), THREE_PIECES.text)

    def test_counted(self) -> None:
        """
        The poem is counted when its last byte is written, with a record that names the client.
        """
        transport = self.connect()
        transport.producer.resumeProducing()
        self.assertEqual(self.policy.ledger.counts, Counts())
        with capturedLogs() as events:
            self.pull(transport)
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))
        self.assertEqual(said(events), ["sending 310 bytes of poetry to 192.0.2.7:40000"])

    def test_peers(self) -> None:
        """The record names the client for every kind of transport."""
        for peer, name in (
            (IPv6Address("TCP", "2001:db8::7", 40000), "[2001:db8::7]:40000"),
            (UNIXAddress(b""), "unix"),
            (object(), "unix"),
        ):
            with capturedLogs() as events:
                self.pull(self.connect(FakeTransport(peer)))
            self.assertEqual(said(events), [f"sending 310 bytes of poetry to {name}"])

    def test_onePoem(self) -> None:
        """A connection goes on with the poem that it began, even after a reload."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        transport.producer.resumeProducing()
        self.source.poem = POEM
        self.pull(transport)
        self.assertEqual(transport.value(), THREE_PIECES.text)


class ClientTests(ProtocolCase):
    """Tests for the behaviour of clients."""

    def test_writes(self) -> None:
        """Bytes from the client are discarded, and the client gets everything."""
        transport = self.connect()
        self.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.pull(transport)
        self.protocol.dataReceived(b"more")
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseWriteConnection"])

    def test_halfClosesFirst(self) -> None:
        """A client that closed its side first gets everything; then both sides are closed."""
        transport = self.connect()
        self.protocol.readConnectionLost()
        self.assertEqual(transport.did, [])
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_halfClosesAfterwards(self) -> None:
        """When the client closes its side after ours, the wait is over."""
        transport = self.connect()
        self.pull(transport)
        self.protocol.writeConnectionLost()
        self.protocol.readConnectionLost()
        self.assertEqual(transport.did, ["loseWriteConnection", "loseConnection"])
        self.protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))

    def test_leaves(self) -> None:
        """A client that leaves early is counted."""
        transport = self.connect()
        transport.producer.stopProducing()
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))

    def test_stalls(self) -> None:
        """If the client takes no bytes, the connection is aborted."""
        self.source.poem = THREE_PIECES
        transport = self.connect()
        self.wait(30)
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))


class PolicyTests(ProtocolCase):
    """Tests for the policy, which the fast port shares."""

    limits = Limits(maxReadersPerSource=1)

    def test_tooMany(self) -> None:
        """
        A client whose source has enough readers under way is reset and counted, and sent no byte.
        """
        self.connect()
        transport = self.connect()
        self.assertEqual((transport.did, transport.value()), (["abortConnection"], b""))
        self.assertIsNone(transport.producer)
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 1)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))

    def test_drain(self) -> None:
        """A stop waits for the connection, and cuts it short at the end of the drain."""
        transport = self.connect()
        drained = self.policy.drain()
        self.assertNoResult(drained)
        self.wait(20)
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(drained)

    def test_ownPolicy(self) -> None:
        """If a factory has no listener, the end of the program waits for its readers."""
        factory = PoetryFactory(self.source)
        with mock.patch.object(reactor, "addSystemEventTrigger") as add:
            policy = factory.policy
        add.assert_called_once_with("before", "shutdown", policy.drain)


class SocketTests(ProtocolCase):
    """Tests for a connection directly on its socket."""

    def test_linger(self) -> None:
        """
        Until the last byte is written, the end of the process resets the connection; afterwards it
        does not.
        """
        server, _ = self.pairOfSockets()
        transport = self.connect(FakeTransport(PEER, server))
        self.assertEqual(self.lingerOf(server), (1, 0))
        self.pull(transport)
        self.assertEqual(self.lingerOf(server), (0, 0))

    def test_reset(self) -> None:
        """
        A reset stays a reset, whatever closes the socket, even after the last byte was written.
        """
        server, _ = self.pairOfSockets()
        self.pull(self.connect(FakeTransport(PEER, server)))
        self.protocol.reset()
        self.assertEqual(self.lingerOf(server), (1, 0))

    def test_memory(self) -> None:
        """For a stopped reader only a part of a long poem is in the kernel's buffer."""
        self.source.poem = LONG
        server, _ = self.pairOfSockets()
        self.connect(FakeTransport(PEER, server))
        option = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        self.assertEqual(option, 128 * 1024)

    def test_UNIX(self) -> None:
        """On a UNIX socket, which has no reset, the linger option is unchanged."""
        server, client = socket.socketpair()
        self.addCleanup(server.close)
        self.addCleanup(client.close)
        transport = self.connect(FakeTransport(UNIXAddress(b""), server))
        self.assertEqual(self.lingerOf(server), (0, 0))
        self.pull(transport)
        self.assertEqual(self.protocol.countTaken(), 310)

    def test_measure(self) -> None:
        """Bytes in the kernel's buffer do not count as taken."""
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
        """
        A client that has taken everything and does not close is closed after a while, not reset.
        """
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
        """Make the client stop reading."""
        self.server.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                self.server.send(bytes(65536))

    def test_fake(self) -> None:
        """The fake layer provides the interface of a real one."""
        verifyObject(ISSLTransport, self.upper)

    def test_input(self) -> None:
        """
        From the handshake on, the layer ignores what the client sends. It would end when the client
        ends its side.
        """
        self.upper.dataReceived(b"TLS's end")
        self.assertEqual(self.upper.did, [])

    def test_clientEndsFirst(self) -> None:
        """
        A client that ends its side of the connection below gets the whole poem and the end of TLS.
        Then that connection is closed.
        """
        half: Any = IHalfCloseableProtocol(self.upper)
        half.readConnectionLost()
        self.pull(self.lower)
        self.assertEqual(self.lower.value(), POEM.text)
        self.assertEqual((self.upper.did, self.lower.did), (["loseConnection"], ["loseConnection"]))

    def test_clientEndsLast(self) -> None:
        """When the client ends its side, the connection below is closed at once."""
        self.pull(self.lower)
        half: Any = IHalfCloseableProtocol(self.upper)
        half.readConnectionLost()
        self.assertEqual(self.lower.did, ["loseConnection"])

    def test_ends(self) -> None:
        """TLS, which has an end of its own and no half-close, is closed after the last byte."""
        self.pull(self.lower)
        self.assertEqual(self.lower.value(), POEM.text)
        self.assertEqual((self.upper.did, self.lower.did), (["loseConnection"], []))

    def test_linger(self) -> None:
        """
        Until the system has the last byte and the end of TLS, the end of the process resets the
        connection below TLS.
        """
        self.lower.producer.resumeProducing()
        self.assertEqual((self.lower.value(), self.upper.did), (POEM.text, ["loseConnection"]))
        self.assertEqual(self.lingerOf(self.server), (1, 0))
        self.pull(self.lower)
        self.assertEqual(self.lingerOf(self.server), (0, 0))

    def test_noAnswer(self) -> None:
        """
        If a client that has taken everything does not answer the end of TLS, the connection below
        is closed.
        """
        self.pull(self.lower)
        self.wait(5)
        self.assertIn("loseConnection", self.lower.did)

    def test_endsByADeadline(self) -> None:
        """
        If a client stops reading, the connection below is reset in time, even if all bytes are
        written.
        """
        self.fill()
        self.pull(self.lower)
        self.wait(20)
        self.assertEqual(self.lower.did, [])
        self.wait(15)
        self.assertEqual(self.lower.did[-1], "abortConnection")

    def test_notLeftToSystem(self) -> None:
        """
        If there is a layer, a stop does not leave the reader to the system: the layer may still
        hold a part of the poem.
        """
        self.fill()
        self.pull(self.lower)
        self.policy.drain()
        self.wait(5)
        self.assertEqual(self.lower.did, [])

    def test_buffer(self) -> None:
        """
        A connection below a layer is reset even while its transport still has bytes in its buffer.
        """
        self.lower.dataBuffer = bytes(1000)
        self.pull(self.lower)
        self.wait(20)
        self.assertEqual(self.lower.did, [])
        self.wait(15)
        self.assertEqual(self.lower.did[-1], "abortConnection")

    def test_unwritten(self) -> None:
        """The client has not taken what the transport has not handed to the kernel."""
        self.lower.dataBuffer, self.lower.offset, self.lower._tempDataLen = bytes(100), 30, 5
        self.pull(self.lower)
        protocol: Any = self.upper.wrappedProtocol
        self.assertEqual(protocol.countTaken(), len(POEM.text) - 75)


class HandshakeTests(ProtocolCase):
    """Tests for connections before the end of their handshake."""

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
        """
        A connection before its handshake is not a reader. Each address has a limit of such
        connections, and more are reset.
        """
        transports = [self.shake("192.0.2.7")[0] for _ in range(3)]
        other, _ = self.shake("192.0.2.8")
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual([each.did for each in transports], [[], [], ["abortConnection"]])
        self.assertEqual((other.did, self.policy.ledger.counts.turnedAway), ([], 1))

    def test_placesAreGivenBack(self) -> None:
        """
        A connection that waited for its handshake makes room for another one of its address when
        it is lost, times out or becomes a reader.
        """
        (_, first), (lower, _), _ = (self.shake("192.0.2.7") for _ in range(3))
        first.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.shake("192.0.2.7")[0].did, [])
        self.reactor.advance(self.limits.stallSeconds)
        self.assertEqual(lower.did, ["abortConnection"])
        (lower, first), (other, _) = (self.shake("192.0.2.7") for _ in range(2))
        first.handshakeCompleted()
        last, _ = self.shake("192.0.2.7")
        self.assertEqual([each.did for each in (lower, other, last)], [[], [], []])

    def test_noPoem(self) -> None:
        """The handshake's timeout does not end a connection that waits for its poem."""
        self.source.poem = None
        lower, protocol = self.shake("192.0.2.7")
        protocol.handshakeCompleted()
        self.reactor.advance(self.limits.stallSeconds)
        self.assertEqual(lower.did, [])

    def test_endsWhileItWaits(self) -> None:
        """A connection whose client ends its side first still waits for its poem."""
        self.source.poem = None
        lower, protocol = self.shake("192.0.2.7")
        protocol.handshakeCompleted()
        half: Any = IHalfCloseableProtocol(protocol.transport)
        half.readConnectionLost()
        half.dataReceived(b"TLS's end")
        self.assertEqual((half.did, lower.did), ([], []))

    def test_leaves(self) -> None:
        """A connection that leaves before its handshake leaves no timer."""
        _, protocol = self.shake("192.0.2.7")
        protocol.connectionLost(Failure(ConnectionDone()))
        self.reactor.advance(1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Before it ends, a stop resets the last connection without a complete handshake."""
        lower, _ = self.shake("192.0.2.7")
        seen: list[str] = []
        self.policy.drain().addCallback(lambda _: seen.extend(lower.did))
        self.reactor.advance(LINGER_SECONDS)
        self.assertEqual(seen, ["abortConnection"])

    def test_noPlace(self) -> None:
        """A connection after its handshake waits for a place, and then gets its poem."""
        (_, reader), (lower, queued) = (self.shake("192.0.2.7") for _ in range(2))
        reader.handshakeCompleted()
        queued.handshakeCompleted()
        self.assertEqual((self.policy.readers, lower.producer), (1, None))
        reader.connectionLost(Failure(ConnectionDone()))
        self.pull(lower)
        self.assertEqual(lower.value(), POEM.text)


class WaitTests(ProtocolCase):
    """Tests for a source that has no poem yet, such as a proxy's."""

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
        """A client may close its side while it waits for a poem."""
        transport = self.connect()
        self.protocol.readConnectionLost()
        self.source.give(POEM)
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)
        self.assertEqual(transport.did, ["loseConnection"])

    def test_fails(self) -> None:
        """When the source fails, the client is reset."""
        transport = self.connect()
        self.source.giveUp()
        self.assertEqual((transport.did, transport.value()), (["abortConnection"], b""))
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.policy.readers, 0)

    def test_drain(self) -> None:
        """A stop ends the wait for a poem."""
        transport = self.connect()
        drained = self.policy.drain()
        self.assertEqual(transport.did, ["abortConnection"])
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.successResultOf(drained)

    def test_leaves(self) -> None:
        """A client that leaves while it waits for a poem is sent no byte."""
        transport = self.connect()
        (waiting,) = self.source.waiting
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(waiting.called)
        self.assertIsNone(transport.producer)
        self.assertEqual(self.policy.readers, 0)

    def test_others(self) -> None:
        """A client that leaves does not end the wait of others."""
        transport = self.connect()
        self.connect()
        self.protocol.connectionLost(Failure(ConnectionLost()))
        self.source.waiting[0].callback(POEM)
        self.pull(transport)
        self.assertEqual(transport.value(), POEM.text)


class TransportTests(ProtocolCase):
    """Tests with Twisted's own transports and real sockets."""

    def listen(self, poem: Poem) -> None:
        """Listen with a port of Twisted."""
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
        """Serve the client until it has gone."""
        while self.policy.readers:
            self.reactor.turn()

    def test_wroteFirst(self) -> None:
        """A client that wrote first gets everything, and no reset."""
        self.listen(POEM)
        client = self.client()
        client.sendall(b"x" * 65536)
        self.assertEqual(self.reactor.fetch(client), POEM.text)
        client.shutdown(socket.SHUT_WR)
        self.end()
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_halfClosedFirst(self) -> None:
        """A client that closed its side first gets everything."""
        self.listen(LONG)
        client = self.client()
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.wait(1)
        self.end()
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_stalls(self) -> None:
        """A client that stops reading is reset: it can tell that the poem is incomplete."""
        self.listen(LONG)
        client = self.client()
        self.reactor.turn()
        self.reactor.turn()
        self.wait(31)
        self.assertEqual(self.policy.readers, 0)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_cutShort(self) -> None:
        """A client that is left at the end of the drain is reset."""
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
