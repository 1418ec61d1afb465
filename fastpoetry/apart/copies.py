"""
Copies of poems on disk, so that a restarted proxy has one before its upstream answers.

No other module writes files. Imports very little, as L{fastpoetry.apart.worker} does.

A copy has a line with the SHA-256 of the rest, a line with the time, and the poem.
"""

from __future__ import annotations

import os
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256

from fastpoetry.apart.poems import OPEN_FLAGS, findFault
from fastpoetry.apart.worker import WorkError

SavedCopy = tuple[bytes, float, str]
"""A poem, the time when it was fetched (seconds since the epoch), and its SHA-256."""

_MOST_HEAD_BYTES = 100
"""The longest head of a copy: a digest, and the time."""

_SUFFIX = ".new"
"""The end of the name of a copy that is being written."""


class CopyError(WorkError):
    """A copy that cannot be read or written: one line."""


def readCopy(path: str, mostBytes: int) -> SavedCopy | None:
    """
    Read a copy. Return C{None} if there is no copy.

    @param mostBytes: how large a poem may be.
    @raise CopyError: if the copy is too large or damaged, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            most = mostBytes + _MOST_HEAD_BYTES
            if fault := findFault(os.fstat(file.fileno()), "copy", most):
                raise CopyError(f"{path}: {fault}")
            digest, rest = file.readline(most), file.read(most)
    except FileNotFoundError:
        return None
    except OSError as why:
        raise CopyError(f"{path}: {why.strerror}") from None
    time, _, text = rest.partition(b"\n")
    if digest != _makeDigest(rest) or not _isTime(time) or not text:
        raise CopyError(f"{path}: is damaged, and will be replaced")
    if len(text) > mostBytes:
        raise CopyError(f"{path}: has {len(text)} bytes of poetry, more than the limit")
    return text, float(time), sha256(text).hexdigest()


def writeCopy(path: str, text: bytes, fetchedAt: float, parent: int) -> None:
    """
    Replace a copy, atomically.

    Two proxies may write at the same time. Each writes a file with its own name, and locks it until
    the file is in place. If such a file is not locked, its writer was killed.

    @param fetchedAt: when the poem was fetched, in seconds since the epoch.
    @param parent: the process that wants the copy. If it has ended, the copy is not replaced, since
        another process may have written a newer one.
    @raise CopyError: if writing fails; the old copy then stays as it was.
    """
    rest = b"%.3f\n%b" % (fetchedAt, text)
    try:
        _removeLeftovers(path)
        new, descriptor = _create(path)
        with open(descriptor, "wb") as file:
            try:
                file.write(_makeDigest(rest))
                file.write(rest)
                file.flush()
                os.fsync(descriptor)  # or a crash may leave the new name with no content
                if os.getppid() == parent:
                    os.replace(new, path)
            finally:
                if os.path.lexists(new):
                    os.unlink(new)
    except OSError as why:
        raise CopyError(f"{path}: {why.strerror}") from None


def _makeDigest(rest: bytes) -> bytes:
    return sha256(rest).hexdigest().encode() + b"\n"


def _isTime(text: bytes) -> bool:
    """Whether a text is a time with three decimals."""
    whole, _, decimals = text.partition(b".")
    return whole.isdigit() and decimals.isdigit() and len(decimals) == 3


def _open(path: str, flags: int) -> int:
    """Open a copy. If the path leads to something else, as a FIFO, do not wait."""
    return os.open(path, OPEN_FLAGS | os.O_NOFOLLOW)


def _create(path: str) -> tuple[str, int]:
    """Make a file beside a path, and lock it. Return its path and its descriptor."""
    while True:
        new = f"{path}.{os.urandom(8).hex()}{_SUFFIX}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            flock(descriptor, LOCK_EX)
        except OSError:
            return new, descriptor  # without locks, no other writer can remove it
        if os.fstat(descriptor).st_nlink:
            return new, descriptor
        os.close(descriptor)  # another writer removed it before it was locked


def _removeLeftovers(path: str) -> None:
    """Remove the files of killed writers."""
    folder, copy = os.path.split(path)
    for name in os.listdir(folder):
        if name.startswith(copy) and name.endswith(_SUFFIX):
            try:
                with open(os.path.join(folder, name), "rb", opener=_open) as file:
                    flock(file, LOCK_EX | LOCK_NB)
                    os.unlink(file.name)
            except OSError:
                pass  # locked by its writer, or gone
