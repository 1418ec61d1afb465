"""
What a close means, what the peer has not acknowledged, and what waits in the kernel.

The few things that are asked of a connected or listening socket beyond sending and receiving, for
the fast port and for Twisted's transports alike.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from functools import cache, wraps
from termios import TIOCOUTQ
from typing import Any, NamedTuple

from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python import log

from fastpoetry.delivery.addresses import Address

MOST_UNSENT_BYTES = 128 * 1024
"""
How much of a poem waits in the kernel for a reader that takes nothing.

What that costs the machine was measured as 320 KiB at most, since packets to a client with a tiny
receive buffer are mostly overhead. A larger poem follows as its reader takes it
(TCP_NOTSENT_LOWAT, tcp(7)); unlike a small SO_SNDBUF, that leaves the window free to grow for a
reader far away.
"""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)

_BYTES_ACKED = 120
"""Where tcpi_bytes_acked stands in the kernel's answer, since Linux 4.1."""

_TCP_CLOSE = b"\7"
_TCP_LISTEN = b"\12"
"""States of sockets (include/net/tcp_states.h), in the first byte of C{TCP_INFO}."""

_UNACKED = 24
"""Where tcpi_unacked stands in there: for a listening socket, how many are in its backlog."""

_REFUSED = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS)
"""How a kernel or a sandbox says that there is no such option."""


class Family(NamedTuple):
    """
    What the sockets of an address family support.

    @ivar hasReset: a close can be a reset (C{SO_LINGER}); elsewhere every close looks like an end.
    @ivar hasQueue: the peer acknowledges bytes, and the system counts those that it has not
        (C{TIOCOUTQ}) and limits those that it has not sent (C{TCP_NOTSENT_LOWAT}). Elsewhere what
        is written cannot be lost, and C{net.core.wmem_default} is the limit.
    @ivar hasInfo: the system tells the state of a connection (C{TCP_INFO}).
    @ivar hasHosts: addresses tell clients apart; elsewhere their users do (C{SO_PEERCRED}).
    """

    hasReset: bool
    hasQueue: bool
    hasInfo: bool
    hasHosts: bool


_TCP = Family(hasReset=True, hasQueue=True, hasInfo=True, hasHosts=True)
_LOCAL = Family(hasReset=False, hasQueue=False, hasInfo=False, hasHosts=False)

FAMILIES: dict[int, Family] = {socket.AF_INET: _TCP, socket.AF_INET6: _TCP, socket.AF_UNIX: _LOCAL}
"""The families that are served; others are refused when they are adopted."""

_log = Logger()


def isOver(connection: socket.SocketType) -> bool:
    """
    Whether both ends of a TCP connection are closed and acknowledged, or one has reset it.

    Closing it then loses and resets nothing, whatever its options say (__tcp_close in
    net/ipv4/tcp.c).
    """
    if not FAMILIES[connection.family].hasInfo:
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE
    except OSError:  # a kernel or a sandbox does not say
        return False


def countWaiting(listening: socket.SocketType) -> int:
    """
    How many connections are in the backlog of a listening TCP socket (tcp_get_info in
    net/ipv4/tcp.c). An accept that finds nobody has made a socket first, and costs far more.

    @return: 1 where the system does not say, as for UNIX sockets, so that an accept finds out.
    """
    try:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    except OSError:
        return 1
    if not info.startswith(_TCP_LISTEN):
        return 1
    count: int = struct.unpack_from("I", info, _UNACKED)[0]
    return count


def countUnacknowledged(connection: socket.SocketType) -> int:
    """
    How many bytes the system holds that the peer has not acknowledged, the end included.

    On a UNIX socket nothing is lost once it is written, so there is nothing to wait for.
    """
    if not FAMILIES[connection.family].hasQueue:
        return 0
    try:
        answer = ioctl(connection.fileno(), TIOCOUTQ, b"\0\0\0\0")
    except OSError:  # it does not say: what was sent is as good as taken
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count


def countSent(connection: socket.SocketType) -> int | None:
    """
    How many bytes were ever handed to the system for a connection that is not shut down.

    The kernel counts them (tcpi_bytes_acked in linux/tcp.h); of a UNIX socket it does not say.
    """
    if not FAMILIES[connection.family].hasInfo:
        return None
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    acknowledged: int = struct.unpack_from("Q", info, _BYTES_ACKED)[0]
    return acknowledged + countUnacknowledged(connection)


def findAddress(connection: socket.SocketType, address: Address) -> Address:
    """
    What tells a client from others.

    @param address: what accept(2) said.
    """
    if FAMILIES[connection.family].hasHosts:
        return address
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user: int = struct.unpack_from("I", credentials, 4)[0]
    return user


def limitUnsent(connection: socket.SocketType) -> None:
    """
    Keep a large poem that its reader does not take from filling the machine's memory.

    Where the system does not know how, serve without that.
    """
    if not FAMILIES[connection.family].hasQueue:
        return
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT_BYTES)
    except OSError as why:
        # A reset in the backlog is no fault of the option's: sending finds it out.
        if why.errno is not None:
            _tellWithout("TCP_NOTSENT_LOWAT", why.errno)


def setLinger(connection: socket.SocketType, linger: bytes) -> None:
    """
    Set what a close means, for a listening socket's future connections too (inet_csk_clone_lock).

    A UNIX socket knows no reset. Where the system does not know how, serve without that.
    """
    if not FAMILIES[connection.family].hasReset:
        return
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError as why:
        if why.errno not in _REFUSED:
            raise
        _tellWithout("SO_LINGER", why.errno)


def orReset(method: Callable[..., None]) -> Callable[..., None]:
    """
    Have what a transport calls of a protocol's reset the connection where it fails as nobody
    expects. Twisted shuts such a one down, which looks like the end of a poem.
    """

    @wraps(method)
    def call(self: Any, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception:
            log.err()
            self.transport.abortConnection()

    return call


def resetWhenLost(transport: Any) -> socket.socket | None:
    """
    Make the loss of a connection a reset, until L{setLinger} makes it an end.

    Twisted shuts a connection down when sending fails (ENOMEM, for one). To the client that would
    be an end, so the transport may only close its socket.

    @param transport: the lowest one.
    @return: its socket, if it has one.
    """
    handle = socketOf(transport)
    if handle is not None:
        transport._shouldShutdown = False
        setLinger(handle, RESET_ON_CLOSE)
    return handle


def lowestTransport(transport: Any) -> Any:
    """The TCP or UNIX transport below TLS and all other layers."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def socketOf(transport: Any) -> socket.socket | None:
    """The socket of a lowest transport; C{stdio:}, for one, has none."""
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    return handle if isinstance(handle, socket.socket) else None


@cache
def _tellWithout(option: str, number: int) -> None:
    """Say, once a process, what the kernel or a sandbox does not let us ask for."""
    _log.warn(
        "poems are served without an option of sockets that is refused: {cause}",
        cause=f"{option}: {os.strerror(number)}",
        message_id="c1f0c6f6f9a34d8f9d5ab9f8b3a6e2d7",
    )
