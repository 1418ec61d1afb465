"""
What is counted and what is said of readers.

Every connection is counted once, at its end. As many as the budget allows get a record of their
own, all others are summed up in one record a second, so that no flood of readers makes journald
drop what else there is to say. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from operator import sub

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from fastpoetry.delivery.addresses import Address, formatPeer
from fastpoetry.delivery.readers import Reader
from fastpoetry.poem import Poem

_QUIET_SECONDS = 10.0
"""The least time between two records that are told now and then, of the same kind."""


def countOf(number: int, noun: str) -> str:
    """A number with its noun, for a person: C{1 reader}, C{2,735 readers}."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass
class Counts:
    """
    How connections ended.

    @ivar poems: with the whole poem handed to the system.
    @ivar bytes: of those poems.
    @ivar left: by the client, before the end.
    @ivar gaveUp: by a deadline, with a reset.
    @ivar turnedAway: before a poem was begun, with a reset: too many of its source were here, it
        did not say who it is, or there was no poem.
    @ivar checks: by balancers that only saw whether the server is there; never in a record.
    """

    poems: int = 0
    bytes: int = 0
    left: int = 0
    gaveUp: int = 0
    turnedAway: int = 0
    checks: int = 0

    @property
    def connections(self) -> int:
        """All readers' connections, each ended in one of those ways."""
        return self.poems + self.left + self.gaveUp + self.turnedAway


class Ledger:
    """
    The counts since the start, and the records of them.

    @ivar counts: all connections since the start.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, budgetPerSecond: int) -> None:
        """
        @param clock: for the seconds of the budget.
        @param budgetPerSecond: how many records about single connections a second may have.
        """
        self.counts = Counts()
        self._told = Counts()
        self._clock = clock
        self._budget = self._allowance = budgetPerSecond
        self._second: IDelayedCall | None = None
        self._quietUntil: dict[str, float] = {}

    def sent(self, readers: Sequence[Reader]) -> None:
        """Whole poems are with the system, which goes on sending them whatever becomes of us."""
        self.counts.poems += len(readers)
        self.counts.bytes += sum([len(each.poem.text) for each in readers])
        for reader in readers:
            if not self._spendRecord():
                break
            poem = reader.poem
            self._told.poems += 1
            self._told.bytes += len(poem.text)
            self._log.info(
                "sending {bytes} bytes of poetry to {peer}",
                bytes=len(poem.text),
                peer=formatPeer(reader.address),
                poem=poem.name,
                message_id="51c4b039c6b549da8188e2ad236b9868",
            )

    def left(self, poem: Poem, address: Address, takenBytes: int) -> None:
        """A client went away, or its network failed, before it had everything."""
        self.counts.left += 1
        if self._spendRecord():
            self._told.left += 1
            self._log.info(
                "{peer} left after {taken} of {bytes} bytes",
                peer=formatPeer(address),
                taken=takenBytes,
                bytes=len(poem.text),
                poem=poem.name,
                message_id="aac587f9fd8d4d049348340f51b0da4a",
            )

    def gaveUp(self, poem: Poem, address: Address, takenBytes: int, cause: str) -> None:
        """A client was reset before it had everything."""
        self.counts.gaveUp += 1
        if self._spendRecord():
            self._told.gaveUp += 1
            self._log.warn(
                "gave up on {peer} after {taken} of {bytes} bytes: {cause}",
                peer=formatPeer(address),
                taken=takenBytes,
                bytes=len(poem.text),
                cause=cause,
                poem=poem.name,
                message_id="470c42a041664ba0ba7ef62f224426bf",
            )

    def lost(self, readers: int) -> None:
        """Clients in mid-poem, left to us by another process, were reset without a record each."""
        self.counts.gaveUp += readers
        self._told.gaveUp += readers

    def turnedAway(self, address: Address, cause: str) -> None:
        """A client was reset before a poem was begun for it."""
        self.counts.turnedAway += 1
        if self._spendRecord():
            self._told.turnedAway += 1
            self._log.warn(
                "turned {peer} away: {cause}",
                peer=formatPeer(address),
                cause=cause,
                message_id="4c40f64984b04c188433d02c24c4950e",
            )

    def stalled(self, poem: Poem, address: Address, takenBytes: int, cause: str) -> None:
        """A client that L{sent} has counted was reset: told now and then."""
        if self._takeTurn("stalled"):
            self._log.warn(
                "gave up on {peer}, who does not take the last {bytes} bytes: {cause}",
                peer=formatPeer(address),
                bytes=len(poem.text) - takenBytes,
                cause=cause,
                message_id="8661237894b24e009d5b2e4ed36bd13c",
            )

    def full(self, cause: str, readers: int) -> None:
        """New connections wait in the backlog: told now and then."""
        if self._takeTurn("full"):
            self._log.warn(
                "{cause}; with {readers} here, new ones wait in the backlog",
                cause=cause,
                readers=readers,
                message_id="fbb58c123b214fef889bb057cdfb5239",
            )

    def checked(self) -> None:
        """A balancer has seen that the server is there."""
        self.counts.checks += 1

    def flush(self) -> None:
        """Tell what is still untold, and run no timer until the next reader."""
        if self._second is not None:
            self._second.cancel()
        self._endSecond()

    def _takeTurn(self, kind: str) -> bool:
        """Take the turn of a kind of record. Whether it has one: not if one was told lately."""
        now = self._clock.seconds()
        if now < self._quietUntil.get(kind, now):
            return False
        self._quietUntil[kind] = now + _QUIET_SECONDS
        return True

    def _spendRecord(self) -> bool:
        """Spend one record of this second's budget, if there is one."""
        if self._second is None:
            self._second = self._clock.callLater(1.0, self._endSecond)
        if self._allowance > 0:
            self._allowance -= 1
            return True
        return False

    def _endSecond(self) -> None:
        """Sum up what had no record of its own, and start the budget anew."""
        self._second = None
        self._allowance = self._budget
        untold = Counts(*map(sub, astuple(self.counts), astuple(self._told)))
        if untold.connections:
            self._told = Counts(*astuple(self.counts))
            self._log.info(
                "sent {poems} more poems, {bytes} bytes, over {connections} connections without a "
                "record each: {left} left early, {gave_up} given up on, {turned_away} turned away",
                poems=untold.poems,
                bytes=untold.bytes,
                connections=untold.connections,
                left=untold.left,
                gave_up=untold.gaveUp,
                turned_away=untold.turnedAway,
                message_id="4f161caf0e264a26815e0fb0d6cba257",
            )
