"""
How long a poem of another server will do.

As RFC 9111, 4.2 has it, and its two extensions are those of RFC 5861. Only numbers: asks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastpoetry.poem import MAX_POEM_BYTES


@dataclass(frozen=True)
class Freshness:
    """
    For how long a poem will do, and how long to wait for one.

    @ivar maxAgeSeconds: it is fresh, and nobody is asked for another.
    @ivar revalidateSeconds: after that, it is served while another is fetched.
    @ivar errorSeconds: after the first, it is served while the upstream gives nothing.
    @ivar connectSeconds: to be connected.
    @ivar idleSeconds: between two pieces of a poem.
    @ivar totalSeconds: for a whole poem; and for readers to wait, if there is none at all.
    @ivar mostBytes: of a poem.
    """

    maxAgeSeconds: float = 60.0
    revalidateSeconds: float = 600.0
    errorSeconds: float = 86_400.0
    connectSeconds: float = 5.0
    idleSeconds: float = 10.0
    totalSeconds: float = 30.0
    mostBytes: int = MAX_POEM_BYTES
