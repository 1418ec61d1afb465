"""
A source of poems from another poetry server.

Fetches a poem, keeps it, and shares it among readers. Serves no client itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Copy, Keeper
from fastpoetry.proxy.fetch import UpstreamError, explain, fetch, tookTooLong
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.outage import Outage

_LEAST_USE_SECONDS = 1.0
"""
How long a new poem is served at least, whatever its freshness.

Serving the clients that waited for it in the backlog takes some turns of the reactor.
"""

_LOAD_SECONDS = 1.0
"""How long reading the copy on disk may take before the upstream is asked."""


class PoetryProxyService(service.Service):
    """
    Holds the poem of an upstream, and fetches it for a reader if the held poem is not fresh.

    There is one fetch at a time, however many readers wait for it. Only a whole poem replaces the
    old one.
    """

    _log = Logger()

    def __init__(
        self,
        upstream: str,
        endpoint: IStreamClientEndpoint,
        freshness: Freshness,
        reactor: Any,
        expectedDigest: str | None = None,
        keeper: Keeper | None = None,
        wallSeconds: Callable[[], float] = time.time,
    ) -> None:
        """
        @param upstream: the upstream's name for records.
        @param reactor: provides C{IReactorTime} with a monotonic clock.
        @param expectedDigest: the SHA-256 that the poem must have, in hexadecimal, if it is known.
        @param wallSeconds: the time in seconds since the epoch, for the copy and L{freshAt}.
        """
        self._upstream = upstream
        self._endpoint = endpoint
        self._freshness = freshness
        self._reactor = reactor
        self._expectedDigest = expectedDigest
        self._keeper = keeper
        self._wallSeconds = wallSeconds
        self._poem: Poem | None = None
        self._fetchedAt = self._notBefore = 0.0
        self._outage: Outage | None = None
        self._fetch: Deferred[Poem] | None = None
        self._waiters: list[Deferred[Poem]] = []
        self._reloads: list[Deferred[None]] = []
        self._mustRefetch = False
        self._nextUpdate: IDelayedCall | None = None
        self._served: Poem | None = None
        self._isDue = False

    @property
    def poem(self) -> Poem | None:
        """The poem for the next reader, if there is a usable one. Begins a fetch if one is due."""
        if self._isDue:
            self._beginFetch()
        return self._served

    @property
    def description(self) -> str:
        if self._outage is not None:
            return f"{self._upstream}. {self._outage.describe()}"
        if self._poem is None:
            return f"{self._upstream} (not fetched yet)"
        return f"{self._upstream} ({len(self._poem.text)} bytes)"

    @property
    def freshAt(self) -> float | None:
        if self._poem is None:
            return None
        age: float = self._reactor.seconds() - self._fetchedAt
        return self._wallSeconds() - age

    def whenPoem(self) -> Deferred[Poem]:
        """
        @return: fires with a usable poem, or fails with C{TimeoutError} after C{totalSeconds}.
            Cancelling it leaves other waiters and the fetch alone.
        """
        poem = self.poem
        if poem is not None:
            return succeed(poem)
        waiter: Deferred[Poem] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        # At the start, the fetch waits for the copy on disk. It must fail before its readers do.
        begins = max(0.0, self._notBefore - self._reactor.seconds())
        return waiter.addTimeout(begins + self._freshness.totalSeconds, self._reactor)

    def startService(self) -> None:
        """Begin with the copy on disk, if it is usable."""
        super().startService()
        self._notBefore = self._reactor.seconds()
        if self._keeper is not None:
            self._notBefore += _LOAD_SECONDS
            self._keeper.load().addCallback(self._holdCopy)
        self._update()

    def stopService(self) -> Deferred[None] | None:
        """Stop fetching. Wait for a copy that is being written, but only a moment."""
        super().stopService()
        self._isDue = False
        if self._fetch is not None:
            self._fetch.cancel()
        if self._nextUpdate is not None and self._nextUpdate.active():
            self._nextUpdate.cancel()
        self._nextUpdate = None
        for waiter in list(self._waiters):
            waiter.cancel()
        reloads, self._reloads = self._reloads, []  # those that waited for an outage to end
        for reload in reloads:
            reload.callback(None)
        return None if self._keeper is None else self._keeper.finish()

    def reload(self) -> Deferred[None]:
        """
        Fetch anew, even if the poem is fresh, and keep the old one until the new one is whole.

        @return: fires when the fetch succeeds or the service stops, or fails with
            L{UpstreamError}.
        """
        done: Deferred[None] = Deferred()
        self._reloads.append(done)
        self._mustRefetch = True
        if self._outage is not None:
            self._outage.hurry()
        self._update()
        return done

    def _holdCopy(self, copy: Copy | None) -> None:
        """Hold the copy from disk, unless there is a fetched poem already."""
        self._notBefore = self._reactor.seconds()
        if copy is not None and self._keeper is not None and not self._isExpected(copy.poem):
            self._keeper.tell(f"{copy.poem.origin}: is another poem, SHA-256 {copy.poem.digest}")
        elif copy is not None and self._poem is None:
            # If the copy is from the future, the clock was wrong.
            age = max(0.0, self._wallSeconds() - copy.fetchedAt)
            self._poem, self._fetchedAt = copy.poem, self._reactor.seconds() - age
        if self.running:
            self._update()

    def _isExpected(self, poem: Poem) -> bool:
        return self._expectedDigest in (None, poem.digest)

    def _update(self) -> None:
        """
        Derive which poem is served, and whether a fetch is due. A timer calls this again when time
        alone changes the result.
        """
        now = self._reactor.seconds()
        freshness, fetchedAt = self._freshness, self._fetchedAt
        nextAttempt = self._notBefore if self._outage is None else self._outage.nextAttempt
        changes = [nextAttempt]
        isFresh = isUsable = False
        if self._poem is not None:
            staleAt = fetchedAt + freshness.maxAgeSeconds
            revalidateUntil = staleAt + freshness.revalidateSeconds
            revalidateUntil = max(revalidateUntil, fetchedAt + _LEAST_USE_SECONDS)
            errorUntil = staleAt + freshness.errorSeconds
            isFresh = now < staleAt and not self._mustRefetch and self._outage is None
            isUsable = now < revalidateUntil or (self._outage is not None and now < errorUntil)
            changes += [staleAt, revalidateUntil, errorUntil]
        self._served = self._poem if isUsable else None
        self._isDue = not isFresh and self._fetch is None and now >= nextAttempt
        before = self._nextUpdate
        later = [when for when in changes if when > now]
        self._nextUpdate = (
            self._reactor.callLater(min(later) - now, self._update) if later else None
        )
        if before is not None and before.active():
            before.cancel()
        while self._served is not None and self._waiters:  # a waiter that fires may cancel another
            self._waiters.pop(0).callback(self._served)
        if self._isDue and (self._waiters or self._reloads):
            self._beginFetch()

    def _beginFetch(self) -> None:
        """Fetch for all waiters, also for those that come before the fetch ends."""
        self._isDue = self._mustRefetch = False
        fetched: Deferred[Poem] = Deferred.fromCoroutine(self._fetchWhole())
        self._fetch = fetched.addTimeout(self._freshness.totalSeconds, self._reactor, tookTooLong)
        # _endFetch also follows a failure of any kind. No other fetch begins before it.
        fetched.addCallback(self._keep).addErrback(self._fail).addBoth(self._endFetch)

    async def _fetchWhole(self) -> Poem:
        """
        Fetch the upstream's poem.

        @raise UpstreamError: if it is not whole, or not the expected one; see L{fetch} for others.
        """
        text, digest = await fetch(self._endpoint, self._freshness, self._reactor)
        poem = Poem(self._upstream, text, self._upstream, digest)
        if not self._isExpected(poem):
            raise UpstreamError(f"upstream sent another poem, SHA-256 {poem.digest}")
        return poem

    def _keep(self, poem: Poem) -> None:
        """Hold a whole poem, also on disk."""
        if self._poem is None or self._poem.digest != poem.digest:
            self._poem = poem  # an unchanged poem stays: its readers share one copy in memory
        self._fetchedAt = self._reactor.seconds()
        self._log.info(
            "fetched {bytes} bytes of poetry from {upstream}",
            bytes=len(poem.text),
            upstream=self._upstream,
            digest=poem.digest,
            message_id="8e3d4a0808a54168ab40bdf251136819",
        )
        if self._outage is not None:
            self._outage.end()
            self._outage = None
        if self._keeper is not None:
            self._keeper.save(Copy(self._poem, self._wallSeconds()))

    def _fail(self, failure: Failure) -> Failure | None:
        """Keep the old poem, and retry after a pause, see L{Outage.add}."""
        if not self.running:
            return None
        if self._outage is None:
            self._outage = Outage(self._upstream, self._reactor)
        cause = explain(failure)
        self._outage.add(cause)
        return Failure(UpstreamError(cause))

    def _endFetch(self, why: Any) -> None:
        """Fire the reloads that this fetch was for, and decide what is next."""
        self._fetch = None
        reloads: list[Deferred[None]] = []
        if not self._mustRefetch:  # otherwise another fetch follows, for the reloads since
            reloads, self._reloads = self._reloads, []
        if self.running:
            self._update()
        for reload in reloads:
            reload.callback(why)
