"""The limits that an administrator sets, and a reader's progress. Closes no connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """
    The progress of a reader that did not take everything at once.

    @ivar startedAt: when its deadlines began, in the clock's seconds.
    @ivar movedAt: when its last progress was seen, in the clock's seconds.
    @ivar takenBytes: how much of the poem the client had at the last measurement.
    """

    startedAt: float
    movedAt: float
    takenBytes: int = 0

    def update(self, takenBytes: int, now: float) -> None:
        """Note how many bytes the client has now."""
        if takenBytes > self.takenBytes:
            self.takenBytes, self.movedAt = takenBytes, now


@dataclass(frozen=True)
class Limits:
    """
    The limits that an administrator sets.

    @ivar drainSeconds: how long a stop waits for poems under way.
    @ivar stallSeconds: how long a reader may go without taking a byte.
    @ivar minRateBytesPerSecond: the least average rate of a reader that is older than
        C{stallSeconds}.
    @ivar maxReaders: readers at a time; further connections wait in the backlog.
    @ivar maxReadersPerSource: readers of one address or local user whose poems are under way;
        further ones are reset.
    @ivar journalBudgetPerSecond: records about single connections; see L{Ledger}.
    """

    drainSeconds: float = 20.0
    stallSeconds: float = 30.0
    minRateBytesPerSecond: int = 64
    maxReaders: int = 10_000
    maxReadersPerSource: int = 1_000
    journalBudgetPerSecond: int = 200

    def faultOf(self, progress: Progress, now: float) -> str:
        """Return which deadline a reader missed; an empty string if it missed none."""
        idle = now - progress.movedAt
        if idle >= self.stallSeconds:
            return f"it took nothing for {idle:.0f} s"
        age = now - progress.startedAt
        if age >= self.stallSeconds and progress.takenBytes < age * self.minRateBytesPerSecond:
            return f"it took {progress.takenBytes / age:.0f} bytes/s"
        return ""
