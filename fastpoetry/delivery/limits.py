"""What an administrator may limit, and how far a reader has come. Ends nobody."""

from __future__ import annotations

from dataclasses import dataclass

from fastpoetry.delivery.readers import Progress, Reader


@dataclass(frozen=True)
class Limits:
    """
    What an administrator may set.

    @ivar drainSeconds: how long a stop waits for poems under way.
    @ivar stallSeconds: how long a reader may take nothing.
    @ivar minRateBytesPerSecond: what a reader that has been there for C{stallSeconds} must have
        taken on average.
    @ivar maxReaders: connections at a time; further ones wait in the backlog.
    @ivar maxReadersPerSource: connections under way at a time from one address or local user;
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
        """Why a reader has had its time, or nothing."""
        idle = now - progress.movedAt
        if idle >= self.stallSeconds:
            return f"it took nothing for {idle:.0f} s"
        age = now - progress.startedAt
        if age >= self.stallSeconds and progress.takenBytes < age * self.minRateBytesPerSecond:
            return f"it took {progress.takenBytes / age:.0f} bytes/s"
        return ""


def measure(reader: Reader, progress: Progress, now: float) -> None:
    """Ask a reader how far it has come."""
    taken = reader.countTaken()
    if taken > progress.takenBytes:
        progress.takenBytes = taken
        progress.movedAt = now
