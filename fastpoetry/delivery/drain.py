"""
The time between a stop and its end, in which readers still get their poems.

Knows when to check the readers and when to cut them short. It is given the functions that do both.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_POLL_SECONDS = 0.05
"""The time between two checks for readers that have their poem: some round trips."""

_GRACE_SECONDS = 0.1
"""
How long to wait before readers are left to the kernel, which goes on sending, or to the next
process. A reader that has just connected gets a short poem in this time. New clients, which wait
for the next process, hardly notice it.
"""


class Drain:
    """One stop that waits for readers."""

    def __init__(
        self,
        clock: IReactorTime,
        mostSeconds: float,
        check: Callable[[], object],
        cutShort: Callable[[], object],
    ) -> None:
        """
        @param check: closes or hands over readers that need no more time; called repeatedly.
        @param cutShort: hands over or resets the readers that are left at the end.
        """
        self._clock = clock
        self._check = check
        self._waiters: list[Deferred[None]] = []
        self._deadline = clock.callLater(mostSeconds, cutShort)
        self._grace = clock.callLater(min(_GRACE_SECONDS, mostSeconds), check)
        self._nextCheck: IDelayedCall = clock.callLater(0, self._poll)

    @property
    def isPastGrace(self) -> bool:
        """Whether readers may now be left to the kernel and the next process."""
        return not self._grace.active()

    def whenEnded(self) -> Deferred[None]:
        """@return: fires at the end. Cancelling it leaves other waiters alone."""
        waiter: Deferred[None] = Deferred(lambda waiter: self._waiters.remove(waiter))
        self._waiters.append(waiter)
        return waiter

    def end(self) -> None:
        """End the drain: cancel its timers, and fire all waiters."""
        for call in (self._deadline, self._grace, self._nextCheck):
            if call.active():
                call.cancel()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _poll(self) -> None:
        self._nextCheck = self._clock.callLater(_POLL_SECONDS, self._poll)
        self._check()
