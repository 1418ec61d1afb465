"""
The policy for readers: which are connected, which may connect, and when their connections end.

A process has one policy, shared by the fast port and the standard protocol. It touches no socket:
it regularly asks each reader for its progress, and tells it when to close.
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
from fastpoetry.delivery.limits import Limits, Progress
from fastpoetry.delivery.lingering import Lingering
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.readers import Arrival, HandOver, Pausable, Reader
from fastpoetry.delivery.visits import REVISIT_SECONDS, Round

_RESERVED_DESCRIPTORS = 32
"""Descriptors that readers may not use: for logs, the poems of a reload, and other needs."""


class Policy:
    """
    All readers of the process, and the rules for them.

    @ivar ledger: counts every connection.
    @ivar firstReserved: descriptors from this number up are reserved. The kernel gives out the
        lowest free one (open(2)), so a new number tells how many are in use in the whole process.
    @ivar gate: pauses the ports while there is no room.
    @ivar handOver: hands readers in mid-poem over to the next process, or C{None}.
    """

    def __init__(self, limits: Limits, clock: IReactorTime) -> None:
        """@param clock: a monotonic one, see L{fastpoetry.systemd.clock}."""
        self.limits = limits
        self.ledger = Ledger(clock, limits.journalBudgetPerSecond)
        self.handOver: HandOver | None = None
        self.clock = clock
        self._arrivals = Arrivals(clock, limits)
        self._isAdmitting = False
        self._waiting: dict[Any, None] = {}
        self._sending: dict[Reader, Progress] = {}
        self._deadlines = Round(clock, REVISIT_SECONDS, self._visit)
        self._quota = Quota(limits.maxReadersPerSource)
        self._lingering = Lingering(clock, limits, self._quota, self.ledger, self._useRoom)
        self.gate = Gate(clock, self.logPaused)
        self._waitingPorts: set[Pausable] = set()
        self._emptySince = clock.seconds()
        self._drain: Drain | None = None
        most, _ = getrlimit(RLIMIT_NOFILE)
        self.firstReserved = 2**31 if most == RLIM_INFINITY else most - _RESERVED_DESCRIPTORS

    @property
    def readers(self) -> int:
        """How many readers are connected."""
        return len(self._waiting) + len(self._sending) + len(self._lingering)

    @property
    def room(self) -> int:
        """How many more readers may connect."""
        return max(0, self.limits.maxReaders - self.readers)

    @property
    def _isEmpty(self) -> bool:
        """Whether there are no readers and no arrivals."""
        return not (self.readers or self._arrivals)

    @property
    def isDraining(self) -> bool:
        """Whether a stop waits for the connections."""
        return self._drain is not None

    @property
    def idleSeconds(self) -> float:
        """Seconds since the last client left; 0 while one is connected or waits for a poem."""
        isBusy = self._waitingPorts or not self._isEmpty
        return 0.0 if isBusy else self.clock.seconds() - self._emptySince

    def addWaitingPort(self, port: Pausable) -> None:
        """Note that a port leaves its clients in the backlog until there is a poem."""
        self._waitingPorts.add(port)

    def removeWaitingPort(self, port: Pausable) -> None:
        """Note that a port no longer waits for a poem. A second call has no effect."""
        self._waitingPorts.discard(port)
        self._emptySince = self.clock.seconds()

    def isSourceFull(self, address: Address) -> bool:
        """Whether a source has its full quota of readers that wait for their poem or take it."""
        return self._quota.isFull(address)

    def pauseIfFull(self) -> None:
        """Pause the ports if there is no room, even after closing lingering readers."""
        if not self.room:
            most = countOf(self.limits.maxReaders, "reader")
            self.pause(f"no more than {most} may connect (--max-readers)")

    def addArrival(self, arrival: Arrival) -> None:
        """Add a connection that has to identify its client. It takes no reader's place yet."""
        if self._drain is not None:
            arrival.drain()
        self._arrivals.add(arrival)

    def admit(self, arrival: Arrival, enter: Callable[[], object]) -> None:
        """
        Let a connection become a reader. It has identified its client.

        @param enter: takes a reader's place; called as soon as there is room.
        """
        if self._drain is not None:
            arrival.drain()
        self._arrivals.enqueue(arrival, enter)
        self.pauseIfFull()
        self._admitQueued()

    def addWaiting(self, arrival: Arrival) -> None:
        """Give a connection a reader's place, in which it waits for its poem."""
        self._waiting[arrival] = None
        self._quota.add(arrival)

    def addServed(self, readers: list[Reader]) -> None:
        """Count new readers whose whole poems went to the kernel at once, and let them linger."""
        try:
            self._lingering.addServed(readers)
        finally:
            self.ledger.countSent(readers)

    def begin(self, reader: Reader, progress: Progress | None = None) -> None:
        """
        Add a reader whose poem is under way.

        @param progress: of a reader from the process before; by default a new reader's.
        """
        now = self.clock.seconds()
        self._waiting.pop(reader, None)
        self._sending[reader] = progress or Progress(now, now)
        self._quota.add(reader)
        self._deadlines.add([reader], now)

    def finish(self, reader: Reader) -> None:
        """Count a reader, and let it linger. The kernel now has the last byte of its poem."""
        self._quota.remove(reader)
        self._lingering.add(reader, self._sending.pop(reader))
        self.ledger.countSent([reader])

    def remove(self, connection: Any, fault: str = "") -> None:
        """
        Forget a connection. If its poem was under way, its client has left. A second call has no
        effect.

        @param fault: our error that ended the connection, if there was one.
        """
        if progress := self._sending.pop(connection, None):
            if fault:
                self.ledger.countGivenUp(connection, progress.takenBytes, fault)
            else:
                self.ledger.countLeft(connection, progress.takenBytes)
        self._waiting.pop(connection, None)
        self._arrivals.remove(connection)
        self._lingering.remove(connection)

    def giveUp(self, reader: Reader, cause: str) -> None:
        """Reset a reader whose poem is under way, or could not begin."""
        progress = self._sending.get(reader)
        reader.reset()
        try:
            self.ledger.countGivenUp(reader, progress.takenBytes if progress else 0, cause)
        finally:
            self._sending.pop(reader, None)
            self._quota.remove(reader)
            self._useRoom()

    def countTurnedAway(self, address: Address) -> None:
        """Count a connection that the caller resets because of L{isSourceFull}."""
        most = countOf(self.limits.maxReadersPerSource, "reader")
        self.ledger.countTurnedAway(address, f"its source has {most} already")

    def pause(self, cause: str) -> None:
        """
        Leave new connections in the backlogs, until a reader leaves or a moment has passed.

        If closing lingering readers makes room, the ports go on instead.

        @param cause: for the administrator, in a record at most every ten seconds.
        """
        if self.gate.isClosed:
            self.gate.close()  # a port that waited for a poem, or failed, has begun to accept
            return
        before = self.readers
        self._lingering.closeAll()
        if self.readers < before:
            return
        if self.room:  # the cause is a lack of descriptors
            self._arrivals.giveWay()
        self.gate.close()
        self.logPaused(cause)

    def drain(self) -> Deferred[None]:
        """
        Let the poems under way end, and close all connections.

        After a moment, readers whose whole poem the kernel has are left to the kernel. Readers in
        mid-poem are left to the next process, if L{handOver} can do that.

        @return: fires when no connection is left, at the latest after C{drainSeconds}.
        """
        if self._isEmpty:
            self._stopTimers()
            return succeed(None)
        if self._drain is None:
            self._drain = Drain(
                self.clock, self.limits.drainSeconds, self._closeDone, self._cutShort
            )
            waiter = self._drain.whenEnded()
            for arrival in [*self._arrivals, *self._waiting]:
                arrival.drain()
            self._lingering.closeAll()
            return waiter
        return self._drain.whenEnded()

    def _closeDone(self) -> None:
        """Close readers that have their poem. Hand over the others once all of them allow it."""
        isPastGrace = self._drain is not None and self._drain.isPastGrace
        self._lingering.closeAll(leaveToKernel=isPastGrace)
        areAllPortable = all(reader.mayHandOver for reader in self._sending)
        hasOthers = self._arrivals or self.readers > len(self._sending)
        if isPastGrace and areAllPortable and not hasOthers:
            self._handOverSending()

    def _handOverSending(self) -> None:
        """Hand over those readers in mid-poem that can be handed over."""
        portable = {each: how for each, how in self._sending.items() if each.mayHandOver}
        if self.handOver is not None and portable and self.handOver(portable):
            for reader in portable:
                del self._sending[reader]
                self._quota.remove(reader)
            self._useRoom()

    def _cutShort(self) -> None:
        """End a stop that has waited long enough: hand readers over, and reset all others."""
        cause = f"the server stops, and has waited {self.limits.drainSeconds:g} s"
        try:
            for arrival in [*self._arrivals, *self._waiting]:  # first, or they get the others' room
                arrival.dismiss(cause)
            self._handOverSending()
            for reader in list(self._sending):
                self.giveUp(reader, cause)
            self._lingering.giveUpAll(cause)
        finally:
            if self._drain is not None:  # connections are left, such as arrivals
                self.clock.callLater(0, self._abandon)

    def _abandon(self) -> None:
        """End the stop even if a connection survived its reset."""
        for known in (self._arrivals, self._waiting, self._sending, self._quota):
            known.clear()
        self._lingering.stop()
        self._useRoom()

    def _stopTimers(self) -> None:
        """Cancel all timers, and write what the ledger still has to report."""
        self.gate.open()
        self._lingering.stop()
        self._deadlines.stop()
        self.ledger.flush()

    def logPaused(self, cause: str) -> None:
        """Log why a port does not accept, at most every ten seconds."""
        self.ledger.logFull(cause, self.readers)

    def _useRoom(self) -> None:
        """Use the room of a reader that is gone. End the drain if no connection is left."""
        self.gate.open()
        self._admitQueued()
        if self._isEmpty:
            self._emptySince = self.clock.seconds()
            if self._drain is not None:
                drain, self._drain = self._drain, None
                self._stopTimers()
                drain.end()

    def _admitQueued(self) -> None:
        """Let queued connections enter, as far as there is room."""
        if self._isAdmitting:  # one that enters and ends at once makes room
            return
        self._isAdmitting = True
        try:
            while self.room and (enter := self._arrivals.takeNext()):
                enter()
        finally:
            self._isAdmitting = False

    def _visit(self, reader: Reader) -> bool:
        """Reset a reader that missed a deadline. Return whether to visit it again."""
        progress = self._sending.get(reader)
        if progress is None:
            return False
        now = self.clock.seconds()
        progress.update(reader.countTaken(), now)
        cause = self.limits.faultOf(progress, now)
        if cause:
            self.giveUp(reader, cause)
        return not cause
