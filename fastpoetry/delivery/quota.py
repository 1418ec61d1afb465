"""
The number of connections of each source.

Counts connections, and tells when a source has too many. The caller decides what happens then.
"""

from __future__ import annotations

from collections import Counter

from fastpoetry.delivery.addresses import Address, sourceOf
from fastpoetry.delivery.readers import Arrival, Reader

Connection = Reader | Arrival


class Quota:
    """The connections of each source, see L{sourceOf}. Those without a source are not counted."""

    def __init__(self, mostPerSource: int) -> None:
        self._mostPerSource = mostPerSource
        self._sources: dict[Connection, bytes] = {}
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._sources

    def isFull(self, address: Address) -> bool:
        """Whether the source of an address has as many connections as it may have."""
        source = sourceOf(address)
        return source is not None and self._counts[source] >= self._mostPerSource

    def add(self, connection: Connection) -> None:
        """Count a connection for its source. A second call has no effect."""
        source = sourceOf(connection.address)
        if source is not None and connection not in self._sources:
            self._sources[connection] = source
            self._counts[source] += 1

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection, if it was counted."""
        source = self._sources.pop(connection, None)
        if source is not None:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]

    def clear(self) -> None:
        self._sources.clear()
        self._counts.clear()
