"""
Timers that no step of the wall clock moves, for any reactor.

C{reactor.seconds()} is the wall clock (Twisted #2424): after a step back all of a reactor's timers
stand still for the length of the step, after a step forward all are due at once. The reactor's own
clock stays as it is, for those that want the time of day.
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

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IReadDescriptor
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

__all__ = ["MonotonicClock", "MonotonicReactor"]

_LONGEST = 1e9
"""Seconds, some 30 years: no timer of the kernel is set for longer, since infinity is none."""

_CONNECTS = ("connectTCP", "connectSSL", "connectUNIX")

_STALE = 50
"""So many entries of calls that were cancelled or moved may stay in the heap beyond the others."""


@implementer(IReactorTime)
class MonotonicClock:
    """
    A clock that goes on evenly, C{CLOCK_MONOTONIC}, and calls when it is time.

    As long as a call is pending it holds one descriptor, a timerfd_create(2), which the reactor
    reads; with none it has nothing there. Where no descriptor can be had, or the reactor cannot
    watch it, the reactor's own clock wakes it each second until that works. Not for threads, as no
    reactor's C{callLater} is.
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
        """@return: C{time.monotonic()}."""
        return time.monotonic()

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002 - so the interface has it
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        """
        Call when so many seconds have passed, from the reactor; what it raises is logged.

        @param delay: seconds, not negative.
        @param callable: what to call.
        @param args: its arguments.
        @param kw: its keyword arguments.
        @raise ValueError: the delay is none.
        """
        if not delay >= 0:
            raise ValueError(f"{delay!r} is no delay")
        due = self.seconds() + delay
        call = DelayedCall(due, callable, args, kw, self._forget, self._move, self.seconds)
        self._pending.add(call)
        self._move(call)
        return call

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """@return: the calls that are pending, in no order."""
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
        """Call all that is due by now; what gets due meanwhile has the reactor's next turn."""
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
        """Make a call. As with the reactor, the next one is made whatever this one raises."""
        call.called = 1
        if self._timer is not None and not self._pending:
            # The call may end a trial test, which then looks what is left in the reactor.
            self._timer.pause()
        try:
            call.func(*call.args, **call.kw)
        except BaseException:
            log.err()

    def _arm(self) -> None:
        """Be woken when the first call is due, or not at all."""
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
            self._wakeIn(min(max(due - self.seconds(), 0), _LONGEST))
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


@implementer(IReadDescriptor)
class _Timer:
    """A timer of the kernel's, which the reactor reads."""

    def __init__(self, reactor: Any, due: Callable[[], None], lost: Callable[[], None]) -> None:
        """
        @param due: called when the time has come.
        @param lost: called when the reactor lets go of the timer.
        @raise OSError: there is no descriptor left, or a sandbox forbids.
        @raise ImportError: this Python is too old to have timers, and has no ctypes either.
        """
        self._reactor = reactor
        self._due = due
        self._lost = lost
        self._number = _create()
        self._isDue = False

    def set(self, seconds: float) -> None:
        """Be due in so many seconds, and not before: a time that has come already is forgotten."""
        # One that is due at once stays so by itself, since nobody reads it: what there is to do at
        # each turn of a busy reactor costs no system call, which in a virtual machine is dear.
        if seconds > 0 or not self._isDue:
            self._isDue = False
            _set(self._number, max(1, round(seconds * 1e9)))
        self._reactor.addReader(self)

    def pause(self) -> None:
        """Be out of the reactor until the timer is set again."""
        self._reactor.removeReader(self)

    def close(self) -> None:
        """Leave nothing behind, in the reactor or elsewhere."""
        if self._number >= 0:
            self.pause()
            os.close(self._number)
            self._number = -1

    def fileno(self) -> int:
        """@return: the descriptor, or -1 after its end."""
        return self._number

    def doRead(self) -> None:
        """The time has come. Nothing is read: the clock sets the timer anew, or closes it."""
        self._isDue = True
        self._due()

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor shuts down, or reading failed.

        @param reason: why.
        """
        if self._number >= 0:
            self.close()
            self._lost()

    def logPrefix(self) -> str:
        """@return: what stands before text that a timed call prints."""
        return "-"


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
        return _checked("timerfd_create", time.CLOCK_MONOTONIC, flags)

    def _set(number: int, nanoseconds: int) -> None:
        from ctypes import c_long

        # struct itimerspec: the interval, none, and the time, each in seconds and nanoseconds.
        specification = (c_long * 4)(0, 0, *divmod(nanoseconds, 10**9))
        _checked("timerfd_settime", number, 0, specification, None)

    @cache
    def _libc() -> Any:
        # Imported when it is needed: 1 to 2 ms, unless Twisted's TLS has it already. It makes no
        # callbacks, which MemoryDenyWriteExecute= would forbid.
        from ctypes import CDLL

        return CDLL(None, use_errno=True)

    def _checked(function: str, *args: Any) -> int:
        from ctypes import get_errno

        result: int = getattr(_libc(), function)(*args)
        if result < 0:
            number = get_errno()
            raise OSError(number, os.strerror(number))
        return result


@implementer(IReactorTime)
class MonotonicReactor:
    """
    A reactor with a clock in place of its own, for code of Twisted's that takes both from one
    argument: C{HostnameEndpoint}, C{TimeoutMixin}, C{LoopingCall}. Timeouts of connections that
    it makes follow that clock, too.
    """

    def __init__(self, reactor: Any, clock: Any) -> None:
        """
        @param reactor: whose all the rest is.
        @param clock: provides C{IReactorTime}: a L{MonotonicClock}, in tests another.
        """
        self._reactor = reactor
        self.seconds = clock.seconds
        self.callLater = clock.callLater
        self.getDelayedCalls = clock.getDelayedCalls
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        if name in _CONNECTS:
            # The reactor's own function, which is given this object in the place of the reactor.
            return MethodType(getattr(type(self._reactor), name), self)
        return getattr(self._reactor, name)
