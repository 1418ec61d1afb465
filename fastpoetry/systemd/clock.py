"""
Timers that ignore steps of the wall clock, for any reactor.

C{reactor.seconds()} is the wall clock (Twisted #2424). After a step back, all timers of a reactor
are late by the length of the step. After a step forward, all are due at once. The reactor's own
clock stays unchanged for code that needs the time of day.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import count
from types import MethodType
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

__all__ = ["MonotonicClock", "MonotonicReactor"]

_LONGEST_SECONDS = 1e9
"""Seconds, about 30 years: the longest time for a kernel timer, which cannot take infinity."""

_CONNECTS = ("connectTCP", "connectSSL", "connectUNIX")

_STALE = 50
"""The heap may keep this many entries of cancelled or moved calls, and one per pending call."""


@implementer(IReactorTime)
class MonotonicClock:
    """
    A clock on C{CLOCK_MONOTONIC}, with delayed calls.

    While a call is pending, the clock holds one descriptor, a timerfd_create(2), which the reactor
    watches. Without pending calls it holds no descriptor and no timer. If no descriptor is
    available, or the reactor cannot watch it, the reactor's own clock wakes this one each second
    until a timer works. Use the clock only in the reactor's thread.
    """

    def __init__(self, reactor: Any) -> None:
        """@param reactor: provides C{IReactorFDSet} and C{IReactorTime}."""
        self._reactor = reactor
        self._pending: set[DelayedCall] = set()
        self._heap: list[tuple[float, int, DelayedCall]] = []
        self._counter = count()
        self._timer: _Timer | None = None
        self._makeshift: IDelayedCall | None = None
        self._armed: float | None = None

    def seconds(self) -> float:
        return time.monotonic()

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002 - the interface's name
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        """
        Have the reactor make a call after so many seconds. If the call raises, the error is logged.

        @raise ValueError: if the delay is negative or NaN.
        """
        if not delay >= 0:
            raise ValueError(f"{delay!r} is not a delay")
        due = self.seconds() + delay
        call = DelayedCall(due, callable, args, kw, self._forget, self._move, self.seconds)
        self._pending.add(call)
        self._move(call)
        return call

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """Return the pending calls, in no order."""
        return list(self._pending)

    def _forget(self, call: DelayedCall) -> None:
        self._pending.remove(call)
        self._arm()

    def _move(self, call: DelayedCall) -> None:
        heappush(self._heap, (call.time, next(self._counter), call))
        self._arm()

    def _isStale(self, entry: tuple[float, int, DelayedCall]) -> bool:
        due, _, call = entry
        return call.time != due or call not in self._pending

    def _run(self) -> None:
        """Make the calls that are due. Calls that become due meanwhile wait for the next turn."""
        self._armed = None
        last = (self.seconds(), next(self._counter))
        try:
            while self._heap and self._heap[0] < last:
                entry = heappop(self._heap)
                call = entry[2]
                if self._isStale(entry):
                    continue
                if call.delayed_time > 0:
                    call.activate_delay()
                    heappush(self._heap, (call.time, entry[1], call))
                    continue
                self._pending.remove(call)
                self._call(call)
        finally:
            self._arm()

    def _call(self, call: DelayedCall) -> None:
        """Make a call. As in the reactor, an error in it does not stop the next call."""
        call.called = 1
        if self._timer is not None and not self._pending:
            # The call may end a trial test. trial then fails if the reactor still has a reader.
            self._timer.stopReading()
        try:
            call.func(*call.args, **call.kw)
        except BaseException:
            log.err()

    def _arm(self) -> None:
        """Set the timer for the first pending call. Without pending calls, close it."""
        if len(self._heap) > 2 * len(self._pending) + _STALE:
            self._heap = [entry for entry in self._heap if not self._isStale(entry)]
            heapify(self._heap)
        while self._heap and self._isStale(self._heap[0]):
            heappop(self._heap)
        if not self._heap:
            self._close()
        elif self._heap[0][0] != self._armed:
            due = self._heap[0][0]
            self._armed = None
            self._wakeIn(min(max(due - self.seconds(), 0), _LONGEST_SECONDS))
            self._armed = due

    def _wakeIn(self, seconds: float) -> None:
        try:
            self._timer = self._timer or _Timer(self._reactor, self._run, self._timerLost)
            self._timer.set(seconds)
        except (ImportError, OSError, MemoryError):
            self._wakeByReactor(min(seconds, 1))

    def _wakeByReactor(self, seconds: float) -> None:
        if self._makeshift is None:
            self._makeshift = self._reactor.callLater(seconds, self._wake)

    def _wake(self) -> None:
        self._makeshift = None
        self._run()

    def _timerLost(self) -> None:
        self._timer = self._armed = None
        if self._pending:
            self._wakeByReactor(1)

    def _close(self) -> None:
        self._armed = None
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if self._makeshift is not None:
            self._makeshift.cancel()
            self._makeshift = None


class _Timer(FileDescriptor):
    """A kernel timer that the reactor watches."""

    def __init__(self, reactor: Any, due: Callable[[], None], lost: Callable[[], None]) -> None:
        """
        @param lost: called when the reactor drops the timer.
        @raise OSError: if no descriptor is left, or a sandbox forbids the call.
        @raise ImportError: if this Python is older than 3.13, and has no ctypes.
        """
        super().__init__(reactor)
        self._due = due
        self._lost = lost
        self._number = _create()
        self._isDue = False

    def set(self, seconds: float) -> None:
        """Set the timer to so many seconds from now, in place of the time that was set before."""
        # An expired timer stays readable, because it is never read. So a call that is due at once
        # costs no system call. A busy reactor has such calls in each turn, and system calls are
        # slow in virtual machines.
        if seconds > 0 or not self._isDue:
            self._isDue = False
            _set(self._number, max(1, round(seconds * 1e9)))
        self.startReading()

    def close(self) -> None:
        """Leave the reactor, and close the descriptor. L{fileno} is -1 from now on."""
        self.stopReading()
        os.close(self._number)
        self._number = -1

    def fileno(self) -> int:
        return self._number

    def doRead(self) -> None:
        """Call C{due}. The expired timer is not read: the clock sets it again, or closes it."""
        self._isDue = True
        self._due()

    def connectionLost(self, reason: Failure) -> None:
        """Close the timer: the reactor shuts down, or reading failed."""
        if self._number >= 0:
            self.close()
            self._lost()


if sys.version_info >= (3, 13):

    def _create() -> int:
        flags = os.TFD_NONBLOCK | os.TFD_CLOEXEC
        return os.timerfd_create(time.CLOCK_MONOTONIC, flags=flags)

    def _set(number: int, nanoseconds: int) -> None:
        os.timerfd_settime_ns(number, initial=nanoseconds)

else:

    def _create() -> int:
        # TFD_NONBLOCK and TFD_CLOEXEC, timerfd_create(2).
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        return _callLibc("timerfd_create", time.CLOCK_MONOTONIC, flags)

    def _set(number: int, nanoseconds: int) -> None:
        from ctypes import c_long

        # struct itimerspec: the interval (0) and the time, each in seconds and nanoseconds.
        specification = (c_long * 4)(0, 0, *divmod(nanoseconds, 10**9))
        _callLibc("timerfd_settime", number, 0, specification, None)

    @cache
    def _libc() -> Any:
        # Imported late: the import takes 1 to 2 ms, unless Twisted's TLS has made it before.
        # MemoryDenyWriteExecute= forbids only callbacks of ctypes. This module uses no callbacks.
        from ctypes import CDLL

        return CDLL(None, use_errno=True)

    def _callLibc(function: str, *args: Any) -> int:
        from ctypes import get_errno

        result: int = getattr(_libc(), function)(*args)
        if result < 0:
            number = get_errno()
            raise OSError(number, os.strerror(number))
        return result


@implementer(IReactorTime)
class MonotonicReactor:
    """
    A reactor with another clock, for code of Twisted that takes reactor and clock as one argument:
    C{HostnameEndpoint}, C{TimeoutMixin}, C{LoopingCall}. Its connections use that clock too.
    """

    def __init__(self, reactor: Any, clock: Any) -> None:
        """
        @param reactor: provides everything except the time.
        @param clock: provides C{IReactorTime}: a L{MonotonicClock}, or another clock in tests.
        """
        self._reactor = reactor
        self.seconds = clock.seconds
        self.callLater = clock.callLater
        self.getDelayedCalls = clock.getDelayedCalls
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        if name in _CONNECTS:
            # Twisted's method, called with this object as the reactor of the connection.
            return MethodType(getattr(type(self._reactor), name), self)
        return getattr(self._reactor, name)
