"""
The rules for readers: who is here, who may come, and when it ends.

One object a process decides for the fast port and for the standard protocol alike. It touches no
socket: it asks each reader now and then how far it has come, and tells it when to end.
"""

from __future__ import annotations

from collections.abc import Callable
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.arrivals import Arrivals
from fastpoetry.delivery.drain import Drain
from fastpoetry.delivery.gate import Gate
from fastpoetry.delivery.ledger import Ledger, countOf
from fastpoetry.delivery.limits import Limits, measure
from fastpoetry.delivery.lingering import Lingering
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Arrival, HandOver, Pausable, Progress, Reader
from fastpoetry.delivery.visits import LATER_SECONDS, Round

_RESERVED_DESCRIPTORS = 32
"""Kept from readers: for logs, the poems of a reload, and what else may come."""


class Policy:
    """
    All readers of the process, and the rules they are under.

    @ivar limits: the rules' numbers.
    @ivar ledger: where every connection is counted.
    @ivar mostDescriptor: the number of a new connection's descriptor from which on the others are
        kept from readers: the lowest free one is given out first (open(2)), so that it tells how
        many are in use, by whomever.
    @ivar gate: has the ports wait when there is no room.
    @ivar clock: times the deadlines.
    @ivar handOver: hands readers in mid-poem over to the next process, if there is one.
    """

    def __init__(self, limits: Limits, clock: IReactorTime) -> None:
        """@param clock: one that nobody sets, see L{fastpoetry.systemd.clock}."""
        self.limits = limits
        self.ledger = Ledger(clock, limits.journalBudgetPerSecond)
        self.handOver: HandOver | None = None
        self.clock = clock
        self._arrivals = Arrivals(clock, limits)
        self._waiting: dict[Any, None] = {}
        self._sending: dict[Reader, Progress] = {}
        self._deadlines = Round(clock, LATER_SECONDS, self._visit)
        self._quota = Quota(limits.maxReadersPerSource)
        self._lingering = Lingering(clock, limits, self._quota, self.ledger, self._seeWhoIsLeft)
        self.gate = Gate(clock, self.tellClosed)
        self._waitingPorts: set[Pausable] = set()
        self._emptySince = clock.seconds()
        self._drain: Drain | None = None
        most, _ = getrlimit(RLIMIT_NOFILE)
        self.mostDescriptor = 2**31 if most == RLIM_INFINITY else most - _RESERVED_DESCRIPTORS

    @property
    def readers(self) -> int:
        """How many readers there are now."""
        return len(self._waiting) + len(self._sending) + len(self._lingering)

    @property
    def room(self) -> int:
        """How many more readers may be here."""
        return max(0, self.limits.maxReaders - self.readers)

    @property
    def _isEmpty(self) -> bool:
        """Whether nobody is connected."""
        return not (self.readers or self._arrivals)

    @property
    def idleSeconds(self) -> float:
        """For how long nobody has been connected, or has waited for a poem in a backlog."""
        isBusy = self._waitingPorts or not self._isEmpty
        return 0.0 if isBusy else self.clock.seconds() - self._emptySince

    def addWaitingPort(self, port: Pausable) -> None:
        """A port leaves who comes in its backlog until there is a poem."""
        self._waitingPorts.add(port)

    def removeWaitingPort(self, port: Pausable) -> None:
        """A port waits for a poem no more; again, it does nothing."""
        self._waitingPorts.discard(port)
        self._emptySince = self.clock.seconds()

    def isTooMany(self, address: Address) -> bool:
        """
        Whether a source already has as many readers waiting or under way as it may.
        """
        return self._quota.isFull(address)

    def pauseIfFull(self) -> None:
        """Have the ports wait, if nobody more may be here and nobody can go who only lingers."""
        if not self.room:
            most = countOf(self.limits.maxReaders, "reader")
            self.pause(f"no more than {most} may be here (--max-readers)")

    def addArrival(self, arrival: Arrival) -> None:
        """A connection came that has yet to say who it is: it takes no reader's place."""
        if self._drain is not None:
            arrival.drain()
        self._arrivals.add(arrival)

    def admit(self, arrival: Arrival, enter: Callable[[], object]) -> None:
        """
        A connection has said who it is: let it be a reader.

        @param enter: takes a reader's place; called now or, if there is no room, when there is.
        """
        self._arrivals.enqueue(arrival, enter)
        self.pauseIfFull()
        self._admitQueued()

    def wait(self, arrival: Arrival) -> None:
        """A connection takes a reader's place, and waits for its poem."""
        self._waiting[arrival] = None
        self._quota.add(arrival)

    def addServed(self, readers: list[Reader], now: float) -> None:
        """
        Some readers came, and their whole poems went to the system at once: count them, and let the
        clients close first.

        @param now: the clock's seconds, or a moment before.
        """
        try:
            self._lingering.addServed(readers, now)
        finally:
            self.ledger.sent(readers)

    def begin(self, reader: Reader, now: float) -> None:
        """
        A reader came whose poem is under way, and did not go out at once.

        @param now: the clock's seconds.
        """
        self.resume(reader, Progress(now, now))

    def resume(self, reader: Reader, progress: Progress) -> None:
        """A reader is here whose poem is under way, and was elsewhere before."""
        self._waiting.pop(reader, None)
        self._sending[reader] = progress
        self._quota.add(reader)
        self._deadlines.add([reader], self.clock.seconds())

    def finish(self, reader: Reader) -> None:
        """The whole poem of a reader that had begun is with the system: as in L{addServed}."""
        self._quota.remove(reader)
        self._lingering.add(reader, self._sending.pop(reader))
        self.ledger.sent([reader])

    def remove(self, connection: Any) -> None:
        """A connection is closed, and not because we said so; again, it does nothing."""
        if progress := self._sending.pop(connection, None):
            self.ledger.left(connection.poem, connection.address, progress.takenBytes)
        self._waiting.pop(connection, None)
        self._arrivals.remove(connection)
        self._lingering.remove(connection)

    def giveUp(self, reader: Reader, cause: str) -> None:
        """Reset a reader whose poem is under way, or could not even begin."""
        progress = self._sending.get(reader)
        reader.reset()
        try:
            taken = progress.takenBytes if progress else 0
            self.ledger.gaveUp(reader.poem, reader.address, taken, cause)
        finally:
            self._sending.pop(reader, None)
            self._quota.remove(reader)
            self._seeWhoIsLeft()

    def turnAway(self, address: Address) -> None:
        """Count a connection that was reset because L{isTooMany}."""
        most = countOf(self.limits.maxReadersPerSource, "reader")
        self.ledger.turnedAway(address, f"its source has {most} here")

    def pause(self, cause: str) -> None:
        """
        Leave what comes next in the backlogs, until somebody leaves or a moment has passed.

        @param cause: why, for the administrator: told now and then.
        """
        if self.gate.isClosed:
            return
        before = self.readers
        self._lingering.closeAll()
        if self.readers < before:
            return
        if self.room:  # so it is descriptors that are short
            self._arrivals.giveWay()
        self.gate.close()
        self.tellClosed(cause)

    def drain(self) -> Deferred[None]:
        """
        Let the poems under way end, and then everybody go.

        Who has everything with the kernel is left to it after a moment; who is in mid-poem, to the
        next process, if L{handOver} can.

        @return: fires when nobody is connected any more, at the latest after C{drainSeconds}.
        """
        if self._isEmpty:
            self._rest()
            return succeed(None)
        if self._drain is None:
            self._drain = Drain(
                self.clock, self.limits.drainSeconds, self._lookWhoCanGo, self._cutShort
            )
            waiter = self._drain.wait()
            for arrival in [*self._arrivals, *self._waiting]:
                arrival.drain()
            self._lingering.closeAll()
            return waiter
        return self._drain.wait()

    def _lookWhoCanGo(self) -> None:
        """Close who has everything; once every reader left can be handed over, do that."""
        isPastGrace = self._drain is not None and self._drain.isPastGrace
        self._lingering.closeAll(leaveToSystem=isPastGrace)
        areAllPortable = all(reader.mayHandOver for reader in self._sending)
        isNobodyElse = not self._arrivals and self.readers == len(self._sending)
        if isPastGrace and areAllPortable and isNobodyElse:
            self._handOverSending()

    def _handOverSending(self) -> None:
        """Hand the readers in mid-poem over, those that can be."""
        portable = {each: how for each, how in self._sending.items() if each.mayHandOver}
        if self.handOver is not None and portable and self.handOver(portable):
            for reader in portable:
                del self._sending[reader]
                self._quota.remove(reader)
            self._seeWhoIsLeft()

    def _cutShort(self) -> None:
        """Hand readers over, and reset those that cannot be: a stop has waited long enough."""
        self._handOverSending()
        cause = f"the server stops, and has waited {self.limits.drainSeconds:g} s"
        try:
            for reader in list(self._sending):
                self.giveUp(reader, cause)
            self._lingering.giveUpAll(cause)
        finally:
            if self._drain is not None:  # arrivals are given up now, too
                self.clock.callLater(0, self._abandon)

    def _abandon(self) -> None:
        """End the stop even if a connection survived its reset."""
        for known in (self._arrivals, self._waiting, self._sending, self._quota):
            known.clear()
        self._lingering.stop()
        self._seeWhoIsLeft()

    def _rest(self) -> None:
        """Nobody is left, and nobody will come: run no timer, and leave nothing untold."""
        self.gate.open()
        self._lingering.stop()
        self._deadlines.stop()
        self.ledger.flush()

    def tellClosed(self, cause: str) -> None:
        """Tell now and then why a port does not accept."""
        self.ledger.full(cause, self.readers)

    def _seeWhoIsLeft(self) -> None:
        """Somebody has gone: there is room for another, or nobody is left."""
        self.gate.open()
        self._admitQueued()
        if self._isEmpty:
            self._emptySince = self.clock.seconds()
            if self._drain is not None:
                drain, self._drain = self._drain, None
                self._rest()
                drain.end()

    def _admitQueued(self) -> None:
        """Let connections enter that have queued, as far as there is room."""
        while self.room and (enter := self._arrivals.takeNext()):
            enter()

    def _visit(self, reader: Reader) -> bool:
        """See how far a reader has come, and give up on it when its time is over."""
        progress = self._sending.get(reader)
        if progress is None:
            return False
        now = self.clock.seconds()
        measure(reader, progress, now)
        cause = self.limits.faultOf(progress, now)
        if cause:
            self.giveUp(reader, cause)
        return not cause
