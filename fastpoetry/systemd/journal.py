"""
A log observer that sends a Twisted program's events to the systemd journal, as records with fields.

It is for any Twisted program: C{twistd --logger=fastpoetry.systemd.journal.observer}. It reads no
journal, keeps no file, looks at no stack to find out who logged, and limits no rate.

It speaks the journal's native protocol (U{https://systemd.io/JOURNAL_NATIVE_PROTOCOL}) itself.
systemd-python's C{sendv} holds the interpreter's lock while journald stands still, so that calling
it in a thread stops the reactor all the same, and it reports success where there is no journal.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, socket
from threading import Condition, Thread
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

SOCKET = "/run/systemd/journal/socket"

#: A longer value is cut. A whole record stays below the kernel's default for one datagram
#: (net.core.wmem_default, 208 KiB) and within the 1024 fields beyond which journald ignores it.
VALUE_BYTES = 64 * 1024
RECORD_BYTES = 192 * 1024
RECORD_FIELDS = 1000

#: What may wait for a journald that stands still: some thousands of records, but less than the
#: 10,000 in 30 s that it then takes from a service by default.
BACKLOG_BYTES = 1024 * 1024

#: Twisted's levels in syslog's numbers.
_PRIORITIES = {"critical": b"2", "error": b"3", "warn": b"4", "info": b"6", "debug": b"7"}

#: The keys of an event by which Twisted's older log keeps its books; the newer one's begin with
#: C{log_}.
_LEGACY_KEYS = frozenset(
    ["failure", "format", "isError", "logLevel", "message", "system", "time", "why"]
)

_FIELD_NAME = re.compile("[A-Z][A-Z0-9_]{0,63}")

#: Characters that could act on a terminal, break a line or turn its direction, and that journalctl
#: would show as C{[12B blob data]}.
_ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for codes in ((0, 9), (11, 32), (127, 160), (0x2028, 0x202F), (0x2066, 0x206A))
    for code in range(*codes)
}

#: Names and values, as they go into the journal.
Record = Mapping[str, bytes]


def fields(event: LogEvent, identifier: str) -> Record:
    """
    Map an event to the fields of one record; the event's own keys never replace the others.

    @param event: Any event, in Twisted's newer or older way; it is not changed.
    @param identifier: The program's name in the journal.
    @return: The fields; an empty C{MESSAGE} if the event has no text.
    """
    level = _level(event)
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    record = {
        "MESSAGE": _encoded(text.strip("\n")),
        "PRIORITY": _PRIORITIES[level],
        "SYSLOG_IDENTIFIER": _encoded(identifier),
        "LOG_NAMESPACE": _encoded(event.get("log_namespace", "-")),
        "LOG_LEVEL": level.encode(),
    }
    _addPlace(record, event)
    _addOwn(record, event)
    return record


def datagram(record: Record) -> bytes:
    """
    Put a record into the journal's native protocol. A value with a newline goes behind its length,
    so that no value can begin another field or record.
    """
    parts = []
    for name, value in record.items():
        if b"\n" in value:
            parts.append(b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), value))
    return b"".join(parts)


def line(record: Record) -> bytes:
    """
    Put a record into text. What follows its first line is indented, so that no value can pass for
    another record.
    """
    return b"[%b] %b\n" % (record["LOG_LEVEL"], record["MESSAGE"].replace(b"\n", b"\n    "))


def _level(event: LogEvent) -> str:
    """
    @return: The name of an event's level; C{error} for a C{log.err}, each of which Twisted calls
        critical.
    """
    if event.get("log_namespace") == "log_legacy" and event.get("isError"):
        return "error"
    name: str = getattr(event.get("log_level"), "name", "info")
    return name if name in _PRIORITIES else "info"


def _addPlace(record: dict[str, bytes], event: LogEvent) -> None:
    """
    Add where a failure was raised.
    """
    failure = event.get("log_failure", event.get("failure"))
    if isinstance(failure, Failure) and failure.frames:
        function, file, number, *_ = failure.frames[-1]
        record["CODE_FILE"] = _encoded(file)
        record["CODE_LINE"] = _encoded(number)
        record["CODE_FUNC"] = _encoded(function)


def _addOwn(record: dict[str, bytes], event: LogEvent) -> None:
    """
    Add the event's own keys that have a value, as long as the record can be sent and stored.
    """
    size = sum(map(len, record.values()))
    for key, value in tuple(event.items()):  # Giving a value its text may change the event.
        name = _fieldName(key)
        if name is None or name in record or value is None:
            continue
        data = _encoded(value)
        grown = size + len(name) + len(data)
        if grown <= RECORD_BYTES and len(record) < RECORD_FIELDS:
            record[name] = data
            size = grown


@lru_cache(maxsize=1024)
def _fieldName(key: object) -> str | None:
    """
    @return: The field that a key becomes, or C{None} for one that is Twisted's or that journald
        would not take.
    """
    if not isinstance(key, str) or key in _LEGACY_KEYS or key.startswith("log_"):
        return None
    name = key.upper()
    return name if _FIELD_NAME.fullmatch(name) else None


def _encoded(value: object) -> bytes:
    """
    @return: A value of any kind as valid UTF-8 of a bounded length. A value that has no text, since
        its C{__str__} raises, tells that instead.
    """
    text = safe_str(value)[: VALUE_BYTES + 1]
    if not text.isprintable():
        text = text.translate(_ESCAPES)
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > VALUE_BYTES:
        data = data[: VALUE_BYTES - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data


@implementer(ILogObserver)
class JournalObserver:
    """
    Sends each event as one record, at once and from the thread that logs it.

    Nobody waits for the journal. What it does not take at once goes into a bounded backlog, which a
    thread sends as the journal takes it. The thread starts when it is first needed, so that most
    programs fork and end without one. What the backlog cannot hold is dropped until it is empty
    again; then one record tells how many were lost. While the journal cannot be reached at all, the
    thread writes the records as text instead.
    """

    def __init__(
        self,
        identifier: str,
        path: str = SOCKET,
        fallback: TextIO | None = None,
        backlogBytes: int = BACKLOG_BYTES,
    ) -> None:
        """
        @param identifier: The program's name in the journal.
        @param path: The journal's socket.
        @param fallback: Where text goes while there is no journal.
        @param backlogBytes: How much may wait.
        """
        self._identifier = identifier
        self._path = path
        self._fallback = fallback
        self._backlogBytes = backlogBytes
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._announced = False
        self.forget()

    def __call__(self, event: LogEvent) -> None:
        """
        Send an event; as with Twisted's own observers, one without text is no record.
        """
        record = fields(event, self._identifier)
        if record["MESSAGE"]:
            data = datagram(record)
            if self._backlog or not self._sentAtOnce(data):
                self._keep(data, line(record))

    def flush(self, seconds: float = 1.0) -> None:
        """
        Wait until the backlog is empty, but no longer than so many seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._backlog, seconds)

    def forget(self) -> None:
        """
        Begin with no backlog and no thread: a forked child has no thread, its lock may be held for
        ever, and the records that wait are its parent's to send.
        """
        self._backlog: deque[tuple[bytes, bytes]] = deque()
        self._waitingBytes = 0
        self._dropped = 0
        self._changed = Condition()
        self._thread: Thread | None = None

    def _sentAtOnce(self, data: bytes) -> bool:
        """
        @return: Whether the kernel took the record. Why it did not is for the thread to find out.
        """
        try:
            self._socket.sendto(data, MSG_DONTWAIT, self._path)
        except OSError:
            return False
        return True

    def _keep(self, data: bytes, text: bytes) -> None:
        """
        Leave a record to the thread, or count it as dropped.
        """
        with self._changed:
            full = self._waitingBytes + len(data) + len(text) > self._backlogBytes
            if self._backlog and (full or self._dropped):
                self._dropped += 1
            else:
                self._append(data, text)
                self._startThread()

    def _append(self, data: bytes, text: bytes) -> None:
        self._backlog.append((data, text))
        self._waitingBytes += len(data) + len(text)
        self._changed.notify_all()

    def _startThread(self) -> None:
        if self._thread is None:
            thread = Thread(target=self._sendBacklog, name="journal", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No more threads, for now or because the interpreter ends: the next record tries.
                return
            self._thread = thread

    def _sendBacklog(self) -> None:
        """
        Send what waits, oldest first. A record leaves the backlog only after it was sent, so that
        none logged meanwhile can overtake it.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog)
                data, text = self._backlog[0]
            self._send(data, text)
            with self._changed:
                self._backlog.popleft()
                self._waitingBytes -= len(data) + len(text)
                if not self._backlog and self._dropped:
                    self._tellDropped()
                self._changed.notify_all()

    def _send(self, data: bytes, text: bytes) -> None:
        """
        Send one record, for however long that takes, or write it as text.
        """
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if not self._announced:
                self._announced = True
                self._write(
                    f"{self._identifier}: cannot write to the journal at {self._path} "
                    f"({error.strerror}); until that works, records are written here\n".encode()
                )
            self._write(text)

    def _write(self, text: bytes) -> None:
        """
        Write to the fallback past its buffer, whose lock a thread must not hold when the
        interpreter ends.
        """
        try:
            if self._fallback is not None:
                os.write(self._fallback.fileno(), text)
        except (OSError, ValueError):
            pass  # Closed or full: there is nowhere left to say so.

    def _tellDropped(self) -> None:
        event = {
            "log_format": "The journal took no records for a while: {dropped} were lost",
            "log_level": LogLevel.warn,
            "log_namespace": __name__,
            "dropped": self._dropped,
            "message_id": "18dca92ef40d43e18a4550720f27a296",
        }
        record = fields(event, self._identifier)
        self._append(datagram(record), line(record))
        self._dropped = 0


def observer(environ: Mapping[str, str] = os.environ, path: str = SOCKET) -> JournalObserver:
    """
    Make the observer for C{twistd --logger=fastpoetry.systemd.journal.observer}.

    The records bear the name in C{SYSLOG_IDENTIFIER}, else that of the program.

    @param environ: The environment.
    @param path: The journal's socket.
    @return: An observer that survives a fork, and that before the interpreter ends waits a moment
        for what has not been sent. Its fallback is C{sys.__stderr__}, because twistd sends what is
        written to C{sys.stderr} to the log.
    """
    identifier = environ.get("SYSLOG_IDENTIFIER") or os.path.basename(sys.argv[0])
    journal = JournalObserver(identifier, path, sys.__stderr__)
    os.register_at_fork(after_in_child=journal.forget)
    atexit.register(journal.flush)
    return journal
