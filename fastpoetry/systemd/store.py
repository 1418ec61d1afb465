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
import select
import socket
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.descriptors import Descriptor, Inherited, inherited

__all__ = ["Store", "StoreError", "makeMemory", "pack", "readMemory", "unpack"]

_MOST = 253
"""Descriptors that one message can carry: SCM_MAX_FD of unix(7)."""

_PROBE = "store-probe"

_DROPPED_SECONDS = 0.03
"""
How long systemd may still hold what it has dropped: 257 was seen to close it a moment after its
answer to BARRIER=1, on a busy machine.
"""

_Steps = Iterator[tuple[int, int]]
"""What is done without blocking: a descriptor, and the event of poll(2) to wait for, in between."""


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
        return self._drive(self._putting(descriptors, poll), seconds)

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
        _wait(self._putting(descriptors, poll), seconds)

    def remove(self, *names: str, seconds: float = 5.0) -> Deferred[None]:
        """
        Have the store let go of what has these names.

        @param names: which; it does not matter whether there is anything.
        @param seconds: how long systemd may take.
        @return: fires when that is done; fails with L{StoreError} if there is no store to ask.
        @raise ValueError: a name cannot be one.
        """
        return self._drive(self._removing(names), seconds)

    def removeNow(self, *names: str, seconds: float = 5.0) -> None:
        """
        Do as L{remove} does and wait for it.

        @param names: which.
        @param seconds: how long systemd may take.
        @raise StoreError: there is no store to ask.
        @raise ValueError: a name cannot be one.
        """
        _wait(self._removing(names), seconds)

    def _putting(self, descriptors: Mapping[str, Iterable[int | HasFileno]], poll: bool) -> _Steps:
        messages: list[tuple[str, Sequence[int]]] = []
        for name, each in descriptors.items():
            numbers = [one if isinstance(one, int) else one.fileno() for one in each]
            state = f"FDSTORE=1\nFDNAME={_checked(name)}" + ("" if poll else "\nFDPOLL=0")
            messages += [
                (state, numbers[first : first + _MOST]) for first in range(0, len(numbers), _MOST)
            ]
        return self._store(messages)

    def _removing(self, names: Sequence[str]) -> _Steps:
        return self._tell([(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}", ()) for name in names])

    def _store(self, messages: Sequence[tuple[str, Sequence[int]]]) -> _Steps:
        if not messages:
            return
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                yield from self._tell([*messages, (f"FDSTORE=1\nFDNAME={_PROBE}", [theirs])])
            finally:
                os.close(theirs)
            if _isReady(ours, _DROPPED_SECONDS):  # hung up: nobody has the other end
                size = "" if self.size is None else f" of {self.size}"
                raise StoreError(
                    f"the descriptor store{size} has no room for it all, or there is none: "
                    "FileDescriptorStoreMax= in the unit must be one more than what is stored"
                )
            yield from self._tell([(f"FDSTOREREMOVE=1\nFDNAME={_PROBE}", [])])
        finally:
            os.close(ours)

    def _tell(self, messages: Sequence[tuple[str, Sequence[int]]]) -> _Steps:
        """Send messages, and wait until systemd has read them and done what they say."""
        try:
            manager = self._connect()
        except OSError as why:
            raise StoreError(
                f"no descriptor store: systemd is not at NOTIFY_SOCKET: {why.strerror}"
            ) from why
        with manager:
            unread = 0
            for state, numbers in messages:
                # Few are under way at a time: the kernel allows as many as RLIMIT_NOFILE.
                if unread and unread + len(numbers) > _MOST:
                    yield from _barrier(manager)
                    unread = 0
                yield from _send(manager, state, numbers)
                unread += len(numbers)
            yield from _barrier(manager)

    def _connect(self) -> socket.socket:
        address = self._environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            reason = "is not set" if not address else f"is {address!r}, which carries none"
            raise StoreError(
                f"no descriptor store: NOTIFY_SOCKET {reason}; systemd gives one to a service "
                "with FileDescriptorStoreMax="
            )
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            manager.setblocking(False)
            manager.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        except BaseException:
            manager.close()
            raise
        return manager

    def _drive(self, steps: _Steps, seconds: float) -> Deferred[None]:
        return _Drive(self._reactor, self._clock, steps, seconds).done


def _checked(name: str) -> str:
    """@raise ValueError: systemd would drop the message."""
    if not (name.isascii() and name.isprintable() and ":" not in name and 0 < len(name) < 256):
        raise ValueError(f"{name!r} is no name of a descriptor: ASCII without colons, up to 255")
    return name


def _send(manager: socket.socket, state: str, numbers: Sequence[int]) -> _Steps:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers))] if numbers else []
    while True:
        try:
            manager.sendmsg([state.encode()], rights)
            return
        except BlockingIOError:
            yield manager.fileno(), select.POLLOUT
        except OSError as why:
            raise StoreError(f"systemd was not told to keep descriptors: {why.strerror}") from why


def _barrier(manager: socket.socket) -> _Steps:
    """Wait until systemd has done all that it was told before: it closes what comes with this."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            yield from _send(manager, "BARRIER=1", [theirs])
        finally:
            os.close(theirs)
        while not _isReady(ours, 0):
            yield ours, select.POLLIN
    finally:
        os.close(ours)


def _isReady(number: int, seconds: float, event: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(number, event)
    return bool(poll.poll(max(0, seconds) * 1000))


def _wait(steps: _Steps, seconds: float) -> None:
    """Take all steps."""
    deadline = monotonic() + seconds
    try:
        for number, event in steps:
            if not _isReady(number, deadline - monotonic(), event):
                raise _late(seconds)
    finally:
        steps.close()  # type: ignore[attr-defined]


def _late(seconds: float) -> StoreError:
    return StoreError(f"systemd has not read what it was told for {seconds:g} s")


class _Drive:
    """Takes all steps while the reactor goes on."""

    def __init__(self, reactor: Any, clock: Any, steps: Any, seconds: float) -> None:
        self._reactor = reactor
        self._steps = steps
        self._waiting: _Waiting | None = None
        self.done: Deferred[None] = Deferred(lambda _: self._end())
        self._limit = clock.callLater(seconds, self._fail, _late(seconds))
        self._step()

    def _step(self) -> None:
        self._waiting = None
        try:
            number, event = next(self._steps)
        except StopIteration:
            self._end()
            self.done.callback(None)
        except Exception as why:
            self._fail(why)
        else:
            self._waiting = _Waiting(self._reactor, number, event, self._step)

    def _fail(self, why: Exception) -> None:
        self._end()
        self.done.errback(why)

    def _end(self) -> None:
        if self._limit.active():
            self._limit.cancel()
        if self._waiting is not None:
            self._waiting.stop()
        self._steps.close()


@implementer(IReadDescriptor, IWriteDescriptor)
class _Waiting:
    """A descriptor in the reactor, for one event."""

    def __init__(self, reactor: Any, number: int, event: int, ready: Callable[[], None]) -> None:
        self._reactor = reactor
        self._number = number
        self._ready: Callable[[], None] | None = ready
        (reactor.addWriter if event == select.POLLOUT else reactor.addReader)(self)

    def stop(self) -> None:
        """Be out of the reactor."""
        self._ready = None
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)

    def fileno(self) -> int:
        """@return: the descriptor."""
        return self._number

    def logPrefix(self) -> str:
        """@return: what stands before text that is printed meanwhile."""
        return "-"

    def doRead(self) -> None:
        """It is ready."""
        ready = self._ready
        if ready is not None:
            self.stop()
            ready()

    def doWrite(self) -> None:
        """It is ready."""
        self.doRead()

    def connectionLost(self, reason: Failure) -> None:
        """
        It is ready too, which the next step sees: some reactors say so of an end that hangs up.

        @param reason: why.
        """
        self.doRead()


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
        for first in range(0, len(numbers), _MOST):
            some = numbers[first : first + _MOST]
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
        count, rights, _, _ = packed.recvmsg(16, socket.CMSG_LEN(_MOST * numbers.itemsize), flags)
    except OSError:
        return None
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return (count, numbers) if count else None
