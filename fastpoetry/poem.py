"""
Poems and the folders they are found in.

Reads files; knows neither the reactor nor sockets, and never decodes a poem: what the file holds is
what the reader gets.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from codecs import utf_8_decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Protocol

DEFAULT_POETRY_PATH = "/etc/fastpoetry/poetry:/usr/share/fastpoetry/poetry"
"""The folders to look for poems in, first to last, so that yours go before the package's."""

MAX_POEM_BYTES = 64 * 1024 * 1024
"""A poem is held in memory whole, and once more while it is being reloaded."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
"""What may name a poem. No dot and no slash, so that no name leads out of its folder."""

_SUFFIX = ".txt"

_MOST_NAMES = 20
"""How many to list for a person, whose line it is."""

_TICK_NANOSECONDS = 20_000_000
"""
Two changes of a file that are further apart have different times.

The kernel's clock for that goes by ticks of up to 10 ms, and is up to one behind.
"""

_MOST_TICKS = 10
"""For how long to wait for the end of somebody's writing."""

_PIECE_BYTES = 1 << 20
"""What is decoded at a time: as text it takes up to four times as much memory."""

# Non-blocking, since opening a FIFO to read it waits for a writer otherwise (fifo(7)).
OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_TORN = "was written to while it was read; move a new poem into place (mv)"

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class PoemError(Exception):
    """A poem that cannot be served: one line for the person who can mend it."""


@dataclass(frozen=True)
class Poem:
    """
    One poem, as its readers get it.

    @ivar name: what people call it: C{ecstasy}.
    @ivar text: the whole poem, in whatever encoding its file has.
    @ivar origin: where it came from, for a person: a path, or an endpoint.
    @ivar digest: the SHA-256 of the text, in hexadecimal.
    @ivar strangeAt: which byte of the text is the first that is not UTF-8, if one is not.
    """

    name: str
    text: bytes
    origin: str
    digest: str = field(init=False)
    strangeAt: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # Here, and so in whatever thread reads the poem: of 64 MiB it takes a quarter of a second.
        object.__setattr__(self, "digest", sha256(self.text).hexdigest())
        object.__setattr__(self, "strangeAt", _findStrange(self.text))


class Loaded(NamedTuple):
    """
    What one look at the poetry brought.

    @ivar poems: at least one.
    @ivar leftOut: why others were left out, which only an anthology does.
    @ivar passedOver: files of an anthology whose names are none of poems.
    """

    poems: Sequence[Poem]
    leftOut: Sequence[PoemError] = ()
    passedOver: Sequence[str] = ()


class Selection(Protocol):
    """Which poems a service serves: a rule that is looked up again at each reload."""

    def load(self) -> Loaded:
        """
        Find and read the poems as they are now.

        @raise PoemError: if there is nothing to serve.
        """


class PoemAt(NamedTuple):
    """
    The poem in one file, wherever it is.

    @ivar path: absolute, since twistd changes its folder when it becomes a daemon.
    """

    path: str

    def load(self) -> Loaded:
        """
        Read the file.

        @raise PoemError: if it cannot be read whole.
        """
        stem = os.path.splitext(os.path.basename(self.path))[0]
        return Loaded([_readPoem(stem, self.path, self.path)])


class PoemNamed(NamedTuple):
    """
    The poem of one name, in the first folder that has it.

    @ivar name: without folder or suffix.
    @ivar folders: where to look, first to last.
    """

    name: str
    folders: Sequence[str]

    def load(self) -> Loaded:
        """
        Look the name up and read what is found.

        @raise PoemError: if no folder has it, or the first that has it cannot give it.
        """
        return Loaded([_readBeneath(self.find(), self.name)])

    def find(self) -> str:
        """
        Look the name up.

        @return: the first folder that has it.
        @raise PoemError: if none has it.
        """
        if _NAME.fullmatch(self.name) is None:
            raise PoemError(
                f"{self.name!a} is no name of a poem (letters, digits, _ and -); "
                f"a path has a slash in it, as in ./ecstasy.txt; {self._listNames()}"
            )
        for folder in self.folders:
            if _has(folder, self.name):
                return folder
        raise PoemError(f"no poem {self.name} in {':'.join(self.folders)}; {self._listNames()}")

    def _listNames(self) -> str:
        return listNames(self.name, filter(_NAME.fullmatch, _findFiles(self.folders)))


def listNames(name: str, there: Iterable[str]) -> str:
    """Say what there is in the place of what is not, and what may have been meant."""
    from difflib import get_close_matches  # costs a millisecond that only an error pays

    names = sorted(there)
    near = get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"there is {', '.join(names[:_MOST_NAMES]) or 'none at all'}{more}{meant}"


class Anthology(NamedTuple):
    """
    Every poem along the folders, an earlier folder's before a later one's of the same name.

    @ivar folders: where to look, first to last.
    """

    folders: Sequence[str]

    def load(self) -> Loaded:
        """
        List the folders and read what they have, leaving out what cannot be read.

        @raise PoemError: if not one poem could be read.
        """
        poems: list[Poem] = []
        leftOut: list[PoemError] = []
        passedOver: list[str] = []
        for stem, folder in sorted(_findFiles(self.folders).items()):
            if _NAME.fullmatch(stem) is None:
                passedOver.append(os.path.join(folder, stem + _SUFFIX))
                continue
            try:
                poems.append(_readBeneath(folder, stem))
            except PoemError as why:
                leftOut.append(why)
        if not poems:
            causes = "; ".join(map(str, leftOut))
            nowhere = f"no poem to read in {':'.join(self.folders)}"
            raise PoemError(f"{nowhere}: {causes}" if causes else nowhere)
        return Loaded(poems, leftOut, passedOver)


def _has(folder: str, name: str) -> bool:
    """
    Whether a folder has a poem of that name, readable or not.

    @raise PoemError: if the folder itself does not say, so that a poem of the administrator's is
        never passed over in silence for one of ours.
    """
    path = os.path.join(folder, name + _SUFFIX)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as why:
        raise PoemError(f"{path}: {_explain(why, path)}") from None
    return True


def _findFiles(folders: Sequence[str]) -> dict[str, str]:
    """
    What each file with the suffix of poems is called without it, with the first folder that has it.

    @raise PoemError: if a folder that is there cannot be listed.
    """
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as why:
            raise PoemError(f"{folder}: {_explain(why, folder)}") from None
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            if suffix == _SUFFIX and not stem.startswith("."):
                found.setdefault(stem, folder)
    return found


def _readBeneath(folder: str, name: str) -> Poem:
    """
    Read a named poem without leaving its folder.

    A link to another file in or below the folder is a second name; any other link is refused.
    """
    path = os.path.join(folder, name + _SUFFIX)
    while True:
        target = os.path.realpath(path)
        inner = os.path.relpath(target, os.path.realpath(folder))
        if inner.split(os.sep)[0] == os.pardir:
            why = f"leads out of its folder, to {target!a}; copy the poem instead"
            raise PoemError(f"{path}: {why}")
        try:
            return _readPoem(name, target, path, inner)
        except PoemError:
            # A folder that is replaced as a whole, by a link that is moved into place, is gone by
            # the old link: the new one leads to the new poem.
            if os.path.realpath(path) == target:
                raise


def _readPoem(name: str, path: str, origin: str, inner: str = "") -> Poem:
    """
    Read one regular file, whole, or say why not.

    @param path: what to open.
    @param origin: what to call it.
    @param inner: the end of the path, in which there are no links.
    """
    try:
        descriptor = _openBeneath(path, inner)
        try:
            text = _readOpen(descriptor)
        finally:
            os.close(descriptor)
    except OSError as why:
        raise PoemError(f"{origin}: {_explain(why, path)}") from None
    except (PoemError, ValueError) as why:  # the latter from a NUL in the path
        raise PoemError(f"{origin}: {why}") from None
    return Poem(name, text, origin)


def _openBeneath(path: str, inner: str) -> int:
    """Open a file, and follow no link that was put into the inner part of its path meanwhile."""
    if not inner:
        return os.open(path, OPEN_FLAGS)
    *folders, last = inner.split(os.sep)
    folder = os.open(path.removesuffix(inner), _FOLDER_FLAGS)
    try:
        for each in folders:
            outer, folder = folder, os.open(each, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            os.close(outer)
        return os.open(last, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def _readOpen(descriptor: int) -> bytes:
    """
    Read an open file from its first to its last byte.

    @raise PoemError: if it is no poem, or another one at the end than at the beginning.
    """
    for _ in range(_MOST_TICKS):
        before = _waitForTick(descriptor)
        if fault := findFault(before, "poem", MAX_POEM_BYTES):
            raise PoemError(fault)
        if before.st_size == 0:
            raise PoemError("is empty; a poem has at least one byte")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            # One byte more than there should be shows that the file grew meanwhile.
            text = file.read(before.st_size + 1)
        after = os.fstat(descriptor)
        if (len(text), before.st_mtime_ns) != (before.st_size, after.st_mtime_ns):
            break
        if before.st_ctime_ns == after.st_ctime_ns:
            return text
        # Somebody changed its mode or moved another file into its place, or wrote to it and set its
        # time back (rsync --times): it is read again.
    raise PoemError(_TORN)


def _waitForTick(descriptor: int) -> os.stat_result:
    """
    Wait until the last change of a file is so long ago that the next has another time.

    @raise PoemError: if it is changed again and again.
    """
    for _ in range(_MOST_TICKS):
        status = os.fstat(descriptor)
        # One that is to come was set by another clock, and differs from any that follows.
        if abs(time.time_ns() - status.st_ctime_ns) > _TICK_NANOSECONDS:
            return status
        time.sleep(_TICK_NANOSECONDS / 1e9)
    raise PoemError(_TORN)


def _findStrange(text: bytes) -> int | None:
    """Which byte is the first that is not UTF-8, if one is not."""
    pieces, at = memoryview(text), 0
    while at < len(text):
        piece = pieces[at : at + _PIECE_BYTES]
        try:
            _, taken = utf_8_decode(piece, "strict", at + len(piece) == len(text))
        except UnicodeDecodeError as why:
            return at + why.start
        at += taken
    return None


def findFault(status: os.stat_result, what: str, mostBytes: int) -> str:
    """
    Why an open file is not what it should be, or nothing.

    @param what: that is what it should be.
    @param mostBytes: how large it may be.
    """
    for isKind, kind in _KINDS:
        if isKind(status.st_mode):
            return f"is {kind}; a {what} is a regular file"
    if status.st_size > mostBytes:
        mebi = f" ({mostBytes >> 20} MiB)" if mostBytes >> 20 else ""
        return f"has {status.st_size} bytes; a {what} has {mostBytes}{mebi} at most"
    return ""


def _explain(why: OSError, path: str) -> str:
    """The system's word for an error, and how to mend it where that is known."""
    text = why.strerror or str(why)
    if why.errno == errno.EACCES:
        return (
            f"{text} (uid {os.geteuid()}); mend it with: chmod a+r {path}, and a+x for its folders"
        )
    return text
