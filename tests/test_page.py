"""
Tests for L{fastpoetry.command.page}: one answer for each connection, whatever its client sends.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import Any
from unittest import mock

from fakes import FakeTransport
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.command.page import PageEndpoint, PageFactory

ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)


class FakePort:
    """
    A port that remembers whether it accepts.

    @ivar numberAccepts: the number of clients it accepts at once.
    @ivar refusals: how many more times it cannot be read.
    """

    numberAccepts = 100
    connected = True
    disconnecting = False
    isReading = True
    refusals = 0

    def stopReading(self) -> None:
        """Stop accepting."""
        self.isReading = False

    def startReading(self) -> None:
        """Accept."""
        if self.refusals:
            self.refusals -= 1
            raise MemoryError if self.refusals % 2 else OSError(12, "Cannot allocate memory")
        self.isReading = True


class PageCase(SynchronousTestCase):
    """A test case with a page and its clients."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.accepted: list[bytes] = []
        self.told: list[str] = []
        self.factory = PageFactory(b"/page", self.render, self.clock, self.told.append)

    def render(self, accept: bytes) -> tuple[bytes, bytes]:
        """@return: the page, which is always the same."""
        self.accepted.append(accept)
        return b"text/plain", b"hello\n"

    def connect(self, port: FakePort | None = None) -> tuple[Any, FakeTransport]:
        """@return: a connection and its transport."""
        protocol: Any = self.factory.buildProtocol(ADDRESS)
        transport: Any = FakeTransport(ADDRESS)
        transport.server = port
        protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, *pieces: bytes) -> bytes:
        """@return: the answer; the connection is then closed."""
        protocol, transport = self.connect()
        for piece in pieces:
            protocol.dataReceived(piece)
        self.assertEqual(transport.did, ["loseConnection"])
        protocol.connectionLost(Failure(ConnectionDone()))
        answer: bytes = transport.value()
        return answer


class RequestTests(PageCase):
    """Tests for requests and their answers."""

    def test_get(self) -> None:
        """A GET is answered with the page, in the version of HTTP that it speaks."""
        for version in (b"1.0", b"1.1"):
            self.assertEqual(
                self.ask(b"GET /page HTTP/%b\r\nHost: x\r\n\r\n" % version),
                b"HTTP/%b 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n"
                b"Connection: close\r\n\r\nhello\n" % version,
            )

    def test_head(self) -> None:
        """A HEAD is answered with the same headers, without the page."""
        full = self.ask(b"GET /page HTTP/1.1\r\n\r\n")
        head = self.ask(b"HEAD /page HTTP/1.1\r\n\r\n")
        self.assertEqual(full, head + b"hello\n")

    def test_pieces(self) -> None:
        """A request may come byte by byte, with line ends as a shell's user types them."""
        request = b"GET /page?x=1 HTTP/1.0\nHost: x\n\n"
        pieces = [request[n : n + 1] for n in range(len(request))]
        self.assertIn(b" 200 OK", self.ask(*pieces))

    def test_absolute(self) -> None:
        """The target of a request may name the server, too."""
        for server in (b"127.0.0.1:10017", b"[::1]:10017"):
            self.assertIn(b" 200 OK", self.ask(b"GET http://%b/page HTTP/1.1\r\n\r\n" % server))

    def test_accept(self) -> None:
        """The client's Accept lines are passed on unchanged, every one of them."""
        self.ask(b"GET /page HTTP/1.1\r\naccept: \xff\r\nX: y\r\nAccept: a/b;version=\r\n\r\n")
        self.ask(b"GET /page HTTP/1.1\r\n\r\n")
        self.assertEqual(self.accepted, [b" \xff, a/b;version=", b""])

    def test_others(self) -> None:
        """
        Another path, another method and an invalid request get a short answer without the page.
        """
        for request, status in (
            (b"GET / HTTP/1.1", b"404 Not Found"),
            (b"GET /page/x HTTP/1.1", b"404 Not Found"),
            (b"GET http://[::1/pages HTTP/1.1", b"404 Not Found"),
            (b"GET http://[::1] HTTP/1.1", b"404 Not Found"),
            (b"POST /page HTTP/1.1\r\nContent-Length: 99999999999", b"405 Method Not Allowed"),
            (b"GET /page", b"400 Bad Request"),
            (b"GET /page HTTP/2.0", b"400 Bad Request"),
            (b"\x16\x03\x01\xff", b"400 Bad Request"),
            (b"", b"400 Bad Request"),
        ):
            answer = self.ask(request + b"\r\n\r\n")
            self.assertEqual(answer.split(b"\r\n")[0][9:], status, request)
            self.assertTrue(answer.endswith(b"\r\n\r\n"), request)
        self.assertEqual(self.accepted, [])

    def test_long(self) -> None:
        """A request that is too long is refused before its end."""
        for pieces in (
            (b"GET /page HTTP/1.1\r\nA: ", b"x" * 10_000),
            (b"GET /page HTTP/1.1\r\nA: " + b"x" * 10_000 + b"\r\n\r\n",),
        ):
            self.assertIn(b" 431 ", self.ask(*pieces))

    def test_hostile(self) -> None:
        """A request that nearly names a server costs about as much as another of its length."""
        costs = []
        for target in (b"/" + b"a" * 8000, b"http://" + b"a" * 8000):
            begun = time.thread_time()
            self.assertIn(b" 400 ", self.ask(b"GET " + target + b" X\r\n\r\n"))
            costs.append(time.thread_time() - begun)
        self.assertLess(costs[1], 50 * costs[0])

    def test_once(self) -> None:
        """Bytes after the first request are ignored."""
        request = b"GET /page HTTP/1.1\r\n\r\n"
        once = self.ask(request)
        self.assertEqual(self.ask(request * 3, request, b"x" * 100_000), once)

    def test_quiet(self) -> None:
        """No request makes a record."""
        with capturedLogs() as events:
            for request in (b"GET /page HTTP/1.1", b"\xff", b"POST x HTTP/1.1"):
                self.ask(request + b"\r\n\r\n")
        self.assertEqual(events, [])


class BoundsTests(PageCase):
    """Tests for the limits of time and number."""

    def test_deadline(self) -> None:
        """A connection is closed after 5 s, whatever its client has sent or received by then."""
        for data in (b"", b"G", b"GET /page HTTP/1.1\r\n\r\n"):
            protocol, transport = self.connect()
            self.clock.advance(4.9)
            protocol.dataReceived(data)
            self.assertNotIn("abortConnection", transport.did)
            self.clock.advance(0.1)
            self.assertIn("abortConnection", transport.did)

    def test_lost(self) -> None:
        """A lost connection leaves no timer and no place taken."""
        protocol, _ = self.connect()
        protocol.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_oldest(self) -> None:
        """There are at most 16 connections: the oldest is closed for the next."""
        connections = [self.connect() for _ in range(17)]
        aborted = ["abortConnection" in transport.did for _, transport in connections]
        self.assertEqual(aborted, [True] + [False] * 16)
        for protocol, _ in connections[:2]:
            protocol.connectionLost(Failure(ConnectionDone()))
        self.connect()
        self.assertEqual(connections[2][1].did, [])
        self.connect()
        self.assertEqual(connections[2][1].did, ["abortConnection"])

    def test_pause(self) -> None:
        """After a connection the port pauses, and then accepts 500 for each second of the pause."""
        port = FakePort()
        for seconds, number in ((0.011, 5), (0.021, 10), (60, 16)):
            self.connect(port)
            self.connect(port)
            self.assertFalse(port.isReading)
            self.clock.advance(seconds)
            self.assertEqual((port.isReading, port.numberAccepts), (True, number))

    def test_noMemory(self) -> None:
        """A port that temporarily cannot be read is tried again."""
        port = FakePort()
        port.refusals = 2
        self.connect(port)
        for isReading in (False, False, True):
            self.clock.advance(0.01)
            self.assertEqual(port.isReading, isReading)

    def test_stopped(self) -> None:
        """A port that was stopped during its pause stays stopped."""
        port = FakePort()
        self.connect(port)
        port.connected = False
        self.clock.advance(0.01)
        self.assertFalse(port.isReading)


class AcceptTests(PageCase):
    """Tests for a port of Twisted's that cannot accept."""

    def setUp(self) -> None:
        super().setUp()
        self.readers: set[object] = set()
        reactor = mock.Mock(addReader=self.readers.add, removeReader=self.readers.discard)
        self.port: Any = tcp.Port(0, self.factory, interface="127.0.0.1", reactor=reactor)
        self.port.startListening()
        self.addCleanup(self.port.socket.close)
        endpoint = mock.Mock(listen=lambda _: succeed(self.port))
        self.successResultOf(PageEndpoint(endpoint).listen(self.factory))

    def test_pause(self) -> None:
        """The port pauses and says why, and Twisted logs nothing. Then it tries again."""
        for number in (errno.EMFILE, errno.ENOMEM, errno.EPERM, errno.EINVAL, errno.ECONNABORTED):
            failure = OSError(number, "no")
            with (
                mock.patch.object(socket.socket, "accept", side_effect=failure),
                capturedLogs() as events,
            ):
                self.port.doRead()
            self.assertEqual((self.readers, self.told.pop(), events), (set(), "no", []))
            self.clock.advance(0.01)
            self.assertEqual(self.readers, {self.port})

    def test_empty(self) -> None:
        """An empty backlog is no failure."""
        self.port.doRead()
        self.assertEqual((self.readers, self.told), ({self.port}, []))
