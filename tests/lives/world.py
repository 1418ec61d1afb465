"""A life: the time, the sockets that systemd holds, the processes, and the clients."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple
from functools import cache, partial
from typing import Any, TypeVar
from unittest import mock

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.logger import LogEvent, globalLogPublisher

from fastpoetry import service
from fastpoetry.apart.poems import Found
from fastpoetry.delivery.sockets import RESET_ON_CLOSE
from fastpoetry.poem import Poem, PoemError, Selection
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.service import PoetryProxyService
from fastpoetry.service import PoetryService
from fastpoetry.systemd.clock import MonotonicReactor
from lives.journal import openJournal
from lives.kernel import Faults, Time, controlled, findLoopback, onOneProcessor
from lives.process import LIMITS, WAYS, Process, Store
from lives.reader import Client

_T = TypeVar("_T")

SIZES = {"short": 90, "middle": 60_000, "long": 400_000}
"""
Bytes. A socket's buffer holds the first size at once, the second in part, the third in many pieces.
"""

SOURCES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
CALM, LATE = "127.0.0.8", "127.0.0.9"
"""Sources that no event of a life uses, for the last readers."""

FRESHNESS = Freshness(
    maxAgeSeconds=2.0, revalidateSeconds=5.0, errorSeconds=20.0, connectSeconds=2.0,
    idleSeconds=2.0, totalSeconds=4.0,
)  # fmt: skip

_LONG_SECONDS = 60.0
"""A longer time passes at once, as for a machine that was suspended."""


@cache
def makePoem(version: int, size: str) -> Poem:
    """
    Make a poem that differs from all others in each of its lines.

    @param version: its number.
    @param size: a key of L{SIZES}.
    """
    lines = (b"%03d %07d\n" % (version, number) for number in range(SIZES[size] // 12 + 1))
    return Poem("poem", b"".join(lines), "/poetry/poem.txt")


class Poetry(Selection):
    """
    The poem's file, and whether it can be read.

    @ivar versions: every poem so far.
    @ivar isBroken: whether the file is not a poem at present.
    @ivar hangs: whether reading the file does not end.
    """

    def __init__(self, size: str) -> None:
        self.versions = [makePoem(0, size)]
        self.isBroken = self.hangs = False
        self._waiting: list[Callable[[], None]] = []

    def replace(self, size: str) -> None:
        """Replace the poem."""
        self.versions.append(makePoem(len(self.versions), size))
        self.isBroken = False

    @property
    def reading(self) -> partial[Found]:
        """Reads the poem."""
        return partial(self._read)

    def _read(self) -> Found:
        if self.isBroken:
            raise PoemError("poem.txt is not a poem")
        poem = self.versions[-1]
        return [astuple(poem)], [], []

    def readApart(self, work: Callable[[], _T]) -> Deferred[_T]:
        """Read as the server's helper process does: now, or when L{goOn} is called."""
        done: Deferred[_T] = Deferred()

        def finish() -> None:
            if done.called:
                return
            try:
                done.callback(work())
            except PoemError as why:
                done.errback(why)

        if self.hangs:
            self._waiting.append(finish)
        else:
            finish()
        return done

    def goOn(self) -> None:
        """Let all reading end."""
        self.hangs = False
        waiting, self._waiting = self._waiting, []
        for finish in waiting:
            finish()


class Upstream:
    """
    The server that a proxy asks: it answers when a life says so.

    @ivar isUp: whether it accepts connections.
    """

    def __init__(self, poetry: Poetry) -> None:
        """@param poetry: has the poem."""
        self.isUp = True
        self._poetry = poetry
        self._connections: list[socket.socket] = []
        self._reserved = socket.socket()  # another program would take the port in an outage
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self._listen()

    def goDown(self) -> None:
        """Refuse connections, and reset those that there are."""
        self._accept()
        self.isUp = False
        self._listening.close()
        for connection in self._take():
            _reset(connection)

    def comeBack(self) -> None:
        """Accept connections again, at the same port."""
        if not self.isUp:
            self._listen()
            self.isUp = True

    def answer(self, share: float = 1.0) -> int:
        """
        Send the poem to each proxy that asks. If the share is below 1, send that part and a reset.

        @return: how many have asked.
        """
        self._accept()
        asking = self._take()
        for connection in asking:
            text = self._poetry.versions[-1].text
            connection.setblocking(True)
            with suppress(OSError):  # a proxy that waits no longer has closed its side
                socket.SocketType.sendall(connection, text[: int(len(text) * share)])
            if share < 1.0:
                _reset(connection)
            connection.close()
        return len(asking)

    def close(self) -> None:
        """Leave no socket behind."""
        self.goDown()
        self._reserved.close()

    def _listen(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._listening.setblocking(False)

    def _accept(self) -> None:
        with suppress(OSError):
            while self.isUp:
                number, _ = socket.SocketType._accept(self._listening)  # type: ignore[attr-defined]
                self._connections.append(socket.socket(fileno=number))

    def _take(self) -> list[socket.socket]:
        taken, self._connections = self._connections, []
        return taken


def _reset(connection: socket.socket) -> None:
    socket.SocketType.setsockopt(connection, socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


class World:
    """
    Everything in one life.

    @ivar clients: all clients so far, with the kind of connection of each.
    @ivar processes: the running and stopping processes.
    @ivar wasFaulty: whether a fault was planned, after which a traceback may be logged.
    @ivar resumedAt: when the machine was last resumed, in seconds. Deadlines start anew then.
    @ivar failures: tracebacks in the log.
    @ivar journal: takes the records of all processes.
    """

    def __init__(self, size: str, isProxy: bool = False) -> None:
        """
        @param size: of the first poem.
        @param isProxy: whether the poem comes from an upstream, and not from a file.
        """
        gc.freeze()  # so that collecting one life's objects is quick
        tcp._reservedFD.reserve()  # Twisted has one for the whole program
        self.journal = openJournal()
        findLoopback()
        self._descriptors = _listDescriptors()
        self.time = Time()
        self.faults = Faults()
        self.poetry = Poetry(size)
        self.store = Store()
        self.clients: list[tuple[str, Client]] = []
        self.processes: list[Process] = []
        self.wasFaulty = False
        self.resumedAt = 0.0
        self.failures: list[LogEvent] = []
        self._current: Process | None = None
        self._stack = ExitStack()
        self._stack.enter_context(onOneProcessor())
        self._counts = self._stack.enter_context(controlled(self.time, self.faults))
        self._stack.enter_context(
            mock.patch.object(
                service, "deferToProcess", lambda _, work, __: self.poetry.readApart(work)
            )
        )
        self._folder = tempfile.mkdtemp(prefix="life-")
        self._stack.callback(shutil.rmtree, self._folder)
        self.upstream = Upstream(self.poetry) if isProxy else None
        if self.upstream is not None:
            self._stack.callback(self.upstream.close)
        self.sockets = {way: self._listen(way) for way in WAYS}
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        self._stack.callback(globalLogPublisher.removeObserver, observer)

    def _listen(self, way: str) -> socket.socket:
        if way == "unix":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(os.path.join(self._folder, "poem.sock"))
        else:
            listening = socket.socket(socket.AF_INET)
            listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        self._stack.enter_context(listening)
        return listening

    def _observe(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.failures.append(event)
        if "message_id" in event:
            self.journal.log(event)
            if self._current is not None:
                self._current.records[event["message_id"]] += 1

    def perform(self, process: Process, do: Callable[[], _T]) -> _T:
        """Do something in one process, and count the connections it accepts and its records."""
        self._current, before = process, self._counts["accept"]
        try:
            return do()
        finally:
            self._current = None
            process.acceptedAt += [self.time.now] * (self._counts["accept"] - before)

    def settle(self) -> None:
        """Let each process do everything that is due."""
        for process in list(self.processes):
            self.perform(process, process.reactor.settle)

    def wait(self, seconds: float) -> None:
        """Let time pass. Each timer has its own turn, unless the time is very long."""
        target = self.time.now + seconds
        if seconds >= _LONG_SECONDS:
            self.resumedAt = target
        while seconds < _LONG_SECONDS:
            due = self.time.next
            if due is None or due > target:
                break
            self.time.advance(max(0.0, due - self.time.now))
            self.settle()
        self.time.advance(max(0.0, target - self.time.now))
        self.settle()

    def start(self) -> None:
        """Start a process on the sockets of this life. A failing call may end it."""
        with self.faults.paused():  # the operating system would not have started such a process
            process = Process(self._makeSource, self.sockets, self.store, self.time, self.faults)
        self.processes.append(process)
        try:
            self.perform(process, process.start)
        except (OSError, MemoryError):
            if not self.wasFaulty:
                raise
            self.exit(process)
        self.settle()

    def _makeSource(self, reactor: Any, clock: Any) -> Any:
        if self.upstream is None:
            return PoetryService(self.poetry, reactor, seconds=self.time.monotonic)
        timed = MonotonicReactor(reactor, clock)
        endpoint = TCP4ClientEndpoint(timed, "127.0.0.1", self.upstream.port, timeout=5)
        return PoetryProxyService("upstream", endpoint, FRESHNESS, timed)

    def stop(self, process: Process, meanwhile: Callable[[], object] = lambda: None) -> None:
        """
        Stop a process, and wait until it has stopped.

        @param meanwhile: called when the stop has begun.
        """
        self.perform(process, process.stop)
        self.settle()
        meanwhile()
        until = self.time.now + LIMITS.drainSeconds + 1.0
        while not process.hasStopped:
            assert self.time.now < until, "the stop did not end"
            self.wait(0.05)
        self.exit(process)

    def exit(self, process: Process) -> None:
        """End a process."""
        self.processes.remove(process)
        process.exit()
        self.settle()

    def arrive(self, way: str, source: str) -> Client:
        """Connect a client."""
        address = self.sockets[way].getsockname()
        client = Client(address, None if way == "unix" else source, self.time.now)
        self.clients.append((way, client))
        return client

    def readAll(self, clients: Sequence[Client]) -> None:
        """Make clients read until there is nothing left to read."""
        isMoving = True
        while isMoving:
            moved = [client.read(self.time.now) for client in clients]
            isMoving = any(moved)
            self.settle()

    def close(self) -> set[str]:
        """
        End everything.

        @return: the descriptors that are still open.
        """
        for process in self.processes:
            process.exit()
        self.processes = []
        self.store.clear()
        for _, client in self.clients:
            if client.outcome in (None, "vanished"):
                client.leave(withReset=True)
        self.journal.reset()
        self._stack.close()
        left = _listDescriptors() - self._descriptors
        if left or self.wasFaulty:
            # A traceback may hold descriptors, and the next life would log failed Deferreds.
            gc.collect()
            left &= _listDescriptors()
        gc.unfreeze()
        return left


def _listDescriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the folder's own
            found.add(f"{name} {os.readlink('/proc/self/fd/' + name)}")
    return found
