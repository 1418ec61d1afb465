"""
How long a fetched poem may be served.

Follows RFC 9111, 4.2, with the two extensions of RFC 5861. Holds only numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastpoetry.apart.poems import MAX_POEM_BYTES


@dataclass(frozen=True)
class Freshness:
    """
    The limits for serving a poem, and for fetching one.

    @ivar maxAgeSeconds: how long a poem is fresh, and is not fetched again.
    @ivar revalidateSeconds: how long after C{maxAgeSeconds} it is served during a fetch.
    @ivar errorSeconds: how long after C{maxAgeSeconds} it is served while the upstream fails.
    @ivar connectSeconds: how long connecting may take.
    @ivar idleSeconds: how long the upstream may be silent.
    @ivar totalSeconds: how long a fetch may take, and how long readers wait for a usable poem.
    @ivar mostBytes: how large a poem may be.
    """

    maxAgeSeconds: float = 60.0
    revalidateSeconds: float = 600.0
    errorSeconds: float = 86_400.0
    connectSeconds: float = 5.0
    idleSeconds: float = 10.0
    totalSeconds: float = 30.0
    mostBytes: int = MAX_POEM_BYTES
