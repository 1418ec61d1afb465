"""
Tests for L{fastpoetry.delivery.fastport}, on real sockets, which are served when a test says so.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

from fakes import (
    LONG,
    POEM,
    SECONDS,
    FakePort,
    FakeSource,
    Reactor,
    countDescriptors,
    makeFolder,
    receiveAll,
    said,
)
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
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.fastport import BorrowedPort, FastPort, SocketReader
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.policy import Limits, Policy
from fastpoetry.delivery.sockets import countUnacknowledged
from fastpoetry.poem import Poem
from fastpoetry.protocol import PoetryFactory

SIOCOUTQNSD = 0x894B
"""How much the peer was not yet sent (tcp(7) has the like of it): linux/sockios.h."""


def lingerOf(descriptor: int) -> tuple[int, ...]:
    """
    @return: what a close means on a descriptor: C{(1, 0)} is a reset.
    """
    with socket.socket(fileno=os.dup(descriptor)) as same:
        option = same.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    return struct.unpack("ii", option)


class PortCase(SynchronousTestCase):
    """
    A listening port, and who connects to it.
    """

    limits = Limits()

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.source = FakeSource()
        self.policy = Policy(self.limits, self.reactor)

    def plainPort(self) -> Any:
        """
        @return: a port of Twisted's own that listens.
        """
        port = tcp.Port(0, ServerFactory(), 200, "127.0.0.1", self.reactor)
        port.startListening()
        return port

    def listen(self, poem: Poem | None = POEM, port: Any = None) -> FastPort:
        """
        @return: a port that has taken the place of a plain one.
        """
        self.source.poem = poem
        plain = port or self.plainPort()
        self.port = FastPort(plain, self.source, self.policy, self.reactor)
        self.policy.addPort(self.port)
        self.port.startListening()
        self.addCleanup(self.stop)
        self.address = plain.socket.getsockname()
        return self.port

    def stop(self) -> None:
        """
        Stop to listen, and reset who is still there.
        """
        if self.port in self.policy._gate._ports:
            self.policy.removePort(self.port)
            self.port.stopListening()
            self.reactor.advance(0)
        self.policy.drain()
        self.reactor.advance(self.limits.drainSeconds)

    def connect(self, receiveBufferBytes: int = 0) -> socket.socket:
        """
        @return: a client that has connected, and waits in the backlog.
        """
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        if ":" in self.address[0]:
            family = socket.AF_INET6
        client = socket.socket(family)
        self.addCleanup(client.close)
        if receiveBufferBytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receiveBufferBytes)
        client.settimeout(SECONDS)
        client.connect(self.address)
        return client

    def visit(self, times: int = 1) -> None:
        """
        Let so much time pass that everybody was asked so often how far they have come.
        """
        self.reactor.pump([0.1] + [1.0] * times)

    def acknowledge(self, client: socket.socket) -> None:
        """
        Have the client's system say at once what it has.
        """
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    @property
    def underWay(self) -> SocketReader:
        """
        The only reader whose poem is under way.
        """
        (reader,) = self.reactor.getWriters()
        assert isinstance(reader, SocketReader)
        return reader


class InterfaceTests(PortCase):
    """
    Tests for what the port and its readers are to others.
    """

    def test_port(self) -> None:
        """
        The port is a listening port, and its reactor one that watches descriptors.
        """
        verifyObject(IReactorFDSet, self.reactor)
        verifyObject(IReactorTime, self.reactor)
        port = self.listen()
        verifyObject(IListeningPort, port)
        verifyObject(IReadDescriptor, port)
        self.assertEqual(port.getHost(), IPv4Address("TCP", *self.address))
        self.assertEqual(port.logPrefix(), "poetry")

    def test_reader(self) -> None:
        """
        A reader is a descriptor that can be written to.
        """
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        verifyObject(IWriteDescriptor, self.underWay)
        self.assertEqual(self.underWay.logPrefix(), "poetry")

    def test_inThePlace(self) -> None:
        """
        It accepts in the place of the port whose socket it has taken.
        """
        plain = self.plainPort()
        port = self.listen(port=plain)
        self.assertEqual(self.reactor.getReaders(), [port])
        self.assertEqual(port.fileno(), plain.fileno())


class ServeTests(PortCase):
    """
    Tests for readers of a poem that goes out at once.
    """

    def test_everything(self) -> None:
        """
        A client gets the whole poem and its end from one look at the port.
        """
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.reactor.getWriters(), [])

    def test_counted(self) -> None:
        """
        It is counted, with a record that says to whom it goes.
        """
        self.listen()
        client = self.connect()
        with capturedLogs() as events:
            self.reactor.turn()
        host, port = client.getsockname()
        self.assertEqual(said(events), [f"sending 310 bytes of poetry to {host}:{port}"])
        self.assertEqual(self.policy.ledger.counts, Counts(1, 310))

    def test_everyPoem(self) -> None:
        """
        Each reader gets the poem that there is when it comes.
        """
        self.listen()
        self.connect()
        self.reactor.turn()
        self.source.poem = Poem("other", b"another", "")
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), b"another")

    def test_closes(self) -> None:
        """
        When the client has closed, nothing of the connection is left.
        """
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
        A client that has everything and does not close is closed after a while, not reset.
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
        Who is in the backlog is served in batches, with a look at everything else in between.
        """
        self.listen()
        clients = [self.connect() for _ in range(100)]
        self.port.doRead()
        atOnce = self.policy.readers
        self.assertTrue(1 < atOnce < 100, atOnce)
        while self.policy.readers < 100:
            self.reactor.turn()
        self.assertEqual([receiveAll(each) for each in clients], [POEM.text] * 100)

    def test_nobody(self) -> None:
        """
        It does not wait where nobody has come.
        """
        self.listen().doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_acceptsNoMore(self) -> None:
        """
        Nor does it try for ever where the system does not let it accept.
        """
        port = self.listen()
        port._socket.shutdown(socket.SHUT_RDWR)
        port.doRead()
        self.assertEqual(self.policy.readers, 0)

    def test_IPv6(self) -> None:
        """
        IPv6 clients are served, and called by their address.
        """
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
    """
    Tests for clients that write, which must not make them lose anything.
    """

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
        """
        So does one that writes while a long poem is under way.
        """
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        client.sendall(b"more, more! " * 1000)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.visit(4)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_halfClosedFirst(self) -> None:
        """
        A client that closed its side before gets everything.
        """
        self.listen()
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.policy.readers, 0)

    def test_halfClosedFirstLong(self) -> None:
        """
        So does one of a long poem, however slowly it reads.
        """
        self.listen(LONG)
        client = self.connect(receiveBufferBytes=4096)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.visit(5)
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_uploadIsThrownAway(self) -> None:
        """
        What a client writes afterwards is read and thrown away until it closes.
        """
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
    """
    Tests for poems that do not go out at once.
    """

    def test_pieces(self) -> None:
        """
        The rest follows as the client takes it, to the last byte and the end.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(self.policy.ledger.counts, Counts())
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_turns(self) -> None:
        """
        A reader that cannot take more is left to wait for room.
        """
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.assertIsNone(self.underWay.doWrite())
        self.assertEqual(self.policy.readers, 1)

    def test_oldPoem(self) -> None:
        """
        A reader goes on with the poem it has begun, whatever there is now.
        """
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
        """
        For a stopped reader no more than a part of the poem waits in the kernel.
        """
        self.listen(LONG)
        self.connect(receiveBufferBytes=4096)
        self.reactor.turn()
        self.underWay.doWrite()
        (unsent,) = struct.unpack("i", ioctl(self.underWay.fileno(), SIOCOUTQNSD, bytes(4)))
        self.assertTrue(100_000 < unsent < 400_000, unsent)

    def test_stalled(self) -> None:
        """
        A reader that has stopped is reset: it can tell that it has not everything.
        """
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
        """
        So is one that has stopped with the last bytes still on their way.
        """
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
        """
        So is one that is still there when a stop has waited long enough.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        drained = self.policy.drain()
        self.reactor.advance(self.limits.drainSeconds)
        self.successResultOf(drained)
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_reset(self) -> None:
        """
        A client that resets the connection has left; the reactor is told why, and lets go.
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
        """
        A reader that the reactor disconnects as it ends is reset.
        """
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
        """
        Take a part.
        """
        self.handed.append(data)
        return min(self.takes(), len(data))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """
        Receive what the test says.
        """
        return self.receives()

    def setsockopt(self, level: int, option: int, value: object, length: int = 0) -> None:
        """
        Have another option.
        """
        self.options.append(option)

    def shutdown(self, how: int) -> None:
        """
        End.
        """

    def close(self) -> None:
        """
        Be gone.
        """
        super().close()
        self.closed = True


class EconomyTests(PortCase):
    """
    Tests for what a reader costs the server.
    """

    def arrive(self, reader: FakeReader, address: Address = "") -> bool:
        """
        Have a reader come whose connection nobody is at the other end of, and start.
        """
        reader.poem, reader.address = POEM, address
        reader.door, reader.sentBytes = self.listen(), 0
        return reader.start(0.0)

    def test_noCopies(self) -> None:
        """
        However many pieces a poem goes out in, none is copied.
        """
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
        For a poem that goes out at once no more is set than what a close means.
        """
        reader = FakeReader()
        self.assertTrue(self.arrive(reader))
        self.assertEqual(reader.options, [socket.SO_LINGER])

    def test_leftAtOnce(self) -> None:
        """
        The connection of a client that has gone is closed.
        """

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        reader = FakeReader(reset)
        self.assertFalse(self.arrive(reader))
        self.assertTrue(reader.closed)
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))

    def test_turnedAway(self) -> None:
        """
        So is one that is turned away.
        """
        self.policy = Policy(Limits(maxReadersPerSource=1), self.reactor)
        readers = [FakeReader(lambda: 100), FakeReader(lambda: 100)]
        for reader in readers:
            self.arrive(reader, ("192.0.2.7", 40000))
        self.assertEqual([each.closed for each in readers], [False, True])

    def test_resetAfterwards(self) -> None:
        """
        A client that resets the connection has closed it.
        """

        def reset() -> int:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        self.assertTrue(FakeReader(receives=reset).closeAfterClient())

    def test_anUploaderHoldsUpNobody(self) -> None:
        """
        One that writes as fast as it is read is left for now, after a while.
        """
        reads: list[int] = []

        def receive() -> int:
            reads.append(65536)
            if len(reads) > 1000:
                raise AssertionError("reads on and on")
            return 65536

        self.assertFalse(FakeReader(receives=receive).closeAfterClient())


class LingerTests(PortCase):
    """
    Tests for what the end of the process, kill -9 included, is to a reader.
    """

    def test_listening(self) -> None:
        """
        The listening socket makes a reset of every close; afterwards it is as it was.
        """
        plain = self.plainPort()
        before = lingerOf(plain.fileno())
        port = self.listen(port=plain)
        self.assertEqual(lingerOf(port.fileno()), (1, 0))
        with socket.socket(fileno=os.dup(plain.fileno())) as theirs:
            self.policy.removePort(port)
            stopped = port.stopListening()
            self.reactor.advance(0)
            self.successResultOf(stopped)
            self.assertEqual(lingerOf(theirs.fileno()), before)

    def test_underWay(self) -> None:
        """
        A reader under way is reset by a close.
        """
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        self.assertEqual(lingerOf(self.underWay.fileno()), (1, 0))

    def test_afterTheLastByte(self) -> None:
        """
        One that was sent everything is not.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        reader = self.underWay
        self.reactor.fetch(client)
        self.assertEqual(lingerOf(reader.fileno()), (0, 0))


class BacklogTests(PortCase):
    """
    Tests for who was in the backlog before the port listened, as after a restart or the very
    first time: the listening socket's options come too late for them.
    """

    limits = Limits(maxReadersPerSource=1)

    def listenFor(self, clients: int) -> list[socket.socket]:
        """
        @return: clients that came before.
        """
        plain = self.plainPort()
        self.address = plain.socket.getsockname()
        waiting = [self.connect() for _ in range(clients)]
        self.listen(LONG, plain)
        return waiting

    def test_armedThoughItCameBefore(self) -> None:
        """
        They are reset by a close like all others.
        """
        self.listenFor(1)
        self.reactor.turn()
        self.assertEqual(lingerOf(self.underWay.fileno()), (1, 0))

    def test_turnedAwayThoughItCameBefore(self) -> None:
        """
        Who of them is turned away can tell.
        """
        _, client = self.listenFor(2)
        self.reactor.turn()
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_reset(self) -> None:
        """
        Who has gone meanwhile is counted and does no harm, and the next is served.
        """
        self.listen()
        before = countDescriptors()
        for _ in range(10):
            client = self.connect()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        client = self.connect()
        with capturedLogs() as events:
            self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)
        self.assertEqual(self.policy.ledger.counts.poems, 1)
        self.assertLessEqual(self.policy.ledger.counts.left, 10)
        self.assertEqual(
            {text.partition(" ")[2] for text in said(events)[:-1]}, {"left after 0 of 310 bytes"}
        )
        self.assertEqual(countDescriptors(), before + 2)


class TurnAwayTests(PortCase):
    """
    Tests for the limit of one source.
    """

    limits = Limits(maxReadersPerSource=1)

    def test_tooMany(self) -> None:
        """
        Who comes from a source that has enough under way is reset.
        """
        self.listen(LONG)
        first, second = self.connect(), self.connect()
        self.reactor.turn()
        self.assertRaises(ConnectionResetError, receiveAll, second)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.reactor.fetch(first), LONG.text)

    def test_atOnce(self) -> None:
        """
        A poem that goes out at once is sent nevertheless, for it takes nothing from others.
        """
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        self.source.poem = POEM
        client = self.connect()
        self.port.doRead()
        self.assertEqual(receiveAll(client), POEM.text)


class FullTests(PortCase):
    """
    Tests for the limit of all readers.
    """

    limits = Limits(maxReaders=1)

    def test_waits(self) -> None:
        """
        Who comes when there is no room waits in the backlog until somebody leaves.
        """
        self.listen(LONG)
        first, second = self.connect(), self.connect()
        self.reactor.turn()
        self.reactor.turn()
        self.assertEqual(self.policy.readers, 1)
        self.assertNotIn(self.port, self.reactor.getReaders())
        self.assertEqual(self.reactor.fetch(first), LONG.text)
        first.close()
        self.visit()
        self.assertIn(self.port, self.reactor.getReaders())
        self.reactor.turn()
        self.assertEqual(self.reactor.fetch(second), LONG.text)

    def test_lingering(self) -> None:
        """
        Who only lingers makes room at once.
        """
        self.listen()
        first, second = self.connect(), self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(first), POEM.text)
        self.acknowledge(first)
        self.reactor.pump([0.25])
        self.port.doRead()
        self.assertEqual(receiveAll(second), POEM.text)


class FakeListener:
    """
    A listening socket whose accept(2) goes as a test says.
    """

    family = socket.AF_INET

    def __init__(self, *failures: int) -> None:
        self.failures = list(failures)
        self.accepts = 0

    def accept(self) -> tuple[Any, Any]:
        """
        Fail.
        """
        self.accepts += 1
        number = self.failures.pop(0) if self.failures else errno.EAGAIN
        raise OSError(number, os.strerror(number))

    _accept = accept

    def setsockopt(self, *option: object) -> None:
        """
        Have another option.
        """

    def getsockname(self) -> Any:
        """
        Where it listens.
        """
        return ("127.0.0.1", 1)

    def fileno(self) -> int:
        """
        No number.
        """
        return -1

    def close(self) -> None:
        """
        Be gone.
        """


class ExhaustionTests(PortCase):
    """
    Tests for connections that cannot be accepted.
    """

    def look(self, *failures: int) -> FakeListener:
        """
        @return: a listening socket, after one look at it.
        """
        plain = FakePort()
        plain.socket = listener = FakeListener(*failures)
        self.listen(port=plain)
        self.port.doRead()
        return listener

    def test_exhausted(self) -> None:
        """
        Where the system has no room everybody waits, and one warning names its cause.
        """
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            with capturedLogs() as events:
                listener = self.look(number)
            (text,) = said(events)
            self.assertTrue(text.startswith(f"{os.strerror(number)}; "), text)
            self.assertEqual(listener.accepts, 1)
            self.assertNotIn(self.port, self.reactor.getReaders())
            self.reactor.advance(0.25)
            self.assertIn(self.port, self.reactor.getReaders())
            self.reactor.advance(10)

    def test_clientsFault(self) -> None:
        """
        What was wrong with one connection is no reason to keep the next waiting.
        """
        listener = self.look(errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN)
        self.assertEqual(listener.accepts, 4)
        self.assertIn(self.port, self.reactor.getReaders())

    def test_descriptors(self) -> None:
        """
        Where there really are no more descriptors, nobody is lost who waits.
        """
        self.listen()
        client = self.connect()
        held = []
        limit = os.open("/dev/null", os.O_RDONLY)
        soft, hard = getrlimit(RLIMIT_NOFILE)
        setrlimit(RLIMIT_NOFILE, (limit + 1, hard))
        try:
            with self.assertRaises(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            self.port.doRead()
        finally:
            setrlimit(RLIMIT_NOFILE, (soft, hard))
            for descriptor in [limit, *held]:
                os.close(descriptor)
        self.assertNotIn(self.port, self.reactor.getReaders())
        self.reactor.advance(0.25)
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)


class StopTests(PortCase):
    """
    Tests for the end.
    """

    def test_acceptsNobody(self) -> None:
        """
        After a stop nobody is accepted; who is here goes on.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.policy.removePort(self.port)
        self.port.stopListening()
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(0)
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_given(self) -> None:
        """
        The socket is given back to the port it came from, which closes it as it sees fit.
        """
        plain = self.plainPort()
        port = self.listen(port=plain)
        self.policy.removePort(port)
        stopped = port.stopListening()
        self.assertNoResult(stopped)
        self.reactor.advance(0)
        self.successResultOf(stopped)
        self.assertFalse(plain.connected)

    def test_reactorLetsGo(self) -> None:
        """
        When the reactor disconnects all it has, the port's socket is left to its owner.
        """
        port = self.listen()
        port.connectionLost(Failure(ConnectionDone()))
        self.assertGreater(port.fileno(), -1)


class WaitTests(PortCase):
    """
    Tests for a source that has no poem yet, as a proxy's.
    """

    def test_waits(self) -> None:
        """
        Who comes before there is a poem waits in the backlog, and is served when there is one.
        """
        self.listen(None)
        client = self.connect()
        self.reactor.turn()
        self.reactor.advance(10)
        self.assertEqual((self.policy.readers, self.reactor.getReaders()), (0, []))
        self.assertEqual(self.policy.idleSeconds, 0)
        self.source.give(POEM)
        self.reactor.advance(1)
        self.assertEqual(self.policy.idleSeconds, 1)
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)

    def test_waitsOnce(self) -> None:
        """
        It waits once for all who come meanwhile, and for the next poem again.
        """
        self.listen(None)
        self.connect()
        self.port.doRead()
        self.port.doRead()
        self.assertEqual(len(self.source.waiting), 1)
        self.source.give(POEM)
        self.source.poem = None
        self.port.doRead()
        self.assertEqual(len(self.source.waiting), 1)

    def test_fails(self) -> None:
        """
        Where there will be no poem who has waited is reset and counted; the next waits anew.
        """
        self.listen(None)
        client = self.connect()
        self.port.doRead()
        self.source.giveUp()
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.reactor.getReaders(), [self.port])
        self.connect()
        self.reactor.turn()
        self.assertEqual(len(self.source.waiting), 1)

    def test_failsForTheOldBacklog(self) -> None:
        """
        Who came before the port listened is reset too.
        """
        plain = self.plainPort()
        self.address = plain.socket.getsockname()
        client = self.connect()
        self.listen(None, plain)
        self.port.doRead()
        self.source.giveUp()
        self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_failsAtOnce(self) -> None:
        """
        It makes no difference whether that is known at once.
        """
        self.listen(None)
        self.source.failsAtOnce = True
        for _ in range(3):
            client = self.connect()
            self.reactor.turn()
            self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_resetFails(self) -> None:
        """
        That somebody who has waited cannot even be accepted does not make the port deaf.
        """
        plain = FakePort()
        plain.socket = FakeListener(errno.ECONNABORTED, errno.EMFILE)
        port = self.listen(None, plain)
        for _ in range(2):
            port.doRead()
            self.assertEqual(self.reactor.getReaders(), [])
            self.source.giveUp()
            self.assertEqual(self.reactor.getReaders(), [port])

    def test_stop(self) -> None:
        """
        A stop does not wait for a poem, and leaves who waits in the backlog.
        """
        self.listen(None)
        self.connect()
        self.port.doRead()
        (waiting,) = self.source.waiting
        self.policy.removePort(self.port)
        self.port.stopListening()
        self.assertTrue(waiting.called)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.policy.ledger.counts, Counts())


class BorrowedTests(PortCase):
    """
    Tests for L{BorrowedPort}, where Twisted's own port makes the connections.
    """

    limits = Limits(maxReaders=70)

    def listen(self, poem: Poem | None = POEM, port: Any = None) -> Any:
        """
        @return: a port that has taken the place of a plain one.
        """
        self.source.poem = poem
        factory = PoetryFactory(self.source, self.policy)
        plain: Any = tcp.Port(0, factory, 200, "127.0.0.1", self.reactor)
        plain.startListening()
        self.port: Any = BorrowedPort(plain, self.policy, self.reactor)
        self.policy.addPort(self.port)
        self.port.startListening()
        self.addCleanup(self.stop)
        self.address = plain.socket.getsockname()
        return self.port

    def test_interfaces(self) -> None:
        """
        It is a listening port, in the place of the other.
        """
        port = self.listen()
        verifyObject(IListeningPort, port)
        verifyObject(IReadDescriptor, port)
        self.assertEqual(self.reactor.getReaders(), [port])

    def test_everything(self) -> None:
        """
        A client gets the whole poem.
        """
        self.listen(LONG)
        client = self.connect()
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_many(self) -> None:
        """
        Who is in the backlog is accepted in batches, with a look at everything else in between.
        """
        self.listen()
        clients = [self.connect() for _ in range(69)]
        self.port.doRead()
        self.assertTrue(1 < self.policy.readers < 69, self.policy.readers)
        self.port.doRead()
        self.assertEqual(self.policy.readers, len(clients))

    def test_noMore(self) -> None:
        """
        There are never more readers than may be; who else comes waits in the backlog.
        """
        self.listen(LONG)
        clients = [self.connect() for _ in range(75)]
        self.port.doRead()
        self.port.doRead()
        self.assertEqual(self.policy.readers, 70)
        self.assertNotIn(self.port, self.reactor.getReaders())
        for client in clients[:70]:
            client.close()
        while self.policy.readers:
            self.reactor.turn()
        self.assertEqual(self.reactor.fetch(clients[70]), LONG.text)

    def test_nobody(self) -> None:
        """
        It does not wait where nobody has come, and asks once.
        """
        port = self.listen()
        accepts: list[None] = []
        doRead = port._port.doRead
        self.patch(port._port, "doRead", lambda: accepts.append(doRead()))
        port.doRead()
        self.assertEqual(accepts, [None])


class UNIXTests(PortCase):
    """
    Tests for UNIX sockets.
    """

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(makeFolder(self), "s")

    def plainPort(self) -> Any:
        """
        @return: a UNIX port of Twisted's own that listens.
        """
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
        """
        A long poem follows as the client takes it.
        """
        self.listen(LONG)
        client = self.connect()
        client.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_clientDoesNotRead(self) -> None:
        """
        What was written cannot get lost, so that a client need not have read it to be closed.
        """
        self.listen()
        client = self.connect()
        self.reactor.turn()
        self.visit(4)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(receiveAll(client), POEM.text)

    def test_noSource(self) -> None:
        """
        Its readers are no source that could have too many.
        """
        self.policy = Policy(Limits(maxReadersPerSource=1), self.reactor)
        self.listen(LONG)
        clients = [self.connect(), self.connect()]
        self.reactor.turn()
        self.assertEqual(self.policy.readers, len(clients))

    def test_stalled(self) -> None:
        """
        A reader that has stopped is ended, short, since a UNIX socket knows no reset.
        """
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.visit(31)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertLess(len(receiveAll(client)), len(LONG.text))

    def test_given(self) -> None:
        """
        After a stop its file is gone, as it was Twisted that made it.
        """
        port = self.listen()
        self.policy.removePort(port)
        port.stopListening()
        self.reactor.advance(0)
        self.assertFalse(os.path.exists(self.path))
