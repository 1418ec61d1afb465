"""
Clients, good and bad: each tells the bytes it got and how the connection ended.

Twisted is not imported here: readers in a machine start in half the time without it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

HANG_SECONDS = 60.0
"""The timeout for what hangs: far longer than anything these tests wait for."""

KIBI, MEBI = 1024, 1024 * 1024

Address = tuple[str, int] | str
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reply:
    """
    What one client got.

    @ivar count: the number of bytes.
    @ivar isWhole: whether the bytes are exactly one of the expected poems.
    @ivar isPart: whether the bytes are the beginning of such a poem.
    @ivar end: C{end} after a clean one, C{reset} or C{refused}.
    @ivar seconds: from the connect to the end.
    """

    count: int
    isWhole: bool
    isPart: bool
    end: str
    seconds: float

    @property
    def isExact(self) -> bool:
        """Whether the client got a whole poem and a clean end."""
        return self.isWhole and self.end == "end"

    @property
    def isHonest(self) -> bool:
        """Whether the client can tell from the end whether the poem is complete."""
        return self.isWhole or (self.isPart and self.end == "reset")


def connect(address: Address, **how: Any) -> socket.socket:
    """A client's socket, connected; see L{_open}."""
    client = _open(address, **how)
    client.settimeout(HANG_SECONDS)
    client.connect(address)
    return client


def _open(address: Address, receiveBuffer: int = 0, source: str = "") -> socket.socket:
    """
    A client's socket, not yet connected.

    @param receiveBuffer: its size in bytes, before the kernel rounds it.
    @param source: its source address.
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    if receiveBuffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receiveBuffer)
    if source:
        client.bind((source, 0))
    return client


def resetNow(client: socket.socket) -> None:
    """Leave with a reset, as a client that crashes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


async def fetch(
    address: Address,
    *poems: bytes,
    write: bytes = b"",
    halfClose: bool = False,
    receiveBuffer: int = 0,
    pauseSeconds: float = 0.0,
    pieceBytes: int = 256 * KIBI,
    betweenSeconds: float = 0.0,
    source: str = "",
) -> Reply:
    """
    Fetch a poem, whatever its end.

    @param poems: the poems that may be expected.
    @param write: bytes to send before the first read.
    @param halfClose: whether to close the writing side before the first read.
    @param pauseSeconds: the pause before the first read.
    @param pieceBytes: the bytes of each read.
    @param betweenSeconds: the pause after each read.
    """
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    candidates, count, end = [memoryview(each) for each in poems], 0, "end"
    with _open(address, receiveBuffer, source) as client:
        client.setblocking(False)
        try:
            await loop.sock_connect(client, address)
        except ConnectionRefusedError:
            return Reply(0, False, True, "refused", time.monotonic() - began)
        except OSError:  # connected, and already over when we looked
            return Reply(0, False, True, "reset", time.monotonic() - began)
        try:
            if write:
                await loop.sock_sendall(client, write)
            if halfClose:
                client.shutdown(socket.SHUT_WR)
        except OSError:  # the error came first; the next read would show a clean end
            end = "reset"
        if pauseSeconds:
            await asyncio.sleep(pauseSeconds)
        try:
            while piece := await loop.sock_recv(client, pieceBytes):
                upTo = count + len(piece)
                candidates = [each for each in candidates if each[count:upTo] == piece]
                count = upTo
                if betweenSeconds:
                    await asyncio.sleep(betweenSeconds)
        except OSError:
            end = "reset"
    isWhole = any(len(each) == count for each in candidates)
    return Reply(count, isWhole, bool(candidates), end, time.monotonic() - began)


async def fetchMany(times: int, address: Address, *poems: bytes, **how: Any) -> list[Reply]:
    """Fetch so many times at once; see L{fetch}."""
    return await asyncio.gather(*(fetch(address, *poems, **how) for _ in range(times)))


async def fetchSteadily(
    replies: list[Reply],
    stop: asyncio.Event,
    times: int,
    address: Address,
    *poems: bytes,
    restSeconds: float = 0.0,
) -> None:
    """
    Fetch with so many clients at a time, again and again until told to stop.

    @param replies: gets each reply.
    @param restSeconds: each client's pause after a reply.
    """

    async def client() -> None:
        while not stop.is_set():
            replies.append(await fetch(address, *poems))
            if restSeconds:
                await asyncio.sleep(restSeconds)

    await asyncio.gather(*(client() for _ in range(times)))


def run(coroutine: Coroutine[Any, Any, _T], seconds: float = HANG_SECONDS) -> _T:
    """
    Run the clients' coroutine to its end.

    @raise TimeoutError: if it does not end in time.
    """

    async def bounded() -> _T:
        return await asyncio.wait_for(coroutine, seconds)

    return asyncio.run(bounded())


def readAll(client: socket.socket) -> tuple[int, str]:
    """
    Read to the end.

    @return: the number of bytes, and how the connection ended.
    """
    count = 0
    try:
        while piece := client.recv(256 * KIBI):
            count += len(piece)
    except (ConnectionError, ssl.SSLEOFError):
        return count, "reset"
    return count, "end"


async def readAllAtOnce(clients: list[socket.socket]) -> list[tuple[int, str]]:
    """Read with all clients at once, since some are served only after others have finished."""
    loop = asyncio.get_running_loop()

    async def read(client: socket.socket) -> tuple[int, str]:
        client.setblocking(False)
        count = 0
        try:
            while piece := await loop.sock_recv(client, 256 * KIBI):
                count += len(piece)
        except ConnectionError:
            return count, "reset"
        return count, "end"

    return await asyncio.gather(*map(read, clients))
