"""
What a life controls below the server: the time, the turns of the reactor, and failing system calls.

Sockets are real. Only what would make a life slow or unrepeatable is replaced: the clock and its
timers.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any
from unittest import mock

from twisted.internet import reactor as installed  # for Twisted's TLS
from twisted.internet.epollreactor import EPollReactor

from fastpoetry.delivery.fastport import SocketReader
from fastpoetry.systemd import clock

assert installed is not None

_LEAST_NANOSECONDS = 1_000

_MOST_TURNS = 400
"""A server that is still busy after so many turns without new events spins."""

_MOST_ANSWERS = 3
"""A packet makes so many others at most, each the answer to the one before."""


class Loopback:
    """
    Tells when loopback has delivered everything. A busy system may deliver a packet later than the
    call returns that sent it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(self._socket.getsockname())

    def deliver(self) -> bool:
        """
        Wait until everything sent before is delivered, and the answers of the system to it.

        A processor delivers packets in order, so the socket's own packet comes after them.

        @return: whether anything was late.
        """
        isLate = False
        for _ in range(1 + _MOST_ANSWERS):
            socket.SocketType.send(self._socket, b".")
            try:
                self._socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                isLate = True
                self._socket.recv(1)
        return isLate


@cache
def findLoopback() -> Loopback:
    """@return: the loopback of all lives."""
    return Loopback()


@contextmanager
def onOneProcessor() -> Iterator[None]:
    """Keep the calling thread on one processor, since each of them has its own order of packets."""
    available = os.sched_getaffinity(0)
    chosen = sorted(available)[os.getpid() % len(available)]
    os.sched_setaffinity(0, {chosen})
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


class Time:
    """
    C{CLOCK_MONOTONIC} and timerfd_create(2), moved by the test.

    @ivar now: seconds.
    """

    CLOCK_MONOTONIC = 1

    def __init__(self) -> None:
        self.now = 10_000.0
        self._timers: dict[int, float] = {}

    def monotonic(self) -> float:
        """@return: the seconds."""
        return self.now

    def create(self) -> int:
        """@return: a descriptor that is readable when its timer is due."""
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self, number: int, nanoseconds: int) -> None:
        """
        Set a timer, which is then not due.

        @param number: the descriptor from L{create}.
        @param nanoseconds: the time at which it is due.
        """
        with suppress(BlockingIOError):
            os.eventfd_read(number)
        if nanoseconds < _LEAST_NANOSECONDS:  # which pass before the next turn
            self.now += nanoseconds / 1e9
            os.eventfd_write(number, 1)
            self.forget(number)
        else:
            self._timers[number] = self.now + nanoseconds / 1e9

    def forget(self, number: int) -> None:
        """Forget a timer that is about to be closed."""
        self._timers.pop(number, None)

    @property
    def next(self) -> float | None:
        """
        The time at which the next timer is due, in seconds of this clock; L{None} without a timer.
        """
        return min(self._timers.values(), default=None)

    def advance(self, seconds: float) -> None:
        """Let time pass at once, as for a process that did not run in that time."""
        self.now += seconds
        for number, due in list(self._timers.items()):
            if due <= self.now:
                del self._timers[number]
                os.eventfd_write(number, 1)


class Faults:
    """
    System calls that fail, each kind as often as planned.

    @ivar happened: the number of failures so far, by kind.
    """

    KINDS = {
        "accept": (errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EPERM),
        "send": (errno.ENOBUFS, errno.ENOMEM, errno.EPIPE, errno.ECONNRESET),
        "shutdown": (errno.ENOTCONN, errno.ENOBUFS),
        "poll": (errno.ENOMEM, errno.ENOSPC),
        "timer": (errno.EMFILE, errno.ENOMEM),
        "memory": (0,),
    }
    """
    The calls that can fail, and their errors. C{memory} is a C{MemoryError} at the next accept.
    """

    def __init__(self) -> None:
        self.happened: Counter[str] = Counter()
        self._pending: dict[str, tuple[int, int]] = {}

    @property
    def isPending(self) -> bool:
        """Whether a failure is planned."""
        return bool(self._pending)

    def plan(self, kind: str, number: int, times: int) -> None:
        """
        Make the next calls of a kind fail.

        @param kind: one of L{KINDS}.
        @param number: the error.
        @param times: the number of calls.
        """
        self._pending[kind] = number, times

    def clear(self) -> None:
        """Drop all planned failures."""
        self._pending.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend all planned failures while the context lasts."""
        pending, self._pending = self._pending, {}
        try:
            yield
        finally:
            self._pending = pending

    def strike(self, kind: str) -> None:
        """@raise OSError: the call fails as planned; C{MemoryError} for C{memory}."""
        if kind not in self._pending:
            return
        number, times = self._pending[kind]
        if times > 1:
            self._pending[kind] = number, times - 1
        else:
            del self._pending[kind]
        self.happened[kind] += 1
        if kind == "memory":
            raise MemoryError
        raise OSError(number, os.strerror(number))


class _Poll:
    """The reactor's epoll, whose changes can fail."""

    def __init__(self, poll: Any, faults: Faults) -> None:
        self._poll = poll
        self._faults = faults
        self.poll, self.close, self.fileno = poll.poll, poll.close, poll.fileno
        self.unregister = poll.unregister

    def register(self, *arguments: Any) -> None:
        """Register a descriptor."""
        self._faults.strike("poll")
        self._poll.register(*arguments)

    def modify(self, *arguments: Any) -> None:
        """Change what a descriptor is registered for."""
        self._faults.strike("poll")
        self._poll.modify(*arguments)


class Turns(EPollReactor):
    """Twisted's own reactor, turn by turn."""

    def __init__(self, time: Time, faults: Faults) -> None:
        self._time = time
        super().__init__()
        self._poller = _Poll(self._poller, faults)
        self.startRunning(installSignalHandlers=False)

    def seconds(self) -> float:
        """@return: the life's time."""
        return self._time.now

    def turn(self) -> bool:
        """
        Perform one turn.

        @return: whether there was anything to do.
        """
        isBusy = bool(self._poller.poll(0, 1)) or self.timeout() == 0
        self.runUntilCurrent()
        self.doIteration(0)
        return isBusy

    def settle(self) -> None:
        """
        Perform turns until there is nothing left to do.

        @raise AssertionError: the server spins.
        """
        for _ in range(_MOST_TURNS):
            if not self.turn() and not (findLoopback().deliver() and self.turn()):
                return
        raise AssertionError(f"the reactor is still busy after {_MOST_TURNS} turns")

    def close(self) -> None:
        """Close every descriptor, and make no further call."""
        self._poller.close()
        self.waker.connectionLost(None)


@contextmanager
def controlled(time: Time, faults: Faults) -> Iterator[Counter[str]]:
    """
    Use a life's time for the clock, and its faults for system calls, while the context lasts.

    @return: the counts, with the accepted connections as C{accept}.
    """
    counts: Counter[str] = Counter()

    def failing(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def perform(*arguments: Any) -> Any:
            faults.strike(kind)
            return call(*arguments)

        return perform

    def accept(listening: socket.socket) -> Any:
        faults.strike("accept")
        faults.strike("memory")
        accepted = socket.SocketType._accept(listening)  # type: ignore[attr-defined]
        counts["accept"] += 1
        return accepted

    def closeTimer(timer: Any, close: Callable[[Any], None] = clock._Timer.close) -> None:
        time.forget(timer.fileno())
        close(timer)

    with ExitStack() as stack:
        for where, name, replacement in (
            (clock, "time", time),
            (clock, "_create", failing("timer", time.create)),
            (clock, "_set", failing("timer", time.set)),
            (clock._Timer, "close", closeTimer),
            (socket.socket, "_accept", accept),
            (socket.socket, "send", failing("send", socket.SocketType.send)),
            (socket.socket, "shutdown", failing("shutdown", socket.SocketType.shutdown)),
            (SocketReader, "send", failing("send", socket.SocketType.send)),
            (SocketReader, "shutdown", failing("shutdown", socket.SocketType.shutdown)),
        ):
            stack.enter_context(mock.patch.object(where, name, replacement, create=True))
        yield counts
