"""
A source of poems that come from another poetry server.

Fetches, keeps and shares one poem; serves nobody itself. Freshness is as RFC 9111, 4.2 has it, and
its two extensions are those of RFC 5861.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform
from typing import Any

from twisted.application import service
from twisted.internet import defer, error
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from fastpoetry.poem import MAX_POEM_BYTES, Poem
from fastpoetry.proxy.cache import Copy, CopyError, CopyFile

_LEAST_PAUSE_SECONDS = 1.0
"""Between a failure and the next attempt, whoever asks for it."""

_MOST_PAUSE_SECONDS = 10.0
"""So that an upstream which is back is noticed within that time."""

_LEAST_USE_SECONDS = 1.0
"""
How long a poem will do whatever its freshness.

Those who waited for it are served out of a backlog, which takes some turns of the reactor.
"""

_REMIND_SECONDS = 600.0
"""Between two records of an outage that goes on."""


class UpstreamError(Exception):
    """
    An upstream that gave no whole poem: why, in a few words.
    """


@dataclass(frozen=True)
class Freshness:
    """
    For how long a poem will do, and how long to wait for one.

    @ivar maxAgeSeconds: it is fresh, and nobody is asked for another.
    @ivar revalidateSeconds: after that, it is served while another is fetched.
    @ivar errorSeconds: after the first, it is served while the upstream gives nothing.
    @ivar connectSeconds: to be connected.
    @ivar idleSeconds: between two pieces of a poem.
    @ivar totalSeconds: for a whole poem; and for readers to wait, if there is none at all.
    @ivar mostBytes: of a poem.
    """

    maxAgeSeconds: float = 60.0
    revalidateSeconds: float = 600.0
    errorSeconds: float = 86_400.0
    connectSeconds: float = 5.0
    idleSeconds: float = 10.0
    totalSeconds: float = 30.0
    mostBytes: int = MAX_POEM_BYTES


@dataclass
class _Outage:
    """
    A time in which the upstream gives no poem.

    @ivar since: when the first attempt failed.
    @ivar failedAt: when the last one did.
    @ivar toldAt: when the last record said so.
    @ivar attempts: how many have failed.
    @ivar cause: of the last one.
    """

    since: float
    toldAt: float
    failedAt: float = 0.0
    attempts: int = 0
    cause: str = ""


class PoetryProxyService(service.Service):
    """
    Holds the poem of an upstream, and has it fetched when somebody wants it and it is not fresh.

    There is one fetch at a time, whoever waits for it. What is held was whole; a failure replaces
    nothing.
    """

    _log = Logger()

    def __init__(
        self,
        upstream: str,
        endpoint: IStreamClientEndpoint,
        freshness: Freshness,
        reactor: Any,
        expectedDigest: str | None = None,
        file: CopyFile | None = None,
    ) -> None:
        """
        @param upstream: what to call the upstream.
        @param endpoint: where it is.
        @param reactor: provides C{IReactorTime} and C{IReactorThreads}.
        @param expectedDigest: the SHA-256 that its poem must have, in hexadecimal, if it is known.
        @param file: where to keep a copy for the next start.
        """
        self._upstream = upstream
        self._endpoint = endpoint
        self._freshness = freshness
        self._reactor = reactor
        self._expectedDigest = expectedDigest
        self._file = file
        self._copy: Copy | None = None
        self._outage: _Outage | None = None
        self._fetch: Deferred[Poem] | None = None
        self._waiters: list[Deferred[Poem]] = []
        self._reloads: list[Deferred[None]] = []
        self._isDropped = False
        self._nextAttempt = 0.0
        self._settling: IDelayedCall | None = None
        self._served: Poem | None = None
        self._isDue = False

    @property
    def poem(self) -> Poem | None:
        """
        The poem for the next reader, if one will do. Asking begins a fetch when one is due.
        """
        if self._isDue:
            self._beginFetch()
        return self._served

    @property
    def description(self) -> str:
        """
        What is held, for a person.
        """
        if self._outage is not None:
            seconds = self._reactor.seconds() - self._outage.since
            return f"{self._upstream}. Stale for {seconds:.0f} s: {self._outage.cause}"
        if self._copy is None:
            return f"{self._upstream} (not fetched yet)"
        return f"{self._upstream} ({len(self._copy.poem.text)} bytes)"

    def whenPoem(self) -> Deferred[Poem]:
        """
        Wait for a poem that will do.

        @return: fires with it, or fails with C{TimeoutError} after C{totalSeconds}. One that is
            cancelled ends nobody else's waiting, nor the fetch.
        """
        poem = self.poem
        if poem is not None:
            return succeed(poem)
        waiter: Deferred[Poem] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter.addTimeout(self._freshness.totalSeconds, self._reactor)

    def startService(self) -> None:
        """
        Begin with the copy from the last time, if there is a good one.
        """
        super().startService()
        try:
            self._copy = self._load()
        except CopyError as why:
            self._tellCopy(why)
        self._settle()

    def stopService(self) -> None:
        """
        Fetch no more.
        """
        super().stopService()
        self._isDue = False
        if self._fetch is not None:
            self._fetch.cancel()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        for waiter in list(self._waiters):
            waiter.cancel()

    def reload(self) -> Deferred[None]:
        """
        Fetch anew, however fresh the poem is, and keep the old one until the new one is whole.

        @return: fires when that fetch has ended, well or not.
        """
        done: Deferred[None] = Deferred()
        self._reloads.append(done)
        self._isDropped = True
        if self._outage is not None:
            self._nextAttempt = self._outage.failedAt + _LEAST_PAUSE_SECONDS
        self._settle()
        return done

    def _load(self) -> Copy | None:
        """
        The copy from the last time, if there is one.

        @raise CopyError: if there is one, and it is not what is wanted.
        """
        copy = self._file.load() if self._file is not None else None
        if copy is None:
            return None
        if not self._isExpected(copy.poem):
            raise CopyError(f"{copy.poem.origin}: is another poem, SHA-256 {copy.poem.digest}")
        # One from the future was fetched by a clock that was wrong.
        return Copy(copy.poem, min(copy.fetchedAt, self._reactor.seconds()))

    def _isExpected(self, poem: Poem) -> bool:
        """
        Whether a poem may be the upstream's.
        """
        return self._expectedDigest in (None, poem.digest)

    def _settle(self) -> None:
        """
        Derive from the facts what is served and whether to fetch, and come back when time alone
        will change it.
        """
        now = self._reactor.seconds()
        freshness, copy = self._freshness, self._copy
        changes = [self._nextAttempt]
        isFresh = isUsable = False
        if copy is not None:
            staleAt = copy.fetchedAt + freshness.maxAgeSeconds
            revalidateUntil = staleAt + freshness.revalidateSeconds
            revalidateUntil = max(revalidateUntil, copy.fetchedAt + _LEAST_USE_SECONDS)
            errorUntil = staleAt + freshness.errorSeconds
            isFresh = now < staleAt and not self._isDropped and self._outage is None
            isUsable = now < revalidateUntil or (self._outage is not None and now < errorUntil)
            changes += [staleAt, revalidateUntil, errorUntil]
        self._served = copy.poem if copy is not None and isUsable else None
        self._isDue = not isFresh and self._fetch is None and now >= self._nextAttempt
        if self._settling is not None and self._settling.active():
            self._settling.cancel()
        later = [when for when in changes if when > now]
        self._settling = self._reactor.callLater(min(later) - now, self._settle) if later else None
        if self._served is not None:
            self._give(self._served)
        if self._isDue and (self._waiters or self._reloads):
            self._beginFetch()

    def _give(self, poem: Poem) -> None:
        """
        Give a poem to who waits.
        """
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(poem)

    def _beginFetch(self) -> None:
        """
        Fetch, for all who wait and will wait.
        """
        self._isDue = self._isDropped = False
        fetch: Deferred[Poem] = Deferred.fromCoroutine(self._fetchWhole())
        self._fetch = fetch.addTimeout(self._freshness.totalSeconds, self._reactor)
        fetch.addCallbacks(self._keep, self._fail).addBoth(self._endFetch)

    async def _fetchWhole(self) -> Poem:
        """
        Get the upstream's poem.

        @raise UpstreamError: for one, if it is not whole, or not the one that is expected.
        """
        fetch = _Fetch(self._freshness, self._reactor)
        factory = Factory.forProtocol(lambda: fetch)
        factory.noisy = False
        connected = self._endpoint.connect(factory)
        await connected.addTimeout(self._freshness.connectSeconds, self._reactor)
        text = await fetch.whole
        # In a thread, since it looks at every byte.
        pool = self._reactor.getThreadPool()
        poem = await deferToThreadPool(
            self._reactor, pool, Poem, self._upstream, text, self._upstream
        )
        if not self._isExpected(poem):
            raise UpstreamError(f"upstream sent another poem, SHA-256 {poem.digest}")
        return poem

    def _keep(self, poem: Poem) -> None:
        """
        Hold a whole poem, also on disk.
        """
        self._copy = copy = Copy(poem, self._reactor.seconds())
        self._log.info(
            "fetched {bytes} bytes of poetry from {upstream}",
            bytes=len(poem.text),
            upstream=self._upstream,
            digest=poem.digest,
            message_id="8e3d4a0808a54168ab40bdf251136819",
        )
        self._endOutage()
        if self._file is not None:
            pool = self._reactor.getThreadPool()
            saved = deferToThreadPool(self._reactor, pool, self._file.save, copy)
            saved.addErrback(lambda failure: self._tellCopy(failure.value))

    def _fail(self, failure: Failure) -> None:
        """
        Keep what there is, and try again later: sooner at first, and never twice a second.
        """
        if not self.running:
            return
        now = self._reactor.seconds()
        if self._outage is None:
            self._outage = _Outage(now, -_REMIND_SECONDS)
        outage = self._outage
        outage.failedAt = now
        outage.attempts += 1
        outage.cause = _explain(failure)
        pause = min(_MOST_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS * 2 ** min(outage.attempts, 10))
        self._nextAttempt = now + uniform(pause / 2, pause)  # not all proxies at the same time
        if now - outage.toldAt >= _REMIND_SECONDS:
            outage.toldAt = now
            self._log.warn(
                "no poem from {upstream} for {seconds} s: {cause}",
                upstream=self._upstream,
                seconds=round(now - outage.since),
                cause=outage.cause,
                attempts=outage.attempts,
                message_id="79766008b2c14493acb77a70aa9a6f3c",
            )

    def _endFetch(self, _: object) -> None:
        """
        See what has come of it.
        """
        self._fetch = None
        reloads: list[Deferred[None]] = []
        if not self._isDropped:  # otherwise they were asked for since, and another fetch follows
            reloads, self._reloads = self._reloads, []
        if self.running:
            self._settle()
        for reload in reloads:
            reload.callback(None)

    def _endOutage(self) -> None:
        """
        Say that the upstream is back, if it was away.
        """
        if self._outage is not None:
            self._log.info(
                "{upstream} is back after {seconds} s and {attempts} attempts",
                upstream=self._upstream,
                seconds=round(self._reactor.seconds() - self._outage.since),
                attempts=self._outage.attempts,
                message_id="b5a240cac91d41cba1214121e211a7eb",
            )
            self._outage = None

    def _tellCopy(self, why: object) -> None:
        """
        Say that there is no copy for the next start. Readers are served without one.
        """
        self._log.warn(
            "the copy on disk cannot be used: {cause}",
            cause=str(why),
            upstream=self._upstream,
            message_id="d9116cf49f434364ae55c197ff41359b",
        )


class _Fetch(Protocol, TimeoutMixin):
    """
    One connection to an upstream: what it sends until it closes is the poem.

    @ivar whole: fires with the poem; fails with L{UpstreamError} if it is not whole.
    """

    transport: Any

    def __init__(self, freshness: Freshness, clock: IReactorTime) -> None:
        """
        @param freshness: has the limits.
        """
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._freshness = freshness
        self._clock = clock
        self._pieces: list[bytes] = []
        self._size = 0

    def callLater(self, period: float, func: Callable[[], object]) -> IDelayedCall:
        """
        What the timeout is made with.
        """
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        """
        Wait for the first piece.
        """
        self.setTimeout(self._freshness.idleSeconds)

    def dataReceived(self, data: bytes) -> None:
        """
        Keep a piece, unless there are too many.
        """
        self.resetTimeout()
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._freshness.mostBytes:
            self._end(f"upstream sends more than {self._freshness.mostBytes} bytes")

    def timeoutConnection(self) -> None:
        """
        Nothing came for too long.
        """
        self._end(f"upstream sent nothing for {self._freshness.idleSeconds:g} s")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        A clean end is the end of the poem; all others are failures.
        """
        self.setTimeout(None)
        if not reason.check(error.ConnectionDone):
            self._end(f"upstream broke off after {self._size} bytes")
        elif not self._size:
            self._end("upstream sent nothing and closed")
        elif not self.whole.called:
            self.whole.callback(b"".join(self._pieces))

    def _end(self, why: str) -> None:
        """
        Fail, once, and let go of the connection.
        """
        if not self.whole.called:
            self.whole.errback(UpstreamError(why))
        self._abort()

    def _abort(self) -> None:
        """
        Close the connection, whatever is under way.
        """
        self._pieces.clear()
        self.setTimeout(None)
        if self.transport is not None:
            self.transport.abortConnection()


def _explain(failure: Failure) -> str:
    """
    What is wrong with an upstream, in a few words.
    """
    why = failure.value
    if isinstance(why, UpstreamError):
        return str(why)
    if isinstance(why, error.ConnectionRefusedError):
        return "upstream refused"
    if isinstance(why, error.DNSLookupError):
        return "upstream has no address"
    if isinstance(why, (defer.TimeoutError, error.TimeoutError)):
        return "upstream took too long"
    if isinstance(why, error.ConnectError) and why.osError:
        return f"upstream cannot be reached: {os.strerror(why.osError)}"
    return f"upstream failed: {failure.getErrorMessage()}"
