"""Messages on stderr before the log starts, and whether stderr is a stream into the journal."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def escaped(text: str) -> str:
    """Return a text as one line, with escapes for line breaks and unprintable characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def refusalLine(text: str) -> str:
    """
    Return a refusal as one line for stderr. If stderr is a stream into the journal, the line begins
    with the priority C{err}, sd-daemon(3).
    """
    isInJournal = isJournalStream(sys.stderr, os.environ.get("JOURNAL_STREAM", ""))
    return ("<3>" if isInJournal else "") + escaped(text)


def isJournalStream(file: TextIO | None, stream: str) -> bool:
    """
    @param stream: the value of C{JOURNAL_STREAM}, systemd.exec(5).
    @return: whether the file is still the stream that systemd connected to the journal.
    """
    if not stream or file is None:
        return False
    try:
        found = os.fstat(file.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
