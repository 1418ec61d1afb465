"""
Visits to readers, each after the same delay.

Knows when to visit, and how many readers at a time. The caller defines what a visit does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from fastpoetry.delivery.readers import Reader

REVISIT_SECONDS = 1.0
"""How often to visit readers that stay. Deadlines need no shorter time."""

_MOST_AT_ONCE = 64
"""Visits in one turn of the reactor, so that its other work does not wait for a whole round."""


class Round:
    """
    Readers to visit, each after the same delay.

    All wait equally long, so the queue is in order of time, and one timer serves all of them.

    @ivar waiting: how many readers wait.
    """

    def __init__(
        self,
        clock: IReactorTime,
        delaySeconds: float,
        visit: Callable[[Reader], bool],
        keep: Callable[[list[Reader], float], None] | None = None,
    ) -> None:
        """
        @param visit: called with each reader; returns whether to visit it again.
        @param keep: called with the readers to visit again, and the clock's seconds. By default
            this round keeps them.
        """
        self.waiting = 0
        self._clock = clock
        self._delaySeconds = delaySeconds
        self._visit = visit
        self._keep = keep or self.add
        self._queue: deque[tuple[float, list[Reader]]] = deque()
        self._timer: IDelayedCall | None = None

    def add(self, readers: list[Reader], now: float) -> None:
        """Visit readers after the delay, if there are any."""
        if not readers:
            return
        self._ensureTimer()
        self.waiting += len(readers)
        self._queue.append((now + self._delaySeconds, readers))

    def visitAll(self) -> None:
        """Visit all readers now, due or not."""
        self._visitEach(self._take(inf, self.waiting), self._clock.seconds())

    def stop(self) -> None:
        """Forget all readers, and cancel the timer."""
        self._queue.clear()
        self.waiting = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _visitDue(self) -> None:
        """Visit the readers that are due, and schedule the next visit."""
        self._timer = None
        self._ensureTimer()  # first: an error below must not leave the queue without a timer
        now = self._clock.seconds()
        try:
            self._visitEach(self._take(now, _MOST_AT_ONCE), now)
        finally:  # after an error in one reader, the others keep their deadlines
            self._reschedule(now)

    def _ensureTimer(self) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(self._delaySeconds, self._visitDue)

    def _take(self, until: float, most: int) -> list[Reader]:
        """
        Remove readers that are due from the queue, and return them.

        Readers that were added together stay together, so there may be more than C{most}.

        @param until: take the readers that are due by then, in the clock's seconds.
        """
        taken: list[Reader] = []
        while self._queue and self._queue[0][0] <= until and len(taken) < most:
            taken += self._queue.popleft()[1]
        self.waiting -= len(taken)
        return taken

    def _visitEach(self, readers: list[Reader], now: float) -> None:
        """Visit readers, and keep those that are to be visited again."""
        kept: list[Reader] = []
        rest = iter(readers)
        try:
            for reader in rest:
                if self._visit(reader):
                    kept.append(reader)
        except BaseException:
            kept += [*rest, reader]  # the reader that failed comes last
            raise
        finally:
            self._keep(kept, now)

    def _reschedule(self, now: float) -> None:
        """Schedule the next visit, or cancel the timer if no reader waits."""
        if not self._queue:
            self.stop()
        elif self._timer is not None:
            late = now - self._queue[0][0]
            # At least half a delay, so that under load one round visits many.
            self._timer.reset(0.0 if late >= 0 else max(-late, self._delaySeconds / 2))
