"""
The rules for readers: who is here, who may come, and when it ends.

One object a process decides for the fast port and for the standard protocol alike. It touches no
socket: it asks each reader now and then how far it has come, and tells it when to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from fastpoetry.delivery.addresses import Address, formatPeer
from fastpoetry.delivery.drain import Drain
from fastpoetry.delivery.gate import Gate
from fastpoetry.delivery.ledger import Ledger
from fastpoetry.delivery.quiet import Quiet
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Arrival, HandOver, Pausable, Progress, Reader
from fastpoetry.delivery.visits import Round

LINGER_SECONDS = 2.0
"""
How long a client that has every byte may take to close its side.

Closing while it still writes would answer it with a reset (RFC 1122, 4.2.2.13), and some systems
let that overtake what is yet to be read. Apache's httpd lingers as long (MAX_SECS_TO_LINGER).
"""

_SOON_SECONDS = 0.1
"""
When to look after readers first: by then most clients of this continent have closed, though both
sides be busy. Looking at one too early costs more than keeping it a little longer.
"""

_LATER_SECONDS = 1.0
"""How often to look after those who have not: deadlines need no more."""

_RESERVED_DESCRIPTORS = 32
"""Kept from readers: for logs, the poems of a reload, and what else may come."""


@dataclass(frozen=True)
class Limits:
    """
    What an administrator may set.

    @ivar drainSeconds: how long a stop waits for poems under way.
    @ivar stallSeconds: how long a reader may take nothing.
    @ivar minRateBytesPerSecond: what a reader that has been there for C{stallSeconds} must have
        taken on average.
    @ivar maxReaders: connections at a time; further ones wait in the backlog.
    @ivar maxReadersPerSource: connections under way at a time from one address; further ones are
        reset.
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


class Policy:
    """
    All readers of the process, and the rules they are under.

    @ivar limits: the rules' numbers.
    @ivar ledger: where every connection is counted.
    @ivar mostDescriptor: the number of a new connection's descriptor from which on the others are
        kept from readers: the lowest free one is given out first (open(2)), so that it tells how
        many are in use, by whomever.
    @ivar clock: times the deadlines.
    @ivar handOver: hands readers in mid-poem over to the next process, if there is one.
    """

    _log = Logger()

    def __init__(self, limits: Limits, clock: IReactorTime) -> None:
        """@param clock: one that nobody sets, see L{fastpoetry.systemd.clock}."""
        self.limits = limits
        self.ledger = Ledger(clock, limits.journalBudgetPerSecond)
        self.handOver: HandOver | None = None
        self.clock = clock
        self._soon = Round(clock, _SOON_SECONDS, self._visitSoon, self._keepLingering)
        self._later = Round(clock, _LATER_SECONDS, self._visit, self._visitLater)
        self._arriving: dict[Arrival, None] = {}
        self._sending: dict[Reader, Progress] = {}
        self._lingering: dict[Reader, Progress] = {}
        self._quota = Quota(limits.maxReadersPerSource)
        self._quiet = Quiet(clock)
        self._gate = Gate(clock)
        self._waitingPorts: set[Pausable] = set()
        self._emptySince = clock.seconds()
        self._drain: Drain | None = None
        most, _ = getrlimit(RLIMIT_NOFILE)
        self.mostDescriptor = 2**31 if most == RLIM_INFINITY else most - _RESERVED_DESCRIPTORS

    def seconds(self) -> float:
        """The time that the deadlines go by."""
        return self.clock.seconds()

    @property
    def readers(self) -> int:
        """How many connections there are now."""
        known = len(self._sending) + len(self._lingering) + len(self._arriving)
        return known + self._soon.waiting

    @property
    def room(self) -> int:
        """How many more readers may be here."""
        return max(0, self.limits.maxReaders - self.readers)

    @property
    def idleSeconds(self) -> float:
        """For how long nobody has been connected, or has waited for a poem in a backlog."""
        isBusy = self.readers or self._waitingPorts
        return 0.0 if isBusy else self.clock.seconds() - self._emptySince

    def addPort(self, port: Pausable) -> None:
        """Have a port wait when there is no room."""
        self._gate.add(port)

    def removePort(self, port: Pausable) -> None:
        """Leave a port alone from now on."""
        self._gate.remove(port)

    def addWaitingPort(self, port: Pausable) -> None:
        """A port leaves who comes in its backlog until there is a poem."""
        self._waitingPorts.add(port)

    def removeWaitingPort(self, port: Pausable) -> None:
        """A port waits for a poem no more; again, it does nothing."""
        self._waitingPorts.discard(port)
        self._emptySince = self.clock.seconds()

    def isTooMany(self, address: Address) -> bool:
        """
        Whether a source already has as many readers under way as it may.

        Readers on a UNIX socket have no address to tell them apart, and are not counted.
        """
        return self._quota.isFull(address)

    def pauseIfFull(self) -> None:
        """Have the ports wait, if nobody more may be here and nobody can go who only lingers."""
        if not self.room:
            self.pause(f"no more than {self.limits.maxReaders} readers may be here (--max-readers)")

    def addArrival(self, arrival: Arrival) -> None:
        """A connection has to wait before it is a reader."""
        self._arriving[arrival] = None
        if self._drain is not None:
            arrival.drain()

    def removeArrival(self, arrival: Arrival) -> None:
        """A connection waits no more, whatever becomes of it; again, it does nothing."""
        if arrival in self._arriving:
            del self._arriving[arrival]
            self._seeWhoIsLeft()

    def addServed(self, readers: list[Reader], now: float) -> None:
        """
        Some readers came, and their whole poems went to the system at once: count them, and let the
        clients close first.

        @param now: the clock's seconds, or a moment before.
        """
        self._soon.add(readers, now)
        self.ledger.sent(readers)

    def begin(self, reader: Reader, now: float) -> None:
        """
        A reader came whose poem is under way, and did not go out at once.

        @param now: the clock's seconds.
        """
        self.resume(reader, Progress(now, now))

    def resume(self, reader: Reader, progress: Progress) -> None:
        """A reader is here whose poem is under way, and was elsewhere before."""
        self._sending[reader] = progress
        self._quota.add(reader)
        self._later.add([reader], self.clock.seconds())

    def finish(self, reader: Reader) -> None:
        """The whole poem of a reader that had begun is with the system: as in L{addServed}."""
        self._lingering[reader] = self._sending.pop(reader)
        self._quota.remove(reader)
        self.ledger.sent([reader])

    def remove(self, reader: Reader) -> None:
        """A connection is closed, and not because we said so; again, it does nothing."""
        if progress := self._sending.pop(reader, None):
            self.ledger.left(reader.poem, reader.address, progress.takenBytes)
        self._forget(reader)

    def giveUp(self, reader: Reader, cause: str) -> None:
        """
        Reset a reader, whether its poem has begun or not. One that lingers was counted when its
        poem went to the system, so that it has no record; the source that has too many of them has
        one now and then.
        """
        reader.reset()
        try:
            if lingering := self._lingering.get(reader):
                self._tellLingering(reader, lingering, cause)
            else:
                sending = self._sending.get(reader)
                taken = sending.takenBytes if sending else 0
                self.ledger.gaveUp(reader.poem, reader.address, taken, cause)
        finally:
            self._forget(reader)

    def turnAway(self, address: Address) -> None:
        """Count a connection that was reset because L{isTooMany}."""
        most = self.limits.maxReadersPerSource
        self.ledger.turnedAway(address, f"{most} readers of its address are under way")

    def pause(self, cause: str) -> None:
        """
        Leave what comes next in the backlogs, until somebody leaves or a moment has passed.

        @param cause: why, for the administrator: told now and then.
        """
        if self._gate.isClosed:
            return
        before = self.readers
        self._visitWhoLingers()
        if self.readers < before:  # somebody who only lingered has left
            return
        self._gate.close()
        if self._quiet.takeTurn("full"):
            self._log.warn(
                "{cause}; with {readers} here, new ones wait in the backlog",
                cause=cause,
                readers=self.readers,
                message_id="fbb58c123b214fef889bb057cdfb5239",
            )

    def drain(self) -> Deferred[None]:
        """
        Let the poems under way end, and then everybody go.

        Who has everything with the kernel is left to it after a moment; who is in mid-poem, to the
        next process, if L{handOver} can.

        @return: fires when nobody is connected any more, at the latest after C{drainSeconds}.
        """
        if not self.readers:
            self._rest()
            return succeed(None)
        if self._drain is None:
            self._drain = Drain(
                self.clock, self.limits.drainSeconds, self._lookWhoCanGo, self._cutShort
            )
            waiter = self._drain.wait()
            for arrival in list(self._arriving):
                arrival.drain()
            self._visitWhoLingers()
            return waiter
        return self._drain.wait()

    def _lookWhoCanGo(self) -> None:
        """Close who has everything; once every reader left can be handed over, do that."""
        self._visitWhoLingers()
        handOver = self.handOver
        if self._drain is None or not self._drain.isPastGrace or handOver is None:
            return
        if self.readers == len(self._sending) and all(map(handOver.mayHandOver, self._sending)):
            self._handOverSending()

    def _handOverSending(self) -> None:
        """Hand the readers in mid-poem over, those that can be."""
        if self.handOver is not None and self._sending:
            for reader in self.handOver.handOver(self._sending):
                del self._sending[reader]
                self._quota.remove(reader)
            self._seeWhoIsLeft()

    def _cutShort(self) -> None:
        """Hand readers over, and reset those that cannot be: a stop has waited long enough."""
        self._handOverSending()
        cause = f"the server stops, and has waited {self.limits.drainSeconds:g} s"
        try:
            for reader in [*self._sending, *self._lingering]:
                self.giveUp(reader, cause)
        finally:
            if self._drain is not None:  # who arrives is given up now, too
                self.clock.callLater(0, self._abandon)

    def _abandon(self) -> None:
        """Have a stop end for which somebody is left whom not even a reset has ended."""
        self._soon.stop()
        for known in (self._arriving, self._sending, self._lingering):
            known.clear()
        self._seeWhoIsLeft()

    def _rest(self) -> None:
        """Nobody is left, and nobody will come: run no timer, and leave nothing untold."""
        self._gate.open()
        self._soon.stop()
        self._later.stop()
        self.ledger.flush()

    def _seeWhoIsLeft(self) -> None:
        """Somebody has gone: there is room for another, or nobody is left."""
        self._gate.open()
        if not self.readers:
            self._emptySince = self.clock.seconds()
            if self._drain is not None:
                drain, self._drain = self._drain, None
                self._rest()
                drain.end()

    def _forget(self, reader: Reader) -> None:
        """Have nothing to do with a reader any more; again, it does nothing."""
        self._sending.pop(reader, None)
        self._lingering.pop(reader, None)
        self._quota.remove(reader)
        self._seeWhoIsLeft()

    @staticmethod
    def _visitSoon(reader: Reader) -> bool:
        """End a reader that has closed, as most have by now; whether it is still there."""
        return not reader.closeAfterClient()

    def _keepLingering(self, readers: list[Reader], now: float) -> None:
        """Have deadlines for those who were served at once and have not closed soon."""
        for reader in readers:
            self._lingering[reader] = Progress(now, now)
        self._visitLater(readers, now)
        self._seeWhoIsLeft()  # of most, nothing; where all are here, a port looks once in vain

    def _visitLater(self, readers: list[Reader], now: float) -> None:
        """Come back to readers, if there are any."""
        if readers:
            self._later.add(readers, now)

    def _visitWhoLingers(self) -> None:
        """Close who has everything, since others wait for the place."""
        self._soon.visitAll()
        for reader in list(self._lingering):
            self._visit(reader, 0.0)

    def _visit(self, reader: Reader, lingerSeconds: float = LINGER_SECONDS) -> bool:
        """
        See how far a reader has come, and end what should end; whether to visit it again.

        @param lingerSeconds: how long one that has everything may stay.
        """
        lingering = self._lingering.get(reader)
        progress = lingering or self._sending.get(reader)
        if progress is None:
            return False
        if lingering and reader.closeAfterClient():
            self._forget(reader)
            return False
        now = self.clock.seconds()
        taken = reader.countTaken()
        if taken > progress.takenBytes:
            progress.takenBytes = taken
            progress.movedAt = now
        hasAll = taken == len(reader.poem.text)
        if lingering and self._mayEnd(reader, hasAll, now - progress.movedAt >= lingerSeconds):
            reader.end()
            self._forget(reader)
            return False
        if lingering and hasAll:
            return True
        if cause := self.limits.faultOf(progress, now) or self._countCrowd(reader):
            self.giveUp(reader, cause)
            return False
        return True

    def _mayEnd(self, reader: Reader, hasAll: bool, hasLingered: bool) -> bool:
        """
        Whether a connection may be closed whose whole poem went to the system.

        @param hasAll: whether the client has acknowledged it.
        @param hasLingered: whether it has had its time to close first.
        """
        if self._drain is None:
            return hasAll and hasLingered
        return hasAll or (self._drain.isPastGrace and reader.isSent())

    def _countCrowd(self, reader: Reader) -> str:
        """
        Count one that does not take what was sent for its source; why that has too many, if so.

        A small poem goes to the system at once and is not counted as under way: not before it is
        found waiting there.
        """
        if reader in self._quota:
            return ""
        if self.isTooMany(reader.address):
            return f"{self.limits.maxReadersPerSource} readers of its address take nothing"
        self._quota.add(reader)
        return ""

    def _tellLingering(self, reader: Reader, progress: Progress, cause: str) -> None:
        """Tell now and then of a reader that does not take what is with the system for it."""
        if self._quiet.takeTurn("lingering"):
            self._log.warn(
                "gave up on {peer}, who does not take the last {bytes} bytes: {cause}",
                peer=formatPeer(reader.address),
                bytes=len(reader.poem.text) - progress.takenBytes,
                cause=cause,
                message_id="8661237894b24e009d5b2e4ed36bd13c",
            )
