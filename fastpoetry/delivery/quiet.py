"""
Records of what may go on and on, told now and then.

Counts nothing and logs nothing: says whose turn it is.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

_QUIET_SECONDS = 10.0
"""The least time between two records of the same thing."""


class Quiet:
    """Which kinds of records have had their turn lately."""

    def __init__(self, clock: IReactorTime) -> None:
        """@param clock: times the turns."""
        self._clock = clock
        self._quietUntil: dict[str, float] = {}

    def takeTurn(self, kind: str) -> bool:
        """
        Take the turn of a kind of record, if it has not had one lately.

        @return: whether it may be told now.
        """
        now = self._clock.seconds()
        if now < self._quietUntil.get(kind, now):
            return False
        self._quietUntil[kind] = now + _QUIET_SECONDS
        return True
