"""A proxy with an upstream in memory, a clock that a test sets, and readers who wait."""

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
from fastpoetry.poem import MAX_POEM_BYTES, Poem
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
    """Have a copy at a path, as a process of this one writes it."""
    writeCopy(path, text, fetchedAt, os.getppid())


def load(path: str) -> tuple[bytes, float] | None:
    """@return: the poem in a copy and when it was fetched, if there is a copy."""
    found = readCopy(path, MAX_POEM_BYTES)
    return None if found is None else found[:2]


@implementer(IStreamClientEndpoint)
class FakeUpstream:
    """
    An upstream that does what a test says, and wants no second fetch while there is one.

    @ivar attempts: when somebody began to connect.
    @ivar failedAt: when it last did not give what was asked for.
    @ivar faults: what it should not have been asked for.
    @ivar transport: of the last connection.
    @ivar whenCancelled: what connecting fails with when it is cancelled, if it has a word for that.
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
        """Whether there is a fetch that has not ended."""
        return self._connecting is not None or (self._protocol is not None and not self.isAborted)

    @property
    def isAborted(self) -> bool:
        """Whether the other end has broken the connection off."""
        return "abortConnection" in self.transport.did

    def accept(self) -> None:
        """Be connected."""
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.transport = FakeTransport()
        self._protocol = self._factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 10000))
        self._protocol.makeConnection(self.transport)
        connecting.callback(self._protocol)

    def refuse(self, why: Exception | None = None) -> None:
        """Not be connected."""
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.failedAt = self._reactor.seconds()
        connecting.errback(why or error.ConnectionRefusedError())

    def send(self, text: bytes) -> None:
        """Send a piece."""
        self._protocol.dataReceived(text)

    def close(self, why: Exception | None = None) -> None:
        """End the connection: cleanly, or for a reason."""
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(Failure(why or ConnectionDone()))

    def _leave(self, connecting: Deferred[Any]) -> None:
        self._connecting = None
        self.failedAt = self._reactor.seconds()
        if self.whenCancelled is not None:
            connecting.errback(self.whenCancelled)


class ProxyCase(SynchronousTestCase):
    """A proxy that runs, with nothing fetched yet."""

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
        """Have another proxy in the place of the one there was."""
        self.service.stopService()
        self.service = self.make(freshness, **others)
        self.service.startService()
        self.threads.work()  # the copy

    def end(self) -> None:
        """Stop; then nothing is left of the proxy in the reactor."""
        self.service.stopService()
        for each in self.waiting:
            each.addErrback(lambda _: None)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.upstream.faults, [])

    @property
    def served(self) -> bytes | None:
        """What the next reader gets, if there is something for it."""
        poem = self.service.poem
        return None if poem is None else poem.text

    def ask(self) -> None:
        """Want the poem, and not wait for it."""
        _ = self.service.poem

    def wait(self) -> Deferred[Poem]:
        """@return: what a reader waits for."""
        self.waiting.append(self.service.whenPoem())
        return self.waiting[-1]

    def give(self, *pieces: bytes) -> None:
        """Have the upstream answer the fetch that is under way."""
        self.upstream.accept()
        for piece in pieces:
            self.upstream.send(piece)
        self.upstream.close()
        self.threads.work()  # the copy

    def fetch(self, text: bytes = b"a poem") -> None:
        """Have a poem fetched that is not fresh."""
        self.ask()
        self.give(text)

    def advanceTo(self, seconds: float) -> None:
        """Let time pass."""
        self.reactor.advance(seconds - self.reactor.seconds())
