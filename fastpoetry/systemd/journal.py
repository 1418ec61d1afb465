"""
A log observer that sends a Twisted program's events to the systemd journal, as records with fields.

Any Twisted program can use it: C{twistd --logger=fastpoetry.systemd.journal.observer}. A handler
for Python's own C{logging} makes the same records. This module reads no journal, keeps no log file,
inspects no stack to find the caller, and limits no rate.

It implements the journal's native protocol (U{https://systemd.io/JOURNAL_NATIVE_PROTOCOL}) itself.
systemd-python's C{sendv} keeps the interpreter locked while journald stands still, so even a thread
that calls it stops the reactor. C{sendv} also reports success when no journal is there.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from copy import copy
from functools import cache
from select import PIPE_BUF, select
from socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, socket
from threading import Condition, Thread
from typing import Any, NamedTuple, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel
from twisted.python.reflect import safe_str
from zope.interface import implementer

from fastpoetry.systemd.ending import callAtEnd, callAtReactorsEnd, callBeforeDaemon, findReactor
from fastpoetry.systemd.records import (
    DAEMON,
    Record,
    datagram,
    fields,
    line,
    loggedFields,
    shownTime,
    streamLine,
)
from fastpoetry.systemd.stderr import isJournalStream

__all__ = ["JournalHandler", "JournalObserver", "observer"]

SOCKET = "/run/systemd/journal/socket"

BACKLOG_BYTES = 1024 * 1024
"""
The size of the backlog while journald stands still. It holds some thousands of records. When
journald runs again, it accepts more from a service by default: 10,000 in 30 s.
"""

_END_SECONDS = 1.0
"""How long the end of a program waits for the journal, in total."""

_RETRY_SECONDS = 1.0
"""Seconds until the next try to start a thread after a failure."""


class _Waiting(NamedTuple):
    """
    A record in the backlog.

    @ivar data: the record for the journal.
    @ivar text: the record for the fallback.
    @ivar lost: how many records are lost if this one is: 1, or the number that a report reports.
    """

    data: bytes
    text: bytes
    lost: int = 1

    @property
    def size(self) -> int:
        return len(self.data) + len(self.text)


@implementer(ILogObserver)
class JournalObserver:
    """
    Sends each event as one record, at once and from the thread that logs it.

    Logging never waits for the journal. A record that the journal does not take at once goes into a
    bounded backlog. A thread sends the backlog as fast as the journal takes it. The field
    C{LOG_TIME} of such a record says when it was logged. The thread starts when it is first needed,
    so most programs fork and end without one.

    If the backlog is full, new records are dropped until it is empty. Then one record reports how
    many were lost. While there is no journal at all, the thread writes the records as text.
    """

    _endsAt: float | None

    def __init__(
        self,
        identifier: str,
        path: str = SOCKET,
        fallback: TextIO | None = None,
        backlogBytes: int = BACKLOG_BYTES,
        stream: str = "",
        facility: str = DAEMON,
    ) -> None:
        """
        @param identifier: the program's name in the journal.
        @param path: the journal's socket.
        @param fallback: the file for records as text while there is no journal.
        @param backlogBytes: the size of the backlog.
        @param stream: C{JOURNAL_STREAM}, which identifies a file that leads into the journal.
        @param facility: the kind of program, as a syslog number.
        """
        self._identifier = identifier
        self._facility = facility
        self._path = path
        self._fallback = fallback
        self._backlogBytes = backlogBytes
        self._stream = stream
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._announced = False
        self._isEndKnown = False
        self.forget()

    def __call__(self, event: LogEvent) -> None:
        """Send an event. As with Twisted's own observers, an event without text makes no record."""
        self.send(self._fields(event), event.get("log_time"))

    def log(self, entry: logging.LogRecord, text: str) -> None:
        """Send an entry of Python's C{logging}, with its text."""
        record = loggedFields(entry, text, self._identifier, self._facility)
        self.send(record, entry.created)

    def send(self, record: Record, when: float | None = None) -> None:
        """
        Send a record, unless its C{MESSAGE} is empty.

        @param when: when it was logged, in seconds since the epoch; C{None} for now.
        """
        if not self._isEndKnown:
            self._isEndKnown = callAtReactorsEnd(self.end)
        if record["MESSAGE"] and (self._backlog or not self._trySend(datagram(record))):
            self._keep(record, time.time() if when is None else when)
            if self._endsAt is not None:
                self.end()

    def flush(self, seconds: float = 1.0) -> None:
        """Wait until the backlog is empty, for at most so many seconds."""
        with self._changed:
            if self._backlog:
                self._startThread()
            if self._thread is None or sys.is_finalizing():
                self._sendAtOnce()
            self._changed.wait_for(lambda: not self._backlog, seconds)

    def end(self) -> None:
        """
        Wait for the backlog at the end of the program, and count the records left in it as lost.
        The record that reports them is written as text if the journal does not take it.

        All calls together wait for at most a second. Records logged after that second do not wait:
        the journal takes them at once, or they are written as text.
        """
        if self._endsAt is None:
            self._endsAt = time.monotonic() + _END_SECONDS
        seconds = self._endsAt - time.monotonic()
        if seconds > 0:
            self.flush(seconds)
        with self._changed:
            if seconds > 0 and self._backlog:
                self._dropped += sum(each.lost for each in self._backlog)
                self._empty()
                self._tellDropped()
            self._sendAtOnce()

    def forget(self) -> None:
        """
        Start again with no backlog and no thread, in a forked child.

        The child has no thread, the lock may be held forever, and the parent sends the backlog.
        """
        self._empty()
        self._dropped = 0
        self._endsAt = None
        self._changed = Condition()
        self._thread: Thread | None = None
        self._retrying = False

    def _empty(self) -> None:
        self._backlog: deque[_Waiting] = deque()
        self._waitingBytes = 0

    def _trySend(self, data: bytes) -> bool:
        """Whether the kernel took the record. If not, the thread finds out why."""
        try:
            self._socket.sendto(data, MSG_DONTWAIT, self._path)
        except OSError:
            return False
        return True

    def _keep(self, record: Record, when: float) -> None:
        """Add a record to the backlog, or count it as dropped."""
        data = datagram({**record, "LOG_TIME": shownTime(when)})
        waiting = _Waiting(data, self._line(record, when))
        with self._changed:
            full = self._waitingBytes + waiting.size > self._backlogBytes
            if self._backlog and (full or self._dropped):
                self._dropped += 1
            else:
                self._append(waiting)
            # Also for a dropped record: a thread that could not start before may start now.
            self._startThread()

    def _append(self, waiting: _Waiting) -> None:
        self._backlog.append(waiting)
        self._waitingBytes += waiting.size
        self._changed.notify_all()

    def _startThread(self) -> None:
        # Python 3.11 waits for ever for a thread that is started when the interpreter ends.
        if self._thread is None and not sys.is_finalizing():
            # Set first: a signal handler or a __del__ may log while the thread starts.
            self._thread = Thread(target=self._sendBacklog, name="journal", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # Too many threads, or the interpreter ends.
                self._thread = None
                self._retryLater()

    def _retryLater(self) -> None:
        """Have the reactor try again. Without a reactor, the next record or the end tries again."""
        reactor = findReactor()
        if not self._retrying and hasattr(reactor, "callFromThread"):
            self._retrying = True
            reactor.callFromThread(self._retryIn, reactor)

    def _retryIn(self, reactor: Any) -> None:
        # Imported late, because it is rarely needed. No step of the wall clock may delay the call.
        from fastpoetry.systemd.clock import MonotonicClock

        MonotonicClock(reactor).callLater(_RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        with self._changed:
            self._retrying = False
            if self._backlog:
                self._startThread()

    def _sendBacklog(self) -> None:
        """Send the backlog. A record stays until it is sent, so no later record overtakes it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog)
                first = self._backlog[0]
            self._send(first)
            with self._changed:
                # If it is not first any more, end() has counted it as lost.
                if self._backlog and self._backlog[0] is first:
                    self._removeFirst()

    def _sendAtOnce(self) -> None:
        """Send the backlog without waiting. Records that the journal does not take become text."""
        while self._backlog:
            self._send(self._backlog[0], MSG_DONTWAIT)
            self._removeFirst()

    def _removeFirst(self) -> None:
        self._waitingBytes -= self._backlog.popleft().size
        if not self._backlog and self._dropped:
            self._tellDropped()
        self._changed.notify_all()

    def _send(self, waiting: _Waiting, flags: int = 0) -> None:
        """Send one record, or write it as text. Without C{MSG_DONTWAIT}, wait for the journal."""
        try:
            self._socket.sendto(waiting.data, flags, self._path)
        except OSError as error:
            if not self._announced:
                self._announced = True
                self._write(self._announcement(error), flags)
            self._write(waiting.text, flags)

    def _fields(self, event: LogEvent) -> Record:
        return fields(event, self._identifier, self._facility)

    def _announcement(self, error: OSError) -> bytes:
        event = {
            "log_format": "{name}: cannot write to the journal at {path} ({cause}); "
            "until that works, records are written here",
            "log_level": LogLevel.warn,
            "name": self._identifier,
            "path": self._path,
            "cause": error.strerror,
        }
        return self._line(self._fields(event), time.time())

    def _line(self, record: Record, when: float) -> bytes:
        isStream = isJournalStream(self._fallback, self._stream)
        return streamLine(record) if isStream else line(record, when)

    def _write(self, text: bytes, flags: int) -> None:
        """
        Write to the fallback without its buffer; with C{MSG_DONTWAIT} only if the file has room.

        A thread must not hold the buffer's lock when the interpreter ends.
        """
        seconds = 0.0 if flags & MSG_DONTWAIT else None
        try:
            # A pipe that is ready takes PIPE_BUF bytes. A longer write would wait for its reader,
            # or be cut if the pipe does not block.
            while text and self._fallback and select([], [self._fallback], [], seconds)[1]:
                text = text[os.write(self._fallback.fileno(), text[:PIPE_BUF]) :]
        except (OSError, ValueError):
            pass  # Closed or full: there is no other place to report to.

    def _tellDropped(self) -> None:
        event = {
            "log_format": "records lost because the journal did not take them: {dropped}",
            "log_level": LogLevel.warn,
            "log_namespace": __name__,
            "dropped": self._dropped,
            "message_id": "18dca92ef40d43e18a4550720f27a296",
        }
        record = self._fields(event)
        line = self._line(record, time.time())
        self._append(_Waiting(datagram(record), line, self._dropped))
        self._dropped = 0


class JournalHandler(logging.Handler):
    """
    Sends entries of Python's C{logging} to the journal, alone or beside the observer.

    It logs nothing itself, so a chain of handlers and observers cannot become a loop.
    """

    def __init__(
        self, level: int | str = logging.NOTSET, *, journal: JournalObserver | None = None
    ) -> None:
        """
        @param level: as for any handler.
        @param journal: sends the records; C{None} for the one that L{observer} makes.
        """
        super().__init__(level)
        # logging.basicConfig() would set a formatter that repeats the level and the name.
        self.setFormatter(logging.Formatter())
        self._journal = observer() if journal is None else journal

    def emit(self, record: logging.LogRecord) -> None:
        """
        Send an entry as one record. The handler's formatter makes the text, with the traceback. The
        entry's C{extra} becomes fields.

        @param record: the entry. If it cannot be formatted, its raw message and arguments are sent.
            If it is not a valid entry of C{logging}, C{handleError} reports it.
        """
        try:
            self._journal.log(record, self._format(record))
        except Exception:
            self.handleError(record)

    def _format(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:
            plain = copy(record)
            plain.msg = f"{safe_str(record.msg)} {safe_str(record.args)}: {safe_str(error)}"
            plain.args = ()
            return logging.Formatter().format(plain)


def observer(environ: Mapping[str, str] = os.environ, path: str = SOCKET) -> JournalObserver:
    """
    Make the observer for C{twistd --logger=fastpoetry.systemd.journal.observer}.

    @param environ: sets the name in the records with C{SYSLOG_IDENTIFIER}, by default the program's
        name, and their facility with C{SYSLOG_FACILITY}, by default that of daemons.
    @param path: the journal's socket.
    @return: an observer that survives a fork, and at the end of the program waits up to a second
        for its backlog. Its fallback is C{sys.__stderr__}, because twistd sends output on
        C{sys.stderr} to the log.
    """
    identifier = environ.get("SYSLOG_IDENTIFIER") or os.path.basename(sys.argv[0])
    facility = environ.get("SYSLOG_FACILITY") or DAEMON
    return _share(identifier, path, environ.get("JOURNAL_STREAM", ""), facility)


@cache
def _share(identifier: str, path: str, stream: str, facility: str) -> JournalObserver:
    """Return one observer for all callers: the end waits once, and records keep their order."""
    journal = JournalObserver(identifier, path, sys.__stderr__, stream=stream, facility=facility)
    os.register_at_fork(after_in_child=journal.forget)
    callBeforeDaemon(journal.flush)
    callAtEnd(journal.end)
    return journal
