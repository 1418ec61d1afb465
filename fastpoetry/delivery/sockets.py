"""
Socket options and queries: the meaning of a close, unacknowledged bytes, the backlog.

Serves the fast port and Twisted's transports. Does not send or receive.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from functools import cache, wraps
from sys import byteorder
from termios import TIOCOUTQ
from types import MethodType
from typing import Any, cast

from twisted.internet import tcp
from twisted.internet.interfaces import IHalfCloseableProtocol, IUNIXTransport
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python import log
from zope.interface import alsoProvides

from fastpoetry.delivery.addresses import Address

MOST_UNSENT_BYTES = 128 * 1024
"""
How much of a poem waits unsent in the kernel for a reader that takes no bytes.

It was measured to cost the machine 320 KiB at most, since packets to a client with a tiny receive
buffer are mostly overhead. The rest of a larger poem follows as its reader takes it
(TCP_NOTSENT_LOWAT, tcp(7)). Unlike a small SO_SNDBUF, this lets the window grow for a distant
reader.
"""

_MOST_UNREAD_BYTES = 32 * 1024
"""
How much of what a reader writes waits in the kernel, unread, while its poem is under way. Without
this limit the kernel takes over 1 MiB of small packets.
"""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)
"""Values of C{SO_LINGER} (socket(7)): a close is then a reset (RST) or an end (FIN)."""

UNSERVED = "serving it failed"
"""The cause in the record of a connection that an unexpected error of ours ended."""

_BYTES_ACKED_OFFSET = 120
"""The offset of tcpi_bytes_acked in the kernel's C{TCP_INFO}, since Linux 4.1."""

_TCP_CLOSE = b"\7"
_TCP_LISTEN = b"\12"
"""States of a socket (include/net/tcp_states.h), in the first byte of C{TCP_INFO}."""

_UNACKED_OFFSET = 24
"""The offset of tcpi_unacked: for a listening socket, the number of connections in its backlog."""

_REFUSED = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS)
"""The errors by which a kernel or a sandbox refuses an option."""

TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
"""
The address families of TCP. Every other family is treated as UNIX: C{SO_LINGER} makes no close a
reset. The kernel tells neither the state (C{TCP_INFO}) nor unacknowledged bytes
(C{TIOCOUTQ}), but it loses no written byte. C{net.core.wmem_default} limits unsent bytes. Users
tell clients apart (C{SO_PEERCRED}), not addresses.
"""

_log = Logger()


def isOver(connection: socket.SocketType) -> bool:
    """
    Whether both ends of a TCP connection are closed and acknowledged, or one has reset it.

    A close then loses no bytes and sends no reset, even with C{SO_LINGER} (__tcp_close in
    net/ipv4/tcp.c).
    """
    if connection.family not in TCP_FAMILIES:
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE
    except OSError:  # the kernel or a sandbox refuses the question
        return False


def countBacklog(listening: socket.SocketType) -> int:
    """
    Return how many connections are in the backlog of a listening TCP socket.

    The kernel tells this cheaply (tcp_get_info in net/ipv4/tcp.c). An accept with an empty backlog
    costs far more, since it makes a socket first.

    @return: 1 if the system does not tell, as with UNIX sockets; the caller then tries an accept.
    """
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_OFFSET + 4)
    except OSError:
        return 1
    return int.from_bytes(info[_UNACKED_OFFSET:], byteorder) if info.startswith(_TCP_LISTEN) else 1


def countUnacknowledged(connection: socket.SocketType) -> int:
    """
    Return how many bytes the peer has not acknowledged. FIN counts as one.

    It is 0 for a UNIX socket, which loses no written byte.
    """
    if connection.family not in TCP_FAMILIES:
        return 0
    try:
        answer = ioctl(connection.fileno(), TIOCOUTQ, b"\0\0\0\0")
    except OSError:  # unknown: treat sent bytes as taken
        return 0
    return int.from_bytes(answer, byteorder)


def countSent(connection: socket.SocketType) -> int | None:
    """
    Return how many bytes were ever written to a connection that is not shut down.

    The kernel counts them (tcpi_bytes_acked in linux/tcp.h). For a UNIX socket the result is
    C{None}.
    """
    if connection.family not in TCP_FAMILIES:
        return None
    while True:
        acknowledged = _countAcknowledged(connection)
        unacknowledged = countUnacknowledged(connection)
        if acknowledged == _countAcknowledged(connection):  # the client took nothing in between
            return acknowledged + unacknowledged


def _countAcknowledged(connection: socket.SocketType) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_OFFSET + 8)
    return int.from_bytes(info[_BYTES_ACKED_OFFSET:], byteorder)


def findAddress(connection: socket.SocketType, address: Address) -> Address:
    """
    Return what identifies a client: its address or, on a UNIX socket, its user.

    @param address: from accept(2).
    """
    if connection.family in TCP_FAMILIES:
        return address
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], byteorder)  # after the process, its user


def limitUnsent(connection: socket.SocketType) -> None:
    """Limit the memory of a large poem that its reader does not take, unless the system refuses."""
    if connection.family not in TCP_FAMILIES:
        return
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT_BYTES)
    except OSError as why:
        # Otherwise the client may have reset the connection in the backlog. Sending reports that.
        if why.errno in _REFUSED:
            _tellWithout("TCP_NOTSENT_LOWAT", why.errno)


def limitUnread(connection: socket.SocketType) -> None:
    """Limit the memory of what a reader writes while its poem is under way."""
    if connection.family in TCP_FAMILIES:
        with suppress(OSError):  # the client has reset the connection, and sending reports that
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOST_UNREAD_BYTES)


def setLinger(connection: socket.SocketType, linger: bytes) -> None:
    """
    Set whether a close is a reset or an end. Connections inherit it from a listening socket
    (inet_csk_clone_lock). A UNIX socket has no reset. If the system refuses the option, poems are
    served without it.

    @param linger: L{RESET_ON_CLOSE} or L{END_ON_CLOSE}.
    """
    if connection.family not in TCP_FAMILIES:
        return
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError as why:
        if why.errno not in _REFUSED:
            raise
        _tellWithout("SO_LINGER", why.errno)


def orReset(method: Callable[..., None]) -> Callable[..., None]:
    """
    Make a protocol's method reset the connection on an unexpected error, and set its C{fault}.

    Twisted would shut the connection down, which looks like the end of a poem.
    """

    @wraps(method)
    def call(self: Any, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception:
            log.err()
            self.fault = UNSERVED
            self.transport.abortConnection()

    return call


def resetWhenLost(transport: Any) -> socket.socket | None:
    """
    Make the loss of a connection a reset, until L{setLinger} makes it an end.

    Twisted shuts a connection down when sending fails (for example with ENOMEM). The client would
    take that for an end, so the transport may only close its socket.

    @param transport: the lowest one.
    @return: its socket; C{None} if it has none, as with C{stdio:}.
    """
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return None
    transport._shouldShutdown = False
    ignoreDescriptors(transport)
    setLinger(handle, RESET_ON_CLOSE)
    return handle


def ignoreDescriptors(transport: Any) -> None:
    """
    Leave the descriptors that a client of a UNIX socket sends to the kernel, which closes them.

    Twisted would receive them, and log each without a limit.
    """
    if cast(Any, IUNIXTransport).providedBy(transport):
        transport.doRead = MethodType(tcp.Connection.doRead, transport)


def lowestTransport(transport: Any) -> Any:
    """Return the TCP or UNIX transport below TLS and all other layers."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def ignoreInput(transport: Any, ended: Callable[[], object]) -> None:
    """
    Ignore what a client sends through TLS from now on.

    Otherwise, when a client ends its side, Twisted's TLS sends an end too, and closes the
    connection, even in the middle of a poem.

    @param transport: TLS, or a layer above it.
    @param ended: called when the client has ended its side of the connection below TLS.
    """
    tls = transport
    while "_tlsConnection" not in vars(tls):
        tls = tls.transport
    tls._tlsConnection = _Unread(tls._tlsConnection)
    tls.dataReceived = lambda data: None
    tls.readConnectionLost = ended
    tls.writeConnectionLost = lambda: None
    alsoProvides(tls, IHalfCloseableProtocol)


class _Unread:
    """
    A connection of pyOpenSSL that has no input. It may hold an end of the client already: TLS reads
    on after the handshake, or after the PROXY header.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def recv(self, size: int) -> bytes:
        from twisted.protocols import tls  # no plain server imports it

        noInput: type[Exception] = cast(Any, tls).WantReadError  # pyOpenSSL's
        raise noInput

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@cache
def _tellWithout(option: str, number: int) -> None:
    """Log the option that the kernel or a sandbox refuses, once in each process."""
    _log.warn(
        "poems are served without a socket option that the system refuses: {cause}",
        cause=f"{option}: {os.strerror(number)}",
        message_id="c1f0c6f6f9a34d8f9d5ab9f8b3a6e2d7",
    )
