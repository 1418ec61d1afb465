"""
A fetched poem on disk, so that a restarted proxy has one before its upstream answers.

L{fastpoetry.apart.copies} reads and writes it. Knows neither freshness nor the network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.apart.copies import SavedCopy, readCopy, writeCopy
from fastpoetry.apart.poems import MAX_POEM_BYTES
from fastpoetry.apart.process import Job, deferToProcess
from fastpoetry.apart.worker import WorkError
from fastpoetry.poem import Poem

_MOMENT_SECONDS = 1.0
"""How long a stop waits for a copy that is being written."""


@dataclass(frozen=True)
class Copy:
    """A poem from an upstream, and when its last byte came, in seconds since the epoch."""

    poem: Poem
    fetchedAt: float


class Keeper:
    """
    Keeps the latest copy of an upstream's poem on disk. It writes one copy at a time.

    A slow or dead disk delays neither readers nor fetches. Each cause of failure is logged once.
    """

    _log = Logger()

    def __init__(
        self, folder: str, upstream: str, reactor: Any, mostBytes: int = MAX_POEM_BYTES
    ) -> None:
        """
        @param upstream: its description. Each upstream has its own file.
        @param reactor: see L{Job}.
        @param mostBytes: how large a poem may be.
        """
        self.path = os.path.join(folder, sha256(os.fsencode(upstream)).hexdigest()[:32] + ".poem")
        self._upstream = upstream
        self._reactor = reactor
        self._mostBytes = mostBytes
        self._next: Copy | None = None
        self._saving = DeferredLock()
        self._loggedCause = ""

    def load(self) -> Deferred[Copy | None]:
        """@return: fires with the copy, or with C{None} if it is missing or unusable."""
        reading = partial(readCopy, self.path, self._mostBytes)
        return deferToProcess(self._reactor, reading, self.path).addCallbacks(
            self._make, self._fail
        )

    def save(self, copy: Copy) -> None:
        """Replace the copy. A copy that waits to be written gives way to a later one."""
        self._next = copy
        if not self._saving.locked:
            self._saving.run(lambda: Deferred.fromCoroutine(self._saveAll()))

    def finish(self) -> Deferred[None]:
        """@return: fires when the copy in progress is written, or after a moment."""
        finished = self._saving.run(lambda: None)
        return finished.addTimeout(_MOMENT_SECONDS, self._reactor, onTimeoutCancel=lambda *_: None)

    def tell(self, why: object) -> None:
        """
        Log why the next start will have no copy. Readers are served without one.

        The same cause is logged once, until a copy is written.
        """
        cause, logged = str(why) or repr(why), self._loggedCause
        self._loggedCause = cause
        if cause != logged:
            self._log.warn(
                "the copy on disk cannot be used: {cause}",
                cause=cause,
                upstream=self._upstream,
                message_id="d9116cf49f434364ae55c197ff41359b",
            )

    def _make(self, found: SavedCopy | None) -> Copy | None:
        if found is None:
            return None
        text, fetchedAt, digest = found
        return Copy(Poem(self._upstream, text, self.path, digest), fetchedAt)

    async def _saveAll(self) -> None:
        """Write the latest copy in a separate process, until no later one waits."""
        while self._next is not None:
            copy, self._next = self._next, None
            work = partial(writeCopy, self.path, copy.poem.text, copy.fetchedAt, os.getpid())
            try:
                job = Job(self._reactor, work, self.path)
            except WorkError as why:
                self.tell(why)
            else:
                job.done.addCallbacks(self._succeed, self._fail)
                await job.ended  # while the process is blocked, no second one starts

    def _succeed(self, _: None) -> None:
        self._loggedCause = ""

    def _fail(self, failure: Failure) -> None:
        self.tell(failure.value)
