"""A proxy with an upstream in memory, a fake clock, and waiting readers."""

from __future__ import annotations

import os
from typing import Any

from fakes import FakeTransport, Reactor, Threads
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.apart.copies import readCopy, writeCopy
from fastpoetry.apart.poems import MAX_POEM_BYTES
from fastpoetry.poem import Poem
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.service import PoetryProxyService

UPSTREAM = "tcp:host=poems.example:port=10000"

FRESHNESS = Freshness(
    maxAgeSeconds=60,
    revalidateSeconds=100,
    errorSeconds=1000,
    connectSeconds=5,
    idleSeconds=10,
    totalSeconds=30,
    mostBytes=1000,
)


def save(path: str, text: bytes, fetchedAt: float) -> None:
    """Write a copy to a path, as a process would, but in this one."""
    writeCopy(path, text, fetchedAt, os.getppid())


def load(path: str) -> tuple[bytes, float] | None:
    """@return: the poem in a copy and the time of its fetch, if there is a copy."""
    found = readCopy(path, MAX_POEM_BYTES)
    return None if found is None else found[:2]


@implementer(IStreamClientEndpoint)
class FakeUpstream:
    """
    An upstream that does what a test says, and records a second fetch during the first as a fault.

    @ivar attempts: the times of the connection attempts.
    @ivar failedAt: the time of its last failure.
    @ivar faults: requests it should not have received.
    @ivar transport: of the last connection.
    @ivar whenCancelled: the error of a cancelled connection attempt, if it has one of its own.
    """

    whenCancelled: Exception | None = None

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self.attempts: list[float] = []
        self.failedAt = -1.0
        self.faults: list[str] = []
        self.transport = FakeTransport()
        self._connecting: Deferred[Any] | None = None
        self._protocol: Any = None

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Wait for the test."""
        verifyObject(IProtocolFactory, protocolFactory)
        if self.isBusy:
            self.faults.append("two fetches at a time")
        if self._reactor.seconds() < self.failedAt + 1:
            self.faults.append("two attempts in a second")
        self.attempts.append(self._reactor.seconds())
        self._factory = protocolFactory
        self._connecting = Deferred(self._leave)
        return self._connecting

    @property
    def isBusy(self) -> bool:
        """Whether a fetch is under way."""
        return self._connecting is not None or (self._protocol is not None and not self.isAborted)

    @property
    def isAborted(self) -> bool:
        """Whether the other end has aborted the connection."""
        return "abortConnection" in self.transport.did

    def accept(self) -> None:
        """Complete the connection."""
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.transport = FakeTransport()
        self._protocol = self._factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 10000))
        self._protocol.makeConnection(self.transport)
        connecting.callback(self._protocol)

    def refuse(self, why: Exception | None = None) -> None:
        """Refuse the connection."""
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.failedAt = self._reactor.seconds()
        connecting.errback(why or error.ConnectionRefusedError())

    def send(self, text: bytes) -> None:
        """Send a piece."""
        self._protocol.dataReceived(text)

    def close(self, why: Exception | None = None) -> None:
        """End the connection: cleanly, or with an error."""
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(Failure(why or ConnectionDone()))

    def _leave(self, connecting: Deferred[Any]) -> None:
        self._connecting = None
        self.failedAt = self._reactor.seconds()
        if self.whenCancelled is not None:
            connecting.errback(self.whenCancelled)


class ProxyCase(SynchronousTestCase):
    """A test case with a running proxy that has fetched no poem yet."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = Threads(self, self.reactor)
        self.wallOffset = 0.0
        self.waiting: list[Deferred[Poem]] = []
        self.upstream = FakeUpstream(self.reactor)
        self.service = self.make()
        self.service.startService()
        self.addCleanup(self.end)

    def make(self, freshness: Freshness = FRESHNESS, **others: Any) -> PoetryProxyService:
        """@return: a proxy of this upstream."""
        return PoetryProxyService(
            UPSTREAM,
            self.upstream,
            freshness,
            self.reactor,
            wallSeconds=lambda: self.reactor.seconds() + self.wallOffset,
            **others,
        )

    def restart(self, freshness: Freshness = FRESHNESS, **others: Any) -> None:
        """Replace the proxy by a new one."""
        self.service.stopService()
        self.service = self.make(freshness, **others)
        self.service.startService()
        self.threads.work()  # the copy

    def end(self) -> None:
        """Stop the proxy; afterwards the reactor is empty."""
        self.service.stopService()
        for each in self.waiting:
            each.addErrback(lambda _: None)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.upstream.faults, [])

    @property
    def served(self) -> bytes | None:
        """The poem that the next reader gets at once, if there is one."""
        poem = self.service.poem
        return None if poem is None else poem.text

    def ask(self) -> None:
        """Ask for the poem without waiting."""
        _ = self.service.poem

    def wait(self) -> Deferred[Poem]:
        """@return: a Deferred of a waiting reader."""
        self.waiting.append(self.service.whenPoem())
        return self.waiting[-1]

    def give(self, *pieces: bytes) -> None:
        """Answer the present fetch."""
        self.upstream.accept()
        for piece in pieces:
            self.upstream.send(piece)
        self.upstream.close()
        self.threads.work()  # the copy

    def fetch(self, text: bytes = b"a poem") -> None:
        """Fetch a poem that is not fresh."""
        self.ask()
        self.give(text)

    def advanceTo(self, seconds: float) -> None:
        """Let time pass."""
        self.reactor.advance(seconds - self.reactor.seconds())
