"""
Finds poems in folders, and reads them from files.

Does not decode a poem: a reader gets the bytes of the file. Imports very little, since a separate
process runs it (L{fastpoetry.apart.worker}).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from codecs import utf_8_decode

from fastpoetry.apart.worker import WorkError

DEFAULT_POETRY_PATH = "/etc/fastpoetry/poetry:/usr/share/fastpoetry/poetry"
"""The folders with poems, searched in order: the administrator's before the package's."""

MAX_POEM_BYTES = 64 * 1024 * 1024
"""The size limit of a poem. A poem is in memory as a whole, and twice during a reload."""

_SUFFIX = ".txt"

_MOST_LETTERS = 100
"""The longest name of a poem."""

_MOST_NAMES = 20
"""How many names an error lists, since it is one line."""

_TICK_NANOSECONDS = 20_000_000
"""
Two changes of a file that are further apart than this have different times.

The kernel's clock for file times advances in ticks of up to 10 ms, and is up to one tick behind.
"""

_MOST_TRIES = 10
"""How many ticks to wait for a file that another process writes to, and how often to read it."""

_SHORT_BYTES = 16384
"""The server itself examines poems up to this size: this process would first import C{hashlib}."""

_PIECE_BYTES = 1 << 20
"""How much is decoded at a time. Decoded text takes up to four times as much memory."""

# Non-blocking, since opening a FIFO would wait for a writer (fifo(7)).
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


class PoemError(WorkError):
    """A poem that cannot be served: one line that tells an administrator how to mend it."""


Text = tuple[str, bytes, str, str, int | None]
"""The arguments of L{fastpoetry.poem.Poem}, in types that C{marshal} supports."""

Found = tuple[list[Text], list[str], list[str]]
"""Poems, the errors of others, and passed-over files: see L{fastpoetry.poem.Loaded}."""


def readAt(path: str) -> Found:
    """
    Read the poem in one file, in any folder.

    @raise PoemError: if it cannot be read whole.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    return [_readPoem(stem, path, path)], [], []


def readNamed(name: str, folders: list[str]) -> Found:
    """
    Read the poem with a name.

    @raise PoemError: if no folder has it, or the file in the first such folder cannot be read.
    """
    return [_readBeneath(findFolder(name, folders), name)], [], []


def readAnthology(folders: list[str]) -> Found:
    """
    Read every poem in the folders, except those that cannot be read.

    @raise PoemError: if no poem could be read.
    """
    poems: list[Text] = []
    unreadable: list[str] = []
    misnamed: list[str] = []
    for stem, folder in sorted(_findFiles(folders).items()):
        if not _isName(stem):
            misnamed.append(os.path.join(folder, stem + _SUFFIX))
            continue
        try:
            poems.append(_readBeneath(folder, stem))
        except PoemError as why:
            unreadable.append(str(why))
    if not poems:
        causes = "; ".join(unreadable)
        nowhere = f"no poem to read in {':'.join(folders)}"
        raise PoemError(f"{nowhere}: {causes}" if causes else nowhere)
    return poems, unreadable, misnamed


def findFolder(
    name: str, folders: list[str], hint: str = "a path has a slash in it, as in ./ecstasy.txt"
) -> str:
    """
    Return the first folder that has a poem with that name.

    @param hint: what to do about a name that is not valid.
    @raise PoemError: if no folder has it, or the name is not valid.
    """
    if not _isName(name):
        raise PoemError(
            f"{name!a} is no name of a poem (letters, digits, _ and -); "
            f"{hint}; {_listPoems(name, folders)}"
        )
    for folder in folders:
        if _has(folder, name):
            return folder
    raise PoemError(f"no poem {name} in {':'.join(folders)}; {_listPoems(name, folders)}")


def _isName(text: str) -> bool:
    """Whether a text is a valid name: without dot and slash, it cannot lead out of its folder."""
    isPlain = text.isascii() and text.replace("_", "a").replace("-", "a").isalnum()
    return isPlain and len(text) <= _MOST_LETTERS and not text.startswith("-")


def _listPoems(name: str, folders: list[str]) -> str:
    return listNames(name, list(filter(_isName, _findFiles(folders))))


def listNames(name: str, there: list[str]) -> str:
    """Say which names exist, and which of them is nearest to the missing one."""
    from difflib import get_close_matches  # takes a millisecond, only for an error

    names = sorted(there)
    near = get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"available: {', '.join(names[:_MOST_NAMES]) or 'none'}{more}{meant}"


def _has(folder: str, name: str) -> bool:
    """
    Whether a folder has a poem with that name, readable or not.

    @raise PoemError: if the folder cannot be searched. Otherwise the package's poem would silently
        replace the administrator's.
    """
    path = os.path.join(folder, name + _SUFFIX)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as why:
        raise PoemError(f"{path}: {_explain(why, path)}") from None
    return True


def _findFiles(folders: list[str]) -> dict[str, str]:
    """Return the stems of all files of poems, each with the first folder that has the file."""
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


def _readBeneath(folder: str, name: str) -> Text:
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
            # The whole folder may have been replaced, by moving a new link into place. The old
            # target is then gone, and the new link leads to the new poem.
            if os.path.realpath(path) == target:
                raise


def _readPoem(name: str, path: str, origin: str, inner: str = "") -> Text:
    """
    Read one regular file, whole.

    @param origin: the path that people know it by.
    @param inner: the end of the path, in which links are refused.
    """
    try:
        descriptor = _openBeneath(path, inner)
        try:
            text = _readOpen(descriptor)
        finally:
            os.close(descriptor)
    except OSError as why:
        raise PoemError(f"{origin}: {_explain(why, path)}") from None
    except (PoemError, ValueError) as why:  # a NUL in the path raises ValueError
        raise PoemError(f"{origin}: {why}") from None
    digest, invalidAt = examine(text) if len(text) > _SHORT_BYTES else ("", None)
    return name, text, origin, digest, invalidAt


def examine(text: bytes) -> tuple[str, int | None]:
    """
    Examine every byte of a poem. This takes a quarter of a second for 64 MiB.

    @return: the SHA-256 in hexadecimal, and the offset of the first byte that is not UTF-8 or
        C{None}.
    """
    from hashlib import sha256  # links OpenSSL, which takes 2 to 4 ms

    return sha256(text).hexdigest(), _findInvalid(text)


def _openBeneath(path: str, inner: str) -> int:
    """Open a file. Refuse links in the inner part of its path, even one made a moment ago."""
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

    @raise PoemError: if the file is not a valid poem, or changed while it was read.
    """
    for _ in range(_MOST_TRIES):
        before = _waitForTick(descriptor)
        if fault := findFault(before, "poem", MAX_POEM_BYTES):
            raise PoemError(fault)
        if before.st_size == 0:
            raise PoemError("is empty; a poem has at least one byte")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            # Ask for one byte more, to see whether the file grew meanwhile.
            text = file.read(before.st_size + 1)
        after = os.fstat(descriptor)
        if (len(text), before.st_mtime_ns) != (before.st_size, after.st_mtime_ns):
            break
        if before.st_ctime_ns == after.st_ctime_ns:
            return text
        # Another process changed its mode, moved another file into its place, or wrote to it and
        # set its time back (rsync --times). Read it again.
    raise PoemError(_TORN)


def _waitForTick(descriptor: int) -> os.stat_result:
    """Wait until the next change of a file would get another time than the last change."""
    for _ in range(_MOST_TRIES):
        status = os.fstat(descriptor)
        # A time in the future comes from another clock, and differs from that of the next change.
        if abs(time.time_ns() - status.st_ctime_ns) > _TICK_NANOSECONDS:
            return status
        time.sleep(_TICK_NANOSECONDS / 1e9)
    raise PoemError(_TORN)


def _findInvalid(text: bytes) -> int | None:
    """Return the offset of the first byte that is not UTF-8; C{None} if all are."""
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
    Return why an open file cannot be used; an empty string if it can.

    @param what: the expected kind, for the message: C{poem}, C{copy}.
    """
    for isKind, kind in _KINDS:
        if isKind(status.st_mode):
            return f"is {kind}; a {what} is a regular file"
    if status.st_size > mostBytes:
        mebi = f" ({mostBytes >> 20} MiB)" if mostBytes >> 20 else ""
        return f"has {status.st_size} bytes; a {what} has {mostBytes}{mebi} at most"
    return ""


def _explain(why: OSError, path: str) -> str:
    """Return the system's text for an error, with the remedy if it is known."""
    text = why.strerror or str(why)
    if why.errno == errno.EACCES:
        text += f" (uid {os.geteuid()}); mend it with: chmod a+r {path}, and a+x for its folders"
        if path.startswith(("/home/", "/root/")):
            text += "; the units see no files there (ProtectHome=yes)"
    return text


def encodable(path: str) -> str:
    """Escape what a path has that is not UTF-8. twistd's log file would drop a record with it."""
    return path.encode("utf-8", "backslashreplace").decode()
