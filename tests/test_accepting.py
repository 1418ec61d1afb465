"""
Tests for L{fastpoetry.delivery.fastport}: which clients a port accepts, when, and in which port's
place.

What a reader gets afterwards is in C{test_fastport}.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any
from unittest import mock

from fakes import LONG, POEM, FakePort, countDescriptors, receiveAll, said
from ports import PortCase, lingerOf
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.internet.protocol import Protocol
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from fastpoetry.delivery import fastport
from fastpoetry.delivery.fastport import BorrowedPort, SocketReader
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.poem import Poem
from fastpoetry.protocol import PoetryFactory


class LingerTests(PortCase):
    """Tests for what a reader sees when the process ends, C{kill -9} included."""

    def test_listening(self) -> None:
        """The listening socket's linger option turns every close into a reset."""
        self.assertEqual(lingerOf(self.listen().fileno()), (1, 0))

    def test_stopped(self) -> None:
        """A stopped port leaves the linger option set: another process may use the socket."""
        plain = self.plainPort()
        port = self.listen(port=plain)
        with socket.socket(fileno=os.dup(plain.fileno())) as theirs:
            self.policy.gate.remove(port)
            stopped = port.stopListening()
            self.reactor.advance(0)
            self.successResultOf(stopped)
            self.assertEqual(lingerOf(theirs.fileno()), (1, 0))

    def test_underWay(self) -> None:
        """A reader under way is reset by a close."""
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        self.assertEqual(lingerOf(self.underWay.fileno()), (1, 0))

    def test_sentAtOnce(self) -> None:
        """
        A reader that was sent everything at once is no longer reset once the port has handled it.
        """
        self.listen()
        readers: list[SocketReader] = []
        start = SocketReader.start

        def watch(reader: SocketReader) -> bool:
            readers.append(reader)
            return start(reader)

        self.patch(SocketReader, "start", watch)
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(lingerOf(readers[0].fileno()), (1, 0))
        self.assertFalse(readers[0].closeAfterClient())
        self.assertEqual(lingerOf(readers[0].fileno()), (0, 0))
        self.assertEqual(receiveAll(client), POEM.text)

    def test_afterTheLastByte(self) -> None:
        """A reader that was sent everything is not reset by a close."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        reader = self.underWay
        self.reactor.fetch(client)
        self.assertEqual(lingerOf(reader.fileno()), (0, 0))


class BacklogTests(PortCase):
    """
    Tests for clients that were in the backlog before the port listened, as after a restart or at
    the first start: the listening socket's options come too late for them.
    """

    def test_armedThoughItCameBefore(self) -> None:
        """A close resets an earlier client like all others."""
        plain = self.plainPort()
        self.address = plain.socket.getsockname()
        self.connect()
        self.listen(LONG, plain)
        self.reactor.turn()
        self.assertEqual(lingerOf(self.underWay.fileno()), (1, 0))

    def test_reset(self) -> None:
        """
        A client that has left the backlog is counted and does no harm; the port serves the next
        one.
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
    """Tests for the limit of readers of one source."""

    limits = Limits(maxReadersPerSource=1)

    def test_tooMany(self) -> None:
        """A client whose source has enough readers under way is reset."""
        self.listen(LONG)
        first, second = self.connect(), self.connect()
        self.reactor.turn()
        self.assertRaises(ConnectionResetError, receiveAll, second)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.reactor.fetch(first), LONG.text)

    def test_atOnce(self) -> None:
        """
        A client that can be sent the poem at once is served despite the limit: it takes no
        resources from others.
        """
        self.listen(LONG)
        self.connect()
        self.reactor.turn()
        self.source.poem = POEM
        client = self.connect()
        self.port.doRead()
        self.assertEqual(receiveAll(client), POEM.text)


class FullTests(PortCase):
    """Tests for the limit of all readers together."""

    limits = Limits(maxReaders=1)

    def test_waits(self) -> None:
        """At the limit, a new client waits in the backlog until a reader leaves."""
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
        """A reader that only lingers does not count towards the limit."""
        self.listen()
        first, second = self.connect(), self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(first), POEM.text)
        self.acknowledge(first)
        self.reactor.pump([0.25])
        self.port.doRead()
        self.assertEqual(receiveAll(second), POEM.text)

    def test_failure(self) -> None:
        """A failed accept does not let in one reader too many."""
        port = self.listen(LONG)
        for _ in range(3):
            self.connect()
        accept, lost = port._accept, [OSError(errno.ECONNABORTED, "")]

        def acceptLater() -> SocketReader:
            if lost:
                raise lost.pop()
            return accept()

        self.patch(port, "_accept", acceptLater)
        port.doRead()
        self.assertEqual(self.policy.readers, 1)


class FakeListener:
    """A listening socket whose accept(2) fails as a test says."""

    family = socket.AF_INET

    def __init__(self, *failures: int) -> None:
        self.failures = list(failures)
        self.accepts = 0

    def accept(self) -> tuple[Any, Any]:
        """Fail."""
        self.accepts += 1
        number = self.failures.pop(0) if self.failures else errno.EAGAIN
        raise OSError(number, os.strerror(number))

    _accept = accept

    def setsockopt(self, *option: object) -> None:
        """Ignore the option."""

    def getsockopt(self, *option: object) -> Any:
        """Return no option."""
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    def getsockname(self) -> Any:
        """Return an address."""
        return ("127.0.0.1", 1)

    def fileno(self) -> int:
        """Return no number."""
        return -1

    def close(self) -> None:
        """Do nothing."""


class ExhaustionTests(PortCase):
    """Tests for connections that cannot be accepted."""

    def look(self, *failures: int) -> FakeListener:
        """@return: a listening socket, after the port has tried to accept from it once."""
        plain = FakePort()
        plain.socket = listener = FakeListener(*failures)
        self.listen(port=plain)
        self.port.doRead()
        return listener

    def test_exhausted(self) -> None:
        """
        When the system has run out of descriptors or memory, all clients wait, and one warning
        names the cause.
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
        """An error of one connection does not delay the next one."""
        listener = self.look(errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN)
        self.assertEqual(listener.accepts, 4)
        self.assertIn(self.port, self.reactor.getReaders())

    def test_lastingFailure(self) -> None:
        """
        While accept(2) fails for every client, the port pauses, and one record names the cause.
        """
        for number in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EPROTO, errno.ECONNABORTED):
            plain = FakePort()
            plain.socket = FakeListener(*[number] * 1000)
            port = self.listen(port=plain)
            with capturedLogs() as events:
                for _ in range(4):
                    port.doRead()
                    self.assertNotIn(port, self.reactor.getReaders())
                    self.reactor.advance(0.25)
                    self.assertIn(port, self.reactor.getReaders())
            (text,) = said(events)
            self.assertTrue(text.startswith(f"{os.strerror(number)}; "), text)
            self.reactor.advance(10)

    def test_otherPorts(self) -> None:
        """While one port cannot accept, the other ports do."""
        other = self.listen()
        address = self.address
        plain = FakePort()
        plain.socket = FakeListener(*[errno.EINVAL] * 1000)
        self.listen(port=plain).doRead()
        self.assertEqual(self.reactor.getReaders(), [other])
        self.address = address
        client = self.connect()
        self.reactor.turn()
        self.assertEqual(receiveAll(client), POEM.text)

    def test_unexpected(self) -> None:
        """
        An unexpected error in accepting does not end the port: it closes the descriptor, tries
        again in a moment and serves the next client.
        """
        port = self.listen()
        client, before = self.connect(), countDescriptors()

        def fail(*_: object) -> Any:
            raise MemoryError

        patch = self.patch(fastport, "SocketReader", fail)
        self.assertRaises(MemoryError, port.doRead)
        self.reactor.removeReader(port)
        port.connectionLost(Failure(MemoryError()))  # as the reactor does it
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(countDescriptors(), before)
        self.assertNotIn(port, self.reactor.getReaders())
        self.reactor.advance(0.25)
        patch.restore()
        client = self.connect()
        self.assertEqual(self.reactor.fetch(client), POEM.text)

    def test_startFails(self) -> None:
        """
        A reader that fails to start, for an unexpected reason, is reset, counted and released.
        """
        port = self.listen()
        for method in ("isSourceFull", "begin"):
            before = countDescriptors()
            client = self.connect()
            sends = mock.patch.object(SocketReader, "_send", return_value=False)
            with sends, mock.patch.object(self.policy, method, side_effect=MemoryError):
                self.assertRaises(MemoryError, port.doRead)
            self.assertRaises(ConnectionResetError, receiveAll, client)
            self.assertEqual(countDescriptors(), before + 1)
        self.assertEqual((self.policy.readers, self.policy.ledger.counts), (0, Counts(gaveUp=2)))

    def test_fewDescriptors(self) -> None:
        """When few descriptors are left, the next reader waits until there are more."""
        port = self.listen()
        self.policy.firstReserved = 0
        first, second = self.connect(), self.connect()
        port.doRead()
        self.assertNotIn(port, self.reactor.getReaders())
        before = countDescriptors()
        self.reactor.advance(0.25)
        port.doRead()
        self.assertEqual(countDescriptors(), before)
        self.policy.firstReserved = 2**31
        self.reactor.advance(0.25)
        port.doRead()
        self.assertEqual([receiveAll(first), receiveAll(second)], [POEM.text, POEM.text])

    def test_descriptors(self) -> None:
        """
        With no descriptor left in the process, waiting clients stay in the backlog and are served
        later.
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
    """Tests for the end of a port."""

    def test_acceptsNoClient(self) -> None:
        """A stopped port accepts no client; readers under way go on."""
        self.listen(LONG)
        client = self.connect()
        self.reactor.turn()
        self.policy.gate.remove(self.port)
        self.port.stopListening()
        self.assertEqual(self.reactor.getReaders(), [])
        self.reactor.advance(0)
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_given(self) -> None:
        """The socket is given back to the port it came from, which decides how to close it."""
        plain = self.plainPort()
        port = self.listen(port=plain)
        self.policy.gate.remove(port)
        stopped = port.stopListening()
        self.assertNoResult(stopped)
        self.reactor.advance(0)
        self.successResultOf(stopped)
        self.assertFalse(plain.connected)

    def test_reactorLetsGo(self) -> None:
        """When the reactor disconnects everything, the port's socket is left to its owner."""
        port = self.listen()
        port.connectionLost(Failure(ConnectionDone()))
        self.assertGreater(port.fileno(), -1)

    def test_notWatched(self) -> None:
        """A port that stops while it is paused and cannot be watched does not accept again."""
        port = self.listen()
        port.connectionLost(Failure(MemoryError()))
        patch = self.patch(self.reactor, "addReader", mock.Mock(side_effect=MemoryError))
        self.policy.gate.remove(port)
        port.stopListening()
        patch.restore()
        self.reactor.advance(1)
        self.assertEqual(self.reactor.getReaders(), [])


class AliveTests(PortCase):
    """Tests for whether a port reports itself alive."""

    def test_accepts(self) -> None:
        """A port in the reactor is alive."""
        port = self.listen()
        self.assertTrue(port.isAlive)
        self.reactor.removeReader(port)
        self.assertFalse(port.isAlive)

    def test_paused(self) -> None:
        """A paused port that will retry is alive, whatever happens in between."""
        port = self.listen()
        self.policy.pause("a test")
        self.assertTrue(port.isAlive)
        with mock.patch.object(self.reactor, "addReader", side_effect=MemoryError):
            self.reactor.advance(0.25)
        self.assertEqual((port in self.reactor.getReaders(), port.isAlive), (False, True))

    def test_waits(self) -> None:
        """A port that waits for a poem is alive."""
        port = self.listen(None)
        self.connect()
        self.reactor.turn()
        self.assertEqual((port in self.reactor.getReaders(), port.isAlive), (False, True))


class WaitTests(PortCase):
    """Tests for a source that has no poem yet, such as a proxy's."""

    def test_waits(self) -> None:
        """
        A client that comes before the first poem waits in the backlog and is served when the poem
        comes.
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
        """The port waits for the source once for all clients, and again for the next poem."""
        self.listen(None)
        self.connect()
        self.port.doRead()
        self.port.doRead()
        self.assertEqual(len(self.source.waiting), 1)
        self.source.give(POEM)
        self.source.poem = None
        self.port.doRead()
        self.assertEqual(len(self.source.waiting), 1)

    def test_taken(self) -> None:
        """If another process took the socket's clients, the port no longer waits for a poem."""
        port = self.listen(None)
        port.doRead()
        self.source.giveUp()
        self.reactor.advance(1)
        self.assertEqual((self.source.waiting, self.policy.idleSeconds), ([], 1))

    def test_cannotWait(self) -> None:
        """A port whose source fails unexpectedly does not count as waiting for a poem."""
        port = self.listen(None)
        self.connect()
        self.patch(self.source, "whenPoem", lambda: 1 // 0)
        self.assertRaises(ZeroDivisionError, port.doRead)
        self.reactor.advance(1)
        self.assertEqual((self.reactor.getReaders(), self.policy.idleSeconds), ([port], 1))

    def test_fails(self) -> None:
        """
        When the source fails, waiting clients are reset and counted; the next client waits anew.
        """
        self.listen(None)
        client = self.connect()
        self.port.doRead()
        self.source.giveUp()
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.reactor.getReaders(), [self.port])
        self.reactor.advance(1)
        self.assertEqual(self.policy.idleSeconds, 1)
        self.connect()
        self.reactor.turn()
        self.assertEqual(len(self.source.waiting), 1)

    def test_failsForMany(self) -> None:
        """
        When the source fails, all waiting clients are reset in turn, and no second wait begins for
        them.
        """
        self.listen(None)
        clients = [self.connect() for _ in range(200)]
        self.port.doRead()
        self.source.giveUp()
        for waits in (0, 0, 0, 0, 1):
            self.assertEqual(len(self.source.waiting), waits)
            self.port.doRead()
        for client in clients:
            self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=200))

    def test_comesMeanwhile(self) -> None:
        """A client that comes while others are reset begins a new wait."""
        self.listen(None)
        for _ in range(100):
            self.connect()
        self.port.doRead()
        self.source.giveUp()
        late = self.connect()
        for _ in range(3):
            self.port.doRead()
        self.assertEqual(len(self.source.waiting), 1)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=100))
        self.source.give(POEM)
        self.port.doRead()
        self.assertEqual(receiveAll(late), POEM.text)

    def test_failsAtOnce(self) -> None:
        """Waiting clients are reset, too, if the source fails at once."""
        self.listen(None)
        self.source.failsAtOnce = True
        for _ in range(3):
            client = self.connect()
            self.reactor.turn()
            self.assertRaises(ConnectionResetError, receiveAll, client)

    def test_resetFails(self) -> None:
        """
        If the port cannot accept a waiting client to reset it, the port still accepts later
        clients.
        """
        plain = FakePort()
        plain.socket = FakeListener(errno.ECONNABORTED, errno.EMFILE)
        port = self.listen(None, plain)
        port.doRead()
        self.assertEqual(self.reactor.getReaders(), [])
        self.source.giveUp()
        port.doRead()
        self.assertEqual(self.reactor.getReaders(), [port])
        self.assertEqual(plain.socket.accepts, 3)

    def test_failsOtherwise(self) -> None:
        """If resetting the waiting clients fails unexpectedly, the port goes on."""
        port = self.listen(None)
        self.connect()
        port.doRead()
        self.patch(self.policy.ledger, "countTurnedAway", lambda *_: 1 // 0)
        self.source.giveUp()
        gc.collect()  # logs unhandled errors
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.reactor.getReaders(), [port])

    def test_stop(self) -> None:
        """A stop does not wait for a poem, and leaves waiting clients in the backlog."""
        self.listen(None)
        self.connect()
        self.port.doRead()
        (waiting,) = self.source.waiting
        self.policy.gate.remove(self.port)
        self.port.stopListening()
        self.assertTrue(waiting.called)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.policy.ledger.counts, Counts())


class BorrowedTests(PortCase):
    """Tests for L{BorrowedPort}, in which Twisted's own port makes the connections."""

    limits = Limits(maxReaders=70)

    def listen(self, poem: Poem | None = POEM, port: Any = None) -> Any:
        """@return: a port that has taken the place of a plain one."""
        self.source.poem = poem
        factory = PoetryFactory(self.source, self.policy)
        plain: Any = tcp.Port(0, factory, 200, "127.0.0.1", self.reactor)
        plain.startListening()
        self.port: Any = BorrowedPort(plain, self.policy, self.reactor)
        self.policy.gate.add(self.port)
        self.port.startListening()
        self.addCleanup(self.stop)
        self.address = plain.socket.getsockname()
        return self.port

    def test_interfaces(self) -> None:
        """A borrowed port is a listening port, in place of the other one."""
        port = self.listen()
        verifyObject(IListeningPort, port)
        verifyObject(IReadDescriptor, port)
        self.assertEqual(self.reactor.getReaders(), [port])

    def test_everything(self) -> None:
        """A client gets the whole poem."""
        self.listen(LONG)
        client = self.connect()
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_many(self) -> None:
        """
        Clients in the backlog are accepted in batches, and the reactor handles other events in
        between.
        """
        self.listen()
        clients = [self.connect() for _ in range(69)]
        self.port.doRead()
        self.assertTrue(1 < self.policy.readers < 69, self.policy.readers)
        self.port.doRead()
        self.assertEqual(self.policy.readers, len(clients))

    def test_noMore(self) -> None:
        """At the limit of readers, further clients wait in the backlog."""
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

    def test_refused(self) -> None:
        """A connection that the factory refuses is closed."""
        port = self.listen()
        connection = mock.Mock()
        connection.fileno.return_value = 0
        accept = mock.Mock(side_effect=[(connection, ("192.0.2.7", 1)), BlockingIOError()])
        self.patch(port, "_socket", mock.Mock(accept=accept))
        self.patch(port._port.factory, "buildProtocol", lambda _: None)
        port.doRead()
        connection.close.assert_called_once_with()

    def test_fewDescriptors(self) -> None:
        """When few descriptors are left, the next reader waits in the backlog."""
        port = self.listen()
        self.policy.firstReserved = 0
        first, second = self.connect(), self.connect()
        port.doRead()
        self.assertEqual((self.policy.readers, self.reactor.getReaders()), (1, [mock.ANY]))
        self.assertNotIn(port, self.reactor.getReaders())
        self.policy.firstReserved = 2**31
        self.reactor.advance(0.25)
        self.assertEqual(self.reactor.fetch(second), POEM.text)
        self.assertEqual(receiveAll(first), POEM.text)

    def test_fails(self) -> None:
        """
        While accepting fails unexpectedly, the port retries now and then, and serves clients
        afterwards.
        """
        port = self.listen()
        patch = self.patch(port._port.factory, "buildProtocol", lambda _: 1 // 0)
        with capturedLogs() as events:
            for _ in range(2):
                self.connect()
                self.reactor.turn()
                self.assertNotIn(port, self.reactor.getReaders())
                self.reactor.advance(0.25)
                self.assertIn(port, self.reactor.getReaders())
        full, away = "accepting failed; with 0 connected", "away: serving it failed"
        for line, expected in zip(said(events), (away, full, away), strict=True):
            self.assertIn(expected, line)
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=2))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        patch.restore()
        client = self.connect()
        self.assertEqual(self.reactor.fetch(client), POEM.text)

    def test_ownProtocol(self) -> None:
        """If a program's own protocol raises an error, only its connection is reset."""

        class Faulty(Protocol):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        port = self.listen()
        port._port.factory.protocol = Faulty
        first = self.connect()
        self.reactor.turn()
        with self.assertRaises(ConnectionResetError):
            receiveAll(first)
        self.assertIn(port, self.reactor.getReaders())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nobody(self) -> None:
        """With an empty backlog the port does not pause, and calls accept(2) once."""
        port = self.listen()
        self.patch(port, "_socket", FakeListener())
        port.doRead()
        self.assertEqual(port._socket.accepts, 1)

    def test_lastingFailure(self) -> None:
        """
        While accept(2) fails for every client, the port pauses, and one record names the cause.
        """
        for number in (errno.EPERM, errno.EACCES, errno.ECONNABORTED, errno.ENFILE, errno.ENOMEM):
            port = self.listen()
            self.patch(port, "_socket", FakeListener(*[number] * 1000))
            with capturedLogs() as events:
                for _ in range(4):
                    port.doRead()
                    self.assertNotIn(port, self.reactor.getReaders())
                    self.reactor.advance(0.25)
                    self.assertIn(port, self.reactor.getReaders())
            (text,) = said(events)
            self.assertTrue(text.startswith(f"{os.strerror(number)}; "), text)
            self.reactor.advance(10)

    def test_clientsFault(self) -> None:
        """An error of one connection does not delay the next one."""
        port = self.listen()
        client = self.connect()
        accept = mock.Mock(
            side_effect=[OSError(errno.ECONNABORTED, ""), port._socket.accept(), BlockingIOError()]
        )
        self.patch(port, "_socket", mock.Mock(accept=accept))
        port.doRead()
        self.assertIn(port, self.reactor.getReaders())
        self.assertEqual(self.reactor.fetch(client), POEM.text)

    def test_noTransport(self) -> None:
        """A connection that the reactor cannot watch is reset; the port goes on after a moment."""
        self.listen()
        client, before = self.connect(), countDescriptors()
        patch = self.patch(self.reactor, "addReader", mock.Mock(side_effect=MemoryError))
        self.reactor.turn()
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)
        patch.restore()
        self.assertRaises(ConnectionResetError, receiveAll, client)
        self.assertEqual(countDescriptors(), before)
        self.reactor.advance(0.25)
        self.assertEqual(self.reactor.fetch(self.connect()), POEM.text)
