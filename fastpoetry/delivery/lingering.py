"""
Readers whose whole poem is with the system, until they close.

Closing a connection while its client still writes would answer with a reset (RFC 1122, 4.2.2.13),
and some systems let that overtake what is yet to be read. So the client closes first.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from fastpoetry.delivery.ledger import Ledger, countOf
from fastpoetry.delivery.limits import Limits, measure
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Progress, Reader
from fastpoetry.delivery.visits import LATER_SECONDS, Round

LINGER_SECONDS = 2.0
"""
How long a client that has every byte may take to close its side. Apache's httpd lingers as long
(MAX_SECS_TO_LINGER).
"""

_SOON_SECONDS = 0.1
"""
When to visit readers first: by then most clients of this continent have closed, though both sides
be busy. Visiting one too early costs more than keeping it a little longer.
"""


class Lingering:
    """The readers that were sent everything."""

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits,
        quota: Quota,
        ledger: Ledger,
        left: Callable[[], object],
    ) -> None:
        """
        @param quota: shared with readers whose poems are under way.
        @param left: called when a reader is gone.
        """
        self._clock = clock
        self._limits = limits
        self._quota = quota
        self._ledger = ledger
        self._left = left
        self._soon = Round(clock, _SOON_SECONDS, self._visitSoon, self._keep)
        self._later = Round(clock, LATER_SECONDS, self._visit)
        self._readers: dict[Reader, Progress] = {}

    def __len__(self) -> int:
        """How many readers there are."""
        return len(self._readers) + self._soon.waiting

    def addServed(self, readers: list[Reader], now: float) -> None:
        """
        Let readers linger whose whole poems went to the system at once.

        @param now: the clock's seconds, or a moment before.
        """
        self._soon.add(readers, now)

    def add(self, reader: Reader, progress: Progress) -> None:
        """Let a reader linger that took its poem in pieces."""
        self._later.add([reader], self._clock.seconds())
        self._readers[reader] = progress

    def remove(self, reader: Reader) -> None:
        """Forget a reader; again, it does nothing."""
        self._readers.pop(reader, None)
        self._quota.remove(reader)
        self._left()

    def closeAll(self, leaveToSystem: bool = False) -> None:
        """
        Close the readers that have everything, since others wait for their places.

        @param leaveToSystem: also those to which the system goes on sending after a close.
        """
        self._soon.visitAll()
        for reader in list(self._readers):
            self._visit(reader, 0.0, leaveToSystem)

    def giveUpAll(self, cause: str) -> None:
        """Reset all readers."""
        for reader in list(self._readers):
            self._giveUp(reader, cause)

    def stop(self) -> None:
        """Forget all readers, and run no timer."""
        self._soon.stop()
        self._later.stop()
        self._readers.clear()

    @staticmethod
    def _visitSoon(reader: Reader) -> bool:
        """Close a reader whose client has closed, as most have by now; whether it stays."""
        return not reader.closeAfterClient()

    def _keep(self, readers: list[Reader], now: float) -> None:
        """Have deadlines for the readers that have not closed soon."""
        self._later.add(readers, now)
        for reader in readers:
            self._readers[reader] = Progress(now, now)
        self._left()  # most have; if none has, a paused port wakes once for nothing

    def _visit(
        self, reader: Reader, lingerSeconds: float = LINGER_SECONDS, leaveToSystem: bool = False
    ) -> bool:
        """
        See how far a reader has come, and close it when its time is over.

        @return: whether to visit it again.
        """
        progress = self._readers.get(reader)
        if progress is None:
            return False
        if reader.closeAfterClient():
            self.remove(reader)
            return False
        now = self._clock.seconds()
        measure(reader, progress, now)
        hasAll = progress.takenBytes == len(reader.poem.text)
        hasLingered = hasAll and now - progress.movedAt >= lingerSeconds
        if hasLingered or (leaveToSystem and reader.isSent()):
            reader.end()
            self.remove(reader)
            return False
        if hasAll:
            return True
        if cause := self._limits.faultOf(progress, now) or self._countCrowd(reader):
            self._giveUp(reader, cause)
            return False
        return True

    def _countCrowd(self, reader: Reader) -> str:
        """
        Count a reader that does not take what was sent, for its source.

        A small poem goes to the system at once, and is not counted as under way before.

        @return: why its source has too many, or nothing.
        """
        if reader in self._quota:
            return ""
        if self._quota.isFull(reader.address):
            most = countOf(self._limits.maxReadersPerSource, "reader")
            return f"its source has {most} already, taking nothing"
        self._quota.add(reader)
        return ""

    def _giveUp(self, reader: Reader, cause: str) -> None:
        """Reset a reader. Its poem was counted when it went to the system."""
        progress = self._readers[reader]
        reader.reset()
        try:
            self._ledger.stalled(reader.poem, reader.address, progress.takenBytes, cause)
        finally:
            self.remove(reader)
