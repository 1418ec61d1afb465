"""
A program of its own that puts a copy of a poem in the place of another.

A process that writes to a disk which stands still cannot end before the disk moves, not even by
SIGKILL: it is this one then, and not the proxy. Imports nothing of ours, nor of Twisted's.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from signal import SIG_IGN, SIGINT, SIGTERM, signal

_PIECE_BYTES = 1 << 20


def save(path: str, size: int, parent: int) -> None:
    """
    Replace a file by what comes from stdin, whole or not at all.

    @param size: how many bytes that will be.
    @param parent: who wants it; when that process has ended, a later one may have a newer copy.
    @raise OSError: if it cannot be done; then the old file is there as it was.
    """
    new = f"{path}.new"  # one name, so that not more than one can be left behind
    _remove(new)
    try:
        with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            while piece := sys.stdin.buffer.read(_PIECE_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())  # or a crash may leave the new name with no content
            isWhole = file.tell() == size
        if isWhole and os.getppid() == parent:
            os.replace(new, path)
    finally:
        _remove(new)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


if __name__ == "__main__":
    # When systemd stops the proxy it tells every process; the proxy waits for this one a moment.
    for number in (SIGINT, SIGTERM):
        signal(number, SIG_IGN)
    try:
        save(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except OSError as why:
        sys.exit(why.strerror)
