"""
Readers in mid-poem that one process hands over to the next.

Describes them in bytes, and restores them from that; all that it is given is checked. It does not
know how sockets, texts and bytes get to the next process.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorFDSet

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.fastport import Home, SocketReader
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Progress
from fastpoetry.delivery.sockets import RESET_ON_CLOSE, countSent, setLinger
from fastpoetry.poem import MAX_POEM_BYTES, Poem

VERSION = 1
"""Of the format. Readers that another version has described are reset."""


class HandOverError(Exception):
    """What was handed over cannot be restored: one line that says why."""


class Restored(NamedTuple):
    """
    What the process before this one has handed over.

    @ivar readers: with their progress.
    @ivar lost: how many connections could not be restored, and were reset.
    @ivar faults: why; empty if there is nothing to say.
    """

    readers: dict[SocketReader, Progress]
    lost: int
    faults: Sequence[str]


def describe(readers: Mapping[SocketReader, Progress], poems: Mapping[Poem, int]) -> bytes:
    """
    What the next process must know of readers. From now on this one sends them nothing.

    @param poems: for each poem that they are sent, a descriptor of a file with its text.
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


def restore(numbers: Iterable[int], policy: Policy, reactor: IReactorFDSet) -> Restored:
    """
    The readers that were handed over. A connection that cannot be restored is reset.

    @param numbers: descriptors, ours from now on: of a file with what L{describe} has made, of the
        files with the poems, of the connections; or of anything else.
    @param policy: has the rules for the readers from now on, and a clock that both processes share.
    @param reactor: sends to them from now on.
    """
    home, now = Home(policy, reactor), policy.clock.seconds()
    files: list[int] = []
    connections: list[int] = []
    for number in numbers:
        isSocket = stat.S_ISSOCK(os.fstat(number).st_mode)
        (connections if isSocket else files).append(number)
    faults: list[str] = []
    readers: dict[SocketReader, Progress] = {}
    told: dict[int, list[Any]] = {}
    poems: list[Poem | None] = []
    try:
        poems, told = _read(_readFile(files[0]) if files else b"", files[1:])
    except (HandOverError, OSError) as why:
        faults.append(str(why))
    for number in files:
        os.close(number)
    for number in connections:
        try:
            reader, progress = _restoreReader(number, told.pop(_identify(number), None), poems, now)
        except (HandOverError, OSError) as why:
            faults.append(str(why))
            _reset(number)
        else:
            reader.home = home
            readers[reader] = progress
    if told:
        faults.insert(0, "the limit of open files is too low for all of them (LimitNOFILE=)")
    return Restored(readers, len(connections) - len(readers) + len(told), faults)


def _identify(number: int) -> int:
    """What a descriptor is known by in both processes: the number of its socket or memfd."""
    return os.fstat(number).st_ino


def _read(data: bytes, numbers: Iterable[int]) -> tuple[list[Poem | None], dict[int, list[Any]]]:
    """
    The poems, and what is said of each connection.

    @raise HandOverError: if this is not what L{describe} has made.
    """
    files = {_identify(number): number for number in numbers}
    try:
        state = json.loads(data)
        version = state["version"]
        if version != VERSION:
            raise HandOverError(f"what was handed over is of version {version!a}, not {VERSION}")
        poems = [_readPoem(files, *each) for each in state["poems"]]
        return poems, {each[0]: each[1:] for each in state["readers"]}
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise HandOverError("what was handed over is damaged") from None


def _readPoem(
    files: Mapping[int, int], identity: int, name: str, origin: str, digest: str
) -> Poem | None:
    """A poem, if its text is there and the one that was put there."""
    number = files.get(identity)
    if number is None or not isinstance(name, str) or not isinstance(origin, str):
        return None
    with suppress(OSError, HandOverError):
        poem = Poem(name, _readFile(number), origin)
        return poem if poem.digest == digest else None
    return None


def _readFile(number: int) -> bytes:
    """
    All of an open file, wherever others have read.

    @raise HandOverError: if it is longer than any that was left here.
    @raise OSError: if it cannot be read.
    """
    if os.fstat(number).st_size > MAX_POEM_BYTES:
        raise HandOverError("what was handed over is too long")
    with os.fdopen(os.dup(number), "rb") as file:
        file.seek(0)
        return file.read()


def _restoreReader(
    number: int, told: list[Any] | None, poems: list[Poem | None], now: float
) -> tuple[SocketReader, Progress]:
    """
    One reader.

    @raise HandOverError: if what is said of it cannot be.
    @raise OSError: if it is no connection.
    """
    if told is None:
        raise HandOverError("nothing is known of a connection")
    try:
        which, sentBytes, address, (startedAt, movedAt, takenBytes) = told
        poem = poems[which]
        progress = Progress(float(startedAt), float(movedAt), int(takenBytes))
        isOrdered = 0 <= takenBytes <= sentBytes and startedAt <= movedAt <= now
    except (ValueError, TypeError, IndexError):
        raise HandOverError("what is said of a connection is damaged") from None
    if poem is None:
        raise HandOverError("the text of a poem is missing or damaged")
    if not isOrdered or type(sentBytes) is not int or sentBytes >= len(poem.text):
        raise HandOverError("what is said of a connection cannot be")
    with socket.socket(fileno=os.dup(number)) as found:
        found.getpeername()
        count = countSent(found)
        if found.type != socket.SOCK_STREAM or count not in (None, sentBytes):
            raise HandOverError(f"{count} bytes were sent to a connection, not {sentBytes}")
        family = found.family
    reader = SocketReader(family, socket.SOCK_STREAM, 0, number)
    reader.poem, reader.address, reader.sentBytes = poem, _asAddress(address), sentBytes
    return reader, progress


def _asAddress(address: Any) -> Address:
    """What accept(2) once said, in the form that it has there."""
    isInternet = isinstance(address, list) and len(address) in (2, 4)
    if isInternet and isinstance(address[0], str):
        return tuple(address)
    return address if type(address) is int and address >= 0 else ""


def _reset(number: int) -> None:
    """Reset a connection: a plain close would look like the end of a poem."""
    with socket.socket(fileno=number) as connection, suppress(OSError):
        setLinger(connection, RESET_ON_CLOSE)
