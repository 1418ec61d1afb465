"""
The counts of connections, and the records about readers.

Every connection is counted once: when the kernel has its whole poem, or when it ends before that.
The next process counts a reader that was handed over.

The budget limits records about single connections; one summary a second has the rest. So a flood of
readers does not make journald drop other records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import sub

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from fastpoetry.delivery.addresses import Address, formatPeer
from fastpoetry.delivery.readers import Reader

_QUIET_SECONDS = 10.0
"""The least time between two records of a kind that is limited in rate."""


def countOf(number: int, noun: str) -> str:
    """Format a number with its noun: C{1 reader}, C{2,735 readers}."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass
class Counts:
    """
    How many connections ended in each way.

    @ivar poems: whole poems that went to the kernel.
    @ivar bytes: the bytes of these poems.
    @ivar left: connections that the client closed before the end of its poem.
    @ivar gaveUp: connections that were reset before the end of their poem: after a deadline or an
        error, at the end of a stop, or because they could not be handed over.
    @ivar turnedAway: connections that were reset before their poem or early in it: their source had
        too many, they did not identify their client, or there was no poem.
    @ivar checks: balancers' health checks; never in a record.
    """

    poems: int = 0
    bytes: int = 0
    left: int = 0
    gaveUp: int = 0
    turnedAway: int = 0
    checks: int = 0

    @property
    def connections(self) -> int:
        """How many connections ended, without health checks."""
        return self.poems + self.left + self.gaveUp + self.turnedAway


class Ledger:
    """
    Counts connections, and logs them.

    @ivar counts: of all connections since the start.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, budgetPerSecond: int) -> None:
        """@param budgetPerSecond: the limit of records about single connections in a second."""
        self.counts = Counts()
        self._recorded = Counts()
        self._clock = clock
        self._budget = self._allowance = budgetPerSecond
        self._second: IDelayedCall | None = None
        self._quietUntil: dict[str, float] = {}

    def countSent(self, readers: Sequence[Reader]) -> None:
        """Count readers whose whole poems the kernel has."""
        self.counts.poems += len(readers)
        self.counts.bytes += sum([len(each.poem.text) for each in readers])
        for reader in readers:
            if not self._spendRecord():
                break
            poem = reader.poem
            self._recorded.poems += 1
            self._recorded.bytes += len(poem.text)
            self._log.info(
                "sending {bytes} bytes of poetry to {peer}",
                bytes=len(poem.text),
                peer=formatPeer(reader.address),
                poem=poem.name,
                message_id="51c4b039c6b549da8188e2ad236b9868",
            )

    def countLeft(self, reader: Reader, takenBytes: int) -> None:
        """Count a client that left, or whose network failed, before the end of its poem."""
        self.counts.left += 1
        if self._spendRecord():
            self._recorded.left += 1
            self._log.info(
                "{peer} left after {taken} of {bytes} bytes",
                peer=formatPeer(reader.address),
                taken=takenBytes,
                bytes=len(reader.poem.text),
                poem=reader.poem.name,
                message_id="aac587f9fd8d4d049348340f51b0da4a",
            )

    def countGivenUp(self, reader: Reader, takenBytes: int, cause: str) -> None:
        """Count a client that was reset before the end of its poem."""
        self.counts.gaveUp += 1
        if self._spendRecord():
            self._recorded.gaveUp += 1
            self._log.warn(
                "gave up on {peer} after {taken} of {bytes} bytes: {cause}",
                peer=formatPeer(reader.address),
                taken=takenBytes,
                bytes=len(reader.poem.text),
                cause=cause,
                poem=reader.poem.name,
                message_id="470c42a041664ba0ba7ef62f224426bf",
            )

    def countLost(self, readers: int) -> None:
        """Count readers that were handed over and then reset. They have no records of their own."""
        self.counts.gaveUp += readers
        self._recorded.gaveUp += readers

    def countTurnedAway(self, address: Address, cause: str) -> None:
        """Count a client that was reset before its poem, or early in it."""
        self.counts.turnedAway += 1
        if self._spendRecord():
            self._recorded.turnedAway += 1
            self._log.warn(
                "turned {peer} away: {cause}",
                peer=formatPeer(address),
                cause=cause,
                message_id="4c40f64984b04c188433d02c24c4950e",
            )

    def logStalled(self, reader: Reader, takenBytes: int, cause: str) -> None:
        """Log the reset of a client that L{countSent} has counted, at most every ten seconds."""
        if self._takeTurn("stalled"):
            self._log.warn(
                "gave up on {peer}, which does not take the last {bytes} bytes: {cause}",
                peer=formatPeer(reader.address),
                bytes=len(reader.poem.text) - takenBytes,
                cause=cause,
                message_id="8661237894b24e009d5b2e4ed36bd13c",
            )

    def logFull(self, cause: str, readers: int) -> None:
        """Log that new connections wait in the backlog, at most every ten seconds."""
        if self._takeTurn("full"):
            self._log.warn(
                "{cause}; with {readers} connected, new ones wait in the backlog",
                cause=cause,
                readers=readers,
                message_id="fbb58c123b214fef889bb057cdfb5239",
            )

    def countCheck(self) -> None:
        """Count a balancer's health check."""
        self.counts.checks += 1

    def flush(self) -> None:
        """Log the summary of the rest, and cancel the timer until the next reader."""
        if self._second is not None:
            self._second.cancel()
        self._endSecond()

    def _takeTurn(self, kind: str) -> bool:
        """Return whether a kind of record may be logged now. If so, its pause begins."""
        now = self._clock.seconds()
        if now < self._quietUntil.get(kind, now):
            return False
        self._quietUntil[kind] = now + _QUIET_SECONDS
        return True

    def _spendRecord(self) -> bool:
        """Spend one record of this second's budget. Return whether one was left."""
        if self._second is None:
            self._second = self._clock.callLater(1.0, self._endSecond)
        if self._allowance > 0:
            self._allowance -= 1
            return True
        return False

    def _endSecond(self) -> None:
        """Log the summary of connections without a record, and renew the budget."""
        self._second = None
        self._allowance = self._budget
        unrecorded = Counts(*map(sub, astuple(self.counts), astuple(self._recorded)))
        if unrecorded.connections:
            self._recorded = Counts(*astuple(self.counts))
            self._log.info(
                "sent {poems} more poems, {bytes} bytes, over {connections} connections without a "
                "record each: {left} left early, {gave_up} given up on, {turned_away} turned away",
                poems=unrecorded.poems,
                bytes=unrecorded.bytes,
                connections=unrecorded.connections,
                left=unrecorded.left,
                gave_up=unrecorded.gaveUp,
                turned_away=unrecorded.turnedAway,
                message_id="4f161caf0e264a26815e0fb0d6cba257",
            )
