"""
The time between a stop and its end, in which readers still get what they came for.

Knows when to look after them and when to cut them short; what that means is up to whom it asks.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_POLL_SECONDS = 0.05
"""Between two looks at who has everything by now: some round trips."""

_GRACE_SECONDS = 0.1
"""
How long readers are waited for before they are left to others, where there are any: the kernel,
which goes on sending what it has, and the next process. Who has only just come has a short poem by
then; newcomers, who wait for that process, hardly notice.
"""


class Drain:
    """
    One stop that waits for readers.

    @ivar isPastGrace: whether who can be left to others is to be.
    """

    def __init__(
        self,
        clock: IReactorTime,
        mostSeconds: float,
        look: Callable[[], object],
        cutShort: Callable[[], object],
    ) -> None:
        """
        Begin.

        @param mostSeconds: how long this may take.
        @param look: sees who can go; called again and again.
        @param cutShort: resets who is still here at the end.
        """
        self.isPastGrace = False
        self._clock = clock
        self._look = look
        self._waiters: list[Deferred[None]] = []
        self._deadline = clock.callLater(mostSeconds, cutShort)
        self._grace = clock.callLater(min(_GRACE_SECONDS, mostSeconds), self._endGrace)
        self._looking: IDelayedCall = clock.callLater(0, self._poll)

    def wait(self) -> Deferred[None]:
        """Fires at the end; to cancel it ends nobody else's waiting."""
        waiter: Deferred[None] = Deferred(lambda waiter: self._waiters.remove(waiter))
        self._waiters.append(waiter)
        return waiter

    def end(self) -> None:
        """Nobody is here any more: tell who waits, and leave no timer behind."""
        for call in (self._deadline, self._grace, self._looking):
            if call.active():
                call.cancel()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _poll(self) -> None:
        self._looking = self._clock.callLater(_POLL_SECONDS, self._poll)
        self._look()

    def _endGrace(self) -> None:
        self.isPastGrace = True
        self._look()
