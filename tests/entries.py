"""Events and their records, for the tests of what goes into the journal."""

from __future__ import annotations

import re
from typing import Any

from twisted.logger import (
    LogEvent,
    LogPublisher,
)
from twisted.python import log as legacy
from twisted.python.failure import Failure

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d"


def parsed(data: bytes) -> list[tuple[str, bytes]]:
    """Parse a datagram as journald does, but raise where journald would ignore a fault."""
    found = []
    while data:
        head, data = data.split(b"\n", 1)
        name, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, end, data = data[8 : 8 + size], data[8 + size : 9 + size], data[9 + size :]
            if len(value) != size or end != b"\n":
                raise ValueError(f"{name!r} has a wrong length")
        if not re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name):
            raise ValueError(f"journald does not take {name!r}")
        found.append((name.decode(), value))
    return found


def logged(**event: Any) -> LogEvent:
    """
    The event that an observer gets from C{log.msg(**event)} or, with a C{failure}, from C{log.err}.
    """
    events: list[LogEvent] = []
    observer: Any = events.append
    publisher = legacy.LogPublisher(LogPublisher(observer), LogPublisher(observer))
    publisher.msg(*event.pop("message", ()), **event)
    [only] = events
    return only


def raised() -> Failure:
    """A failure raised at a known place."""
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        return Failure()
