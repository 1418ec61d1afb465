"""
The service that holds the poems.

Loads them when it starts and again when it is told to; knows no protocol and no port, so that any
number of them can serve what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import choice
from typing import Any

from twisted.application import service
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IReactorThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from fastpoetry.poem import Loaded, Poem, PoemAt, PoemError, Selection


class PoetryService(service.Service):
    """
    A source of poems that come from files.
    """

    _log = Logger()
    _poems: Sequence[Poem] = ()

    def __init__(
        self, selection: Selection | str | os.PathLike[str], reactor: IReactorThreads | None = None
    ) -> None:
        """
        @param selection: which poems, or the path of one; looked up at each start and each reload.
        @param reactor: whose threads read the poems at a reload; twistd's own, if none is given.
        """
        if isinstance(selection, (str, os.PathLike)):
            selection = PoemAt(os.path.abspath(selection))
        self._selection = selection
        self._reactor: Any = reactor

    @property
    def poem(self) -> Poem:
        """
        The poem for the next reader: at random, where the service holds several.

        @raise RuntimeError: if the service has not started, since it has none before.
        """
        poems = self._poems
        if not poems:
            raise RuntimeError("the poetry service has not started, which loads its poem")
        return poems[0] if len(poems) == 1 else choice(poems)

    def whenPoem(self) -> Deferred[Poem]:
        """
        The poem for the next reader, which is there as soon as the service runs.
        """
        return execute(lambda: self.poem)

    @property
    def description(self) -> str:
        """
        What is served, for a person: C{ecstasy (3003 bytes)}.
        """
        if len(self._poems) == 1:
            return f"{self._poems[0].name} ({len(self._poems[0].text)} bytes)"
        return f"an anthology of {len(self._poems)} poems"

    def startService(self) -> None:
        """
        Load the poems.

        @raise PoemError: if there is nothing to serve.
        """
        self._keep(self._selection.load())
        super().startService()

    def reload(self) -> Deferred[None]:
        """
        Look every poem up again; where that fails, the old ones stay and one record says why.

        The files are read in a thread, so that a slow disk holds up no reader.

        @return: fires when the poems are replaced, or are known to stay.
        """
        return Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> None:
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor
        try:
            loaded = await deferToThreadPool(reactor, reactor.getThreadPool(), self._selection.load)
        except PoemError as why:
            self._log.error(
                "kept the old poem: {cause}",
                cause=str(why),
                message_id="d9a7bc3707d94fb8a97a3861b7924ca8",
            )
        else:
            self._keep(loaded)

    def _keep(self, loaded: Loaded) -> None:
        """
        Replace what is held, at once, and say what it is.
        """
        self._poems = loaded.poems
        for why in loaded.leftOut:
            self._log.warn(
                "left a poem out: {cause}",
                cause=str(why),
                message_id="66370c4cceee46698cd1005d12eea6b4",
            )
        for poem in loaded.poems:
            self._announce(poem)

    def _announce(self, poem: Poem) -> None:
        self._log.info(
            "loaded a poem from: {origin}",
            origin=poem.origin,
            poem=poem.name,
            bytes=len(poem.text),
            digest=poem.digest,
            message_id="75bd5b2d1e3d4f139ebabd17d05f836b",
        )
        if poem.strangeAt is not None:
            self._log.warn(
                "{origin} is not UTF-8 (byte {offset}); it is served as it is",
                origin=poem.origin,
                poem=poem.name,
                offset=poem.strangeAt,
                message_id="ae6de87d944d44769eb825e65fa730e2",
            )
