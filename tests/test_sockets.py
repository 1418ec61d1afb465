"""Tests for L{fastpoetry.delivery.sockets}, on real sockets."""

from __future__ import annotations

import errno
import os
import socket
from sys import byteorder
from typing import Any
from unittest import mock

from fakes import (
    SECONDS,
    FakeTLS,
    FakeTransport,
    Reactor,
    asNobody,
    countDescriptors,
    receiveAll,
    said,
)
from twisted.internet import unix
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery import sockets
from fastpoetry.delivery.sockets import (
    END_ON_CLOSE,
    MOST_UNSENT_BYTES,
    RESET_ON_CLOSE,
    countBacklog,
    countSent,
    countUnacknowledged,
    findAddress,
    isOver,
    limitUnsent,
    lowestTransport,
    resetWhenLost,
    setLinger,
)


class SocketCase(SynchronousTestCase):
    """A test case with a TCP connection and a UNIX connection."""

    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = socket.create_connection(listening.getsockname(), SECONDS)
            self.server, _ = listening.accept()
        self.unix, self.unixClient = socket.socketpair()
        for each in (self.client, self.server, self.unix, self.unixClient):
            self.addCleanup(each.close)


class AddressTests(SocketCase):
    """Tests for L{findAddress}."""

    def test_host(self) -> None:
        """A TCP client is identified by its address from accept(2)."""
        self.assertEqual(findAddress(self.server, ("192.0.2.7", 1)), ("192.0.2.7", 1))

    def test_user(self) -> None:
        """A UNIX client is identified by its user."""
        self.assertEqual(findAddress(self.unix, ""), os.getuid())

    def test_anotherUser(self) -> None:
        """A UNIX client is identified by its user, and not by its group."""
        with asNobody():
            server, client = socket.socketpair()
            user = os.geteuid()
        with server, client:
            self.assertEqual(findAddress(server, ""), user)


class LingerTests(SocketCase):
    """Tests for L{setLinger}."""

    def test_reset(self) -> None:
        """With the option set, a close is a reset."""
        setLinger(self.server, RESET_ON_CLOSE)
        self.server.sendall(b"half a")
        self.server.close()
        self.assertRaises(ConnectionResetError, receiveAll, self.client)

    def test_end(self) -> None:
        """With the option cleared, a close is a normal end again."""
        setLinger(self.server, RESET_ON_CLOSE)
        setLinger(self.server, END_ON_CLOSE)
        self.server.sendall(b"all")
        self.server.close()
        self.assertEqual(receiveAll(self.client), b"all")

    def test_UNIX(self) -> None:
        """A UNIX socket has no reset: its options are unchanged."""
        setLinger(self.unix, RESET_ON_CLOSE)
        self.assertEqual(self.unix.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8), bytes(8))


class OverTests(SocketCase):
    """Tests for L{isOver}."""

    def test_ours(self) -> None:
        """A connection with only our end closed is not over."""
        self.assertFalse(isOver(self.server))
        self.server.shutdown(socket.SHUT_WR)
        self.assertFalse(isOver(self.server))

    def test_theirs(self) -> None:
        """A connection with only the client's end closed is not over."""
        self.client.shutdown(socket.SHUT_WR)
        self.server.recv(1)
        self.assertFalse(isOver(self.server))

    def test_both(self) -> None:
        """
        A connection with both ends closed and acknowledged is over; a close is then no reset,
        whatever the option.
        """
        setLinger(self.server, RESET_ON_CLOSE)
        self.server.send(b"poem")
        self.server.shutdown(socket.SHUT_WR)
        self.client.shutdown(socket.SHUT_WR)
        self.server.recv(1)
        self.assertTrue(isOver(self.server))
        self.server.close()
        self.assertEqual(receiveAll(self.client), b"poem")

    def test_reset(self) -> None:
        """A connection that the client has reset is over."""
        setLinger(self.client, RESET_ON_CLOSE)
        self.client.close()
        self.assertRaises(ConnectionResetError, self.server.recv, 1)
        self.assertTrue(isOver(self.server))

    def test_UNIX(self) -> None:
        """For a UNIX socket the state is unknown."""
        self.unixClient.close()
        self.assertFalse(isOver(self.unix))


class WaitingTests(SocketCase):
    """Tests for L{countBacklog}."""

    def test_backlog(self) -> None:
        """The count is of clients that have connected and are not accepted yet."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.assertEqual(countBacklog(listening), 0)
            for _ in range(2):
                client = socket.create_connection(listening.getsockname(), SECONDS)
                self.addCleanup(client.close)
            self.assertEqual(countBacklog(listening), 2)
            listening.accept()[0].close()
            self.assertEqual(countBacklog(listening), 1)

    def test_unknown(self) -> None:
        """If the system gives no count, as for UNIX sockets, accept(2) must be tried."""
        self.assertEqual(countBacklog(self.unix), 1)
        self.assertEqual(countBacklog(self.server), 1)
        with Unable() as unable:
            self.assertEqual(countBacklog(unable), 1)


class UnacknowledgedTests(SocketCase):
    """Tests for L{countUnacknowledged}."""

    def test_waits(self) -> None:
        """
        Bytes that the client's system has no room for are counted; once it has taken them the count
        is 0.
        """
        self.server.setblocking(False)
        sent = 0
        while True:
            try:
                sent += self.server.send(bytes(1 << 20))
            except BlockingIOError:
                break
        self.assertTrue(0 < countUnacknowledged(self.server) <= sent)
        while sent:
            sent -= len(self.client.recv(sent))
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.assertEqual(countUnacknowledged(self.server), 0)

    def test_UNIX(self) -> None:
        """On a UNIX socket written bytes cannot be lost: the count is 0."""
        self.unix.sendall(b"x")
        self.assertEqual(countUnacknowledged(self.unix), 0)


class SentTests(SynchronousTestCase):
    """Tests for L{countSent}."""

    def test_whileItTakes(self) -> None:
        """The count is right even if the client takes bytes between two questions to the kernel."""
        acknowledged = iter([0, 5, 5, 5])
        connection: Any = mock.Mock(family=socket.AF_INET)
        connection.getsockopt = lambda *_: bytes(120) + next(acknowledged).to_bytes(8, byteorder)
        self.patch(sockets, "countUnacknowledged", lambda _: 5)
        self.assertEqual(countSent(connection), 10)


class Unable(socket.socket):
    """A socket of a kernel or sandbox that has no socket option."""

    def setsockopt(self, *option: Any) -> None:
        """Refuse to set any option."""
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    def getsockopt(self, *option: Any) -> Any:
        """Refuse to read any option."""
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


class TellingCase(SocketCase):
    """A test case in which each once-per-process record may be made again."""

    def setUp(self) -> None:
        super().setUp()
        sockets._tellWithout.cache_clear()
        self.addCleanup(sockets._tellWithout.cache_clear)


class UnableTests(TellingCase):
    """Tests for a kernel or sandbox that refuses our socket options."""

    def test_linger(self) -> None:
        """If the linger option is refused, one record says so, and the server goes on."""
        with capturedLogs() as events:
            for _ in range(3):
                with Unable() as unable:
                    setLinger(unable, RESET_ON_CLOSE)
        (text,) = said(events)
        self.assertIn("SO_LINGER: Protocol not available", text)

    def test_closed(self) -> None:
        """A closed socket raises an error all the same."""
        self.server.close()
        self.assertRaises(OSError, setLinger, self.server, RESET_ON_CLOSE)

    def test_over(self) -> None:
        """A connection of unknown state counts as not over."""
        with Unable() as unable:
            self.assertFalse(isOver(unable))

    def test_unacknowledged(self) -> None:
        """If unacknowledged bytes cannot be counted, the count is 0."""
        self.patch(sockets, "ioctl", mock.Mock(side_effect=OSError(errno.EPERM, "no")))
        self.server.sendall(b"x")
        self.assertEqual(countUnacknowledged(self.server), 0)


class UnsentTests(TellingCase):
    """Tests for L{limitUnsent}."""

    def test_limit(self) -> None:
        """A socket buffers only a limited number of unsent bytes."""
        limitUnsent(self.server)
        option = self.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        self.assertEqual(option, MOST_UNSENT_BYTES)

    def test_unable(self) -> None:
        """If the kernel lacks the option, one record says so, and readers are served without it."""
        with capturedLogs() as events:
            for _ in range(3):
                with Unable() as unable:
                    limitUnsent(unable)
        (text,) = said(events)
        self.assertIn("TCP_NOTSENT_LOWAT: Protocol not available", text)

    def test_UNIX(self) -> None:
        """A UNIX socket lacks the option, without a record."""
        with capturedLogs() as events:
            limitUnsent(self.unix)
        self.assertEqual(events, [])


class TransportTests(SocketCase):
    """Tests for the transport below Twisted's layers."""

    def test_lowest(self) -> None:
        """The lowest transport is the one with the socket."""
        lowest = FakeTransport(handle=self.server)
        top: Any = lowest
        for _ in range(2):
            layer = FakeTLS(WrappingFactory(Factory()), Protocol())
            layer.transport, top = top, layer
        self.assertIs(lowestTransport(top), lowest)
        self.assertIs(lowestTransport(lowest), lowest)
        self.assertIs(resetWhenLost(lowest), self.server)

    def test_noSocket(self) -> None:
        """A transport without a socket, such as that of C{stdio:}, does not count."""
        self.assertIsNone(resetWhenLost(FakeTransport()))
        self.assertIsNone(resetWhenLost(object()))


class DescriptorTests(SynchronousTestCase):
    """Tests for descriptors that a client of a UNIX socket sends."""

    def test_ignored(self) -> None:
        """The server keeps no descriptor of a client, makes no record, and reads the bytes."""
        ours, client = socket.socketpair()
        self.addCleanup(client.close)
        ours.setblocking(False)
        got: list[bytes] = []

        class Getting(Protocol):
            def dataReceived(self, data: bytes) -> None:
                got.append(data)

        server: Any = mock.Mock()
        transport: Any = unix.Server(ours, Getting(), None, server, 0, Reactor())
        self.addCleanup(transport.connectionLost, Failure(ConnectionDone()))
        resetWhenLost(transport)
        before = countDescriptors()
        with capturedLogs() as events:
            socket.send_fds(client, [b"x"], [0])
            transport.doRead()
        self.assertEqual((got, said(events), countDescriptors()), ([b"x"], [], before))
