"""
Stand-ins for what surrounds a module: a reactor, threads, ports, endpoints, readers, clients.

They decide nothing and never wait for time to pass; what they do beyond remembering is done when a
test says so.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial, wraps
from select import select
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar
from unittest import SkipTest, mock

from twisted.application.service import MultiService, Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorThreads,
    IReactorTime,
    ISSLTransport,
    IStreamServerEndpoint,
    ITCPTransport,
)
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, formatEvent
from twisted.protocols.policies import ProtocolWrapper
from twisted.python import log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.apart import job, process, threads
from fastpoetry.apart.job import Job
from fastpoetry.apart.poems import Found
from fastpoetry.apart.process import Process
from fastpoetry.apart.worker import WorkError
from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem, Selection

_Case = TypeVar("_Case", bound=SynchronousTestCase)

POEM = Poem("ecstasy", b"Where, like a pillow on a bed,\n" * 10, "/poetry/ecstasy.txt")
"""A poem that any socket takes at once."""

LONG = Poem("long", bytes(range(256)) * 16384, "/poetry/long.txt")
"""A poem of 4 MiB, which no socket takes at once; each piece of it tells where it belongs."""

SECONDS = 10.0
"""How long a test waits for the kernel, at most. It hands over at once or there is a fault."""


class ThreadPool:
    """Threads that get to their work when a test lets them."""

    def __init__(self) -> None:
        self._work: list[tuple[Callable[[bool, object], object], Callable[[], object]]] = []

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, object], object], func: Callable[[], object]
    ) -> None:
        """Keep the work."""
        self._work.append((onResult, func))

    def work(self) -> None:
        """Do the work that there is."""
        work, self._work = self._work, []
        for onResult, func in work:
            try:
                result = func()
            except Exception:
                onResult(False, Failure())
            else:
                onResult(True, result)


class FakeProcess(Process[Any]):
    """
    A process that does its work in this one, when it has ended.

    @ivar isKilled: whether it has been.
    """

    isKilled = False

    def _start(self, work: partial[Any]) -> None:
        self._work = work

    def fileno(self) -> int:
        """@return: no descriptor."""
        return -1

    def kill(self) -> None:
        """Go on all the same."""
        self.isKilled = True

    def describe(self, seconds: float) -> str:
        """@return: what it waits for."""
        return f"{self.where}: has not answered for {seconds:g} s"

    def take(self) -> Any:
        """Do the work."""
        return self._work()


class Threads:
    """
    Threads and processes of our own that get to their work when a test lets them.

    @ivar why: why there are none, if a test says so.
    """

    def __init__(self, case: SynchronousTestCase, reactor: Reactor | None = None) -> None:
        """
        @param case: during which there are no real ones.
        @param reactor: waits for the processes.
        """
        case.patch(threads, "startDaemon", self)
        case.patch(process, "Process", mock.Mock(side_effect=process.NoProcessError))
        case.patch(job, "Process", self._start)
        case.patch(os, "getppid", os.getpid)
        self.why: WorkError | None = None
        self._reactor = reactor
        self._work: list[Callable[[], None]] = []

    def _start(self, work: partial[Any], where: str) -> FakeProcess:
        if self.why is not None:
            raise self.why
        return FakeProcess(work, where)

    def __call__(self, run: Callable[[], None]) -> None:
        """Keep the work."""
        if self.why is not None:
            raise self.why
        self._work.append(run)

    def work(self) -> None:
        """Do the work that there is."""
        work, self._work = self._work, []
        if self._reactor is not None:
            work += [each.doRead for each in self._reactor.getReaders() if isinstance(each, Job)]
        for run in work:
            run()


@implementer(IReactorPluggableNameResolver, IReactorThreads)
class Reactor(MemoryReactorClock):
    """A reactor in memory, with threads; its sockets are served when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hasStopped = False  # Twisted 22.4 says True from the start
        self.pool = ThreadPool()
        self.nameResolver: Any = None

    def installNameResolver(self, resolver: Any) -> Any:
        """Have names looked up by another."""
        before, self.nameResolver = self.nameResolver, resolver
        return before

    def getThreadPool(self) -> Any:
        """The threads."""
        return self.pool

    def suggestThreadPoolSize(self, size: int) -> None:
        """Have as many threads as before."""

    # The interface has that name for what is called.
    def callInThread(
        self,
        callable: Callable[..., object],
        *args: object,
        **kw: object,
    ) -> None:
        """Call when the threads work."""
        self.pool.callInThreadWithCallback(lambda *_: None, lambda: callable(*args, **kw))

    def callFromThread(
        self,
        callable: Callable[..., object],
        *args: object,
        **kw: object,
    ) -> None:
        """Call at once: there is but one thread."""
        callable(*args, **kw)

    def turn(self, client: socket.socket | None = None) -> bool:
        """
        Serve the sockets that are ready, once there is one, and call what is due.

        @param client: somebody at the other end of one.
        @return: whether there is something for the client to read.
        """
        clients = [] if client is None else [client]
        readable, writable, _ = select(
            [*clients, *self.getReaders()], self.getWriters(), [], SECONDS
        )
        if not readable and not writable:
            raise AssertionError("no socket becomes ready")
        for each in readable:
            if each in self.readers:
                self._end(each, self._call(each.doRead), True)
        for each in writable:
            if each in self.writers:
                self._end(each, self._call(each.doWrite), False)
        self.advance(0)
        return client in readable

    def fetch(self, client: socket.socket) -> bytes:
        """
        Serve the sockets until a client has the end.

        @return: what the client got.
        """
        text = b""
        while True:
            if self.turn(client):
                piece = client.recv(1 << 20)
                if not piece:
                    return text
                text += piece

    def _call(self, method: Callable[[], Any]) -> Any:
        """Log what is raised, which ends the descriptor, as Twisted's own reactors do."""
        try:
            return method()
        except Exception as why:
            log.err()
            return why

    def _end(self, descriptor: Any, why: Any, isRead: bool) -> None:
        """Let a descriptor go that gave a reason for that, as Twisted's own reactors do."""
        if why is None:
            return
        self.removeReader(descriptor)
        failure = why if isinstance(why, Failure) else Failure(why)
        if (
            isRead
            and failure.check(ConnectionDone)
            and IHalfCloseableDescriptor.providedBy(descriptor)
        ):
            descriptor.readConnectionLost(failure)
        else:
            self.removeWriter(descriptor)
            descriptor.connectionLost(failure)


class FakeSource(Service):
    """
    A source with one poem, or one that is yet to have it.

    @ivar waiting: who waits for a poem.
    @ivar failsAtOnce: whether it is known that there will be none.
    @ivar freshAt: when it was read, as a test says.
    """

    description = "a fake"
    freshAt: float | None = None

    def __init__(self, poem: Poem | None = POEM) -> None:
        self.poem = poem
        self.waiting: list[Deferred[Poem]] = []
        self.failsAtOnce = False

    def whenPoem(self) -> Deferred[Poem]:
        """Wait until the test gives a poem."""
        if self.failsAtOnce:
            return fail(RuntimeError("no poem"))
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def reload(self) -> Deferred[None]:
        """Find what was there before."""
        return succeed(None)

    def give(self, poem: Poem) -> None:
        """Have a poem from now on."""
        self.poem, waiting, self.waiting = poem, self.waiting, []
        for each in waiting:
            each.callback(poem)

    def giveUp(self) -> None:
        """Have no poem for who waits now."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.errback(RuntimeError("no poem"))


class FakeSelection(Selection):
    """A selection that finds what a test puts there."""

    found: Found | Exception

    def __init__(self, *poems: Poem) -> None:
        self.find(*poems)

    def __str__(self) -> str:
        return "/poetry"

    def find(
        self, *poems: Poem, leftOut: Sequence[str] = (), passedOver: Sequence[str] = ()
    ) -> None:
        """Find those from now on."""
        self.found = [astuple(poem) for poem in poems], [*leftOut], [*passedOver]

    @property
    def reading(self) -> partial[Found]:
        """What there is then, or why there is nothing."""
        return partial(self._read)

    def _read(self) -> Found:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class FakeReader:
    """
    A reader that has taken what a test says, and is gone when it is told to close.

    @ivar taken: how much of the poem it has.
    @ivar closed: whether its client has closed its side.
    @ivar sent: whether the system has the whole poem.
    @ivar startedAt: when it came, in the clock's seconds.
    @ivar asked: when it was asked about either.
    @ivar did: what it was told.
    """

    mayHandOver = False

    def __init__(self, policy: Policy, address: Address = None, poem: Poem = POEM) -> None:
        self.poem, self.address = poem, address
        self.startedAt = policy.clock.seconds()
        self.policy = policy
        self.taken = 0
        self.closed = False
        self.sent = False
        self.asked: list[float] = []
        self.did: list[str] = []

    def closeAfterClient(self) -> bool:
        """What the test says."""
        self._ask()
        return self.closed

    def countTaken(self) -> int:
        """What the test says."""
        self._ask()
        return self.taken

    def _ask(self) -> None:
        if self.policy.clock.seconds() not in self.asked:
            self.asked.append(self.policy.clock.seconds())

    def end(self) -> None:
        """Remember it."""
        self.did.append("end")

    def reset(self) -> None:
        """Remember it."""
        self.did.append("reset")

    def isSent(self) -> bool:
        """What the test says."""
        return self.sent


class Receipt(FakeReader):
    """What is counted of a reader."""

    def __init__(self, poem: Poem, address: Address) -> None:
        super().__init__(Policy(Limits(), MemoryReactorClock()), address, poem)


class FakeArrival:
    """
    A connection that has to wait before it is a reader.

    @ivar drained: whether it was told that the server stops.
    @ivar dismissed: why it was told to go.
    """

    def __init__(self, policy: Policy, address: Address = None) -> None:
        self.policy = policy
        self.address = address
        self.drained = False
        self.dismissed = ""

    def dismiss(self, cause: str) -> None:
        """Remember it, and be gone."""
        self.dismissed = cause
        self.policy.remove(self)

    def drain(self) -> None:
        """Be gone."""
        self.drained = True
        self.policy.remove(self)


@implementer(IListeningPort)
class FakePort:
    """
    A listening port of a kind that the fast port cannot replace.

    @ivar socket: what it listens on, if a test has put something there.
    @ivar reading: whether it accepts.
    @ivar turns: how often that was changed.
    @ivar stopped: whether it was stopped.
    """

    socket: Any = None

    def __init__(self, address: Any = None) -> None:
        self.address = address or IPv4Address("TCP", "192.0.2.1", 17)
        self.reading = True
        self.turns = 0
        self.stopped = False

    def startListening(self) -> None:
        """Listen."""

    def stopListening(self) -> Deferred[None]:
        """Listen no more."""
        self.stopped = True
        return succeed(None)

    def getHost(self) -> Any:
        """Where that is."""
        return self.address

    def startReading(self) -> None:
        """Accept."""
        self.reading = True
        self.turns += 1

    def stopReading(self) -> None:
        """Accept nothing."""
        self.reading = False
        self.turns += 1


@implementer(IStreamServerEndpoint)
class FakeEndpoint:
    """
    An endpoint that listens when a test says so.

    @ivar listening: what C{listen} answers.
    @ivar factories: what it was told to listen for.
    """

    def __init__(self, listening: Deferred[Any] | None = None) -> None:
        self.listening: Deferred[Any] = Deferred() if listening is None else listening
        self.factories: list[IProtocolFactory] = []

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Answer as the test says."""
        self.factories.append(protocolFactory)
        return self.listening


@implementer(ITCPTransport)
class FakeTransport(StringTransport):
    """
    A transport that remembers what it was told to do.

    @ivar dataBuffer: what Twisted's own have not handed to the system yet.
    @ivar did: how it was told to end.
    @ivar dataBuffer: what a real one has yet to send: nothing.
    """

    producer: Any
    dataBuffer = b""

    def __init__(self, peer: Any = None, handle: Any = None) -> None:
        super().__init__(peerAddress=peer)
        self.handle = handle
        self.did: list[str] = []

    def getHandle(self) -> Any:
        """The socket that the test has chosen."""
        return self.handle

    def loseConnection(self) -> None:
        """End, once all is sent."""
        self.did.append("loseConnection")

    def loseWriteConnection(self) -> None:
        """End the sending half."""
        self.did.append("loseWriteConnection")

    def abortConnection(self) -> None:
        """End at once."""
        self.did.append("abortConnection")

    def getTcpNoDelay(self) -> bool:
        """As the kernel has it from the start."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing that a test could tell."""

    def getTcpKeepAlive(self) -> bool:
        """As the kernel has it from the start."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing that a test could tell."""


@implementer(ISSLTransport)
class FakeTLS(ProtocolWrapper):
    """
    A layer like TLS: it is closed when its client answers, which this one never does.

    @ivar did: how it was told to end.
    """

    def __init__(self, factory: Any, wrappedProtocol: IProtocol) -> None:
        super().__init__(factory, wrappedProtocol)
        self.did: list[str] = []

    def getPeerCertificate(self) -> None:
        """None, as usual for a client."""

    def loseConnection(self) -> None:
        """Wait for the client's word."""
        self.did.append("loseConnection")


class FakeNotify(Service):
    """The service that tells systemd, which here is asked by the test."""

    def __init__(
        self,
        reactor: Any,
        *,
        status: Callable[[], str],
        reload: Callable[[], Deferred[Any]],
        alive: Callable[[], bool],
        clock: IReactorTime,
    ) -> None:
        self.status = status
        self.alive = alive
        self.reload = reload


class FakePreflight:
    """A check that every endpoint passes: a test does not take ports for which others may wait."""

    def __enter__(self) -> FakePreflight:
        return self

    def __exit__(self, *why: object) -> None:
        """Be over."""

    def check(self, endpoint: IStreamServerEndpoint) -> None:
        """Let it pass, if it is one."""
        verifyObject(IStreamServerEndpoint, endpoint)


_LEGACY_KEYS = {"format", "isError", "message", "system", "time"}
"""What trial's observer of legacy events adds to every event."""


def records(events: Sequence[LogEvent]) -> list[dict[str, Any]]:
    """
    @return: the events with their C{text}, their C{level} and the fields of their own, without
        Twisted's own events.
    """
    return [
        {
            "text": formatEvent(each),
            "level": each["log_level"].name,
            **{
                key: value
                for key, value in each.items()
                if not key.startswith("log_") and key not in _LEGACY_KEYS
            },
        }
        for each in events
        if each["log_namespace"].startswith("fastpoetry.")
    ]


def said(events: Sequence[LogEvent]) -> list[str]:
    """@return: the events as a person reads them, without Twisted's own."""
    return [each["text"] for each in records(events)]


def tree(service: Any) -> Any:
    """@return: what a service consists of: a list for each C{MultiService}."""
    if isinstance(service, MultiService):
        return [tree(each) for each in service]
    return type(service).__name__


def countDescriptors() -> int:
    """@return: how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def awaited(
    test: Callable[[_Case], Coroutine[Deferred[Any], Any, None]],
) -> Callable[[_Case], Deferred[None]]:
    """Have a test that is a coroutine run to its end, which trial does not in Twisted 22.4."""

    @wraps(test)
    def run(case: _Case) -> Deferred[None]:
        return Deferred.fromCoroutine(test(case))

    return run


def makeFolder(case: SynchronousTestCase) -> str:
    """@return: a folder that anybody may read, and that is gone when the test ends."""
    path = os.path.realpath(mkdtemp())
    case.addCleanup(rmtree, path)
    os.chmod(path, 0o755)
    return path


def write(folder: str, entry: str, text: bytes = POEM.text) -> str:
    """@return: the path of a new file."""
    path = os.path.join(folder, entry)
    with open(path, "wb") as file:
        file.write(text)
    return path


@contextmanager
def asNobody(folder: str | None = None, mode: int = 0) -> Iterator[None]:
    """
    Be somebody whom permissions bind, as root is not; whoever else we are, we stay.

    @param folder: has that mode meanwhile, by which it is closed to its owner too.
    """
    isRoot = os.geteuid() == 0
    if folder is not None:
        before = os.stat(folder).st_mode
        os.chmod(folder, mode)
    try:
        if isRoot:
            try:
                os.seteuid(65534)
            except OSError as why:
                raise SkipTest(f"cannot be nobody: {why}") from why
        yield
    finally:
        if isRoot:
            os.seteuid(0)
        if folder is not None:
            os.chmod(folder, before)


def receiveAll(client: socket.socket) -> bytes:
    """
    @return: what a client gets until the end.
    @raise ConnectionResetError: if it is reset instead.
    """
    pieces = []
    while piece := client.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)
