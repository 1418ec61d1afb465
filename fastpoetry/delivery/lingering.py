"""
Readers whose whole poem is with the kernel, until they close.

If a client still writes when its connection is closed, the kernel answers with a reset (RFC 1122,
4.2.2.13). On some systems the reset overtakes bytes that the client has yet to read. So the client
closes first.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from fastpoetry.delivery.ledger import Ledger, countOf
from fastpoetry.delivery.limits import Limits, Progress
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Reader
from fastpoetry.delivery.visits import REVISIT_SECONDS, Round

LINGER_SECONDS = 2.0
"""How long a client that has every byte may take to close: as Apache's MAX_SECS_TO_LINGER."""

_SOON_SECONDS = 0.1
"""
When to visit readers first. By then most clients on the same continent have closed, even if both
sides are busy. A visit that is too early costs more than keeping the reader a little longer.
"""


class Lingering:
    """The readers whose whole poem the kernel has."""

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits,
        quota: Quota,
        ledger: Ledger,
        useRoom: Callable[[], object],
    ) -> None:
        """
        @param quota: shared with the readers whose poems are under way.
        @param useRoom: called when there may be room, since readers may be gone.
        """
        self._clock = clock
        self._limits = limits
        self._quota = quota
        self._ledger = ledger
        self._useRoom = useRoom
        self._soon = Round(clock, _SOON_SECONDS, self._visitSoon, self._keep)
        self._later = Round(clock, REVISIT_SECONDS, self._visit)
        self._readers: dict[Reader, Progress] = {}

    def __len__(self) -> int:
        return len(self._readers) + self._soon.waiting

    def addServed(self, readers: list[Reader]) -> None:
        """Let readers linger whose whole poems went to the kernel at once."""
        self._soon.add(readers, self._clock.seconds())

    def add(self, reader: Reader, progress: Progress) -> None:
        """Let a reader linger that took its poem in pieces."""
        self._later.add([reader], self._clock.seconds())
        self._readers[reader] = progress

    def remove(self, reader: Reader) -> None:
        """Forget a reader. A second call has no effect."""
        self._readers.pop(reader, None)
        self._quota.remove(reader)
        self._useRoom()

    def closeAll(self, leaveToKernel: bool = False) -> None:
        """
        Close the readers that have everything. With C{leaveToKernel}, close also those to which the
        system goes on sending.
        """
        self._soon.visitAll()
        for reader in list(self._readers):
            self._visit(reader, 0.0, leaveToKernel)

    def giveUpAll(self, cause: str) -> None:
        for reader in list(self._readers):
            self._giveUp(reader, cause)

    def stop(self) -> None:
        """Forget all readers, and cancel the timers."""
        self._soon.stop()
        self._later.stop()
        self._readers.clear()

    @staticmethod
    def _visitSoon(reader: Reader) -> bool:
        """Close a reader whose client has closed, as most have. Return whether it stays."""
        return not reader.closeAfterClient()

    def _keep(self, readers: list[Reader], now: float) -> None:
        """Start the deadlines of readers that are open after the first visit."""
        self._later.add(readers, now)
        for reader in readers:
            self._readers[reader] = Progress(now, now)
        # Most have closed. If none has, a paused port wakes once for nothing.
        self._useRoom()

    def _visit(
        self, reader: Reader, lingerSeconds: float = LINGER_SECONDS, leaveToKernel: bool = False
    ) -> bool:
        """Close a reader that is done or missed a deadline. Return whether to visit it again."""
        progress = self._readers.get(reader)
        if progress is None:
            return False
        if reader.closeAfterClient():
            self.remove(reader)
            return False
        now = self._clock.seconds()
        progress.update(reader.countTaken(), now)
        hasAll = progress.takenBytes == len(reader.poem.text)
        hasLingered = hasAll and now - progress.movedAt >= lingerSeconds
        if hasLingered or (leaveToKernel and reader.isSent()):
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
        Count a reader in the quota of its source, since it does not take its poem. A small poem
        went to the kernel at once, so its reader was not counted before.

        @return: why to reset the reader, if its source has too many; otherwise an empty string.
        """
        if reader in self._quota:
            return ""
        if self._quota.isFull(reader.address):
            most = countOf(self._limits.maxReadersPerSource, "reader")
            return f"its source already has {most} that take nothing"
        self._quota.add(reader)
        return ""

    def _giveUp(self, reader: Reader, cause: str) -> None:
        """Reset a reader. Its poem is counted already, since the kernel has it."""
        progress = self._readers[reader]
        reader.reset()
        try:
            self._ledger.logStalled(reader, progress.takenBytes, cause)
        finally:
            self.remove(reader)
