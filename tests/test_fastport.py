"""
Tests for L{fastpoetry.delivery.fastport}: what a reader gets, and what it costs.

Accepting is in C{test_accepting}.
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
"""The number of bytes not yet sent to the peer (as tcp(7) has it for queues): linux/sockios.h."""


class InterfaceTests(PortCase):
    """Tests for the interfaces of the port and its readers."""

    def test_port(self) -> None:
        """The port is a listening port, and its reactor watches descriptors."""
        verifyObject(IReactorFDSet, self.reactor)
        verifyObject(IReactorTime, self.reactor)
        port = self.listen()
        verifyObject(IListeningPort, port)
        verifyObject(IReadDescriptor, port)
        self.assertEqual(port.getHost(), IPv4Address("TCP", *self.address))
        self.assertEqual(port.logPrefix(), "poetry")

    def test_reader(self) -> None:
        """A reader is a writable descriptor."""
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        verifyObject(IWriteDescriptor, self.underWay)
        self.assertEqual(self.underWay.logPrefix(), "poetry")

    def test_inThePlace(self) -> None:
        """The port accepts in place of the port whose socket it took."""
        plain = self.plainPort()
        port = self.listen(port=plain)
        self.assertEqual(self.reactor.getReaders(), [port])
        self.assertEqual(port.fileno(), plain.fileno())


class ServeTests(PortCase):
    """Tests for readers of a poem that can be sent at once."""

    def test_everything(self) -> None:
        """A client gets the whole poem and its end in one read event of the port."""
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.reactor.getWriters(), [])

    def test_counted(self) -> None:
        """The poem is counted, with a record that names the client."""
        self.listen()
        client = self.connect()
        with capturedLogs() as events:
            self.reactor.turn()
        host, port = client.getsockname()
        self.assertEqual(said(events), [f"sending 310 bytes of poetry to {host}:{port}"])
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))

    def test_everyPoem(self) -> None:
        """Each reader gets the poem that is current when it connects."""
        self.listen()
        self.connect()
        self.reactor.turn()
        self.source.poem = Poem("other", b"another", "")
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), b"another")

    def test_closes(self) -> None:
        """After the client has closed, nothing of the connection is left."""
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
        """
        A client that has taken everything and does not close is closed after a while, not reset.
        """
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.acknowledge(client)
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_many(self) -> None:
        """
        Clients in the backlog are served in batches, and the reactor handles other events in
        between.
        """
        self.listen()
        clients = [self.connect() for _ in range(100)]
        self.port.doRead()
        atOnce = self.policy.readers
        self.assertTrue(1 < atOnce < 100, atOnce)
        while self.policy.readers < 100:
            self.reactor.turn()
        self.assertEqual([receiveAll(each) for each in clients], [POEM.text] * 100)

    def test_wrongCount(self) -> None:
        """All clients are served even if the system reports an empty backlog."""
        self.patch(fastport, "countBacklog", lambda listening: 0)
        self.listen()
        clients = [self.connect() for _ in range(3)]
        for _ in clients:
            self.reactor.turn()
        self.assertEqual([receiveAll(each) for each in clients], [POEM.text] * 3)

    def test_nobody(self) -> None:
        """With an empty backlog the port does not block."""
        self.listen().doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_acceptsNoMore(self) -> None:
        """The port does not try forever if the system does not let it accept."""
        port = self.listen()
        port._socket.shutdown(socket.SHUT_RDWR)
        port.doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_IPv6(self) -> None:
        """IPv6 clients are served, and recorded with their address."""
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
    """Tests for clients that write, which must not lose bytes of the poem."""

    def test_wroteFirst(self) -> None:
        """A client that wrote first gets everything, and no reset even if it does not close."""
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

    def test_halfClosedFirst(self) -> None:
        """A client that closed its side first gets everything."""
        self.listen()
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.policy.readers, 0)

    def test_halfClosedFirstLong(self) -> None:
        """A client that closed its side first gets a long poem too, however slowly it reads."""
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit(5)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_uploadIsThrownAway(self) -> None:
        """Bytes that a client writes after its poem are read and discarded until it closes."""
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
    """Tests for poems that cannot be sent at once."""

    def test_pieces(self) -> None:
        """The rest of a long poem follows as the client reads, to the last byte and the end."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(self.policy.ledger.counts, Counts())
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_turns(self) -> None:
        """A reader whose buffer is full waits until it is writable."""
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.assertIsNone(self.underWay.doWrite())
        self.assertEqual(self.policy.readers, 1)

    def test_oldPoem(self) -> None:
        """A reader goes on with the poem that it began, even after a reload."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.source.poem = POEM
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_measure(self) -> None:
        """
        The progress of a stopped reader counts the bytes that its system has acknowledged, not
        those in the server's buffer.
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
        """For a stopped reader only a part of the poem is in the kernel's buffer."""
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.underWay.doWrite()
        (unsent,) = struct.unpack("i", ioctl(self.underWay.fileno(), SIOCOUTQNSD, bytes(4)))
        self.assertTrue(100_000 < unsent < 400_000, unsent)

    def test_stalled(self) -> None:
        """A reader that has stopped is reset: its client can tell that the poem is incomplete."""
        self.listen(LONG)
        before = countDescriptors()
        client = self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.visit(31)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertEqual(self.reactor.getWriters(), [])
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(countDescriptors(), before + 1)

    def test_leftToSystem(self) -> None:
        """
        When the system has the whole poem, a stop closes the reader's socket and leaves the sending
        to the system.
        """
        poem = Poem("x", b"x" * 120_000, "")
        self.listen(poem)
        client = self.connect(receiveBufferBytes=4096)
        while not self.policy.readers or self.reactor.getWriters():
            self.reactor.turn()
        self.visit()
        reader: Any = next(iter(self.policy._lingering._readers))
        drained = self.policy.drain()
        self.reactor.pump([0.05] * 4)
        self.successResultOf(drained)
        self.assertEqual(reader.fileno(), -1)
        self.assertEqual(receiveAll(client), poem.text)

    def test_reset(self) -> None:
        """
        A client that resets the connection has left; the reactor is told the reason and removes the
        reader.
        """
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
        """A reader that the reactor disconnects at its end is reset."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.underWay.connectionLost(Failure(ConnectionDone()))
        self.reactor.removeAll()
        self.assertRaises(ConnectionResetError, receiveAll, client)


class FakeReader(SocketReader):
    """
    A reader whose socket takes a set amount at a time.

    @ivar handed: the buffers given to send.
    @ivar options: the options that were set.
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
        """Accept a part of the bytes."""
        self.handed.append(data)
        return min(self.takes(), len(data))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive what the test provides."""
        return self.receives()

    def getsockopt(self, level: int, option: int, length: int = 0) -> Any:
        """Report a live connection."""
        return b"\1"

    def setsockopt(self, level: int, option: int, value: object, length: int = 0) -> None:
        """Record the option."""
        self.options.append(option)

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Record the close."""
        super().close()
        self.closed = True


class EconomyTests(PortCase):
    """Tests for the cost of a reader."""

    def arrive(self, reader: FakeReader, address: Address = "") -> bool:
        """Connect a reader without a client, and start it."""
        reader.poem, reader.address = POEM, address
        reader.home, reader.sentBytes = self.listen()._home, 0
        return reader.start()

    def test_noCopies(self) -> None:
        """However many pieces a poem is sent in, no piece is copied."""
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
        No option is set for a poem that is sent at once, or for its end if the client is quick.
        """
        reader = FakeReader()
        self.assertTrue(self.arrive(reader))
        self.patch(FakeReader, "getsockopt", lambda *_: b"\7")
        self.assertTrue(reader.closeAfterClient())
        self.assertEqual((reader.options, reader.closed), ([], True))

    def test_leftAtOnce(self) -> None:
        """The connection of a client that has left is closed."""

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        reader = FakeReader(reset)
        self.assertFalse(self.arrive(reader))
        self.assertTrue(reader.closed)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))

    def test_turnedAway(self) -> None:
        """The connection of a client that is turned away is closed."""
        self.policy = Policy(Limits(maxReadersPerSource=1), self.reactor)
        readers = [FakeReader(lambda: 100), FakeReader(lambda: 100)]
        for reader in readers:
            self.arrive(reader, ("192.0.2.7", 40000))
        self.assertEqual([each.closed for each in readers], [False, True])

    def test_resetAfterwards(self) -> None:
        """A client's reset after the poem counts as a close."""

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        reader = FakeReader(receives=reset)
        self.assertEqual((reader.closeAfterClient(), reader.closed), (True, True))

    def test_uploaderDelaysNoClient(self) -> None:
        """
        The server reads only for a while from a client that writes without pause, and then handles
        others.
        """
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
        """@return: a listening UNIX port of Twisted."""
        port = unix.Port(os.fsencode(self.path), ServerFactory(), 50, 0o600, reactor=self.reactor)
        port.startListening()
        return port

    def test_everything(self) -> None:
        """
        A client gets the whole poem, whether it wrote first or not; the record names it C{unix}.
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
        """A long poem follows as the client reads."""
        self.listen(LONG)
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_clientDoesNotRead(self) -> None:
        """
        On a UNIX socket, written bytes cannot be lost, so a reader may be closed before its client
        has read.
        """
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(receiveAll(client), POEM.text)

    def test_source(self) -> None:
        """Readers are limited by user: one user can have too many."""
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
        """
        A reader that has stopped ends early without a reset, since a UNIX socket has no reset.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.visit(31)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertLess(len(receiveAll(client)), len(LONG.text))

    def test_given(self) -> None:
        """After a stop the socket's file is removed, because Twisted made it."""
        port = self.listen()
        self.policy.gate.remove(port)
        port.stopListening()
        self.reactor.advance(0)
        self.assertFalse(os.path.exists(self.path))
