"""
Connections that are not readers yet: in a handshake, before their PROXY header, or in the queue.

They take no reader's place, and have limits of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IReactorTime

from fastpoetry.delivery.ledger import countOf
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Arrival

_LEAST_ARRIVALS = 1_000
"""The limit of arrivals is at least this. Most become readers within a round trip."""

_PATIENCE_SECONDS = 1.0
"""How long a connection may stay silent while few descriptors are left: some round trips."""


class Arrivals:
    """The connections that are not readers yet, the oldest first."""

    def __init__(self, clock: IReactorTime, limits: Limits) -> None:
        """@param limits: of readers, in total and per source; they apply to arrivals, too."""
        self._clock = clock
        self._most = max(_LEAST_ARRIVALS, limits.maxReaders)
        self._mostPerSource = limits.maxReadersPerSource
        self._quota = Quota(limits.maxReadersPerSource)
        self._silentSince: dict[Arrival, float] = {}
        self._queue: dict[Arrival, Callable[[], object]] = {}

    def __iter__(self) -> Iterator[Arrival]:
        return iter([*self._silentSince, *self._queue])

    def __len__(self) -> int:
        return len(self._silentSince) + len(self._queue)

    def add(self, arrival: Arrival) -> None:
        """Add a silent connection. If there are too many, dismiss the oldest silent one."""
        if self._quota.isFull(arrival.address):
            most = countOf(self._mostPerSource, "connection")
            arrival.dismiss(f"its source already has {most} that say nothing")
            return
        if len(self) >= self._most and self._silentSince:
            self._dismiss(next(iter(self._silentSince)))
        self._quota.add(arrival)
        self._silentSince[arrival] = self._clock.seconds()

    def enqueue(self, arrival: Arrival, enter: Callable[[], object]) -> None:
        """Queue a connection that has identified its client, see L{Policy.admit}."""
        self._silentSince.pop(arrival, None)
        self._queue[arrival] = enter

    def takeNext(self) -> Callable[[], object] | None:
        """Remove the first connection of the queue. Return its C{enter}, if there was one."""
        if not self._queue:
            return None
        arrival, enter = next(iter(self._queue.items()))
        self.remove(arrival)
        return enter

    def remove(self, arrival: Arrival) -> None:
        """Forget a connection. A second call has no effect."""
        self._silentSince.pop(arrival, None)
        self._queue.pop(arrival, None)
        self._quota.remove(arrival)

    def giveWay(self) -> None:
        """Dismiss the connections that have been silent for a while: few descriptors are left."""
        latest = self._clock.seconds() - _PATIENCE_SECONDS
        for arrival, since in list(self._silentSince.items()):
            if since <= latest:
                self._dismiss(arrival)

    def clear(self) -> None:
        for arrival in self:
            self.remove(arrival)

    def _dismiss(self, arrival: Arrival) -> None:
        self.remove(arrival)
        arrival.dismiss("it said nothing, and others need its place")
