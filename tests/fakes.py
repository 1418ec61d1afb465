"""
Fakes of what surrounds a module: a reactor, threads, ports, endpoints, readers, clients.

They make no decisions and never wait. They record calls, and act when a test says so.
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

from fastpoetry.apart import process
from fastpoetry.apart.poems import Found
from fastpoetry.apart.process import Job, Process
from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem, Selection
from fastpoetry.proxy import upstream

_Case = TypeVar("_Case", bound=SynchronousTestCase)

POEM = Poem("ecstasy", b"Where, like a pillow on a bed,\n" * 10, "/poetry/ecstasy.txt")
"""A poem that fits any socket's buffer."""

LONG = Poem("long", bytes(range(256)) * 16384, "/poetry/long.txt")
"""A poem of 4 MiB, which fits no socket's buffer; each piece shows its position."""

SECONDS = 10.0
"""The longest wait for the kernel. The kernel normally acts at once; a longer wait is a fault."""


class ThreadPool:
    """Threads that work when a test says so."""

    def __init__(self) -> None:
        self._work: list[tuple[Callable[[bool, object], object], Callable[[], object]]] = []

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, object], object], func: Callable[[], object]
    ) -> None:
        """Store the work."""
        self._work.append((onResult, func))

    def work(self) -> None:
        """Do the stored work."""
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
    A process whose work is done in this one, at its end.

    @ivar isKilled: whether it was killed.
    """

    isKilled = False

    def _start(self, work: partial[Any]) -> None:
        self._work = work

    def fileno(self) -> int:
        """@return: no descriptor."""
        return -1

    def kill(self) -> None:
        """Record the kill, and go on."""
        self.isKilled = True

    def describe(self, seconds: float) -> str:
        """@return: what it waits for."""
        return f"{self.where}: has not answered for {seconds:g} s"

    def take(self) -> Any:
        """Do the work."""
        return self._work()

    wait = take


class Threads:
    """
    Our own threads and processes, which work when a test says so.

    @ivar why: the error if no thread or process can start, set by a test.
    """

    def __init__(self, case: SynchronousTestCase, reactor: Reactor | None = None) -> None:
        """
        @param case: the test in which these replace the real ones.
        @param reactor: waits for the processes.
        """
        case.patch(upstream, "Thread", self._makeThread)
        case.patch(process, "Process", self._start)
        case.patch(os, "getppid", os.getpid)
        self.why: Exception | None = None
        self._reactor = reactor
        self._work: list[Callable[[], None]] = []

    def _start(self, work: partial[Any], where: str) -> FakeProcess:
        if self.why is not None:
            raise self.why
        return FakeProcess(work, where)

    def _makeThread(self, *, target: Callable[[], None], daemon: bool) -> Any:
        """@return: a thread whose start stores its work, or fails."""
        store = partial(self._work.append, target)
        return mock.Mock(start=mock.Mock(side_effect=self.why) if self.why else store)

    def work(self) -> None:
        """Do the stored work."""
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
        self.hasStopped = False  # Twisted 22.4 has True from the start
        self.pool = ThreadPool()
        self.nameResolver: Any = None

    def installNameResolver(self, resolver: Any) -> Any:
        """Set the resolver of names."""
        before, self.nameResolver = self.nameResolver, resolver
        return before

    def getThreadPool(self) -> Any:
        """The threads."""
        return self.pool

    def suggestThreadPoolSize(self, size: int) -> None:
        """Ignore the suggestion."""

    # The interface names the first parameter so.
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
        """Call at once: there is only one thread."""
        callable(*args, **kw)

    def callWhenRunning(
        self,
        callable: Callable[..., object],
        *args: object,
        **kw: object,
    ) -> None:
        """Call at once: it runs."""
        callable(*args, **kw)

    def turn(self, client: socket.socket | None = None) -> bool:
        """
        Serve the sockets that are ready, once there is one, and make the calls that are due.

        @param client: the other end of a socket.
        @return: whether the client has something to read.
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

        @return: the bytes that the client got.
        """
        text = b""
        while True:
            if self.turn(client):
                piece = client.recv(1 << 20)
                if not piece:
                    return text
                text += piece

    def _call(self, method: Callable[[], Any]) -> Any:
        """Log an exception, which ends the descriptor, as in Twisted's own reactors."""
        try:
            return method()
        except Exception as why:
            log.err()
            return why

    def _end(self, descriptor: Any, why: Any, isRead: bool) -> None:
        """Remove a descriptor that returned a reason, as Twisted's own reactors do."""
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
    A source with one poem, or without one yet.

    @ivar waiting: the Deferreds of waiting readers.
    @ivar failsAtOnce: whether it already knows that there will be no poem.
    @ivar freshAt: when the poem was read, set by a test.
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
        """Return the present poem."""
        return succeed(None)

    def give(self, poem: Poem) -> None:
        """Set the poem, and fire all waiting Deferreds."""
        self.poem, waiting, self.waiting = poem, self.waiting, []
        for each in waiting:
            each.callback(poem)

    def giveUp(self) -> None:
        """Fail all waiting Deferreds."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.errback(RuntimeError("no poem"))


class FakeSelection(Selection):
    """A selection that finds the poems a test puts there."""

    found: Found | Exception

    def __init__(self, *poems: Poem) -> None:
        self.find(*poems)

    def __str__(self) -> str:
        return "/poetry"

    def find(
        self, *poems: Poem, unreadable: Sequence[str] = (), misnamed: Sequence[str] = ()
    ) -> None:
        """Set the poems."""
        self.found = [astuple(poem) for poem in poems], [*unreadable], [*misnamed]

    @property
    def reading(self) -> partial[Found]:
        """The poems, or the reason why they are missing."""
        return partial(self._read)

    def _read(self) -> Found:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class FakeReader:
    """
    A reader with the progress a test sets; it disappears when told to close.

    @ivar taken: the bytes of the poem it has taken.
    @ivar closed: whether its client has closed its side.
    @ivar sent: whether the system has the whole poem.
    @ivar startedAt: when it came, in the clock's seconds.
    @ivar asked: the times at which C{taken} or C{closed} was asked for.
    @ivar did: the calls that ended it.
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
        """Return what the test has set."""
        self._ask()
        return self.closed

    def countTaken(self) -> int:
        """Return what the test has set."""
        self._ask()
        return self.taken

    def _ask(self) -> None:
        if self.policy.clock.seconds() not in self.asked:
            self.asked.append(self.policy.clock.seconds())

    def end(self) -> None:
        """Record the end."""
        self.did.append("end")

    def reset(self) -> None:
        """Record the reset."""
        self.did.append("reset")

    def isSent(self) -> bool:
        """Return what the test has set."""
        return self.sent


class Receipt(FakeReader):
    """A reader of a poem at an address, for a ledger that only counts it."""

    def __init__(self, poem: Poem, address: Address) -> None:
        super().__init__(Policy(Limits(), MemoryReactorClock()), address, poem)


class FakeArrival:
    """
    A connection that waits before it is a reader.

    @ivar drained: whether it was told that the server stops.
    @ivar dismissed: the reason why it was dismissed.
    """

    def __init__(self, policy: Policy, address: Address = None) -> None:
        self.policy = policy
        self.address = address
        self.drained = False
        self.dismissed = ""

    def dismiss(self, cause: str) -> None:
        """Record the reason, and disappear."""
        self.dismissed = cause
        self.policy.remove(self)

    def drain(self) -> None:
        """Disappear."""
        self.drained = True
        self.policy.remove(self)


@implementer(IListeningPort)
class FakePort:
    """
    A listening port of a kind that the fast port cannot replace.

    @ivar socket: its socket, if a test has set one.
    @ivar reading: whether it accepts.
    @ivar turns: how often C{reading} was changed.
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
        """Stop listening."""
        self.stopped = True
        return succeed(None)

    def getHost(self) -> Any:
        """Return an address."""
        return self.address

    def startReading(self) -> None:
        """Accept."""
        self.reading = True
        self.turns += 1

    def stopReading(self) -> None:
        """Stop accepting."""
        self.reading = False
        self.turns += 1


@implementer(IStreamServerEndpoint)
class FakeEndpoint:
    """
    An endpoint that listens when a test says so.

    @ivar listening: the result of C{listen}.
    @ivar factories: the factories it was given.
    """

    def __init__(self, listening: Deferred[Any] | None = None) -> None:
        self.listening: Deferred[Any] = Deferred() if listening is None else listening
        self.factories: list[IProtocolFactory] = []

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Return the test's Deferred."""
        self.factories.append(protocolFactory)
        return self.listening


@implementer(ITCPTransport)
class FakeTransport(StringTransport):
    """
    A transport that records its calls.

    @ivar dataBuffer: bytes not handed to the system yet: always empty here.
    @ivar did: the calls that ended it.
    """

    producer: Any
    dataBuffer = b""
    offset = _tempDataLen = 0

    def __init__(self, peer: Any = None, handle: Any = None) -> None:
        super().__init__(peerAddress=peer)
        self.handle = handle
        self.did: list[str] = []
        self.reactor = Reactor()

    def getHandle(self) -> Any:
        """The socket that the test has chosen."""
        return self.handle

    def stopReading(self) -> None:
        """Do nothing: the test decides what is read."""

    def loseConnection(self) -> None:
        """End, once everything is sent."""
        self.did.append("loseConnection")

    def loseWriteConnection(self) -> None:
        """End the sending half."""
        self.did.append("loseWriteConnection")

    def abortConnection(self) -> None:
        """End at once."""
        self.did.append("abortConnection")

    def getTcpNoDelay(self) -> bool:
        """Return the kernel's default."""
        return False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Ignore the option."""

    def getTcpKeepAlive(self) -> bool:
        """Return the kernel's default."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Ignore the option."""


@implementer(ISSLTransport)
class FakeTLS(ProtocolWrapper):
    """
    A layer like TLS: it is closed when its client answers, which this client never does.

    @ivar did: the calls that ended it.
    """

    def __init__(self, factory: Any, wrappedProtocol: IProtocol) -> None:
        super().__init__(factory, wrappedProtocol)
        self.did: list[str] = []
        self._tlsConnection = object()

    def getPeerCertificate(self) -> None:
        """Return L{None}, as usual for a client."""

    def loseConnection(self) -> None:
        """Wait for the client's answer."""
        self.disconnecting = True
        self.did.append("loseConnection")

    def dataReceived(self, data: bytes) -> None:
        """Decrypt what the client sends."""
        self.did.append("read")


class FakeNotify(Service):
    """The notifying service, with a test in systemd's place."""

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
    """A check that every endpoint passes: a test must not take ports that others wait for."""

    def __enter__(self) -> FakePreflight:
        return self

    def __exit__(self, *why: object) -> None:
        """End the check."""

    def check(self, endpoint: IStreamServerEndpoint) -> None:
        """Accept an endpoint."""
        verifyObject(IStreamServerEndpoint, endpoint)


_LEGACY_KEYS = {"format", "isError", "message", "system", "time"}
"""The keys that trial's observer of legacy events adds to every event."""


def records(events: Sequence[LogEvent]) -> list[dict[str, Any]]:
    """@return: the events with their C{text}, C{level} and own fields, without Twisted's events."""
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
    """@return: the texts of the events, without Twisted's."""
    return [each["text"] for each in records(events)]


def tree(service: Any) -> Any:
    """@return: the parts of a service: a list for each C{MultiService}."""
    if isinstance(service, MultiService):
        return [tree(each) for each in service]
    return type(service).__name__


def countDescriptors() -> int:
    """@return: the number of this process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


def awaited(
    test: Callable[[_Case], Coroutine[Deferred[Any], Any, None]],
) -> Callable[[_Case], Deferred[None]]:
    """Run a test that is a coroutine. The trial of Twisted 22.4 does not run it."""

    @wraps(test)
    def run(case: _Case) -> Deferred[None]:
        return Deferred.fromCoroutine(test(case))

    return run


def makeFolder(case: SynchronousTestCase) -> str:
    """@return: a world-readable folder that is removed when the test ends."""
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
    Become a user without root's rights over permissions; if not root, stay.

    @param folder: closed meanwhile, even to its owner.
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
    @return: the bytes that a client gets until the end.
    @raise ConnectionResetError: if the connection is reset.
    """
    pieces = []
    while piece := client.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)
