"""The events of a life, and the promises that hold after each of them (SECURITY.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from messages import GAVE_UP, GAVE_UP_NEAR_THE_END, LEFT, SENT, TURNED_AWAY

from fastpoetry.delivery.sockets import countBacklog
from lives.kernel import Faults
from lives.process import LIMITS, WAYS, Process
from lives.reader import Client, mayVanish
from lives.world import CALM, LATE, SIZES, SOURCES, Upstream, World

HEADERS = {
    "whole": b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 10000\r\n",
    "other": b"PROXY TCP4 192.0.2.8 192.0.2.1 40000 10000\r\n",
    "half": b"PROXY TCP4 192.0",
    "bad": b"GET / HTTP/1.0\r\n\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
}
"""The first bytes of a client on the port that needs a PROXY header."""

_SLACK_SECONDS = 3.0
"""Deadlines are checked once a second; a reader that has everything may linger for two."""

_MOST_ERRORS = 5
"""Each kind of failure is as likely as any other, with so many errors or repetitions."""

_NETWORK_WAYS = [way for way in WAYS if way != "unix"]

_MOST_DEADLINES = 200
"""A life has fewer clients, and each of them leaves at a deadline."""

EVENTS: Counter[str] = Counter()
"""The number of times that each event has happened, in all lives."""

_ways = st.sampled_from(WAYS)
_networkWays = st.sampled_from(_NETWORK_WAYS)
_sources = st.sampled_from(SOURCES)
_sizes = st.sampled_from(sorted(SIZES))
_index = st.integers(0, 30)
_times = st.sampled_from([0.001, 0.05, 0.12, 0.3, 1.0, 2.5, 6.0, 14.0, 45.0, 86_400.0])
_faults = st.sampled_from(
    [
        (kind, number)
        for kind, numbers in Faults.KINDS.items()
        for number in islice(cycle(numbers), _MOST_ERRORS)
    ]
)


class Life(RuleBasedStateMachine):
    """One life of a server whose poem comes from a file."""

    @initialize(size=_sizes, isKilled=st.booleans())
    def begin(self, size: str, isKilled: bool) -> None:
        """A process starts. At the end of its life it is killed, or it stops."""
        self.isKilled = isKilled
        self.world = World(size)
        self.world.start()

    def _happen(self, name: str) -> None:
        EVENTS[name] += 1

    def _pick(self, index: int) -> Client | None:
        connected = [client for _, client in self.world.clients if client.outcome is None]
        return connected[index % len(connected)] if connected else None

    def _pickProcess(self, index: int) -> Process | None:
        processes = self.world.processes
        return processes[index % len(processes)] if processes else None

    # Clients.

    @rule(way=_ways, source=_sources, count=st.integers(1, 5))
    def arrive(self, way: str, source: str, count: int) -> None:
        """Clients connect, and send nothing."""
        self._happen(f"arrive {way}")
        for _ in range(count):
            self.world.arrive(way, source)
        self.world.settle()

    @rule(source=_sources, header=st.sampled_from(sorted(HEADERS)))
    def introduce(self, source: str, header: str) -> None:
        """A balancer connects for a client, with a valid, partial or invalid header."""
        self._happen(f"introduce {header}")
        self.world.arrive("header", source).write(HEADERS[header])
        self.world.settle()

    @rule(index=_index, size=st.sampled_from([1, 100_000]))
    def write(self, index: int, size: int) -> None:
        """A client writes bytes."""
        client = self._pick(index)
        if client is not None:
            self._happen("write")
            client.write(b"w" * size)
            self.world.settle()

    @rule(index=_index, most=st.sampled_from([1, 5_000]))
    def readLittle(self, index: int, most: int) -> None:
        """A client reads a little."""
        client = self._pick(index)
        if client is not None:
            self._happen("read a little")
            client.read(self.world.time.now, most)
            self.world.settle()

    @rule(index=_index)
    def readAll(self, index: int) -> None:
        """A client reads everything available."""
        client = self._pick(index)
        if client is not None:
            self._happen("read all")
            self.world.readAll([client])

    @rule(index=_index)
    def finish(self, index: int) -> None:
        """A client closes its side, and reads on."""
        client = self._pick(index)
        if client is not None:
            self._happen("half-close")
            client.finish()
            self.world.settle()

    @rule(index=_index, withReset=st.booleans())
    def leave(self, index: int, withReset: bool) -> None:
        """A client closes its connection, or resets it."""
        client = self._pick(index)
        if client is not None:
            self._happen("reset" if withReset else "close")
            client.leave(withReset=withReset)
            self.world.settle()

    @rule(index=_index)
    def vanish(self, index: int) -> None:
        """A client takes no further packet, and acknowledges none."""
        client = self._pick(index)
        if client is not None and client.isTCP and mayVanish():
            self._happen("vanish")
            client.vanish()

    @rule(way=_networkWays, source=_sources)
    def vanishAtOnce(self, way: str, source: str) -> None:
        """A client vanishes before the server sends it anything."""
        if mayVanish():
            self._happen(f"vanish at once {way}")
            self._lose(way, source)

    def _lose(self, way: str, source: str) -> Client:
        client = self.world.arrive(way, source)
        if way == "header":
            client.write(HEADERS["whole"])
        client.vanish()
        self.world.settle()
        return client

    @rule(seconds=_times)
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._happen(f"wait {seconds:g} s")
        self.world.wait(seconds)

    # The poem.

    @rule(size=_sizes)
    def replace(self, size: str) -> None:
        """Another poem takes the place of the old one."""
        self._happen("replace")
        self.world.poetry.replace(size)

    @rule()
    def spoil(self) -> None:
        """The poem's file becomes invalid."""
        self._happen("spoil")
        self.world.poetry.isBroken = True

    @rule(index=_index, hangs=st.booleans())
    def reload(self, index: int, hangs: bool) -> None:
        """A process reloads; reading the file may hang."""
        process = self._pickProcess(index)
        if process is not None:
            self._happen("reload" + " and hang" * hangs)
            self.world.poetry.hangs = hangs
            reloaded = self.world.perform(process, process.source.reload)
            reloaded.addErrback(lambda _: None)
            self.world.settle()

    @rule()
    def goOn(self) -> None:
        """The disk answers again."""
        self._happen("the disk answers")
        self.world.poetry.goOn()
        self.world.settle()

    # Processes.

    @precondition(lambda self: len(self.world.processes) < 2)
    @rule()
    def start(self) -> None:
        """A process starts: the first, or a second one on the same sockets."""
        self._happen(f"start beside {len(self.world.processes)}")
        self.world.poetry.isBroken = False
        self.world.start()

    @rule(index=_index, restarts=st.booleans(), storeWorks=st.booleans())
    def stop(self, index: int, restarts: bool, storeWorks: bool) -> None:
        """A process stops; another one may take its place and its readers."""
        process = self._pickProcess(index)
        if process is None:
            return
        self._happen("restart" if restarts else "stop")
        self.world.store.isBroken = not storeWorks
        waiting: list[Client] = []
        self._end(process, lambda: waiting.append(self.world.arrive("fast", CALM)))
        if restarts:
            self.world.poetry.isBroken = False
            self.world.start()
            self._serve(waiting, turns=100)
        elif not self.world.processes:
            self.world.store.clear()

    def _end(self, process: Process, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.world.faults.clear()
        self.world.poetry.goOn()
        self.world.stop(process, meanwhile)
        checkCounts(process)
        now = self.world.time.now  # a call that is due may be late after a fault
        timers = [call for call in process.clock.getDelayedCalls() if call.getTime() > now]
        assert not timers, f"a process that has stopped has timers: {timers}"

    def _serve(self, clients: list[Client], turns: int, waits: int = 0) -> None:
        """
        Have clients read until they have the whole poem, or the turns are used up.

        @param waits: turns in which they do not read.
        """
        for turn in range(turns):
            if turn >= waits:
                self.world.readAll(clients)
            if all(client.outcome for client in clients):
                break
            self._meanwhile(0.3)
        for client in clients:
            # A proxy in an outage has no poem in time, and asks its upstream again later.
            isTurnedAway = client.outcome == "reset" or not client.isTCP
            if self.world.upstream and isTurnedAway and not client.seen:
                continue
            assert client.outcome == "end", f"a new client got {client.outcome}"
            assert client.isWhole(self.world.poetry.versions), "a new client got a short poem"

    @rule(index=_index)
    def kill(self, index: int) -> None:
        """A process is killed with SIGKILL."""
        process = self._pickProcess(index)
        if process is not None:
            self._happen("kill")
            self.world.exit(process)

    # The machine.

    @rule(faults=st.lists(_faults, min_size=1, max_size=3), times=st.integers(1, 3))
    def fail(self, faults: list[tuple[str, int]], times: int) -> None:
        """The next system calls of up to three kinds fail."""
        self.world.wasFaulty = True
        for fault in faults:
            self._happen(f"fail {fault[0]}")
            self.world.faults.plan(*fault, times)

    @rule(index=_index, isShort=st.booleans())
    def runShort(self, index: int, isShort: bool) -> None:
        """Few descriptors are left, or there are enough again."""
        process = self._pickProcess(index)
        if process is not None:
            self._happen("descriptors " + ("run short" if isShort else "return"))
            process.policy.firstReserved = 0 if isShort else 2**31
            self.world.settle()

    @rule(stops=st.booleans())
    def journal(self, stops: bool) -> None:
        """The journal stops reading, or reads on: each record has come, or was counted as lost."""
        self._happen("the journal " + ("stops" if stops else "reads on"))
        if stops:
            self.world.journal.stop()
        else:
            self.world.journal.goOn()

    # Promises.

    @invariant()
    def promisesHold(self) -> None:
        """The promises in SECURITY.md hold after each event."""
        self.noShortPoemLooksWhole()
        self.limitsHold()
        self.silenceTakesNoPlace()
        self.nobodyOutlivesTheDeadline()
        self.eachPortListens()
        self.nobodyWaitsWhileThereIsRoom()
        self.noTraceback()

    def noShortPoemLooksWhole(self) -> None:
        """An ended poem is whole, or was reset; on a UNIX socket there is no reset (P2)."""
        for way, client in self.world.clients:
            if way == "tls":
                continue  # its bytes are a TLS alert about the handshake
            poems = self.world.poetry.versions
            assert client.isPart(poems), "a client got what is not how a poem begins"
            if client.outcome == "end" and client.isTCP:
                isCheck = way == "header" and not client.seen
                assert isCheck or client.isWhole(poems), (
                    f"a short poem looks whole: {len(client.seen)} bytes by {way}"
                )

    def limitsHold(self) -> None:
        """No process has more readers than its limits, in all and of one source (P5)."""
        for process in self.world.processes:
            assert process.policy.readers <= LIMITS.maxReaders
            if not process.takenOver:
                for count in process.policy._quota._counts.values():
                    assert count <= LIMITS.maxReadersPerSource, f"{count} readers of one source"

    def silenceTakesNoPlace(self) -> None:
        """One source has no more silent connections than it may have readers (P5)."""
        silent = Counter(
            client.source
            for way, client in self.world.clients
            if way == "tls" and client.isConnected
        )
        most = LIMITS.maxReadersPerSource * len(self.world.processes)
        most += countBacklog(self.world.sockets["tls"])
        if self.world.processes and not self.world.faults.isPending:
            for source, count in silent.items():
                assert count <= most, f"{count} connections of {source} say nothing"

    def nobodyOutlivesTheDeadline(self) -> None:
        """Each connection of a process was accepted recently, or has progressed recently (P4)."""
        # A client's system may acknowledge late what it took, which counts as progress.
        since = self.world.time.now - 2 * LIMITS.stallSeconds - _SLACK_SECONDS
        if self.world.faults.isPending or self.world.resumedAt >= since:
            return
        recent = sum(client.movedAt >= since for _, client in self.world.clients)
        for process in self.world.processes:
            recent += sum(at >= since for at in process.acceptedAt)
        present = sum(process.policy.readers for process in self.world.processes)
        assert present <= recent, f"{present} connections, of which {recent} may be here"

    def eachPortListens(self) -> None:
        """A port is in the reactor, or a timer will put it there (P3)."""
        for process in self.world.processes:
            reading = process.reactor.getReaders()
            for port in process.ports:
                isReading = any(each.fileno() == port.fileno() for each in reading)
                assert isReading or process.clock.getDelayedCalls(), "a port is deaf"

    def nobodyWaitsWhileThereIsRoom(self) -> None:
        """The backlog is empty, unless a process is at its limit or pauses (P3)."""
        if self.world.faults.isPending:
            return
        for process in self.world.processes:
            reading = process.reactor.getReaders()
            for way, listener in process.listeners.items():
                isReading = any(port in reading for port in listener._ports)
                if isReading and process.policy.room and way != "unix":
                    assert not countBacklog(self.world.sockets[way]), f"clients wait at {way}"

    def noTraceback(self) -> None:
        """No record has a traceback, unless a system call has failed."""
        if not self.world.wasFaulty:
            assert not self.world.failures, self.world.failures[0]["log_failure"].getTraceback()

    def teardown(self) -> None:
        """Whatever has happened, everything ends well once the faults are over."""
        if hasattr(self, "world"):
            try:
                self._recover()
            finally:
                left = self.world.close()
            assert not left, f"descriptors are left over: {left}"

    def _recover(self) -> None:
        world = self.world
        world.faults.clear()
        world.poetry.isBroken = False
        world.poetry.goOn()
        world.journal.goOn()
        for process in world.processes:
            process.policy.firstReserved = 2**31
        if not world.processes:
            world.start()
        world.readAll([client for _, client in world.clients])
        self.promisesHold()
        self._waitForDeadlines()
        if mayVanish():
            self._loseTheLast()
        for process in world.processes:
            assert not process.policy._quota._counts, "a source has lost its place"
        self._serveTheLast()
        if self.isKilled:
            self._killAll()
        else:
            self._stopAll()

    def _waitForDeadlines(self) -> None:
        """Wait until no client is left. The promises let none stay for ever."""
        for _ in range(_MOST_DEADLINES):
            self._meanwhile(LIMITS.stallSeconds)
            self.promisesHold()
            readers = sum(process.policy.readers for process in self.world.processes)
            waiting = sum(countBacklog(self.world.sockets[way]) for way in _NETWORK_WAYS)
            if not (readers or waiting):
                return
        raise AssertionError(f"{readers} readers and {waiting} other clients are left")

    def _serveTheLast(self) -> None:
        """New clients get the whole poem, also a client that wrote first and reads late (P1)."""
        world = self.world
        last = [world.arrive(way, CALM) for way in ("fast", "unix", "standard")]
        late = world.arrive("fast", LATE)
        late.write(b"w" * 100_000)
        world.settle()
        self._serve(last, turns=20)
        self._serve([late], turns=20, waits=10)

    def _loseTheLast(self) -> None:
        """A client that has vanished is reset at the deadline, with a record (P4)."""
        lost = [self._lose(way, CALM) for way in ("fast", "standard", "header")]
        told = self._countGivenUp()
        self._waitForDeadlines()
        assert self._countGivenUp() > told, "no record tells of the clients that vanished"
        for client in lost:
            client.comeBack(self.world.time.now)
            assert client.outcome == "reset", "the system still sends to a client that has vanished"

    def _countGivenUp(self) -> int:
        kinds = GAVE_UP, GAVE_UP_NEAR_THE_END, TURNED_AWAY
        return sum(process.records[kind] for process in self.world.processes for kind in kinds)

    def _meanwhile(self, seconds: float) -> None:
        """Let time pass, while the rest of the world does its part."""
        self.world.wait(seconds)

    def _announce(self, size: str) -> None:
        """Have all processes serve a new poem."""
        self.world.poetry.replace(size)
        for process in self.world.processes:
            reloaded = self.world.perform(process, process.source.reload)
            reloaded.addErrback(lambda _: None)
        self._meanwhile(0.3)

    def _stopAll(self) -> None:
        """
        A restart hands over a reader in mid-poem. After a stop, the system sends a poem that it
        has, whatever the client wrote (P1).
        """
        self.world.store.isBroken = False
        for size, restarts in (("long", True), ("middle", False)):
            self._announce(size)
            client = self.world.arrive("fast", CALM)
            client.write(b"w" * 1_000)
            self.world.settle()
            for process in list(self.world.processes):
                self._end(process)
            if restarts:
                self.world.start()
            self.world.readAll([client])
            isWaiting = not client.seen and client.outcome != "end"  # a proxy may have no poem
            isWhole = client.outcome == "end" and client.isWhole(self.world.poetry.versions)
            assert isWaiting or isWhole, f"a client got {client.outcome} after a stop"

    def _killAll(self) -> None:
        """
        A killed process resets its clients in mid-poem, also after another process on its sockets
        has stopped. Clients in the backlog wait for the next process (P3).
        """
        world = self.world
        if len(world.processes) < 2:
            world.start()
        self._end(world.processes[-1])
        self._announce("long")
        last = [world.arrive(way, CALM) for way in ("fast", "standard")]
        world.settle()
        for process in list(world.processes):
            world.exit(process)
        world.readAll(last)
        for client in last:
            isWaiting = not (client.outcome or client.seen)
            # A proxy may have an older, short poem, which went to the system at once.
            isWhole = client.isWhole(world.poetry.versions)
            assert client.outcome == "reset" or isWaiting or isWhole, (
                f"a client of a killed process got {client.outcome}"
            )


class ProxyLife(Life):
    """One life of a proxy, whose poem comes from an upstream."""

    @initialize(size=_sizes, isKilled=st.booleans())
    def begin(self, size: str, isKilled: bool) -> None:
        """A process starts, and its upstream is there."""
        self.isKilled = isKilled
        self.world = World(size, isProxy=True)
        self.world.start()

    @property
    def upstream(self) -> Upstream:
        """The server that the proxy asks."""
        assert self.world.upstream is not None
        return self.world.upstream

    @rule()
    def answer(self) -> None:
        """The upstream sends its poem to the processes that ask."""
        self._happen("the upstream answers")
        self.upstream.answer()
        self.world.settle()

    @rule(share=st.sampled_from([0.0, 0.5]))
    def lie(self, share: float) -> None:
        """The upstream resets its connections, after a part of the poem."""
        self._happen("the upstream lies")
        self.upstream.answer(share)
        self.world.settle()

    @rule(isUp=st.booleans())
    def change(self, isUp: bool) -> None:
        """The upstream goes down, or comes back."""
        self._happen("the upstream comes back" if isUp else "the upstream goes down")
        if isUp:
            self.upstream.comeBack()
        elif self.upstream.isUp:
            self.upstream.goDown()
        self.world.settle()

    def _meanwhile(self, seconds: float) -> None:
        self.upstream.comeBack()
        until = self.world.time.now + seconds
        while self.world.time.now < until:
            if self.upstream.answer():
                self.world.settle()
            self.world.wait(min(0.5, until - self.world.time.now))


def checkCounts(process: Process) -> None:
    """Each connection of a stopped process was counted once, and has one record."""
    counts = process.policy.ledger.counts
    came = len(process.acceptedAt) + process.takenOver
    ended = counts.connections + counts.checks + process.handedOver
    assert came == ended, f"{came} connections came and {ended} ended: {counts}"
    told = process.records
    assert (told[SENT], told[LEFT], told[TURNED_AWAY]) == (
        counts.poems, counts.left, counts.turnedAway,
    )  # fmt: skip
    assert told[GAVE_UP] <= counts.gaveUp
