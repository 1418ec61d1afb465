"""The journal of all lives: a real socket whose reader may stop, and the real observer."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from select import select

from twisted.logger import LogEvent

from fastpoetry.systemd.journal import JournalObserver

_BACKLOG_BYTES = 3_000
"""The size of the observer's backlog. It holds a few records, so most lives fill it."""

_WAIT_SECONDS = 2
"""A record that has not come by then is lost. A call that takes so long is blocked."""

_PROMPT_SECONDS = 0.1

_SENDERS = 4
"""The kernel limits how much one of them can send (unix(7), net.core.wmem_default)."""

_LOST = re.compile(rb"^DROPPED=(\d+)$", re.MULTILINE)
"""A field of the record that stands for lost ones, which no other record has."""


class _BlockedError(Exception):
    """A call does not return. No C{OSError}, since the observer expects those."""


class Journal:
    """journald, and the program's observer."""

    def __init__(self) -> None:
        self._forget()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")  # the system chooses an abstract name
        self._socket.setblocking(False)
        self._path = self._socket.getsockname().decode()
        self._observer = JournalObserver("life", self._path, backlogBytes=_BACKLOG_BYTES)

    def _forget(self) -> None:
        self._isReading = True
        self._wasBlocked = False
        self._logged = self._received = 0

    def log(self, event: LogEvent) -> None:
        """Log an event that has a text."""
        if self._wasBlocked:
            return
        self._logged += 1
        try:
            with _limited():
                self._observer(event)
        except _BlockedError:  # Twisted would only drop the observer
            self._wasBlocked = True
        if self._isReading:
            self._receive()

    def stop(self) -> None:
        """Stop reading. Records of other programs fill the socket."""
        self._isReading = False
        for _ in range(_SENDERS):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                with suppress(BlockingIOError):
                    while True:
                        sender.sendto(b"", socket.MSG_DONTWAIT, self._path)

    def goOn(self) -> None:
        """
        Read on, until each record has come or was reported as lost.

        @raise AssertionError: a record is missing, or came twice, or logging has waited.
        """
        self._isReading = True
        self._receiveAll(_WAIT_SECONDS)
        assert not self._wasBlocked, "logging has waited for the journal"
        assert self._received == self._logged, (
            f"of {self._logged} records, {self._received} came or were reported as lost"
        )

    def reset(self) -> None:
        """Begin a new life, and drop what waits from the one before."""
        self._receiveAll(_PROMPT_SECONDS)
        self._forget()

    def _receiveAll(self, seconds: float) -> None:
        """
        Receive what there is, and what else was logged.

        @param seconds: how long to wait for a record.
        """
        self._receive()
        while self._received < self._logged and select([self._socket], [], [], seconds)[0]:
            self._receive()

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                record = self._socket.recv(65536)
                lost = _LOST.search(record)
                self._received += int(lost[1]) if lost else bool(record)


@cache
def openJournal() -> Journal:
    """@return: the journal of all lives, since a program has one observer."""
    return Journal()


@contextmanager
def _limited() -> Iterator[None]:
    """@raise _BlockedError: a call in the context does not return in time."""

    def interrupt(*_: object) -> None:
        raise _BlockedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
