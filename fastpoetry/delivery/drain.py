"""
The time between a stop and its end, in which readers still get what they came for.

Knows when to look after them, when to hand them over and when to cut them short; each of these is
done by whom it is given.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_POLL_SECONDS = 0.05
"""Between two looks at who has everything by now: some round trips."""

_HAND_OVER_SECONDS = 0.25
"""
How long readers are waited for before they are left to others: the kernel, which goes on sending
what it has, and the next process. By then who takes its poem at all has it, but for long ones.
"""


class Drain:
    """
    One stop that waits for readers.

    @ivar isHandedOver: whether who could be left to others has been.
    """

    def __init__(
        self,
        clock: IReactorTime,
        mostSeconds: float,
        look: Callable[[], object],
        handOver: Callable[[], object],
        cutShort: Callable[[], object],
    ) -> None:
        """
        Begin.

        @param mostSeconds: how long this may take.
        @param look: closes who has everything; called again and again.
        @param handOver: leaves to others who can be.
        @param cutShort: resets who is still here at the end.
        """
        self.isHandedOver = False
        self._clock = clock
        self._look = look
        self._handOver = handOver
        self._waiters: list[Deferred[None]] = []
        self._deadline = clock.callLater(mostSeconds, cutShort)
        self._handingOver = clock.callLater(min(_HAND_OVER_SECONDS, mostSeconds), self._passOn)
        self._looking: IDelayedCall = clock.callLater(0, self._poll)

    def wait(self) -> Deferred[None]:
        """Fires at the end; to cancel it ends nobody else's waiting."""
        waiter: Deferred[None] = Deferred(lambda waiter: self._waiters.remove(waiter))
        self._waiters.append(waiter)
        return waiter

    def end(self) -> None:
        """Nobody is here any more: tell who waits, and leave no timer behind."""
        for call in (self._deadline, self._handingOver, self._looking):
            if call.active():
                call.cancel()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _poll(self) -> None:
        self._looking = self._clock.callLater(_POLL_SECONDS, self._poll)
        self._look()

    def _passOn(self) -> None:
        self.isHandedOver = True
        self._handOver()
