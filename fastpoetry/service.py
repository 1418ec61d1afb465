"""
The service that holds the poems.

Loads them at the start and at each reload. Knows no protocol and no port, so any number of ports
can serve its poems.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from random import choice
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, DeferredLock, execute
from twisted.logger import Logger

from fastpoetry.apart.poems import encodable
from fastpoetry.apart.process import deferToProcess
from fastpoetry.apart.worker import WorkError
from fastpoetry.poem import Loaded, Poem, PoemAt, PoemError, Selection

_MOST_NAMED = 10
"""How many files one record names. It gives only the number of the others."""


class PoetryService(service.Service):
    """
    A source of poems from files.

    @ivar freshAt: when the poems were read, in seconds since the epoch.
    """

    freshAt: float | None = None

    _log = Logger()
    _poems: Sequence[Poem] = ()
    _misnamed: Sequence[str] = ()
    _failed: tuple[float, str] | None = None

    def __init__(
        self,
        selection: Selection | str | os.PathLike[str],
        reactor: Any = None,
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param selection: which poems, or the path of one; looked up at each start and each reload.
        @param reactor: for reloads, see L{Job}; by default twistd's.
        @param seconds: a monotonic clock, which measures how long a poem has been stale.
        """
        if isinstance(selection, (str, os.PathLike)):
            selection = PoemAt(os.path.abspath(selection))
        self._selection = selection
        self._reactor = reactor
        self._seconds = seconds
        self._reloading = DeferredLock()

    @property
    def poem(self) -> Poem:
        """
        The poem for the next reader: a random one, if the service holds several.

        @raise RuntimeError: if the service has not started and so has no poem yet.
        """
        poems = self._poems
        if not poems:
            raise RuntimeError("the poetry service has not started, so it has no poem yet")
        return poems[0] if len(poems) == 1 else choice(poems)

    def whenPoem(self) -> Deferred[Poem]:
        """@return: fires at once with L{poem}, or fails with its C{RuntimeError}."""
        return execute(lambda: self.poem)

    @property
    def description(self) -> str:
        if len(self._poems) == 1:
            served = f"{self._poems[0].name} ({len(self._poems[0].text)} bytes)"
        else:
            served = f"an anthology of {len(self._poems)} poems"
        if self._failed is None:
            return served
        at, cause = self._failed
        return f"{served}. Stale for {self._seconds() - at:.0f} s: {cause}"

    def startService(self) -> None:
        """
        Load the poems, and block meanwhile. The command first checks in another process that they
        can be read (L{fastpoetry.apart.process}).

        @raise PoemError: if there is no poem to serve.
        """
        self._keep(self._selection.load())
        super().startService()

    def reload(self) -> Deferred[None]:
        """
        Look every poem up again. If that fails, keep the old ones and log the cause.

        Another process reads the files, so a dead disk delays neither a reader nor a stop.

        @return: fires when the poems are replaced; fails with C{PoemError} if the old ones stay.
        """
        return self._reloading.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> None:
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor
        try:
            found = await deferToProcess(reactor, self._selection.reading, str(self._selection))
            loaded = Loaded.make(found)
        except Exception as why:
            cause = str(why) if isinstance(why, WorkError) else repr(why)
            since = self._seconds() if self._failed is None else self._failed[0]
            self._failed = since, cause
            self._log.error(
                "kept the old poem: {cause}",
                cause=encodable(cause),
                message_id="d9a7bc3707d94fb8a97a3861b7924ca8",
            )
            raise PoemError(cause) from None
        self._keep(loaded)

    def _keep(self, loaded: Loaded) -> None:
        """Replace all poems at once, and log what was loaded."""
        # Keep the object of an unchanged poem, or its readers would hold a second copy in memory.
        held = {(poem.name, poem.origin, poem.digest): poem for poem in self._poems}
        self._poems = [
            held.get((poem.name, poem.origin, poem.digest), poem) for poem in loaded.poems
        ]
        self._failed = None
        self.freshAt = time.time()
        for why in loaded.unreadable:
            self._log.warn(
                "left a poem out: {cause}",
                cause=encodable(why),
                message_id="66370c4cceee46698cd1005d12eea6b4",
            )
        if loaded.misnamed and loaded.misnamed != self._misnamed:
            self._log.warn(
                "passed over {files}: a poem's name has letters, digits, _ and - only",
                files=_listPaths(loaded.misnamed),
                message_id="b917b3f4b8ab4046a0920b1e1fadc045",
            )
        self._misnamed = loaded.misnamed
        if len(self._poems) == 1:
            self._announce(self._poems[0])
        else:
            self._announceAll()

    def _announce(self, poem: Poem) -> None:
        self._log.info(
            "loaded a poem from: {origin}",
            origin=encodable(poem.origin),
            poem=poem.name,
            bytes=len(poem.text),
            digest=poem.digest,
            message_id="75bd5b2d1e3d4f139ebabd17d05f836b",
        )
        if poem.invalidAt is not None:
            self._log.warn(
                "{origin} is not UTF-8 (byte {offset}); it is served as it is",
                origin=encodable(poem.origin),
                poem=poem.name,
                offset=poem.invalidAt,
                message_id="ae6de87d944d44769eb825e65fa730e2",
            )

    def _announceAll(self) -> None:
        folders = sorted({os.path.dirname(poem.origin) for poem in self._poems})
        self._log.info(
            "loaded {count} poems from: {folders}",
            count=len(self._poems),
            folders=encodable(":".join(folders)),
            bytes=sum(len(poem.text) for poem in self._poems),
            message_id="fbe5f3b677634e91bfe71f4e1f04f67e",
        )
        strange = [poem.origin for poem in self._poems if poem.invalidAt is not None]
        if strange:
            self._log.warn(
                "not UTF-8, and served as they are: {files}",
                files=_listPaths(strange),
                message_id="01d5559e05be46f8b025f61353b4f9fc",
            )


def _listPaths(paths: Sequence[str]) -> str:
    """Format paths as one line of ASCII text."""
    more = len(paths) - _MOST_NAMED
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(map(ascii, paths[:_MOST_NAMED])) + rest
