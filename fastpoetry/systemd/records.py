"""
What a record of the journal is made of: an event's fields, and how they are written.

It sends nothing, and keeps nothing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
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
A longer value is cut. A whole record stays below the kernel's default for one datagram
(net.core.wmem_default, 208 KiB) and within the 1024 fields beyond which journald ignores it.
"""

_PRIORITIES = {
    "emergency": b"0",
    "alert": b"1",
    "critical": b"2",
    "error": b"3",
    "warn": b"4",
    "notice": b"5",
    "info": b"6",
    "debug": b"7",
}
"""Levels in syslog's numbers: Twisted's, and three that it lacks."""

_ASKED = frozenset(["emergency", "alert", "notice"])
"""Levels that an event asks for by its key C{journal_priority}."""

_LOGGING_LEVELS = ((50, "critical"), (40, "error"), (30, "warn"), (25, "notice"), (20, "info"))
"""The lowest of C{logging}'s numbers for each."""

_LOGGING_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""What every C{logging.LogRecord} has; what else it has is the caller's C{extra}."""

_LINE_BYTES = 48 * 1024 - 64
"""
A record that takes the way through standard error is one line of journald's, LineMax= of
journald.conf(5), whose rest would be another record.
"""

_LEGACY_KEYS = frozenset(
    ["failure", "format", "isError", "logLevel", "message", "system", "time", "why"]
)
"""
The keys of an event by which Twisted's older log keeps its books; the newer one's begin with
C{log_}.
"""

_RESERVED_FIELDS = frozenset(["LOG_TIME", "JOURNAL_PRIORITY"])
"""What only the observer says, in some records; no key of an event's is ever taken for it."""

_FIELD_NAME = re.compile("[A-Z][A-Z0-9_]{0,63}")

_ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for codes in ((0, 9), (11, 32), (127, 160), (0x2028, 0x202F), (0x2066, 0x206A))
    for code in range(*codes)
}
"""
Characters that could act on a terminal, break a line or turn its direction, and that journalctl
would show as C{[12B blob data]}.
"""

_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _ESCAPES}
"""The same for JSON, whose own escapes they then are."""

Record = Mapping[str, bytes]
"""Names and values, as they go into the journal."""


DAEMON = "3"
"""The facility of system services, in syslog's numbers (RFC 5424, 6.2.1)."""


def fields(event: LogEvent, identifier: str, facility: str = DAEMON) -> Record:
    """
    Map an event to the fields of one record; the event's own keys never replace the others.

    @param event: any event, in Twisted's newer or older way; it is not changed.
    @param identifier: the program's name in the journal.
    @param facility: the kind of program, in syslog's numbers.
    @return: the fields; an empty C{MESSAGE} if the event has no text.
    """
    level = _level(event)
    failure = event.get("log_failure", event.get("failure"))
    text = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)
    if isinstance(failure, Failure) and ("log_failure" in event or event.get("isError")):
        text = _withFailure(text, failure)
    record = {
        "MESSAGE": _encoded(text.strip("\n")),
        "PRIORITY": _PRIORITIES[level],
        "SYSLOG_IDENTIFIER": _encoded(identifier),
        "SYSLOG_FACILITY": _encoded(facility),
        "LOG_NAMESPACE": _encoded(event.get("log_namespace", "-")),
        "LOG_LEVEL": level.encode(),
    }
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
    Map what C{logging} has logged to the fields of one record, as L{fields} does an event.

    @param entry: any of C{logging}'s records; it is not changed.
    @param text: the entry as text, with its traceback.
    @param identifier: the program's name in the journal.
    @param facility: the kind of program, in syslog's numbers.
    @return: the fields. C{CODE_*} is the place that logged, and what was C{extra} is treated as an
        event's own keys are.
    """
    extra = {key: value for key, value in vars(entry).items() if key not in _LOGGING_KEYS}
    found = (name for lowest, name in _LOGGING_LEVELS if entry.levelno >= lowest)
    level = _asked(extra) or next(found, "debug")
    record = {
        "MESSAGE": _encoded(text.strip("\n")),
        "PRIORITY": _PRIORITIES[level],
        "SYSLOG_IDENTIFIER": _encoded(identifier),
        "SYSLOG_FACILITY": _encoded(facility),
        "LOG_NAMESPACE": _encoded(entry.name),
        "LOG_LEVEL": level.encode(),
        "THREAD_NAME": _encoded(entry.threadName),
    }
    _addPlace(record, entry.pathname, entry.lineno, entry.funcName)
    if entry.exc_info and entry.exc_info[1] is not None:
        _addException(record, entry.exc_info[1])
    _addOwn(record, extra)
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


def line(record: Record, when: float) -> bytes:
    """
    Put a record into text. What follows its first line is indented, so that no value can pass for
    another record.

    @param record: the record.
    @param when: when it was logged, in seconds since the epoch.
    """
    text = record["MESSAGE"].replace(b"\n", b"\n    ")
    return b"%b [%b] %b\n" % (shownTime(when), record["LOG_LEVEL"], text)


def streamLine(record: Record) -> bytes:
    """
    Put a record into a line for a stream that ends in the journal, with its priority in front, as
    sd-daemon(3) has it. There a line is a record, so that what were lines are one, with C{\\n}
    between them.
    """
    text = record["MESSAGE"].replace(b"\n", b"\\n")
    return b"<%b>%b\n" % (record["PRIORITY"], _cut(text, _LINE_BYTES))


def shownTime(when: float) -> bytes:
    """@return: a time with the place's offset, by ISO 8601; now, for one that no calendar has."""
    try:
        found = datetime.fromtimestamp(when, UTC)
    except (OverflowError, OSError, TypeError, ValueError):
        found = datetime.now(UTC)
    return found.astimezone().isoformat(timespec="microseconds").encode()


def _level(event: LogEvent) -> str:
    """
    @return: the name of an event's level; C{error} for a C{log.err}, each of which Twisted calls
        critical.
    """
    asked = _asked(event)
    if asked is not None:
        return asked
    if event.get("log_namespace") == "log_legacy" and event.get("isError"):
        return "error"
    name: str = getattr(event.get("log_level"), "name", "info")
    return name if name in _PRIORITIES else "info"


def _asked(event: Mapping[str, object]) -> str | None:
    asked = event.get("journal_priority")
    return asked if isinstance(asked, str) and asked in _ASKED else None


def _withFailure(text: str, failure: Failure) -> str:
    """
    @return: a text, which may end in the failure's traceback already, and all that is known of the
        failure: its traceback, and what Twisted's leaves out.
    """
    try:
        traceback = failure.getTraceback()
    except BaseException as error:
        traceback = f"(its traceback cannot be told: {safe_str(error)})"
    text = text.removesuffix(traceback).strip("\n")
    traceback = traceback.strip("\n")
    if isinstance(failure.value, BaseException):
        try:
            seen = {id(failure.value)}
            before, after = _before(failure.value, seen), _after(failure.value, seen)
            traceback = f"{before}{traceback}\n{after}"
        except BaseException as error:
            traceback += f"\n(what belongs to it cannot be told: {safe_str(error)})"
    return f"{text}\n{traceback}"


def _before(error: BaseException, seen: set[int]) -> str:
    """@return: what an exception came of, oldest first; no more than leaves room for itself."""
    told: list[str] = []
    while sum(map(len, told)) < VALUE_BYTES // 4:
        earlier = error.__cause__
        joint = "The above exception was the direct cause of the following exception:"
        if earlier is None and not error.__suppress_context__:
            earlier = error.__context__
            joint = "During handling of the above exception, another exception occurred:"
            # By this a generator returns. Of Twisted's coroutines each that does leaves one.
            while isinstance(earlier, StopIteration):
                earlier = earlier.__context__
        if earlier is None or id(earlier) in seen:
            break
        seen.add(id(earlier))
        told.append(f"{_alone(earlier, seen)}\n{joint}\n\n")
        error = earlier
    return "".join(reversed(told))


def _alone(error: BaseException, seen: set[int]) -> str:
    """
    @return: an exception without what it came of, in the way of Twisted's tracebacks. Python's own
        formatter would look at the whole chain each time.
    """
    frames = format_tb(error.__traceback__)
    head = ["Traceback (most recent call last):\n", *frames] if frames else []
    line = f"{qual(type(error))}: {safe_str(error)}\n"
    return "".join([*head, line, _after(error, seen)])


def _after(error: BaseException, seen: set[int]) -> str:
    """@return: an exception's notes, and the members of a group, each with all that is its."""
    notes = getattr(error, "__notes__", [])
    told = [f"{safe_str(note)}\n" for note in (notes if isinstance(notes, list) else [notes])]
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for number, member in enumerate(members, 1):
        told.append(f"  ---------------- {number} of {len(members)} ----------------\n")
        if id(member) in seen:
            told.append(f"  {qual(type(member))}: see above\n")
            continue
        seen.add(id(member))
        told.append(indent(_before(member, seen) + _alone(member, seen), "  "))
    return "".join(told)


def _addPlace(record: dict[str, bytes], file: object, line: object, function: object) -> None:
    record["CODE_FILE"] = _encoded(file)
    record["CODE_LINE"] = _encoded(line)
    record["CODE_FUNC"] = _encoded(function)


def _addException(record: dict[str, bytes], error: BaseException) -> None:
    """
    Add an exception's type and, if it is the system's refusal, the number of that. The number in an
    C{SSLError} or a C{gaierror} means something else.
    """
    record["EXCEPTION_TYPE"] = _encoded(qual(type(error)))
    fromSSL = any(each.__module__ == "ssl" for each in type(error).__mro__)
    if isinstance(error, OSError) and error.errno in errorcode and not fromSSL:
        record["ERRNO"] = _encoded(error.errno)


def _addOwn(record: dict[str, bytes], event: Mapping[str, object]) -> None:
    """Add the event's own keys that have a value, as long as the record can be sent and stored."""
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
    @return: the field that a key becomes, or C{None} for one that is Twisted's or that journald
        would not take.
    """
    if not isinstance(key, str) or key in _LEGACY_KEYS or key.startswith("log_"):
        return None
    name = key.upper()
    return name if _FIELD_NAME.fullmatch(name) and name not in _RESERVED_FIELDS else None


def _encoded(value: object) -> bytes:
    """
    @return: a value of any kind as valid UTF-8 of a bounded length; JSON for a list or a mapping. A
        value that has no text, since its C{__str__} raises, tells that instead.
    """
    text, escapes = _json(value), _JSON_ESCAPES
    if text is None:
        text, escapes = safe_str(value), _ESCAPES
    text = text[: VALUE_BYTES + 1]
    if not text.isprintable():
        text = text.translate(escapes)
    return _cut(text.encode("utf-8", "backslashreplace"), VALUE_BYTES)


def _json(value: object) -> str | None:
    """
    @return: a list or a mapping as JSON, with text for what JSON does not know; C{None} for
        anything else, and where it cannot be done: in a circle, with keys that are no text.
    """
    if not isinstance(value, (list, tuple, Mapping)) or hasattr(value, "_fields"):
        return None
    try:
        plain = dict(value) if isinstance(value, Mapping) else value
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, default=safe_str)
    except BaseException:  # a value's own code can raise anything
        return None


def _cut(data: bytes, most: int) -> bytes:
    if len(data) > most:
        data = data[: most - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data
