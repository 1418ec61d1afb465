"""
Copies of poems on disk, so that a restarted proxy has one before its upstream answers.

Only here a file is written. Imports next to nothing, since this is done by a process of its own
(L{fastpoetry.apart.worker}).

A copy has the SHA-256 of all that follows, a line with the time, and the poem.
"""

from __future__ import annotations

import os
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256

from fastpoetry.apart.poems import OPEN_FLAGS, findFault
from fastpoetry.apart.worker import WorkError

Found = tuple[bytes, float, str]
"""A poem, when it was fetched in seconds since 1970, and the SHA-256 of the poem."""

_MOST_HEAD_BYTES = 100
"""What stands before the poem: a digest, and the time."""

_SUFFIX = ".new"
"""The end of the name of a copy that is being written."""


class CopyError(WorkError):
    """A copy that cannot be read or written: one line."""


def readCopy(path: str, mostBytes: int) -> Found | None:
    """
    Read a copy, if there is one.

    @param mostBytes: how large a poem may be.
    @raise CopyError: if there is one, and it is damaged or cannot be read.
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
        raise CopyError(f"{path}: has {len(text)} bytes of poetry, more than may be")
    return text, float(time), sha256(text).hexdigest()


def writeCopy(path: str, text: bytes, fetchedAt: float, parent: int) -> None:
    """
    Replace a copy, at once and whole or not at all.

    Two proxies may write at the same time. Each writes a file with a name of its own, which is
    locked until it is in place. A file that nobody locks was left behind by a writer that was
    killed.

    @param fetchedAt: when the poem was fetched, in seconds since 1970.
    @param parent: the process that wants it. When that has ended, another may have a newer copy.
    @raise CopyError: if it cannot be done; then the old copy is there as it was.
    """
    rest = b"%.3f\n%b" % (fetchedAt, text)
    try:
        _removeLeftovers(path)
        new, descriptor = _create(path)
        try:
            with open(descriptor, "wb") as file:
                file.write(_makeDigest(rest))
                file.write(rest)
                file.flush()
                os.fsync(descriptor)  # or a crash may leave the new name with no content
                if os.getppid() == parent:
                    os.replace(new, path)
        finally:
            _remove(new)
    except OSError as why:
        raise CopyError(f"{path}: {why.strerror}") from None


def _makeDigest(rest: bytes) -> bytes:
    """The first line of a copy."""
    return sha256(rest).hexdigest().encode() + b"\n"


def _isTime(text: bytes) -> bool:
    """Whether a text is a time with three decimals."""
    whole, _, decimals = text.partition(b".")
    return whole.isdigit() and decimals.isdigit() and len(decimals) == 3


def _open(path: str, flags: int) -> int:
    """Open what should be a file of ours, and wait for nobody if it is something else."""
    return os.open(path, OPEN_FLAGS | os.O_NOFOLLOW)


def _create(path: str) -> tuple[str, int]:
    """Make a file beside a path, and lock it. @return: its path and its descriptor."""
    while True:
        new = f"{path}.{os.urandom(8).hex()}{_SUFFIX}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            flock(descriptor, LOCK_EX)
        except OSError:
            return new, descriptor  # this file system has no locks, and so nobody removes it
        if os.fstat(descriptor).st_nlink:
            return new, descriptor
        os.close(descriptor)  # another writer took it for a leftover before it was locked


def _removeLeftovers(path: str) -> None:
    """Remove what writers of a copy have left behind."""
    folder, copy = os.path.split(path)
    for name in os.listdir(folder):
        if name.startswith(copy) and name.endswith(_SUFFIX):
            try:  # noqa: SIM105 - contextlib takes long to import
                _removeUnlessLocked(os.path.join(folder, name))
            except OSError:
                pass  # it is being written, or is gone


def _removeUnlessLocked(path: str) -> None:
    descriptor = os.open(path, OPEN_FLAGS | os.O_NOFOLLOW)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    try:  # noqa: SIM105
        os.unlink(path)
    except FileNotFoundError:
        pass
