"""
When readers are looked after, each after the same delay.

Knows when, and for how many at a time; what a visit does is up to who asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from fastpoetry.delivery.readers import Reader

LATER_SECONDS = 1.0
"""How often to visit readers that stay: deadlines need no more."""

_MOST_AT_ONCE = 64
"""Visits between two looks at the sockets, so that nobody waits for a round to end."""


class Round:
    """
    Readers to visit, each after the same delay.

    Since all wait equally long, the queue is in order of time by itself, and costs one timer
    however many wait in it.

    @ivar waiting: how many readers.
    """

    def __init__(
        self,
        clock: IReactorTime,
        delaySeconds: float,
        visit: Callable[[Reader], bool],
        keep: Callable[[list[Reader], float], None] | None = None,
    ) -> None:
        """
        @param visit: what to do with each reader; whether it is still to be looked after.
        @param keep: takes those that are, and the clock's seconds; without it, this round does.
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
        """Visit everybody now, due or not."""
        self._visitEach(self._take(inf, self.waiting), self._clock.seconds())

    def stop(self) -> None:
        """Visit nobody any more."""
        self._queue.clear()
        self.waiting = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _visitDue(self) -> None:
        """Visit who is due, and come back for the next."""
        self._timer = None
        self._ensureTimer()  # first, so that no error below leaves the queue without one
        now = self._clock.seconds()
        try:
            self._visitEach(self._take(now, _MOST_AT_ONCE), now)
        finally:  # whatever is wrong with one reader, the others have deadlines too
            self._comeBack(now)

    def _ensureTimer(self) -> None:
        """Have a timer, as long as readers wait."""
        if self._timer is None:
            self._timer = self._clock.callLater(self._delaySeconds, self._visitDue)

    def _take(self, until: float, most: int) -> list[Reader]:
        """Take who is due by then out of the queue: up to so many, and who came with them."""
        taken: list[Reader] = []
        while self._queue and self._queue[0][0] <= until and len(taken) < most:
            taken += self._queue.popleft()[1]
        self.waiting -= len(taken)
        return taken

    def _visitEach(self, readers: list[Reader], now: float) -> None:
        """Visit some, and keep those who are still to be looked after."""
        kept: list[Reader] = []
        rest = iter(readers)
        try:
            for reader in rest:
                if self._visit(reader):
                    kept.append(reader)
        except BaseException:
            kept += [*rest, reader]  # the next time, it is the last
            raise
        finally:
            self._keep(kept, now)

    def _comeBack(self, now: float) -> None:
        """Time the next visit, if there is one to make."""
        if not self._queue:
            self.stop()
        elif self._timer is not None:
            late = now - self._queue[0][0]
            # Half a delay at least, so that a round under load is for many.
            self._timer.reset(0.0 if late >= 0 else max(-late, self._delaySeconds / 2))
