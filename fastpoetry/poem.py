"""
Poems, and the rules by which a service selects them.

Holds poems and names files; L{fastpoetry.apart.poems} reads them. Knows neither the reactor nor
sockets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fastpoetry.apart.poems import (
    DEFAULT_POETRY_PATH,
    MAX_POEM_BYTES,
    Found,
    PoemError,
    examine,
    readAnthology,
    readAt,
    readNamed,
)

__all__ = [
    "DEFAULT_POETRY_PATH",
    "MAX_POEM_BYTES",
    "Anthology",
    "Loaded",
    "Poem",
    "PoemAt",
    "PoemError",
    "PoemNamed",
    "Selection",
]


@dataclass(frozen=True)
class Poem:
    """
    One poem, as its readers get it.

    @ivar name: what people call it: C{ecstasy}.
    @ivar text: the whole poem, in whatever encoding its file has.
    @ivar origin: where it came from, for a person: a path, or an endpoint.
    @ivar digest: the SHA-256 of the text, in hexadecimal; found out if it is not given.
    @ivar strangeAt: which byte of the text is the first that is not UTF-8, if one is not.
    """

    name: str
    text: bytes
    origin: str
    digest: str = ""
    strangeAt: int | None = None

    def __post_init__(self) -> None:
        if not self.digest:
            digest, strangeAt = examine(self.text)
            object.__setattr__(self, "digest", digest)
            object.__setattr__(self, "strangeAt", strangeAt)


class Loaded(NamedTuple):
    """
    What one look at the poetry brought.

    @ivar poems: at least one.
    @ivar leftOut: why others were left out, which only an anthology does.
    @ivar passedOver: files of an anthology whose names are none of poems.
    """

    poems: Sequence[Poem]
    leftOut: Sequence[str] = ()
    passedOver: Sequence[str] = ()

    @classmethod
    def make(cls, found: Found) -> Loaded:
        """Make poems of what was found."""
        texts, leftOut, passedOver = found
        return cls([Poem(*text) for text in texts], leftOut, passedOver)


class Selection(ABC):
    """Which poems a service serves: a rule that is looked up again at each reload."""

    @property
    @abstractmethod
    def reading(self) -> partial[Found]:
        """
        What finds and reads the poems as they are when it is called, here or in another process.

        It raises L{PoemError} if there is nothing to serve.
        """

    def load(self) -> Loaded:
        """
        Find and read the poems as they are now.

        @raise PoemError: if there is nothing to serve.
        """
        return Loaded.make(self.reading())


@dataclass(frozen=True)
class PoemAt(Selection):
    """
    The poem in one file, wherever it is.

    @ivar path: absolute, since twistd changes its folder when it becomes a daemon.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def reading(self) -> partial[Found]:
        """Reads the file."""
        return partial(readAt, self.path)


@dataclass(frozen=True)
class PoemNamed(Selection):
    """
    The poem of one name, in the first folder that has it.

    @ivar name: without folder or suffix.
    @ivar folders: where to look, first to last.
    """

    name: str
    folders: list[str]

    def __str__(self) -> str:
        return f"{self.name} in {':'.join(self.folders)}"

    @property
    def reading(self) -> partial[Found]:
        """Looks the name up and reads what is found."""
        return partial(readNamed, self.name, self.folders)


@dataclass(frozen=True)
class Anthology(Selection):
    """
    Every poem along the folders, an earlier folder's before a later one's of the same name.

    @ivar folders: where to look, first to last.
    """

    folders: list[str]

    def __str__(self) -> str:
        return f"every poem in {':'.join(self.folders)}"

    @property
    def reading(self) -> partial[Found]:
        """Lists the folders and reads what they have, leaving out what cannot be read."""
        return partial(readAnthology, self.folders)
