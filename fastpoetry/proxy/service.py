"""
A source of poems that come from another poetry server.

Has one fetched, keeps and shares it; serves nobody itself.
"""

from __future__ import annotations

from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Copy, CopyError, CopyFile
from fastpoetry.proxy.fetch import UpstreamError, explain, fetch
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.outage import Outage

_LEAST_USE_SECONDS = 1.0
"""
How long a poem will do whatever its freshness.

Those who waited for it are served out of a backlog, which takes some turns of the reactor.
"""


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
        self._outage: Outage | None = None
        self._fetch: Deferred[Poem] | None = None
        self._waiters: list[Deferred[Poem]] = []
        self._reloads: list[Deferred[None]] = []
        self._isDropped = False
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
            return f"{self._upstream}. {self._outage.describe()}"
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
            self._outage.hurry()
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
        nextAttempt = now if self._outage is None else self._outage.nextAttempt
        changes = [nextAttempt]
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
        self._isDue = not isFresh and self._fetch is None and now >= nextAttempt
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
        fetched: Deferred[Poem] = Deferred.fromCoroutine(self._fetchWhole())
        self._fetch = fetched.addTimeout(self._freshness.totalSeconds, self._reactor)
        fetched.addCallbacks(self._keep, self._fail).addBoth(self._endFetch)

    async def _fetchWhole(self) -> Poem:
        """
        Get the upstream's poem.

        @raise UpstreamError: for one, if it is not whole, or not the one that is expected.
        """
        text = await fetch(self._endpoint, self._freshness, self._reactor)
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
        if self._outage is not None:
            self._outage.end()
            self._outage = None
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
        if self._outage is None:
            self._outage = Outage(self._upstream, self._reactor)
        self._outage.add(explain(failure))

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
