"""
Poems, and the rules by which a service selects them.

Holds poems and the paths of their files; L{fastpoetry.apart.poems} reads them. Knows neither the
reactor nor sockets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fastpoetry.apart.poems import Found, examine, readAnthology, readAt, readNamed
from fastpoetry.apart.poems import PoemError as PoemError


@dataclass(frozen=True)
class Poem:
    """
    One poem, as its readers get it.

    @ivar name: for people: C{ecstasy}.
    @ivar text: the whole poem, in the encoding of its file.
    @ivar origin: the path or endpoint that it came from, for people.
    @ivar digest: the SHA-256 of the text, in hexadecimal; computed unless it is given.
    @ivar invalidAt: the offset of the first byte that is not UTF-8; C{None} if all are, or if the
        digest was given.
    """

    name: str
    text: bytes
    origin: str
    digest: str = ""
    invalidAt: int | None = None

    def __post_init__(self) -> None:
        if not self.digest:
            digest, invalidAt = examine(self.text)
            object.__setattr__(self, "digest", digest)
            object.__setattr__(self, "invalidAt", invalidAt)


class Loaded(NamedTuple):
    """
    The result of finding and reading poems.

    @ivar poems: at least one.
    @ivar unreadable: for each poem that an anthology could not read, the error.
    @ivar misnamed: files of an anthology whose names are not valid names of poems.
    """

    poems: Sequence[Poem]
    unreadable: Sequence[str] = ()
    misnamed: Sequence[str] = ()

    @classmethod
    def make(cls, found: Found) -> Loaded:
        """Make poems from the result of a reading function."""
        texts, unreadable, misnamed = found
        return cls([Poem(*text) for text in texts], unreadable, misnamed)


class Selection(ABC):
    """A rule that selects the poems of a service. It is applied again at each reload."""

    @property
    @abstractmethod
    def reading(self) -> partial[Found]:
        """
        The function that finds and reads the poems, in this process or another.

        It raises L{PoemError} if there is no poem to serve.
        """

    def load(self) -> Loaded:
        """
        Find and read the poems as they are now.

        @raise PoemError: if there is no poem to serve.
        """
        return Loaded.make(self.reading())


@dataclass(frozen=True)
class PoemAt(Selection):
    """
    The poem in one file, in any folder.

    @ivar path: absolute, since twistd changes its folder when it becomes a daemon.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def reading(self) -> partial[Found]:
        return partial(readAt, self.path)


@dataclass(frozen=True)
class PoemNamed(Selection):
    """
    The poem with one name, from the first folder that has it.

    @ivar name: without folder or suffix.
    @ivar folders: searched in this order.
    """

    name: str
    folders: list[str]

    def __str__(self) -> str:
        return f"{self.name} in {':'.join(self.folders)}"

    @property
    def reading(self) -> partial[Found]:
        return partial(readNamed, self.name, self.folders)


@dataclass(frozen=True)
class Anthology(Selection):
    """
    Every poem in the folders. If two have the same name, the earlier folder's is served.

    @ivar folders: searched in this order.
    """

    folders: list[str]

    def __str__(self) -> str:
        return f"every poem in {':'.join(self.folders)}"

    @property
    def reading(self) -> partial[Found]:
        return partial(readAnthology, self.folders)
