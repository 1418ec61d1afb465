"""
A fetched poem on disk, so that a restarted proxy has one before its upstream answers.

The only room that writes a file. Knows nothing of freshness or of the network.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from tempfile import NamedTemporaryFile

from fastpoetry.poem import Poem

_TIME = re.compile(rb"([0-9]+\.[0-9]{3})\n")


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
    """
    A copy that cannot be used: one line.
    """


class CopyFile:
    """
    Where the copy of one upstream's poem is kept.

    The file has the SHA-256 of all that follows, a line with the time, and the poem.
    """

    def __init__(self, folder: str, upstream: str) -> None:
        """
        @param folder: an existing one, only for this.
        @param upstream: whose poem; each has a file of its own.
        """
        self._upstream = upstream
        self.path = os.path.join(folder, sha256(os.fsencode(upstream)).hexdigest()[:32] + ".poem")

    def load(self) -> Copy | None:
        """
        Read the copy, if there is one.

        @raise CopyError: if there is one, and it is damaged or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                digest, rest = file.readline().strip(), file.read()
        except FileNotFoundError:
            return None
        except OSError as why:
            raise CopyError(f"{self.path}: {why.strerror}") from None
        time = _TIME.match(rest)
        if sha256(rest).hexdigest().encode() != digest or time is None or time.end() == len(rest):
            raise CopyError(f"{self.path}: is damaged, and will be replaced")
        return Copy(Poem(self._upstream, rest[time.end() :], self.path), float(time[1]))

    def save(self, copy: Copy) -> None:
        """
        Replace the copy, at once and whole or not at all.

        @raise CopyError: if that cannot be done; then the old copy is there as it was.
        """
        rest = b"%.3f\n%b" % (copy.fetchedAt, copy.poem.text)
        try:
            self._replace(sha256(rest).hexdigest().encode() + b"\n" + rest)
        except OSError as why:
            raise CopyError(f"{self.path}: {why.strerror}") from None

    def _replace(self, content: bytes) -> None:
        """
        Put new content in the place of the old, by way of a new file.
        """
        with NamedTemporaryFile(dir=os.path.dirname(self.path), delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a crash may leave the new name with no content
                os.replace(file.name, self.path)
            except OSError:
                with suppress(OSError):
                    os.unlink(file.name)
                raise
