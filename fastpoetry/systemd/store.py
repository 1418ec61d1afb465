"""
systemd's file descriptor store: descriptors that outlive this process, for the one after it.

Sockets with their clients, memfds with a program's own state, listening sockets made while it runs:
systemd holds them over a restart or a crash, and passes them to the next start beside the sockets
of C{.socket} units. The unit needs C{FileDescriptorStoreMax=}. What a descriptor means, and whether
what comes back still makes sense, is the program's to know.
"""

from __future__ import annotations

import fcntl
import os
import socket
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.descriptors import Descriptor, Inherited, inherited
from fastpoetry.systemd.manager import (
    MOST_DESCRIPTORS,
    Manager,
    ManagerError,
    Message,
    withHidden,
)
from fastpoetry.systemd.steps import Steps, drive, isReady, take

__all__ = ["Store", "StoreError", "makeMemory", "pack", "readMemory", "unpack"]

_PROBE = "store-probe"

_DROPPED_SECONDS = 0.03
"""
How long systemd may still hold what it has dropped: 257 was seen to close it a moment after its
answer to BARRIER=1, on a busy machine.
"""


class HasFileno(Protocol):
    """A file or socket."""

    def fileno(self) -> int:
        """@return: its descriptor."""


class StoreError(Exception):
    """What is in the store is not what was asked for: one line that says why."""


class Store:
    """
    The store of this process's unit.

    systemd does not answer, and drops without a word what it has no room for. So a descriptor of
    ours goes last, one that tells when nobody else holds it: if the store has that, it has all
    before. C{FileDescriptorStoreMax=} is one more than what it is to hold.

    @ivar size: how many descriptors the store holds, where systemd says so (from 254 on); else
        C{None}, also where there is none.
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
        @param reactor: provides C{IReactorFDSet}; not needed by what ends with C{Now}.
        @param clock: provides C{IReactorTime}; without it, a L{MonotonicClock}.
        @param environ: where systemd leaves C{NOTIFY_SOCKET} and C{FDSTORE}.
        @param passed: says what this process was passed.
        """
        self._reactor = reactor
        self._clock = clock or MonotonicClock(reactor)
        self._environ = environ
        self._passed = passed
        told = environ.get("FDSTORE", "")
        self.size = int(told) if told.isdecimal() else None

    def take(self, name: str) -> tuple[Descriptor, ...]:
        """
        Take back what a process before this one has put, or had put when it was killed.

        The store goes on holding them, and passes them to the next start too. A connection that is
        in it does not end when it is closed here: remove what is not meant to stay.

        @param name: under which that was.
        @return: those that nobody has taken yet, in no order, each checked for nothing but what it
            is; none, at a first start.
        @raise AdoptError: what was passed cannot be read.
        """
        return self._passed().take(name)

    def put(
        self,
        descriptors: Mapping[str, Iterable[int | HasFileno]],
        *,
        poll: bool = True,
        seconds: float = 5.0,
    ) -> Deferred[None]:
        """
        Have the store hold descriptors. They stay open here, and must until this has fired. Of more
        than some hundred make one: see L{pack}.

        @param descriptors: which, under which names: ASCII without colons, as FDNAME of
            sd_notify(3). Several may have one name, and are added to those that have it already.
        @param poll: whether systemd lets go of connections that their peers close meanwhile.
        @param seconds: how long systemd may take.
        @return: fires when the store has them all; fails with L{StoreError} if it cannot be had, or
            has not got them all. Which ones it has, it does not say: remove the names.
        @raise ValueError: a name cannot be one.
        """
        return drive(self._putting(descriptors, poll), seconds, self._reactor, self._clock)

    def putNow(
        self,
        descriptors: Mapping[str, Iterable[int | HasFileno]],
        *,
        poll: bool = True,
        seconds: float = 5.0,
    ) -> None:
        """
        Do as L{put} does and wait for it, in a program that has nothing else to do or ends.

        @param descriptors: which, under which names.
        @param poll: whether systemd lets go of connections that their peers close meanwhile.
        @param seconds: how long systemd may take.
        @raise StoreError: the store cannot be had, or has not got them all.
        @raise ValueError: a name cannot be one.
        """
        take(self._putting(descriptors, poll), seconds)

    def remove(self, *names: str, seconds: float = 5.0) -> Deferred[None]:
        """
        Have the store let go of what has these names.

        @param names: which; it does not matter whether there is anything.
        @param seconds: how long systemd may take.
        @return: fires when that is done; fails with L{StoreError} if there is no store to ask.
        @raise ValueError: a name cannot be one.
        """
        return drive(self._removing(names), seconds, self._reactor, self._clock)

    def removeNow(self, *names: str, seconds: float = 5.0) -> None:
        """
        Do as L{remove} does and wait for it.

        @param names: which.
        @param seconds: how long systemd may take.
        @raise StoreError: there is no store to ask.
        @raise ValueError: a name cannot be one.
        """
        take(self._removing(names), seconds)

    def _putting(self, descriptors: Mapping[str, Iterable[int | HasFileno]], poll: bool) -> Steps:
        messages: list[Message] = []
        for name, each in descriptors.items():
            numbers = [one if isinstance(one, int) else one.fileno() for one in each]
            text = f"FDSTORE=1\nFDNAME={_checked(name)}" + ("" if poll else "\nFDPOLL=0")
            messages += [
                (text, numbers[first : first + MOST_DESCRIPTORS])
                for first in range(0, len(numbers), MOST_DESCRIPTORS)
            ]
        return self._store(messages)

    def _removing(self, names: Sequence[str]) -> Steps:
        return self._tell([(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}", ()) for name in names])

    def _store(self, messages: Sequence[Message]) -> Steps:
        if not messages:
            return
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                yield from self._tell([*messages, (f"FDSTORE=1\nFDNAME={_PROBE}", [theirs])])
            finally:
                os.close(theirs)
            if isReady(ours, _DROPPED_SECONDS):  # hung up: nobody has the other end
                size = "" if self.size is None else f" of {self.size}"
                raise StoreError(
                    f"the descriptor store{size} has no room for it all, or there is none: "
                    "FileDescriptorStoreMax= in the unit must be one more than what is stored"
                )
            yield from self._tell([(f"FDSTOREREMOVE=1\nFDNAME={_PROBE}", [])])
        finally:
            os.close(ours)

    def _tell(self, messages: Sequence[Message]) -> Steps:
        """Send messages, and wait until systemd has read them and done what they say."""
        try:
            address = withHidden(self._environ).get("NOTIFY_SOCKET", "")
            with closing(Manager(address)) as manager:
                yield from manager.tell(messages)
        except ManagerError as why:
            raise StoreError(f"no descriptor store: {why}") from why


def _checked(name: str) -> str:
    """@raise ValueError: systemd would drop the message."""
    if not (name.isascii() and name.isprintable() and ":" not in name and 0 < len(name) < 256):
        raise ValueError(f"{name!r} is no name of a descriptor: ASCII without colons, up to 255")
    return name


def makeMemory(data: bytes) -> int:
    """
    @param data: a program's state, for instance.
    @return: a memfd with it, which nobody can change any more.
    """
    number = os.memfd_create("store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(number)
        raise
    return number


def readMemory(number: int, most: int) -> bytes:
    """
    Read a memfd from its beginning, wherever others have read.

    @param number: it, or another regular file.
    @param most: bytes that it may have.
    @raise ValueError: it has more.
    @raise OSError: it cannot be read.
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

    systemd compares what it is given with all that it holds: 1,500 sockets took it 2.9 s. In the
    queue of a socket (unix(7), C{SCM_RIGHTS}) they took 0.01 s, and take one place. Put that with
    C{poll=False}, since nobody is at its other end. Who closes it closes them.

    @param descriptors: as many as this process may have open (RLIMIT_NOFILE). They stay open here.
    @return: a socket with them.
    @raise OSError: they are too many.
    """
    numbers = [each if isinstance(each, int) else each.fileno() for each in descriptors]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        ours.setblocking(False)
        for first in range(0, len(numbers), MOST_DESCRIPTORS):
            some = numbers[first : first + MOST_DESCRIPTORS]
            socket.send_fds(ours, [b"%d" % len(some)], some)
        return theirs.detach()


def unpack(number: int) -> list[int]:
    """
    Take out of a descriptor what was packed into it, so that it is empty afterwards.

    @param number: what L{pack} made, or anything else, which is empty.
    @return: the descriptors in their order, closed on exec. Where there are fewer than there were,
        this process has too many open; the rest is closed then.
    """
    found: list[int] = []
    try:
        packed = socket.socket(fileno=os.dup(number))
    except OSError:
        return found
    with packed:
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
    # Not by socket.recv_fds, which forgets the flags before Python 3.12.
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
