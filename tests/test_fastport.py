"""
Tests for L{fastpoetry.delivery.fastport}: what a reader gets, and what it costs.

Who is accepted, and when, is in C{test_accepting}.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from typing import Any
from unittest import mock

from fakes import LONG, POEM, countDescriptors, makeFolder, receiveAll, said
from ports import PortCase
from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.internet.protocol import ServerFactory
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from fastpoetry.delivery import fastport
from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.fastport import SocketReader
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.sockets import countUnacknowledged
from fastpoetry.poem import Poem

SIOCOUTQNSD = 0x894B
"""How much the peer was not yet sent (tcp(7) has the like of it): linux/sockios.h."""


class InterfaceTests(PortCase):
    """Tests for what the port and its readers are to others."""

    def test_port(self) -> None:
        """The port is a listening port, and its reactor one that watches descriptors."""
        verifyObject(IReactorFDSet, self.reactor)
        verifyObject(IReactorTime, self.reactor)
        port = self.listen()
        verifyObject(IListeningPort, port)
        verifyObject(IReadDescriptor, port)
        self.assertEqual(port.getHost(), IPv4Address("TCP", *self.address))
        self.assertEqual(port.logPrefix(), "poetry")

    def test_reader(self) -> None:
        """A reader is a descriptor that can be written to."""
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        verifyObject(IWriteDescriptor, self.underWay)
        self.assertEqual(self.underWay.logPrefix(), "poetry")

    def test_inThePlace(self) -> None:
        """It accepts in the place of the port whose socket it has taken."""
        plain = self.plainPort()
        port = self.listen(port=plain)
        self.assertEqual(self.reactor.getReaders(), [port])
        self.assertEqual(port.fileno(), plain.fileno())


class ServeTests(PortCase):
    """Tests for readers of a poem that goes out at once."""

    def test_everything(self) -> None:
        """A client gets the whole poem and its end from one look at the port."""
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.reactor.getWriters(), [])

    def test_counted(self) -> None:
        """It is counted, with a record that says to whom it goes."""
        self.listen()
        client = self.connect()
        with capturedLogs() as events:
            self.reactor.turn()
        host, port = client.getsockname()
        self.assertEqual(said(events), [f"sending 310 bytes of poetry to {host}:{port}"])
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))

    def test_everyPoem(self) -> None:
        """Each reader gets the poem that there is when it comes."""
        self.listen()
        self.connect()
        self.reactor.turn()
        self.source.poem = Poem("other", b"another", "")
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), b"another")

    def test_closes(self) -> None:
        """When the client has closed, nothing of the connection is left."""
        self.listen()
        before = countDescriptors()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(self.policy.readers, 1)
        client.close()
        self.visit()
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(countDescriptors(), before)

    def test_clientDoesNotClose(self) -> None:
        """A client that has everything and does not close is closed after a while, not reset."""
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.acknowledge(client)
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_many(self) -> None:
        """Who is in the backlog is served in batches, with a look at everything else in between."""
        self.listen()
        clients = [self.connect() for _ in range(100)]
        self.port.doRead()
        atOnce = self.policy.readers
        self.assertTrue(1 < atOnce < 100, atOnce)
        while self.policy.readers < 100:
            self.reactor.turn()
        self.assertEqual([receiveAll(each) for each in clients], [POEM.text] * 100)

    def test_wrongCount(self) -> None:
        """A system that counts nobody in the backlog though somebody is there has all served."""
        self.patch(fastport, "countWaiting", lambda listening: 0)
        self.listen()
        clients = [self.connect() for _ in range(3)]
        for _ in clients:
            self.reactor.turn()
        self.assertEqual([receiveAll(each) for each in clients], [POEM.text] * 3)

    def test_nobody(self) -> None:
        """It does not wait where nobody has come."""
        self.listen().doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_acceptsNoMore(self) -> None:
        """Nor does it try for ever where the system does not let it accept."""
        port = self.listen()
        port._socket.shutdown(socket.SHUT_RDWR)
        port.doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_IPv6(self) -> None:
        """IPv6 clients are served, and called by their address."""
        port = tcp.Port(0, ServerFactory(), 50, "::1", self.reactor)
        port.startListening()
        self.listen(port=port)
        client = self.connect()
        with capturedLogs() as events:
            self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        (text,) = said(events)
        self.assertTrue(text.endswith(f" to [::1]:{client.getsockname()[1]}"), text)


class WroteFirstTests(PortCase):
    """Tests for clients that write, which must not make them lose anything."""

    def test_wroteFirst(self) -> None:
        """
        A client that wrote before gets everything, and no reset when it does not close either.
        """
        self.listen()
        client = self.connect()
        client.sendall(b"GET /ecstasy HTTP/1.1\r\n" * 2800)
        self.reactor.turn()
        self.visit()
        self.assertEqual(receiveAll(client), POEM.text)
        self.acknowledge(client)
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_wroteMeanwhile(self) -> None:
        """So does one that writes while a long poem is under way."""
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        client.sendall(b"more, more! " * 1000)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.visit(4)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_halfClosedFirst(self) -> None:
        """A client that closed its side before gets everything."""
        self.listen()
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.policy.readers, 0)

    def test_halfClosedFirstLong(self) -> None:
        """So does one of a long poem, however slowly it reads."""
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit(5)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_uploadIsThrownAway(self) -> None:
        """What a client writes afterwards is read and thrown away until it closes."""
        self.listen()
        client = self.connect()
        self.reactor.turn()
        for _ in range(3):
            client.sendall(b"x" * 60_000)
            self.visit()
        client.shutdown(socket.SHUT_WR)
        self.visit()
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(receiveAll(client), POEM.text)


class LongTests(PortCase):
    """Tests for poems that do not go out at once."""

    def test_pieces(self) -> None:
        """The rest follows as the client takes it, to the last byte and the end."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(self.policy.ledger.counts, Counts())
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_turns(self) -> None:
        """A reader that cannot take more is left to wait for room."""
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.assertIsNone(self.underWay.doWrite())
        self.assertEqual(self.policy.readers, 1)

    def test_oldPoem(self) -> None:
        """A reader goes on with the poem it has begun, whatever there is now."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.source.poem = POEM
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_measure(self) -> None:
        """
        What a stopped reader has taken is what its system acknowledged, in spite of what waits.
        """
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        taken = self.underWay.countTaken()
        self.assertTrue(0 < taken < 100_000, taken)
        self.assertGreater(countUnacknowledged(self.underWay), 0)
        reader = self.underWay
        self.reactor.fetch(client)
        self.acknowledge(client)
        self.assertEqual(reader.countTaken(), len(LONG.text))

    def test_memory(self) -> None:
        """For a stopped reader no more than a part of the poem waits in the kernel."""
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.underWay.doWrite()
        (unsent,) = struct.unpack("i", ioctl(self.underWay.fileno(), SIOCOUTQNSD, bytes(4)))
        self.assertTrue(100_000 < unsent < 400_000, unsent)

    def test_stalled(self) -> None:
        """A reader that has stopped is reset: it can tell that it has not everything."""
        self.listen(LONG)
        before = countDescriptors()
        client = self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.visit(31)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertEqual(self.reactor.getWriters(), [])
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(countDescriptors(), before + 1)

    def test_stalledAtTheEnd(self) -> None:
        """So is one that has stopped with the last bytes still on their way."""
        poem = Poem("x", b"x" * 120_000, "")
        self.listen(poem)
        client = self.connect(receiveBufferBytes=4096)
        while not self.policy.readers or self.reactor.getWriters():
            self.reactor.turn()
        self.assertEqual(self.policy.ledger.counts.poems, 1)
        self.visit(32)
        self.assertEqual(self.policy.readers, 0)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_cutShort(self) -> None:
        """So is one that is still there when a stop has waited long enough."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        drained = self.policy.drain()
        self.reactor.advance(self.limits.drainSeconds)
        self.successResultOf(drained)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_reset(self) -> None:
        """A client that resets the connection has left; the reactor is told why, and lets go."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        reader = self.underWay
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        why = reader.doWrite()
        assert why is not None
        why.trap(ConnectionResetError, BrokenPipeError)
        reader.connectionLost(why)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))
        self.assertEqual((self.policy.readers, reader.fileno()), (0, -1))

    def test_reactorEnds(self) -> None:
        """A reader that the reactor disconnects as it ends is reset."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.underWay.connectionLost(Failure(ConnectionDone()))
        self.reactor.removeAll()
        self.assertRaises(ConnectionResetError, receiveAll, client)


class FakeReader(SocketReader):
    """
    A reader that takes so much at a time, and remembers what it was handed.

    @ivar handed: what it was given to send.
    @ivar options: which options were set.
    @ivar closed: whether it was closed.
    """

    def __init__(
        self, takes: Callable[[], int] = lambda: 1000, receives: Callable[[], int] = lambda: 0
    ) -> None:
        super().__init__()
        self.takes = takes
        self.receives = receives
        self.handed: list[Any] = []
        self.options: list[int] = []
        self.closed = False

    def send(self, data: Any, flags: int = 0) -> int:
        """Take a part."""
        self.handed.append(data)
        return min(self.takes(), len(data))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive what the test says."""
        return self.receives()

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """Be connected."""
        return b"\1"

    def setsockopt(self, level: int, option: int, value: object, length: int = 0) -> None:
        """Have another option."""
        self.options.append(option)

    def shutdown(self, how: int) -> None:
        """End."""

    def close(self) -> None:
        """Be gone."""
        super().close()
        self.closed = True


class EconomyTests(PortCase):
    """Tests for what a reader costs the server."""

    def arrive(self, reader: FakeReader, address: Address = "") -> bool:
        """Have a reader come whose connection nobody is at the other end of, and start."""
        reader.poem, reader.address = POEM, address
        reader.home, reader.sentBytes = self.listen()._home, 0
        return reader.start(0.0)

    def test_noCopies(self) -> None:
        """However many pieces a poem goes out in, none is copied."""
        reader = FakeReader(lambda: 100)
        self.arrive(reader)
        while self.reactor.writers:
            reader.doWrite()
        self.assertEqual([len(each) for each in reader.handed], [310, 210, 110, 10])
        for piece in reader.handed:
            whole = piece.obj if isinstance(piece, memoryview) else piece
            self.assertIs(whole, POEM.text)

    def test_small(self) -> None:
        """
        For a poem that goes out at once nothing is set, nor for its end if its client is quick.
        """
        reader = FakeReader()
        self.assertTrue(self.arrive(reader))
        self.patch(FakeReader, "getsockopt", lambda *_: b"\7")
        self.assertTrue(reader.closeAfterClient())
        self.assertEqual((reader.options, reader.closed), ([], True))

    def test_leftAtOnce(self) -> None:
        """The connection of a client that has gone is closed."""

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        reader = FakeReader(reset)
        self.assertFalse(self.arrive(reader))
        self.assertTrue(reader.closed)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))

    def test_turnedAway(self) -> None:
        """So is one that is turned away."""
        self.policy = Policy(Limits(maxReadersPerSource=1), self.reactor)
        readers = [FakeReader(lambda: 100), FakeReader(lambda: 100)]
        for reader in readers:
            self.arrive(reader, ("192.0.2.7", 40000))
        self.assertEqual([each.closed for each in readers], [False, True])

    def test_resetAfterwards(self) -> None:
        """A client that resets the connection has closed it."""

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        self.assertTrue(FakeReader(receives=reset).closeAfterClient())

    def test_anUploaderHoldsUpNobody(self) -> None:
        """One that writes as fast as it is read is left for now, after a while."""
        reads: list[int] = []

        def receive() -> int:
            reads.append(65536)
            if len(reads) > 1000:
                raise AssertionError("reads on and on")
            return 65536

        self.assertFalse(FakeReader(receives=receive).closeAfterClient())


class UNIXTests(PortCase):
    """Tests for UNIX sockets."""

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(makeFolder(self), "s")

    def plainPort(self) -> Any:
        """@return: a UNIX port of Twisted's own that listens."""
        port = unix.Port(os.fsencode(self.path), ServerFactory(), 50, 0o600, reactor=self.reactor)
        port.startListening()
        return port

    def test_everything(self) -> None:
        """
        A client gets the whole poem, having written before or not; the record calls it C{unix}.
        """
        self.listen()
        client = self.connect()
        client.sendall(b"x" * 1000)
        with capturedLogs() as events:
            self.reactor.turn()
        self.visit()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(said(events), ["sending 310 bytes of poetry to unix"])
        client.close()
        self.visit()
        self.assertEqual(self.policy.readers, 0)

    def test_pieces(self) -> None:
        """A long poem follows as the client takes it."""
        self.listen(LONG)
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_clientDoesNotRead(self) -> None:
        """What was written cannot get lost, so that a client need not have read it to be closed."""
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(receiveAll(client), POEM.text)

    def test_source(self) -> None:
        """Its readers are told apart by their users: one user can have too many."""
        self.policy = Policy(Limits(maxReadersPerSource=1), self.reactor)
        self.listen(LONG)
        clients = [self.connect(), self.connect()]
        self.reactor.turn()
        self.assertEqual((self.policy.readers, self.policy.ledger.counts.turnedAway), (1, 1))
        self.assertEqual(self.underWay.address, os.getuid())
        self.assertEqual(receiveAll(clients[1]), b"")
        with mock.patch("fastpoetry.delivery.fastport.findAddress", return_value=os.getuid() + 1):
            clients.append(self.connect())
            self.reactor.turn()
        self.assertEqual(self.policy.readers, 2)

    def test_stalled(self) -> None:
        """A reader that has stopped is ended, short, since a UNIX socket knows no reset."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.visit(31)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertLess(len(receiveAll(client)), len(LONG.text))

    def test_given(self) -> None:
        """After a stop its file is gone, as it was Twisted that made it."""
        port = self.listen()
        self.policy.gate.remove(port)
        port.stopListening()
        self.reactor.advance(0)
        self.assertFalse(os.path.exists(self.path))
