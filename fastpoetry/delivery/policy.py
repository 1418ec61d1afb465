"""
The rules for readers: how long, how many, and what becomes of them.

One object a process decides for the fast port and for the standard protocol alike. It touches no
socket: it asks each reader now and then how far it has come, and tells it when to end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from socket import AF_INET6, inet_pton
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from fastpoetry.delivery.ledger import Address, Ledger, formatPeer
from fastpoetry.poem import Poem

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

_RELIEF_SECONDS = 0.25
"""How soon to look again for room, if nobody leaves meanwhile."""

_HURRY_SECONDS = 0.05
"""Between two looks at who lingers, while a stop waits for them: some round trips."""

_QUIET_SECONDS = 10.0
"""The least time between two records of a limit that stays reached."""

_RESERVED_DESCRIPTORS = 32
"""Kept from readers: for the reactor, logs, and the poems of a reload."""

_MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4 address begins with on an IPv6 socket (RFC 4291, 2.5.5.2)."""


class Limits(NamedTuple):
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


class Reader(ABC):
    """
    A connection, from when it is accepted until it is closed.

    @ivar poem: what it is sent.
    @ivar address: whose it is.
    """

    __slots__ = ()  # one that is a socket can have none from here

    poem: Poem
    address: Address

    @abstractmethod
    def closeAfterClient(self) -> bool:
        """
        Close a connection that was sent everything, if its client has closed its side too.

        @return: whether it is closed, and so no reader any more.
        """

    @abstractmethod
    def measure(self) -> int:
        """
        How many bytes of the poem the client has by now.
        """

    @abstractmethod
    def end(self) -> None:
        """
        Close a connection whose client has everything.
        """

    @abstractmethod
    def reset(self) -> None:
        """
        Close a connection so that the client can tell that it has not everything.
        """


@dataclass(slots=True)
class _Progress:
    """
    How far a reader has come that did not take everything at once.

    @ivar startedAt: when it came, in the clock's seconds.
    @ivar movedAt: when it was last seen to take something.
    @ivar takenBytes: how much of the poem the client had when last asked.
    """

    startedAt: float
    movedAt: float
    takenBytes: int = 0


class Arrival(Protocol):
    """
    A connection that is no reader yet: it has still to say who it is, or to wait for a poem.
    """

    def forgo(self) -> None:
        """
        End it, with a reset.
        """


class Pausable(Protocol):
    """
    What can leave connections in its backlog: any of Twisted's stream ports.
    """

    def stopReading(self) -> None:
        """
        Accept nothing for now.
        """

    def startReading(self) -> None:
        """
        Accept again.
        """


class Policy:
    """
    All readers of the process, and the rules they are under.

    @ivar limits: the rules' numbers.
    @ivar ledger: where every connection is counted.
    """

    _log = Logger()

    def __init__(self, limits: Limits, clock: IReactorTime) -> None:
        """
        @param clock: times the deadlines.
        """
        self.limits = limits
        self.ledger = Ledger(clock, limits.journalBudgetPerSecond)
        self._clock = clock
        self._soon = _Round(clock, _SOON_SECONDS, self._glance, self._watch)
        self._later = _Round(clock, _LATER_SECONDS, self._visit, self._visitLater)
        self._arriving: dict[Arrival, None] = {}
        self._sending: dict[Reader, _Progress] = {}
        self._lingering: dict[Reader, _Progress] = {}
        self._sources: dict[Reader, bytes] = {}
        self._perSource: Counter[bytes] = Counter()
        self._ports: list[Pausable] = []
        self._relief: IDelayedCall | None = None
        self._quietUntil: dict[str, float] = {}
        self._emptySince = clock.seconds()
        self._drained: Deferred[None] | None = None
        self._deadline: IDelayedCall | None = None
        descriptors, _ = getrlimit(RLIMIT_NOFILE)
        spare = (
            limits.maxReaders
            if descriptors == RLIM_INFINITY
            else descriptors - _RESERVED_DESCRIPTORS
        )
        self._mostReaders = max(1, min(limits.maxReaders, spare))

    def seconds(self) -> float:
        """
        The time that the deadlines go by.
        """
        return self._clock.seconds()

    @property
    def readers(self) -> int:
        """
        How many connections there are now.
        """
        known = len(self._sending) + len(self._lingering) + len(self._arriving)
        return known + self._soon.waiting

    @property
    def idleSeconds(self) -> float:
        """
        For how long nobody has been connected.
        """
        return 0.0 if self.readers else self._clock.seconds() - self._emptySince

    def addPort(self, port: Pausable) -> None:
        """
        Have a port wait when there is no room.
        """
        self._ports.append(port)

    def removePort(self, port: Pausable) -> None:
        """
        Leave a port alone from now on.
        """
        self._ports.remove(port)

    def isTooMany(self, address: Address) -> bool:
        """
        Whether a source already has as many readers under way as it may.

        Readers on a UNIX socket have no address to tell them apart, and are not counted.
        """
        source = _sourceOf(address)
        return source is not None and self._perSource[source] >= self.limits.maxReadersPerSource

    def makeRoom(self) -> int:
        """
        How many more readers may be here. Where that is none, who lingers goes, or the ports wait.
        """
        if self.readers >= self._mostReaders:
            self.pause(
                f"no more than {self._mostReaders} readers may be here "
                "(--max-readers, LimitNOFILE=)"
            )
        return max(0, self._mostReaders - self.readers)

    def arrive(self, arrival: Arrival) -> None:
        """
        A connection has to wait before it is a reader.
        """
        self._arriving[arrival] = None

    def depart(self, arrival: Arrival) -> None:
        """
        A connection waits no more, whatever becomes of it; again, it does nothing.
        """
        if arrival in self._arriving:
            del self._arriving[arrival]
            self._seeWhoIsLeft()

    def serve(self, readers: list[Reader], now: float) -> None:
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
        self._sending[reader] = _Progress(now, now)
        self._count(reader)
        self._later.add([reader], now)

    def finish(self, reader: Reader) -> None:
        """
        The whole poem of a reader that had begun is with the system: as in L{serve}.
        """
        self._lingering[reader] = self._sending.pop(reader)
        self._discount(reader)
        self.ledger.sent([reader])

    def leave(self, reader: Reader) -> None:
        """
        A connection is closed, by whomever.
        """
        if progress := self._sending.pop(reader, None):
            self.ledger.left(reader.poem, reader.address, progress.takenBytes)
        self._forget(reader)

    def turnAway(self, address: Address) -> None:
        """
        Count a connection that was reset because L{isTooMany}.
        """
        most = self.limits.maxReadersPerSource
        self.ledger.turnedAway(address, f"{most} readers of its address are under way")

    def pause(self, cause: str) -> None:
        """
        Leave what comes next in the backlogs, until somebody leaves or a moment has passed.

        @param cause: why, for the administrator: told now and then.
        """
        if self._relief is not None:
            return
        self._relief = self._clock.callLater(_RELIEF_SECONDS, self._resume)
        self._hurry()
        if self._relief is None:  # somebody who only lingered has left
            return
        for port in self._ports:
            port.stopReading()
        if self._mayTell("full"):
            self._log.warn(
                "{cause}; with {readers} here, new ones wait in the backlog",
                cause=cause,
                readers=self.readers,
                message_id="fbb58c123b214fef889bb057cdfb5239",
            )

    def drain(self) -> Deferred[None]:
        """
        Let the poems under way end, and then everybody go.

        @return: fires when nobody is connected any more, at the latest after C{drainSeconds}.
        """
        if self._drained is None:
            self._drained = Deferred()
            self._deadline = self._clock.callLater(self.limits.drainSeconds, self._cutShort)
            for arrival in list(self._arriving):
                arrival.forgo()
            self._hurryOn()
            self._endDrain()
        waiter: Deferred[None] = Deferred()
        self._drained.chainDeferred(waiter)
        return waiter

    def _hurryOn(self) -> None:
        """
        Look again and again who has everything by now, since a stop waits for them all.
        """
        self._hurry()
        if self.readers and self._deadline is not None:
            self._clock.callLater(_HURRY_SECONDS, self._hurryOn)

    def _seeWhoIsLeft(self) -> None:
        """
        Somebody has gone: there is room for another, or nobody is left.
        """
        if self._relief is not None:
            self._resume()
        if not self.readers:
            self._emptySince = self._clock.seconds()
            self._endDrain()

    def _forget(self, reader: Reader) -> None:
        """
        Have nothing to do with a reader any more; again, it does nothing.
        """
        self._lingering.pop(reader, None)
        self._discount(reader)
        self._seeWhoIsLeft()

    def _count(self, reader: Reader) -> None:
        """
        Count a reader for its source.
        """
        source = _sourceOf(reader.address)
        if source is not None:
            self._sources[reader] = source
            self._perSource[source] += 1

    def _discount(self, reader: Reader) -> None:
        """
        Count a reader no more, if it was counted.
        """
        source = self._sources.pop(reader, None)
        if source is not None:
            self._perSource[source] -= 1
            if not self._perSource[source]:
                del self._perSource[source]

    @staticmethod
    def _glance(reader: Reader) -> bool:
        """
        End a reader that has closed, as most have by now; whether it is still there.
        """
        return not reader.closeAfterClient()

    def _watch(self, readers: list[Reader], now: float) -> None:
        """
        Have deadlines for those who were served at once and have not closed soon.
        """
        for reader in readers:
            self._lingering[reader] = _Progress(now, now)
        self._visitLater(readers, now)
        self._seeWhoIsLeft()  # of most, nothing; where all are here, a port looks once in vain

    def _visitLater(self, readers: list[Reader], now: float) -> None:
        """
        Come back to readers, if there are any.
        """
        if readers:
            self._later.add(readers, now)

    def _visit(self, reader: Reader, lingerSeconds: float = LINGER_SECONDS) -> bool:
        """
        See how far a reader has come, and end what should end; whether to visit it again.

        @param lingerSeconds: how long one that has everything may stay.
        """
        progress = self._sending.get(reader) or self._lingering.get(reader)
        if progress is None:
            return False
        if reader in self._lingering and reader.closeAfterClient():
            self._forget(reader)
            return False
        taken = reader.measure()
        now = self._clock.seconds()
        if taken > progress.takenBytes:
            progress.takenBytes = taken
            progress.movedAt = now
        if taken == len(reader.poem.text):
            if self._drained is not None or now - progress.movedAt >= lingerSeconds:
                reader.end()
                return False
        elif cause := self._overdue(progress, now) or self._crowding(reader):
            self._giveUp(reader, cause)
            return False
        return True

    def _crowding(self, reader: Reader) -> str:
        """
        Why a source has too many readers that do not take what was sent, or nothing.

        A small poem goes to the system at once and is not counted as under way: not before it is
        found waiting there.
        """
        if reader in self._sending or reader in self._sources:
            return ""
        if self.isTooMany(reader.address):
            return f"{self.limits.maxReadersPerSource} readers of its address take nothing"
        self._count(reader)
        return ""

    def _overdue(self, progress: _Progress, now: float) -> str:
        """
        Why a reader has had its time, or nothing.
        """
        idle = now - progress.movedAt
        if idle >= self.limits.stallSeconds:
            return f"it took nothing for {idle:.0f} s"
        age = now - progress.startedAt
        if (
            age >= self.limits.stallSeconds
            and progress.takenBytes < age * self.limits.minRateBytesPerSecond
        ):
            return f"it took {progress.takenBytes / age:.0f} bytes/s"
        return ""

    def _giveUp(self, reader: Reader, cause: str) -> None:
        """
        Reset a reader. One that lingers was counted when its poem went to the system, so that it
        has no record; the source that has too many of them has one now and then.
        """
        if progress := self._sending.pop(reader, None):
            self.ledger.gaveUp(reader.poem, reader.address, progress.takenBytes, cause)
        elif self._mayTell("lingering"):
            self._log.warn(
                "gave up on {peer}, who does not take the last {bytes} bytes: {cause}",
                peer=formatPeer(reader.address),
                bytes=len(reader.poem.text) - self._lingering[reader].takenBytes,
                cause=cause,
                message_id="8661237894b24e009d5b2e4ed36bd13c",
            )
        reader.reset()

    def _mayTell(self, what: str) -> bool:
        """
        Whether it is time for another record of something that may go on and on.
        """
        now = self._clock.seconds()
        if now < self._quietUntil.get(what, 0.0):
            return False
        self._quietUntil[what] = now + _QUIET_SECONDS
        return True

    def _hurry(self) -> None:
        """
        Close who has everything, since others wait for the place.
        """
        self._soon.hurry()
        for reader in list(self._lingering):
            self._visit(reader, 0.0)

    def _resume(self) -> None:
        """
        Accept again.
        """
        if self._relief is not None:
            if self._relief.active():
                self._relief.cancel()
            self._relief = None
            for port in self._ports:
                port.startReading()

    def _cutShort(self) -> None:
        """
        Reset who is still there when a stop has waited long enough.
        """
        cause = f"the server stops, and has waited {self.limits.drainSeconds:g} s"
        for reader in [*self._sending, *self._lingering]:
            self._giveUp(reader, cause)

    def _endDrain(self) -> None:
        """
        Tell a stop that waits, if nobody is left.
        """
        if self._deadline is not None and not self.readers and self._drained is not None:
            if self._deadline.active():
                self._deadline.cancel()
            self._deadline = None
            self.ledger.close()
            self._drained.callback(None)


def _sourceOf(address: Address) -> bytes | None:
    """
    What counts as one source: an IPv4 address, or the /64 of an IPv6 one, all of which is commonly
    one customer's (RFC 6177). Nothing on a UNIX socket.
    """
    if not isinstance(address, tuple):
        return None
    host = address[0].partition("%")[0]
    try:
        packed = inet_pton(AF_INET6, host)
    except OSError:  # IPv4, or whatever a PROXY header may say
        return host.encode()
    return packed if packed.startswith(_MAPPED) else packed[:8]


class _Round:
    """
    Readers to visit, each after the same delay.

    Since all wait equally long, the queue is in order of time by itself, and costs one timer
    however many wait in it.

    @ivar waiting: how many readers.
    """

    _mostAtOnce = 64
    """Visits between two looks at the sockets, so that nobody waits for a round to end."""

    def __init__(
        self,
        clock: IReactorTime,
        delaySeconds: float,
        visit: Callable[[Reader], bool],
        keep: Callable[[list[Reader], float], None],
    ) -> None:
        """
        @param visit: what to do with each reader; whether it is still to be looked after.
        @param keep: takes those who are, and the clock's seconds.
        """
        self.waiting = 0
        self._clock = clock
        self._delaySeconds = delaySeconds
        self._visit = visit
        self._keep = keep
        self._queue: deque[tuple[float, list[Reader]]] = deque()
        self._isTimed = False

    def add(self, readers: list[Reader], now: float) -> None:
        """
        Visit readers after the delay.
        """
        self.waiting += len(readers)
        self._queue.append((now + self._delaySeconds, readers))
        if not self._isTimed:
            self._isTimed = True
            self._clock.callLater(self._delaySeconds, self._go)

    def hurry(self) -> None:
        """
        Visit everybody now, due or not.
        """
        now = self._clock.seconds()
        for _ in range(len(self._queue)):  # and not those who are kept in this very queue
            self._look(now)

    def _go(self) -> None:
        """
        Visit who is due, and come back for the next.
        """
        now = self._clock.seconds()
        visits = 0
        try:
            while self._queue and self._queue[0][0] <= now and visits < self._mostAtOnce:
                visits += self._look(now)
        finally:  # whatever is wrong with one reader, the others have deadlines too
            self._comeBack(now)

    def _look(self, now: float) -> int:
        """
        Visit those who came together; how many they are.
        """
        _, readers = self._queue.popleft()
        self.waiting -= len(readers)
        kept = []
        rest = iter(readers)
        try:
            for reader in rest:
                if self._visit(reader):
                    kept.append(reader)
        finally:
            kept += rest
            self._keep(kept, now)
        return len(readers)

    def _comeBack(self, now: float) -> None:
        """
        Time the next visit, if there is one to make.
        """
        self._isTimed = bool(self._queue)
        if self._queue:
            late = now - self._queue[0][0]
            # Half a delay at least, so that a round under load is for many.
            pause = 0.0 if late >= 0 else max(-late, self._delaySeconds / 2)
            self._clock.callLater(pause, self._go)
