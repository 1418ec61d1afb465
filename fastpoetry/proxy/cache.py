"""
A fetched poem on disk, so that a restarted proxy has one before its upstream answers.

Only here a file is written. Knows nothing of freshness or of the network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.poem import MAX_POEM_BYTES, OPEN_FLAGS, Poem, findFault
from fastpoetry.proxy import save
from fastpoetry.threads import ThreadError, callApart, callAside

_TIME = re.compile(rb"([0-9]+\.[0-9]{3})\n")

_MOST_HEAD_BYTES = 100
"""What stands before the poem: a digest, and the time."""

_LONG_SECONDS = 10.0
"""When to say that the disk takes its time."""

_MOMENT_SECONDS = 1.0
"""How long a stop waits for a copy that is being written."""


@dataclass(frozen=True)
class Copy:
    """
    A poem as an upstream gave it.

    @ivar poem: whole.
    @ivar fetchedAt: when the last byte came, in seconds since 1970.
    """

    poem: Poem
    fetchedAt: float


class CopyError(Exception):
    """A copy that cannot be used: one line."""


class CopyFile:
    """
    Where the copy of one upstream's poem is kept.

    The file has the SHA-256 of all that follows, a line with the time, and the poem.
    """

    def __init__(self, folder: str, upstream: str, mostBytes: int = MAX_POEM_BYTES) -> None:
        """
        @param folder: an existing one, only for this.
        @param upstream: whose poem; each has a file of its own.
        @param mostBytes: how large a poem may be.
        """
        self.upstream = upstream
        self.path = os.path.join(folder, sha256(os.fsencode(upstream)).hexdigest()[:32] + ".poem")
        self._mostBytes = mostBytes

    def load(self) -> Copy | None:
        """
        Read the copy, if there is one.

        @raise CopyError: if there is one, and it is damaged or cannot be read.
        """
        try:
            with open(self.path, "rb", opener=_open) as file:
                most = self._mostBytes + _MOST_HEAD_BYTES
                if fault := findFault(os.fstat(file.fileno()), "copy", most):
                    raise CopyError(f"{self.path}: {fault}")
                digest, rest = file.readline(most).strip(), file.read(most)
        except FileNotFoundError:
            return None
        except OSError as why:
            raise CopyError(f"{self.path}: {why.strerror}") from None
        time = _TIME.match(rest)
        if sha256(rest).hexdigest().encode() != digest or time is None or time.end() == len(rest):
            raise CopyError(f"{self.path}: is damaged, and will be replaced")
        text = rest[time.end() :]
        if len(text) > self._mostBytes:
            raise CopyError(f"{self.path}: has {len(text)} bytes of poetry, more than may be")
        return Copy(Poem(self.upstream, text, self.path), float(time[1]))

    def save(self, copy: Copy) -> None:
        """
        Replace the copy, at once and whole or not at all.

        A process of its own writes, which this waits for.

        @raise CopyError: if that cannot be done; then the old copy is there as it was.
        """
        time = b"%.3f\n" % copy.fetchedAt
        digest = sha256(time)
        digest.update(copy.poem.text)
        content = b"%b\n%b%b" % (digest.hexdigest().encode(), time, copy.poem.text)
        # Python alone, wherever the program itself comes from: nothing else may be imported.
        command = [sys.executable, "-I", "-S", save.__file__]
        command += [self.path, str(len(content)), str(os.getpid())]
        try:
            ended = subprocess.run(command, input=content, capture_output=True, env={})
        except OSError as why:
            raise CopyError(f"{self.path}: {why.strerror}") from None
        if ended.returncode:
            said = ended.stderr.decode(errors="replace").split("\n")[-2:]
            cause = said[0] or f"its writer was ended by signal {-ended.returncode}"
            raise CopyError(f"{self.path}: {cause}")


class Keeper:
    """
    Keeps the latest copy of a poem: one is written at a time, in a thread that nobody waits for.

    Whatever the disk does, nobody else is held up. What becomes of a copy is said in one record.
    """

    _log = Logger()

    def __init__(self, file: CopyFile, reactor: Any) -> None:
        """@param reactor: provides C{IReactorTime} and C{IReactorFromThreads}."""
        self._file = file
        self._reactor = reactor
        self._next: Copy | None = None
        self._isSaving = False
        self._finished: list[Deferred[None]] = []

    def load(self) -> Deferred[Copy | None]:
        """
        Read the copy.

        @return: fires with it, if there is one and it can be used.
        """
        try:
            loaded: Deferred[Copy | None] = callAside(
                self._reactor, partial(callApart, self._file.load)
            )
        except ThreadError as why:
            self.tell(why)
            return succeed(None)
        return loaded.addErrback(self._fail)

    def save(self, copy: Copy) -> None:
        """Have a copy replaced by a later one, of which only the last is sure to be written."""
        self._next = copy
        if not self._isSaving:
            self._saveNext()

    def finish(self) -> Deferred[None]:
        """Wait for what is being written, and for no longer than a moment."""
        if not self._isSaving:
            return succeed(None)
        finished: Deferred[None] = Deferred(self._finished.remove)
        self._finished.append(finished)
        return finished.addTimeout(_MOMENT_SECONDS, self._reactor, onTimeoutCancel=lambda *_: None)

    def tell(self, why: object) -> None:
        """Say that there is no copy for the next start. Readers are served without one."""
        self._log.warn(
            "the copy on disk cannot be used: {cause}",
            cause=str(why),
            upstream=self._file.upstream,
            message_id="d9116cf49f434364ae55c197ff41359b",
        )

    def _saveNext(self) -> None:
        copy, self._next = self._next, None
        if copy is None:
            finished, self._finished = self._finished, []
            for each in finished:
                each.callback(None)
            return
        try:
            saved = callAside(self._reactor, lambda: self._file.save(copy))
        except ThreadError as why:
            self.tell(why)
            self._saveNext()
            return
        self._isSaving = True
        slow = self._reactor.callLater(_LONG_SECONDS, self._tellSlow)
        saved.addErrback(self._fail).addBoth(self._endSave, slow)

    def _endSave(self, _: object, slow: IDelayedCall) -> None:
        self._isSaving = False
        if slow.active():
            slow.cancel()
        self._saveNext()

    def _fail(self, failure: Failure) -> None:
        self.tell(failure.getErrorMessage() or repr(failure.value))

    def _tellSlow(self) -> None:
        self.tell(f"{self._file.path}: has not been written for {_LONG_SECONDS:g} s")


def _open(path: str, flags: int) -> int:
    """Open what should be a file of ours, and wait for nobody if it is something else."""
    return os.open(path, OPEN_FLAGS | os.O_NOFOLLOW)
