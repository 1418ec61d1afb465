"""
The rules for readers: how long, how many, and what becomes of them.

One object a process decides for the fast port and for the standard protocol alike. It touches no
socket: it asks each reader now and then how far it has come, and tells it when to end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from socket import AF_INET6, inet_pton
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from fastpoetry.ledger import Address, Ledger, formatPeer
from fastpoetry.poem import Poem

LINGER_SECONDS = 2.0
"""
How long a client that has every byte may take to close its side.

Closing while it still writes would answer it with a reset (RFC 1122, 4.2.2.13), and some systems
let that overtake what is yet to be read. Apache's httpd lingers as long (MAX_SECS_TO_LINGER).
"""

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
    @ivar takenBytes: how much of the poem the client had when last asked.
    @ivar startedAt: when it came, in the clock's seconds.
    @ivar movedAt: when it was last seen to take something.
    """

    __slots__ = ("address", "movedAt", "poem", "startedAt", "takenBytes")

    def __init__(self, poem: Poem, address: Address, now: float) -> None:
        """
        @param now: the clock's seconds.
        """
        self.poem = poem
        self.address = address
        self.takenBytes = 0
        self.startedAt = self.movedAt = now

    @abstractmethod
    def hasClosed(self) -> bool:
        """
        Whether a client that was sent everything has closed its side too.
        """

    @abstractmethod
    def measure(self) -> int:
        """
        How many bytes of the poem the client has by now.
        """

    @abstractmethod
    def close(self) -> None:
        """
        Close a connection whose client has everything.
        """

    @abstractmethod
    def reset(self) -> None:
        """
        Close a connection so that the client can tell that it has not everything.
        """


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
        self._rounds = _Rounds(clock, self._glance, self._visit)
        self._arriving: dict[Arrival, None] = {}
        self._sending: dict[Reader, None] = {}
        self._lingering: dict[Reader, None] = {}
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
        return len(self._sending) + len(self._lingering) + len(self._arriving)

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

    def isFull(self) -> bool:
        """
        Whether there are as many readers as may be; then the ports are made to wait.
        """
        if self.readers < self._mostReaders:
            return False
        self.pause(
            f"no more than {self._mostReaders} readers may be here (--max-readers, LimitNOFILE=)"
        )
        return self.readers >= self._mostReaders

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

    def begin(self, reader: Reader) -> None:
        """
        A reader's poem is under way, and did not go out at once.
        """
        self._sending[reader] = None
        self._count(reader)
        self._rounds.add(reader, _Rounds.SLOW, reader.startedAt)

    def finish(self, reader: Reader, now: float) -> None:
        """
        A reader's whole poem is with the system: count it, and let the client close first.

        @param now: the clock's seconds, or a moment before.
        """
        if not self._stopSending(reader):  # or it is visited already
            self._rounds.add(reader, _Rounds.QUICK, now)
        self._lingering[reader] = None
        self.ledger.sent(reader.poem, reader.address)

    def leave(self, reader: Reader) -> None:
        """
        A connection is closed, by whomever.
        """
        if reader in self._lingering:
            del self._lingering[reader]
            self._discount(reader)
        elif self._stopSending(reader):
            self.ledger.left(reader.poem, reader.address, reader.takenBytes)
        self._seeWhoIsLeft()

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

    def _stopSending(self, reader: Reader) -> bool:
        """
        Take a reader from those under way; whether it was among them.
        """
        if reader not in self._sending:
            return False
        del self._sending[reader]
        self._discount(reader)
        return True

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

    def _glance(self, reader: Reader) -> bool:
        """
        End a reader that has closed, as most have by now; whether to visit it.
        """
        if reader not in self._lingering:
            return False
        if reader.hasClosed():
            reader.close()
            return False
        return True

    def _visit(self, reader: Reader, lingerSeconds: float = LINGER_SECONDS) -> bool:
        """
        See how far a reader has come, and end what should end; whether to visit it again.

        @param lingerSeconds: how long one that has everything may stay.
        """
        if reader not in self._sending and not self._glance(reader):
            return False
        taken = reader.measure()
        now = self._clock.seconds()
        if taken > reader.takenBytes:
            reader.takenBytes = taken
            reader.movedAt = now
        if taken == len(reader.poem.text):
            if self._drained is not None or now - reader.movedAt >= lingerSeconds:
                reader.close()
                return False
        elif cause := self._overdue(reader, now) or self._crowding(reader):
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

    def _overdue(self, reader: Reader, now: float) -> str:
        """
        Why a reader has had its time, or nothing.
        """
        idle = now - reader.movedAt
        if idle >= self.limits.stallSeconds:
            return f"it took nothing for {idle:.0f} s"
        age = now - reader.startedAt
        if (
            age >= self.limits.stallSeconds
            and reader.takenBytes < age * self.limits.minRateBytesPerSecond
        ):
            return f"it took {reader.takenBytes / age:.0f} bytes/s"
        return ""

    def _giveUp(self, reader: Reader, cause: str) -> None:
        """
        Reset a reader. One that lingers was counted when its poem went to the system, so that it
        has no record; the source that has too many of them has one now and then.
        """
        if self._stopSending(reader):
            self.ledger.gaveUp(reader.poem, reader.address, reader.takenBytes, cause)
        elif self._mayTell("lingering"):
            self._log.warn(
                "gave up on {peer}, who does not take the last {bytes} bytes: {cause}",
                peer=formatPeer(reader.address),
                bytes=len(reader.poem.text) - reader.takenBytes,
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


class _Rounds:
    """
    When to visit which reader: soon after its poem was sent, and then every second.

    Everyone in one queue waits equally long, so a queue is in order of time by itself, and costs
    one timer however many wait in it.
    """

    QUICK, SLOW = 0, 1

    _delays = (0.05, 1.0)
    """Seconds: by when most clients of this continent have closed, and what deadlines need."""

    _mostAtOnce = 64
    """Visits between two looks at the sockets, so that nobody waits for a round to end."""

    def __init__(self, clock: IReactorTime, *visits: Callable[[Reader], bool]) -> None:
        """
        @param visits: what to do with the readers of each queue; whether to come again.
        """
        self._clock = clock
        self._visits = visits
        self._queues: list[deque[tuple[float, Reader]]] = [deque() for _ in self._delays]
        self._underWay: set[int] = set()

    def add(self, reader: Reader, queue: int, now: float) -> None:
        """
        Visit a reader after the delay of a queue, and then on.
        """
        delay = self._delays[queue]
        self._queues[queue].append((now + delay, reader))
        if queue not in self._underWay:
            self._underWay.add(queue)
            self._clock.callLater(delay, self._go, queue)

    def _go(self, queue: int) -> None:
        """
        Visit who is due, and come back for the next.
        """
        waiting = self._queues[queue]
        now = self._clock.seconds()
        try:
            for _ in range(self._mostAtOnce):
                if not waiting or waiting[0][0] > now:
                    break
                reader = waiting.popleft()[1]
                if self._visits[queue](reader):
                    self.add(reader, self.SLOW, now)
        finally:  # whatever is wrong with one reader, the others have deadlines too
            self._comeBack(queue, now)

    def _comeBack(self, queue: int, now: float) -> None:
        """
        Time the next visit, if there is one to make.
        """
        waiting = self._queues[queue]
        if waiting:
            # Half a delay at least, so that a round under load is for many.
            pause = (
                max(waiting[0][0] - now, self._delays[queue] / 2) if waiting[0][0] > now else 0.0
            )
            self._clock.callLater(pause, self._go, queue)
        else:
            self._underWay.remove(queue)
