"""A client of a life, on a real socket: what it does, and what it has received."""

from __future__ import annotations

import ctypes
import socket
import struct
from contextlib import suppress
from functools import cache
from typing import Any

from fastpoetry.poem import Poem
from lives.kernel import findLoopback

_SMALL_BUFFER_BYTES = 16384
_PIECE_BYTES = 65536
_ESTABLISHED = b"\1"
_RESET = struct.pack("ii", 1, 0)

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_DROP_ALL = struct.pack("HBBI", 6, 0, 0, 0)
"""A filter for a socket that returns the length 0 (linux/filter.h, socket(7))."""


def _dropAll(connection: socket.SocketType) -> None:
    program = ctypes.create_string_buffer(_DROP_ALL)
    option = struct.pack("HP", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


@cache
def mayVanish() -> bool:
    """Whether clients may vanish here. Some kernels refuse filters without CAP_SYS_ADMIN."""
    with socket.socket() as trial:
        try:
            _dropAll(trial)
        except PermissionError:
            return False
    return True


class Client:
    """
    A client as the model sees it.

    @ivar source: its address; C{None} on a UNIX socket.
    @ivar isTCP: whether its connection can be reset.
    @ivar seen: the bytes that it has read.
    @ivar outcome: C{end} or C{reset}; C{None} while it is connected; C{left} if it ended itself;
        C{vanished} if it takes no packet any more.
    @ivar movedAt: when it last read bytes, or connected, in seconds.
    """

    def __init__(self, address: Any, source: str | None, now: float) -> None:
        """
        @param address: the server's address: a path, or a host and a port.
        @param source: the address of a TCP client; C{None} for a UNIX socket.
        @param now: the time, in seconds.
        @raise OSError: there is no server, or its backlog is full.
        """
        self.source = source
        self.isTCP = source is not None
        self.seen = b""
        self.outcome: str | None = None
        self.movedAt = now
        self._socket = socket.socket(socket.AF_INET if self.isTCP else socket.AF_UNIX)
        self._socket.setblocking(False)
        if self.isTCP:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
            self._socket.bind((source, 0))
        with suppress(BlockingIOError):
            self._socket.connect(address)
        findLoopback().deliver()

    def write(self, data: bytes) -> None:
        """Write as much as the system accepts. A client that cannot write has been reset."""
        try:
            socket.SocketType.send(self._socket, data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass
        except OSError:  # the kernel reports it only once, and the next read would be an end
            self._end("reset")

    def finish(self) -> None:
        """Close this side only."""
        with suppress(OSError):
            socket.SocketType.shutdown(self._socket, socket.SHUT_WR)

    def read(self, now: float, most: int = _PIECE_BYTES) -> bool:
        """
        Read once.

        @return: whether there was anything to read.
        """
        if self.outcome is not None:
            return False
        try:
            piece = self._receive(most)
        except OSError:
            self._end("reset")
            return True
        if piece is None:
            return False
        if piece:
            self.seen += piece
            self.movedAt = now
        else:
            self._end("end")
        return True

    def _receive(self, most: int) -> bytes | None:
        for _ in range(2):
            with suppress(BlockingIOError):
                return self._socket.recv(most)
            if not findLoopback().deliver():
                break
        return None

    def vanish(self) -> None:
        """
        Take no further packet, and acknowledge none, as a machine that has lost its network.

        Loopback itself acknowledges what a client does not read.
        """
        _dropAll(self._socket)
        self.outcome = "vanished"

    def comeBack(self, now: float) -> None:
        """
        Take packets again, and close this side. The server's system answers with a reset, unless it
        still has the connection.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self.outcome = None
        self.finish()
        self.read(now)

    def leave(self, *, withReset: bool) -> None:
        """Close the connection."""
        if withReset and self.isTCP:
            socket.SocketType.setsockopt(self._socket, socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end("left")

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self._socket.close()

    @property
    def isConnected(self) -> bool:
        """Whether neither side of a TCP connection has ended it."""
        if self.outcome is not None:
            return False
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _ESTABLISHED

    def isWhole(self, poems: list[Poem]) -> bool:
        """@return: whether the bytes read are exactly one poem."""
        return any(self.seen == poem.text for poem in poems)

    def isPart(self, poems: list[Poem]) -> bool:
        """@return: whether the bytes read are the beginning of a poem."""
        return any(poem.text.startswith(self.seen) for poem in poems)
