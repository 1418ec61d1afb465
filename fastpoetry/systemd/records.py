"""
The content of a journal record: the fields of an event, and their encodings.

This module sends nothing and keeps no state.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from errno import errorcode
from functools import lru_cache
from textwrap import indent
from traceback import format_tb

from twisted.logger import LogEvent, eventAsText
from twisted.python.failure import Failure
from twisted.python.reflect import qual, safe_str

VALUE_BYTES = 64 * 1024
RECORD_BYTES = 192 * 1024
RECORD_FIELDS = 1000
"""
A longer value is cut. A whole record stays below the kernel's default size of a datagram
(net.core.wmem_default, 208 KiB), and within 1024 fields, above which journald ignores the record.
"""

_LEVELS = ("emergency", "alert", "critical", "error", "warn", "notice", "info", "debug")
"""Twisted's levels, and three levels that Twisted lacks, in the order of syslog's numbers."""

_ASKED = frozenset(["emergency", "alert", "notice"])
"""Levels that an event sets with its key C{journal_priority}."""

_LOGGING_LEVELS = ((50, "critical"), (40, "error"), (30, "warn"), (25, "notice"), (20, "info"))
"""The lowest number of C{logging} for each level."""

_LOGGING_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""The attributes of every C{logging.LogRecord}. All others come from the caller's C{extra}."""

_LINE_BYTES = 48 * 1024 - 64
"""
The most bytes in a record that goes through standard error. There a record is one line, and
journald makes another record of what exceeds its C{LineMax=}, journald.conf(5).
"""

_LEGACY_KEYS = frozenset(
    ["failure", "format", "isError", "logLevel", "message", "system", "time", "why"]
)
"""Internal keys of Twisted's older log. Those of the newer log begin with C{log_}."""

_RESERVED_FIELDS = frozenset(["LOG_TIME", "JOURNAL_PRIORITY"])
"""Fields that only the observer sets, in some records. No key of an event becomes one of them."""

_FIELD_NAME = re.compile("[A-Z][A-Z0-9_]{0,63}")

_ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for codes in ((0, 9), (11, 32), (127, 160), (0x2028, 0x202F), (0x2066, 0x206A))
    for code in range(*codes)
}
"""
Escapes of characters that control a terminal, break a line or change the text direction. journalctl
would show a text with one as C{[12B blob data]}.
"""

_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _ESCAPES}
"""The same characters with JSON's escapes."""

Record = Mapping[str, bytes]
"""Field names with their values, as the journal stores them."""

DAEMON = "3"
"""The facility of system services, in syslog's numbers (RFC 5424, 6.2.1)."""


def fields(event: LogEvent, identifier: str, facility: str = DAEMON) -> Record:
    """
    Map an event to the fields of one record. The event's keys never replace fields set here.

    @param event: any event of Twisted's newer or older log. It is not changed.
    @return: the fields. C{MESSAGE} is empty if the event has no text.
    """
    try:
        return _mapEvent(event, identifier, facility)
    except Exception as why:  # of an object in the event
        text = f"a record could not be made of an event: {type(why).__name__}: {safe_str(why)}"
        return _beginRecord(text, "error", identifier, facility)


def _mapEvent(event: LogEvent, identifier: str, facility: str) -> Record:
    level = _level(event)
    failure = event.get("log_failure", event.get("failure"))
    text = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)
    if isinstance(failure, Failure) and ("log_failure" in event or event.get("isError")):
        text = _withFailure(text, failure)
    record = _beginRecord(text, level, identifier, facility)
    record["LOG_NAMESPACE"] = _encoded(event.get("log_namespace", "-"))
    if isinstance(failure, Failure):
        if failure.frames:
            function, file, number, *_ = failure.frames[-1]
            _addPlace(record, file, number, function)
        if isinstance(failure.value, BaseException):
            _addException(record, failure.value)
    _addOwn(record, event)
    return record


def loggedFields(
    entry: logging.LogRecord, text: str, identifier: str, facility: str = DAEMON
) -> Record:
    """
    Map an entry of Python's C{logging} to the fields of one record, as L{fields} maps an event.

    @param text: the entry as text, with its traceback.
    @return: the fields. C{CODE_*} is the place of the call. Keys of C{extra} become fields too.
    """
    extra = {key: value for key, value in vars(entry).items() if key not in _LOGGING_KEYS}
    found = (name for lowest, name in _LOGGING_LEVELS if entry.levelno >= lowest)
    level = _asked(extra) or next(found, "debug")
    record = _beginRecord(text, level, identifier, facility)
    record["LOG_NAMESPACE"] = _encoded(entry.name)
    record["THREAD_NAME"] = _encoded(entry.threadName)
    _addPlace(record, entry.pathname, entry.lineno, entry.funcName)
    if entry.exc_info and entry.exc_info[1] is not None:
        _addException(record, entry.exc_info[1])
    _addOwn(record, extra)
    return record


def datagram(record: Record) -> bytes:
    """
    Encode a record in the journal's native protocol. A value with a newline follows its length, so
    that no value can begin another field or record.
    """
    parts = []
    for name, value in record.items():
        if b"\n" in value:
            parts.append(b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), value))
    return b"".join(parts)


def line(record: Record, when: float) -> bytes:
    """
    Format a record as text. Lines after the first are indented, so none looks like a record.

    @param when: when it was logged, in seconds since the epoch.
    """
    text = record["MESSAGE"].replace(b"\n", b"\n    ")
    return b"%b [%b] %b\n" % (shownTime(when), record["LOG_LEVEL"], text)


def streamLine(record: Record) -> bytes:
    """
    Format a record as a line for a stream into the journal, with its priority in front,
    sd-daemon(3). Each line is a record there, so line breaks in the message become C{\\n}.
    """
    text = record["MESSAGE"].replace(b"\n", b"\\n")
    return b"<%b>%b\n" % (record["PRIORITY"], _cut(text, _LINE_BYTES))


def shownTime(when: float) -> bytes:
    """Return a time in ISO 8601 with the local offset; now, if the calendar has no such time."""
    # Not by datetime: at the interpreter's end Python 3.13 crashes in astimezone().
    try:
        seconds, microseconds = divmod(round(when * 1e6), 10**6)
        local = time.localtime(seconds)
    except (OverflowError, OSError, TypeError, ValueError):
        return shownTime(time.time())
    zone = time.strftime("%z", local)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    return f"{text}.{microseconds:06}{zone[:3]}:{zone[3:]}".encode()


def _beginRecord(text: str, level: str, identifier: str, facility: str) -> dict[str, bytes]:
    return {
        "MESSAGE": _encoded(text.strip("\n")),
        "PRIORITY": b"%d" % _LEVELS.index(level),
        "SYSLOG_IDENTIFIER": _encoded(identifier),
        "SYSLOG_FACILITY": _encoded(facility),
        "LOG_LEVEL": level.encode(),
    }


def _level(event: LogEvent) -> str:
    """Return an event's level: C{error} for C{log.err}, which Twisted calls critical."""
    if asked := _asked(event):
        return asked
    if event.get("log_namespace") == "log_legacy" and event.get("isError"):
        return "error"
    name: str = getattr(event.get("log_level"), "name", "info")
    return name if name in _LEVELS else "info"


def _asked(event: Mapping[str, object]) -> str | None:
    asked = event.get("journal_priority")
    return asked if isinstance(asked, str) and asked in _ASKED else None


def _withFailure(text: str, failure: Failure) -> str:
    """
    Return the text, then the failure's causes, traceback, notes and group. Twisted itself formats
    only the traceback. If the text already ends in the traceback, that is not repeated.
    """
    try:
        traceback = failure.getTraceback()
    except BaseException as error:
        traceback = f"(its traceback cannot be formatted: {safe_str(error)})"
    text = text.removesuffix(traceback).strip("\n")[: VALUE_BYTES // 4]
    traceback = traceback.strip("\n")
    if len(traceback) > VALUE_BYTES // 4:  # the error itself is at the end
        part = VALUE_BYTES // 8
        traceback = f"{traceback[:part]}\n  …\n{traceback[-part:]}"
    if isinstance(failure.value, BaseException):
        try:
            seen = {id(failure.value)}
            before, after = _before(failure.value, seen), _after(failure.value, seen)
            traceback = f"{before}{traceback}\n{after}"
        except BaseException as error:
            traceback += f"\n(its causes and notes cannot be formatted: {safe_str(error)})"
    return f"{text}\n{traceback}"


def _before(error: BaseException, seen: set[int]) -> str:
    """
    Return the causes of an exception, oldest first. The oldest are left out if they would leave no
    room for the exception.
    """
    parts: list[str] = []
    while sum(map(len, parts)) < VALUE_BYTES // 4:
        earlier = error.__cause__
        joint = "The above exception was the direct cause of the following exception:"
        if earlier is None and not error.__suppress_context__:
            earlier = error.__context__
            joint = "During handling of the above exception, another exception occurred:"
            # A generator returns by StopIteration. Each of Twisted's coroutines leaves one.
            while isinstance(earlier, StopIteration):
                earlier = earlier.__context__
        if earlier is None or id(earlier) in seen:
            break
        seen.add(id(earlier))
        parts.append(f"{_alone(earlier, seen)}\n{joint}\n\n")
        error = earlier
    return "".join(reversed(parts))


def _alone(error: BaseException, seen: set[int]) -> str:
    """
    Return an exception without its causes, formatted as in Twisted's tracebacks. Python's own
    formatter would visit the whole chain each time.
    """
    frames = format_tb(error.__traceback__)
    head = ["Traceback (most recent call last):\n", *frames] if frames else []
    line = f"{qual(type(error))}: {safe_str(error)}\n"
    return "".join([*head, line, _after(error, seen)])


def _after(error: BaseException, seen: set[int]) -> str:
    """Return an exception's notes and the members of its group with their causes and notes."""
    notes = getattr(error, "__notes__", [])
    parts = [f"{safe_str(note)}\n" for note in (notes if isinstance(notes, list) else [notes])]
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for number, member in enumerate(members, 1):
        parts.append(f"  ---------------- {number} of {len(members)} ----------------\n")
        if id(member) in seen:
            parts.append(f"  {qual(type(member))}: see above\n")
            continue
        seen.add(id(member))
        parts.append(indent(_before(member, seen) + _alone(member, seen), "  "))
    return "".join(parts)


def _addPlace(record: dict[str, bytes], file: object, line: object, function: object) -> None:
    record["CODE_FILE"] = _encoded(file)
    record["CODE_LINE"] = _encoded(line)
    record["CODE_FUNC"] = _encoded(function)


def _addException(record: dict[str, bytes], error: BaseException) -> None:
    """
    Add an exception's type, and the number of an error of the operating system. The number in an
    C{SSLError} or a C{gaierror} has another meaning.
    """
    record["EXCEPTION_TYPE"] = _encoded(qual(type(error)))
    fromSSL = any(each.__module__ == "ssl" for each in type(error).__mro__)
    number = error.errno if isinstance(error, OSError) and not fromSSL else None
    if isinstance(number, int) and number in errorcode:
        record["ERRNO"] = _encoded(number)


def _addOwn(record: dict[str, bytes], event: Mapping[str, object]) -> None:
    """Add the event's own keys that have a value, while the record is small enough for journald."""
    size = sum(map(len, record.values()))
    for key, value in tuple(event.items()):  # a value's __str__ may change the event
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
    """Return the field for a key; C{None} for Twisted's keys and names that journald rejects."""
    if not isinstance(key, str) or key in _LEGACY_KEYS or key.startswith("log_"):
        return None
    name = key.upper()
    return name if _FIELD_NAME.fullmatch(name) and name not in _RESERVED_FIELDS else None


def _encoded(value: object) -> bytes:
    """
    Return a value of any type as valid UTF-8 of limited length; JSON for a list or a mapping. If
    its C{__str__} raises, the text reports that.
    """
    text, escapes = _json(value), _JSON_ESCAPES
    if text is None:
        text, escapes = _plain(value), _ESCAPES
    text = text[: VALUE_BYTES + 1]
    if not text.isprintable():
        text = text.translate(escapes)
    return _cut(text.encode("utf-8", "backslashreplace"), VALUE_BYTES)


def _plain(value: object) -> str:
    """Return the text of a value, or why it has none."""
    try:
        return safe_str(value)
    except BaseException as error:  # safe_str asks for __class__, and that of a proxy can raise
        return f"(its text cannot be made: {safe_str(error)})"


def _json(value: object) -> str | None:
    """
    Return a list or a mapping as JSON. A value in it that JSON lacks becomes text. C{None} for
    other types, and if JSON cannot encode it, because of a cycle or of keys that are not text.
    """
    try:
        # A proxy's __class__ can raise, too: that of Django's request.user asks the database.
        if not isinstance(value, (list, tuple, Mapping)) or hasattr(value, "_fields"):
            return None
        plain = dict(value) if isinstance(value, Mapping) else value
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, default=safe_str)
    except BaseException:  # a value's own code can raise anything
        return None


def _cut(data: bytes, most: int) -> bytes:
    if len(data) > most:
        data = data[: most - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data
