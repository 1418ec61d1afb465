"""
One page by HTTP: each connection gets one answer to a GET or a HEAD, and is closed.

Does not know the content of the page. Twisted's own HTTP server keeps connections, stores bodies,
and logs text from strangers. For a page that a machine reads twice a minute, these are only risks.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.delivery.sockets import ignoreDescriptors, lowestTransport

_MOST_CONNECTIONS = 16

_MOST_SECONDS = 5.0
"""How long a connection lasts, whatever its client does."""

_MOST_BYTES = 8192
"""The longest head of a request."""

_PAUSE_SECONDS = 0.01
_MOST_PER_SECOND = 500
"""
How long to pause after accepting connections, and how many to accept a second. 500 a second cost an
eighth of a core. They empty the longest backlog, 4096, within the ten seconds that Prometheus
waits.
"""

# A target may name the server, too (RFC 9112, 3.2.2).
_REQUEST = re.compile(rb"([!-~]+) (?:http://[^/ ]+(?=/))?([!-~]+) HTTP/(1\.[01])")
_LINE = re.compile(rb"\r?\n")
_END = re.compile(rb"\r?\n\r?\n")

Render = Callable[[bytes], tuple[bytes, bytes]]
"""Makes the content type and the text of the page for the value of C{Accept:}."""


class PageFactory(Factory):
    """
    Serves one page.

    If there are too many connections, the oldest is closed, so slow clients keep no other out.
    The port pauses after accepting some, and if it cannot accept. Clients then wait in the backlog,
    and leave the program time for its other work.
    """

    noisy = False

    def __init__(
        self, path: bytes, render: Render, clock: IReactorTime, tell: Callable[[str], object]
    ) -> None:
        """
        @param path: of the page: C{/metrics}.
        @param tell: called with the cause each time that a port cannot accept.
        """
        self.protocol: Any = _PageProtocol
        self.clock = clock
        self._path = path
        self._render = render
        self._tell = tell
        self._connections: list[_PageProtocol] = []
        self._pausedAt: dict[Any, float] = {}

    def add(self, connection: _PageProtocol) -> None:
        """Add a connection, and close the oldest if there are too many."""
        if len(self._connections) == _MOST_CONNECTIONS:
            self._connections.pop(0).transport.abortConnection()
        self._connections.append(connection)
        port = getattr(connection.transport, "server", None)
        if port is not None:
            self._pause(port)

    def remove(self, connection: _PageProtocol) -> None:
        """Forget a connection. A second call has no effect."""
        if connection in self._connections:
            self._connections.remove(connection)

    def watch(self, port: Any) -> None:
        """Make a port of Twisted's pause if it cannot accept. By itself it tries again at once."""
        port.socket = _ListeningSocket(port.socket, partial(self._pauseAfter, port))

    def _pauseAfter(self, port: Any, why: OSError) -> None:
        self._pause(port)
        self._tell(why.strerror or str(why))

    def _pause(self, port: Any) -> None:
        if port not in self._pausedAt:
            self._pausedAt[port] = self.clock.seconds()
            port.stopReading()
            self.clock.callLater(_PAUSE_SECONDS, self._resume, port)

    def _resume(self, port: Any) -> None:
        """Accept in proportion to the length of the pause, unless the port is closed."""
        if port.connected and not port.disconnecting:
            seconds = self.clock.seconds() - self._pausedAt[port]
            port.numberAccepts = min(int(seconds * _MOST_PER_SECOND), _MOST_CONNECTIONS)
            try:
                port.startReading()
            except (OSError, MemoryError):
                self.clock.callLater(_PAUSE_SECONDS, self._resume, port)
                return
        del self._pausedAt[port]

    def respond(self, head: bytes) -> bytes:
        """
        Return the whole answer to a request.

        @param head: the request without its body.
        """
        request, *fields = _LINE.split(head)
        match = _REQUEST.fullmatch(request)
        if match is None:
            return _answer(b"1.1", b"400 Bad Request")
        method, target, version = match.groups()
        if target.partition(b"?")[0] != self._path:
            return _answer(version, b"404 Not Found")
        if method not in (b"GET", b"HEAD"):
            return _answer(version, b"405 Method Not Allowed", b"Allow: GET, HEAD\r\n")
        named = [field.partition(b":") for field in fields]
        accept = b",".join(value for name, _, value in named if name.lower() == b"accept")
        contentType, text = self._render(accept)
        answer = _answer(version, b"200 OK", b"Content-Type: %b\r\n" % contentType, text)
        return answer if method == b"GET" else answer.removesuffix(text)


@implementer(IStreamServerEndpoint)
class PageEndpoint:
    """An endpoint for a L{PageFactory}, which watches its ports."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        def watch(port: Any) -> Any:
            for each in getattr(port, "ports", (port,)):
                if isinstance(each, tcp.Port):
                    protocolFactory.watch(each)
            return port

        return self._endpoint.listen(protocolFactory).addCallback(watch)


class _ListeningSocket:
    """A listening socket for Twisted's port: a failed accept looks like an empty backlog."""

    def __init__(self, listening: socket.socket, failed: Callable[[OSError], object]) -> None:
        """@param failed: called with the error."""
        self._socket = listening
        self._failed = failed

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return self._socket.accept()
        except BlockingIOError:
            raise
        except OSError as why:
            self._failed(why)
            raise BlockingIOError(errno.EAGAIN, why.strerror) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _PageProtocol(Protocol):
    """A connection, from its request to the end of the answer."""

    factory: PageFactory
    transport: Any
    _received = b""
    _isAnswered = False

    def connectionMade(self) -> None:
        ignoreDescriptors(lowestTransport(self.transport))
        self._deadline = self.factory.clock.callLater(_MOST_SECONDS, self.transport.abortConnection)
        self.factory.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Answer when the head of the request is complete. Bytes after it are ignored."""
        if self._isAnswered:
            return
        # The end may begin in an earlier piece.
        searched = max(0, len(self._received) - len(b"\r\n\r"))
        self._received += data
        end = _END.search(self._received, searched)
        if end is None and len(self._received) <= _MOST_BYTES:
            return
        self._isAnswered = True
        if end is None or end.start() > _MOST_BYTES:
            self.transport.write(_answer(b"1.1", b"431 Request Header Fields Too Large"))
        else:
            self.transport.write(self.factory.respond(self._received[: end.start()]))
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._deadline.active():
            self._deadline.cancel()
        self.factory.remove(self)


def _answer(version: bytes, status: bytes, header: bytes = b"", text: bytes = b"") -> bytes:
    head = b"HTTP/%b %b\r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (version, status, header, len(text)) + text
