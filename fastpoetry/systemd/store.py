"""
systemd's file descriptor store: it keeps descriptors for the next process of the unit.

A program stores sockets with their clients, memfds with its state, or listening sockets that it
made. systemd holds them during a restart or after a crash. It passes them to the next start
together with the sockets of C{.socket} units. The unit needs C{FileDescriptorStoreMax=}. This
module does not know what a descriptor means, or whether it is still valid.
"""

from __future__ import annotations

import fcntl
import os
import socket
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.descriptors import Descriptor, Inherited, inherited
from fastpoetry.systemd.manager import MOST_DESCRIPTORS, Manager, ManagerError, Message, withHidden
from fastpoetry.systemd.steps import Steps, drive, driveNow, makePipe, waitFor

__all__ = ["Store", "StoreError", "makeMemory", "pack", "readMemory", "unpack"]

_MOST_SECONDS = 5.0
"""How long systemd may take, unless the caller gives another time."""

_DROPPED_SECONDS = 0.03
"""How long a dropped descriptor may stay open after BARRIER=1: systemd 257 closed one late."""


class HasFileno(Protocol):
    """A file or socket."""

    def fileno(self) -> int:
        """Return its descriptor."""


class StoreError(Exception):
    """The store is missing, or lacks some descriptors. The message is one line with the cause."""


class Store:
    """
    The store of this process's unit.

    systemd sends no answer, and silently drops descriptors that do not fit. So a pipe's end is sent
    last. If the store kept the pipe's end, it kept all descriptors before. So
    C{FileDescriptorStoreMax=} must be one more than the number of descriptors to store.

    @ivar size: how many descriptors the store may hold; C{None} without a store, and with systemd
        before version 254, which does not report it.
    """

    def __init__(
        self,
        reactor: Any = None,
        *,
        clock: Any = None,
        environ: Mapping[str, str] = os.environ,
        passed: Callable[[], Inherited] = inherited,
    ) -> None:
        """
        @param reactor: provides C{IReactorFDSet}. L{putNow} and L{removeNow} need none.
        @param clock: provides C{IReactorTime}; without it, a L{MonotonicClock}.
        @param environ: where systemd leaves C{NOTIFY_SOCKET} and C{FDSTORE}.
        @param passed: returns the descriptors passed to this process.
        """
        self._reactor = reactor
        self._clock = clock or MonotonicClock(reactor)
        self._environ = environ
        self._passed = passed
        limit = environ.get("FDSTORE", "")
        self.size = int(limit) if limit.isdecimal() else None

    def take(self, name: str) -> tuple[Descriptor, ...]:
        """
        Take the descriptors that an earlier process stored, or was storing when it was killed.

        The store keeps them, and passes them to the next start too. A stored connection stays open
        when this process closes it: call L{remove} to close it. Do not L{unpack} or remove any
        before the reactor runs (C{callWhenRunning}): until then SIGTERM kills the process, and the
        next one would not find them.

        @param name: the name they were stored under.
        @return: the descriptors of that name that were not taken yet, in no order; empty at a first
            start. Their meaning is not checked.
        @raise AdoptError: if the passed descriptors cannot be read.
        """
        return self._passed().take(name)

    def put(
        self,
        descriptors: Mapping[str, Iterable[int | HasFileno]],
        *,
        poll: bool = True,
        seconds: float = _MOST_SECONDS,
    ) -> Deferred[None]:
        """
        Store descriptors. They must stay open here until the Deferred fires. For more than a few
        hundred, make one descriptor of them with L{pack}. At the end, this blocks for 0.03 s to see
        whether systemd drops them.

        @param descriptors: the descriptors by name: ASCII without colons, as FDNAME of
            sd_notify(3). Several may share a name. Earlier descriptors of that name stay.
        @param poll: whether systemd drops connections that their peers close meanwhile.
        @param seconds: how long systemd may take.
        @return: fires when all are stored; fails with L{StoreError} if the store is missing or too
            small. systemd does not say which it kept, so remove the names after a failure.
        @raise ValueError: if a name is not valid.
        """
        return drive(self._putting(descriptors, poll), seconds, self._reactor, self._clock)

    def putNow(
        self,
        descriptors: Mapping[str, Iterable[int | HasFileno]],
        *,
        poll: bool = True,
        seconds: float = _MOST_SECONDS,
    ) -> None:
        """Do as L{put} does, but block until it is done, and raise the error."""
        driveNow(self._putting(descriptors, poll), seconds)

    def remove(self, *names: str, seconds: float = _MOST_SECONDS) -> Deferred[None]:
        """
        Remove all descriptors with these names from the store.

        @param names: the names. A name without descriptors is not an error.
        @param seconds: how long systemd may take.
        @return: fires when they are removed; fails with L{StoreError} if the store is missing.
        @raise ValueError: if a name is not valid.
        """
        return drive(self._removing(names), seconds, self._reactor, self._clock)

    def removeNow(self, *names: str, seconds: float = _MOST_SECONDS) -> None:
        """Do as L{remove} does, but block until it is done, and raise the error."""
        driveNow(self._removing(names), seconds)

    def _putting(self, descriptors: Mapping[str, Iterable[int | HasFileno]], poll: bool) -> Steps:
        messages: list[Message] = []
        for name, each in descriptors.items():
            text = f"FDSTORE=1\nFDNAME={_checked(name)}" + ("" if poll else "\nFDPOLL=0")
            messages += [(text, numbers) for numbers in _portions(each)]
        return self._store(messages)

    def _removing(self, names: Sequence[str]) -> Steps:
        return self._tell([(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}", ()) for name in names])

    def _store(self, messages: Sequence[Message]) -> Steps:
        if not messages:
            return
        # On a busy machine, systemd 257 closes what it has dropped too late for the probe.
        if self.size is not None and self.size <= sum(len(numbers) for _, numbers in messages):
            raise self._tooSmall()
        ours, theirs = makePipe()
        with ours:
            probe = f"store-probe-{ours.fileno()}"  # of this put only: systemd removes by name
            with theirs:
                last = f"FDSTORE=1\nFDNAME={probe}", [theirs.fileno()]
                yield from self._tell([*messages, last])
            # The only step that waits, since only an event tells that systemd has dropped it.
            if waitFor(ours.fileno(), _DROPPED_SECONDS):
                raise self._tooSmall()
            yield from self._removing([probe])

    def _tooSmall(self) -> StoreError:
        size = "" if self.size is None else f" of {self.size}"
        return StoreError(
            f"the descriptor store{size} is missing or too small: "
            "FileDescriptorStoreMax= must be one more than the number of descriptors"
        )

    def _tell(self, messages: Sequence[Message]) -> Steps:
        """Send messages, and wait until systemd has acted on them."""
        try:
            address = withHidden(self._environ).get("NOTIFY_SOCKET", "")
            with closing(Manager(address)) as manager:
                yield from manager.tell(messages)
        except ManagerError as why:
            raise StoreError(f"no descriptor store: {why}") from why


def _checked(name: str) -> str:
    """@raise ValueError: if the name is not valid: systemd would drop the message."""
    if not (name.isascii() and name.isprintable() and ":" not in name and 0 < len(name) < 256):
        raise ValueError(
            f"{name!r} is not a descriptor's name: 1 to 255 ASCII characters, no colon"
        )
    return name


def _portions(descriptors: Iterable[int | HasFileno]) -> Iterator[list[int]]:
    """Return the descriptors' numbers, as many at a time as one message takes."""
    numbers = [each if isinstance(each, int) else each.fileno() for each in descriptors]
    for first in range(0, len(numbers), MOST_DESCRIPTORS):
        yield numbers[first : first + MOST_DESCRIPTORS]


def makeMemory(data: bytes) -> int:
    """Return a memfd with the data. It is sealed, so no process can change it."""
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    number = os.memfd_create("store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(number, "wb") as file:
        file.write(data)
        file.flush()
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        return os.dup(file.fileno())


def readMemory(number: int, most: int) -> bytes:
    """
    Read a memfd from its beginning, whatever its read position.

    @param number: the memfd, or another regular file.
    @param most: the most bytes that it may have.
    @raise ValueError: if it has more.
    @raise OSError: if it cannot be read.
    """
    parts, offset = [], 0
    while part := os.pread(number, most + 1 - offset, offset):
        parts.append(part)
        offset += len(part)
        if offset > most:
            raise ValueError(f"more than {most} bytes")
    return b"".join(parts)


def pack(descriptors: Iterable[int | HasFileno]) -> int:
    """
    Make one descriptor of many.

    systemd compares each new descriptor with all in the store, which took 2.9 s for 1,500 sockets.
    In the queue of one socket (unix(7), C{SCM_RIGHTS}) they took 0.01 s, and one place in the
    store. Store that socket with C{poll=False}, because its other end is closed. Closing it closes
    the packed descriptors.

    @param descriptors: at most RLIMIT_NOFILE of this process. They stay open here.
    @return: a socket that holds them.
    @raise OSError: if they are too many.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        ours.setblocking(False)
        for numbers in _portions(descriptors):
            socket.send_fds(ours, [b"%d" % len(numbers)], numbers)
        return theirs.detach()


def unpack(number: int) -> list[int]:
    """
    Take all descriptors out of a socket that L{pack} made. The socket is empty afterwards.

    @param number: the packed descriptor. Any other descriptor is treated as empty.
    @return: the descriptors in their order, closed on exec. If this process has too many open, the
        last ones are closed and not returned.
    """
    found: list[int] = []
    try:
        packed = socket.socket(fileno=os.dup(number))
    except OSError:
        return found
    with packed:
        if (packed.family, packed.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            return found
        isWhole = True
        while message := _receive(packed):
            count, numbers = message
            if isWhole:
                found += numbers
            else:
                for each in numbers:
                    os.close(each)
            isWhole = isWhole and count == b"%d" % len(numbers)
    return found


def _receive(packed: socket.socket) -> tuple[bytes, Sequence[int]] | None:
    numbers = array("i")
    # socket.recv_fds drops the flags before Python 3.12.
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        count, rights, _, _ = packed.recvmsg(
            16, socket.CMSG_LEN(MOST_DESCRIPTORS * numbers.itemsize), flags
        )
    except OSError:
        return None
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return (count, numbers) if count else None
