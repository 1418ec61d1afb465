"""
Connections that are no readers yet: they shake hands, say who they are, or queue for a place.

They take no place from readers, and have limits of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IReactorTime

from fastpoetry.delivery.ledger import countOf
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Arrival

_LEAST = 1_000
"""How many there may be, however few readers there may be: most leave within a round trip."""

_PATIENCE_SECONDS = 1.0
"""How long a connection may say nothing while descriptors are short: some round trips."""


class Arrivals:
    """The connections that are no readers yet, the oldest first."""

    def __init__(self, clock: IReactorTime, limits: Limits) -> None:
        """@param limits: there may be as many arrivals as readers, in total and of one source."""
        self._clock = clock
        self._most = max(_LEAST, limits.maxReaders)
        self._mostPerSource = limits.maxReadersPerSource
        self._quota = Quota(limits.maxReadersPerSource)
        self._silentSince: dict[Arrival, float] = {}
        self._queue: dict[Arrival, Callable[[], object]] = {}

    def __iter__(self) -> Iterator[Arrival]:
        """All of them."""
        return iter([*self._silentSince, *self._queue])

    def __len__(self) -> int:
        """How many there are."""
        return len(self._silentSince) + len(self._queue)

    def add(self, arrival: Arrival) -> None:
        """A connection came that has said nothing. If there are too many, the oldest gives way."""
        if self._quota.isFull(arrival.address):
            most = countOf(self._mostPerSource, "connection")
            arrival.dismiss(f"its source has {most} already, saying nothing")
            return
        if len(self) >= self._most and self._silentSince:
            self._dismiss(next(iter(self._silentSince)))
        self._quota.add(arrival)
        self._silentSince[arrival] = self._clock.seconds()

    def enqueue(self, arrival: Arrival, enter: Callable[[], object]) -> None:
        """
        A connection has said who it is.

        @param enter: takes a reader's place, see L{takeNext}.
        """
        self._silentSince.pop(arrival, None)
        self._queue[arrival] = enter

    def takeNext(self) -> Callable[[], object] | None:
        """Take out the connection that has queued longest, if there is one: what has it enter."""
        if not self._queue:
            return None
        arrival, enter = next(iter(self._queue.items()))
        self.remove(arrival)
        return enter

    def remove(self, arrival: Arrival) -> None:
        """Forget a connection; again, it does nothing."""
        self._silentSince.pop(arrival, None)
        self._queue.pop(arrival, None)
        self._quota.remove(arrival)

    def giveWay(self) -> None:
        """Dismiss the connections that have said nothing for a while: descriptors are short."""
        latest = self._clock.seconds() - _PATIENCE_SECONDS
        for arrival, since in list(self._silentSince.items()):
            if since <= latest:
                self._dismiss(arrival)

    def clear(self) -> None:
        """Forget all connections."""
        for arrival in self:
            self.remove(arrival)

    def _dismiss(self, arrival: Arrival) -> None:
        self.remove(arrival)
        arrival.dismiss("it said nothing, and others need its place")
