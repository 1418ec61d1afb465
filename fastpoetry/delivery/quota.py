"""
How many readers each source has.

Counts, and says when that is enough; what becomes of who is too many is not decided here.
"""

from __future__ import annotations

from collections import Counter

from fastpoetry.delivery.addresses import Address, sourceOf
from fastpoetry.delivery.readers import Reader


class Quota:
    """
    The readers of each source, see L{sourceOf}. Those on a UNIX socket have no address to tell them
    apart, and are not counted.
    """

    def __init__(self, mostPerSource: int) -> None:
        """@param mostPerSource: how many readers one source may have."""
        self._mostPerSource = mostPerSource
        self._sources: dict[Reader, bytes] = {}
        self._counts: Counter[bytes] = Counter()

    def __contains__(self, reader: Reader) -> bool:
        """Whether a reader is counted."""
        return reader in self._sources

    def isFull(self, address: Address) -> bool:
        """Whether the source of an address has as many readers as it may."""
        source = sourceOf(address)
        return source is not None and self._counts[source] >= self._mostPerSource

    def add(self, reader: Reader) -> None:
        """Count a reader for its source."""
        source = sourceOf(reader.address)
        if source is not None:
            self._sources[reader] = source
            self._counts[source] += 1

    def remove(self, reader: Reader) -> None:
        """Count a reader no more, if it was counted."""
        source = self._sources.pop(reader, None)
        if source is not None:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]
