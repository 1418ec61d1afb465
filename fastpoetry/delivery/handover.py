"""
Readers in mid-poem that one process hands over to the next.

Describes readers as bytes, and restores readers from such bytes. Checks all input. Does not know
how the sockets, texts and bytes get to the next process.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.fastport import Home, SocketReader
from fastpoetry.delivery.limits import Progress
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.sockets import RESET_ON_CLOSE, countSent, isOver, setLinger
from fastpoetry.poem import Poem

_MOST_BYTES = 10**9
"""The longest poem that C{--max-size} of the proxy allows."""

VERSION = 1
"""The version of the format. Readers described in another version are reset."""


class HandOverError(Exception):
    """A reader that cannot be restored: one line with the cause."""


def describe(readers: Mapping[SocketReader, Progress], poems: Mapping[Poem, int]) -> bytes:
    """
    Describe readers for the next process. The caller has stopped sending to them: the description
    counts their bytes.

    @param poems: for each poem of the readers, a descriptor of a file with its text.
    """
    numbers = {poem: number for number, poem in enumerate(poems)}
    state = {
        "version": VERSION,
        "poems": [
            [_identify(file), poem.name, poem.origin, poem.digest] for poem, file in poems.items()
        ],
        "readers": [
            [
                _identify(reader.fileno()),
                numbers[reader.poem],
                reader.sentBytes,
                reader.address,
                astuple(progress),
            ]
            for reader, progress in readers.items()
        ],
    }
    return json.dumps(state).encode()


def restore(
    numbers: Iterable[int], policy: Policy, reactor: Any
) -> tuple[dict[SocketReader, Progress], int, list[str]]:
    """
    Restore the readers that the process before this one handed over.

    @param numbers: descriptors, which this function closes or keeps. The first file has the bytes
        from L{describe}, the others have the poems; sockets are the connections. They come from
        outside, so anything else is possible.
    @param policy: the new rules for the readers, with a clock that both processes share.
    @return: the readers with their progress; how many connections could not be restored, and were
        reset; the errors, if any.
    """
    home, now = Home(policy, reactor), policy.clock.seconds()
    files: list[int] = []
    connections: list[int] = []
    for number in numbers:
        isSocket = stat.S_ISSOCK(os.fstat(number).st_mode)
        (connections if isSocket else files).append(number)
    faults: list[str] = []
    readers: dict[SocketReader, Progress] = {}
    states: dict[int, list[Any]] = {}
    poems: list[Poem | None] = []
    try:
        poems, states = _read(_readFile(files[0]) if files else b"", files[1:])
    except (HandOverError, OSError) as why:
        faults.append(str(why))
    for number in files:
        os.close(number)
    for number in connections:
        reader = SocketReader(fileno=number)
        try:
            progress = _restoreReader(reader, states.pop(_identify(number), None), poems, now)
        except (HandOverError, OSError) as why:
            faults.append(str(why))
            with suppress(OSError):  # a plain close would look like the end of a poem
                setLinger(reader, RESET_ON_CLOSE)
            reader.close()
        else:
            reader.home = home
            readers[reader] = progress
    if states:
        faults.insert(0, "the limit of open files is too low for all connections (LimitNOFILE=)")
    return readers, len(connections) - len(readers) + len(states), faults


def _identify(number: int) -> int:
    """Return what identifies a descriptor in both processes: the inode of its socket or memfd."""
    return os.fstat(number).st_ino


def _read(data: bytes, numbers: Iterable[int]) -> tuple[list[Poem | None], dict[int, list[Any]]]:
    """
    Parse the bytes from L{describe}.

    @return: the poems, and for each connection the state of its reader.
    @raise HandOverError: if the bytes do not come from L{describe}.
    """
    files = {_identify(number): number for number in numbers}
    try:
        state = json.loads(data)
        version = state["version"]
        if version != VERSION:
            raise HandOverError(f"the state is of version {version!a}, not {VERSION}")
        poems = [_readPoem(files, *each) for each in state["poems"]]
        return poems, {each[0]: each[1:] for each in state["readers"]}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise HandOverError("the state is damaged") from None


def _readPoem(
    files: Mapping[int, int], identity: int, name: str, origin: str, digest: str
) -> Poem | None:
    """Read a poem. Return C{None} if its text is missing or changed."""
    number = files.get(identity)
    if number is None or not isinstance(name, str) or not isinstance(origin, str):
        return None
    with suppress(OSError, HandOverError):
        poem = Poem(name, _readFile(number), origin)
        return poem if poem.digest == digest else None
    return None


def _readFile(number: int) -> bytes:
    """Read all of an open file, whatever its position is. Refuse one longer than a poem may be."""
    if os.fstat(number).st_size > _MOST_BYTES:
        raise HandOverError("a file of the state is too long")
    with os.fdopen(os.dup(number), "rb") as file:
        file.seek(0)
        return file.read()


def _restoreReader(
    reader: SocketReader, state: list[Any] | None, poems: list[Poem | None], now: float
) -> Progress:
    """
    Restore one reader, and return its progress.

    @param state: of the reader; C{None} if it is missing.
    @raise HandOverError: if the state is missing or impossible.
    @raise OSError: if the socket is not connected.
    """
    if state is None:
        raise HandOverError("the state lacks a connection")
    try:
        which, sentBytes, address, (startedAt, movedAt, takenBytes) = state
        poem = poems[which]
        progress = Progress(float(startedAt), float(movedAt), int(takenBytes))
        isOrdered = 0 <= takenBytes <= sentBytes and startedAt <= movedAt <= now
    except (ValueError, TypeError, IndexError, OverflowError):
        raise HandOverError("the state of a connection is damaged") from None
    if poem is None:
        raise HandOverError("the text of a poem is missing or damaged")
    if not isOrdered or type(sentBytes) is not int or sentBytes >= len(poem.text):
        raise HandOverError("the state of a connection is impossible")
    if not isOver(reader):  # otherwise the client has left meanwhile, and sending reports that
        reader.getpeername()
        count = countSent(reader)
        if reader.type != socket.SOCK_STREAM or count not in (None, sentBytes):
            raise HandOverError(f"{count} bytes were sent to a connection, not {sentBytes}")
    reader.poem, reader.address, reader.sentBytes = poem, _asAddress(address), sentBytes
    return progress


def _asAddress(address: Any) -> Address:
    """Convert an address from JSON back to the form of accept(2)."""
    isInternet = isinstance(address, list) and len(address) in (2, 4)
    if isInternet and isinstance(address[0], str):
        return tuple(address)
    return address if type(address) is int and address >= 0 else ""
