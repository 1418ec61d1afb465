"""
Tests for L{fastpoetry.systemd.journal}, against a socket that only lacks a journald behind it.
"""

from __future__ import annotations

import json
import logging
import logging.config
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from errno import ENOENT
from itertools import pairwise
from pathlib import Path
from select import select
from socket import AF_UNIX, SOCK_DGRAM, gaierror, socket
from ssl import SSLError
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Thread
from typing import Any, NamedTuple, TextIO
from unittest.mock import Mock, patch

from hypothesis import given, settings
from hypothesis import strategies as st
from messages import DROPPED
from twisted.internet.task import Clock
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    STDLibLogObserver,
)
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.systemd import clock, journal

TWISTED_KEYS = [
    *("log_failure", "log_flattened", "log_level", "log_namespace", "log_system", "log_text"),
    *("failure", "isError", "message", "time"),
]
ROOT = Path(__file__).resolve().parents[1]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d"


def parsed(data: bytes) -> list[tuple[str, bytes]]:
    """
    Take a datagram apart as journald does, but where journald would ignore a fault this raises.
    """
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


def mapped(**event: Any) -> dict[str, bytes]:
    """The fields that journald finds in an event's record."""
    found = parsed(journal.datagram(journal.fields(event, "test")))
    if len(found) != len(dict(found)):
        raise ValueError("a field comes twice")
    return dict(found)


def logged(**event: Any) -> LogEvent:
    """What an observer gets of C{log.msg(**event)} or, with a C{failure}, of C{log.err}."""
    events: list[LogEvent] = []
    observer: Any = events.append
    publisher = legacy.LogPublisher(LogPublisher(observer), LogPublisher(observer))
    publisher.msg(*event.pop("message", ()), **event)
    [only] = events
    return only


def raised() -> Failure:
    """A failure of a known place."""
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        return Failure()


def caught(error: BaseException, *, cause: BaseException | None = None) -> Failure:
    """
    An exception's failure, as a Deferred leaves it: with nothing of it on the exception itself.
    """
    try:
        raise error from cause
    except BaseException:
        failure = Failure()
    failure.cleanFailure()
    return failure


class Place(NamedTuple):
    x: int


class Nameless:
    """Has no text."""

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error("no text")


class FieldsTests(SynchronousTestCase):
    """Tests for the way from an event to the fields of a record."""

    def test_levels(self) -> None:
        """Each level has the priority that syslog gives it."""
        levels = {
            level.name: mapped(log_format="x", log_level=level)
            for level in LogLevel.iterconstants()
        }
        self.assertEqual(
            {name: found["PRIORITY"] for name, found in levels.items()},
            {"critical": b"2", "error": b"3", "warn": b"4", "info": b"6", "debug": b"7"},
        )
        for name, found in levels.items():
            self.assertEqual(found["LOG_LEVEL"], name.encode())

    def test_noLevel(self) -> None:
        """An event without a level informs."""
        self.assertEqual(mapped(log_format="x", log_level=None)["PRIORITY"], b"6")

    def test_own(self) -> None:
        """The event's own keys are upper-case fields."""
        found = mapped(
            log_format="sending {bytes} bytes of poetry to {peer}",
            log_namespace="fastpoetry.protocol",
            log_level=LogLevel.info,
            log_time=1.0,
            log_source=self,
            log_logger=Logger(),
            bytes=3003,
            peer="127.0.0.1:1",
            message_id="0" * 32,
        )
        self.assertEqual(
            found,
            {
                "MESSAGE": b"sending 3003 bytes of poetry to 127.0.0.1:1",
                "PRIORITY": b"6",
                "SYSLOG_IDENTIFIER": b"test",
                "LOG_NAMESPACE": b"fastpoetry.protocol",
                "LOG_LEVEL": b"info",
                "BYTES": b"3003",
                "PEER": b"127.0.0.1:1",
                "MESSAGE_ID": b"0" * 32,
            },
        )

    def test_noOverride(self) -> None:
        """An event's own keys never replace what the observer says."""
        event = {"log_format": "x", "log_failure": raised()}
        names = ["MESSAGE", "PRIORITY", "priority", "SYSLOG_IDENTIFIER", "syslog_identifier"]
        names += ["LOG_LEVEL", "LOG_NAMESPACE", "CODE_FILE", "code_line"]
        self.assertEqual(mapped(**event, **dict.fromkeys(names, "0")), mapped(**event))

    def test_impossibleNames(self) -> None:
        """A key that cannot be the name of a field, or that has no value, is left out."""
        names = ["", "_private", "9lives", "größe", "a b", "a=b", "a\nB=c", "a" * 65, "none"]
        found = mapped(log_format="x", **{name: None if name == "none" else 1 for name in names})
        self.assertEqual(found, mapped(log_format="x"))

    def test_failure(self) -> None:
        """A failure is one record with its traceback, and with the place where it was raised."""
        found = mapped(
            log_format="while dividing", log_level=LogLevel.critical, log_failure=raised()
        )
        first, *_, last = found["MESSAGE"].decode().split("\n")
        self.assertEqual(first, "while dividing")
        self.assertEqual(last, "builtins.ZeroDivisionError: by nothing")
        code = raised.__code__
        self.assertEqual(found["CODE_FILE"], code.co_filename.encode())
        self.assertEqual(found["CODE_FUNC"], b"raised")
        self.assertEqual(int(found["CODE_LINE"]), code.co_firstlineno + 3)

    def test_noFailure(self) -> None:
        """What only stands in the place of a failure has no place of its own."""
        for pretender in (None, "failure", Failure(ValueError("never raised"))):
            found = mapped(log_format="x", log_failure=pretender)
            self.assertNotIn("CODE_FILE", found)

    def test_cause(self) -> None:
        """What a failure came of is told before it, with its own traceback, to the first."""
        cause = caught(ValueError("second"), cause=raised().value).value
        failure = caught(RuntimeError("third"), cause=cause)
        text = mapped(log_format="x", log_failure=failure)["MESSAGE"].decode()
        ends = ("ZeroDivisionError: by nothing", "ValueError: second", "RuntimeError: third")
        places = [text.index(f"{end}\n") for end in ends[:2]] + [text.index(ends[2])]
        self.assertEqual(places, sorted(places))
        self.assertEqual(text.count("the direct cause of the following"), 2)
        self.assertTrue(text.endswith(ends[2]))

    def test_context(self) -> None:
        """So is what was being handled meanwhile, unless it was raised C{from None}."""

        def again(**kwargs: None) -> str:
            try:
                try:
                    raise KeyError("first")
                except KeyError:
                    if kwargs:
                        raise ValueError("then") from None
                    raise ValueError("then")  # noqa: B904
            except ValueError:
                failure = Failure()
            return mapped(log_format="x", log_failure=failure)["MESSAGE"].decode()

        self.assertRegex(again(), r"(?s)KeyError: 'first'\n\nDuring handling .*ValueError: then$")
        self.assertNotRegex(again(suppressed=None), "(?m)^During handling")

    def test_generators(self) -> None:
        """That a coroutine has returned meanwhile is no part of it."""
        real, error = KeyError("real"), ValueError("then")
        error.__context__ = StopIteration([1])
        error.__context__.__context__ = StopIteration([2])
        error.__context__.__context__.__context__ = real
        text = mapped(log_format="x", log_failure=Failure(error))["MESSAGE"].decode()
        self.assertNotIn("StopIteration", text)
        self.assertIn("KeyError: 'real'\n\nDuring handling", text)

    def test_longChain(self) -> None:
        """However much a failure came of, and in whatever circle, the failure itself is told."""
        errors = [ValueError(f"{n} " + "x" * 1000) for n in range(2000)]
        for earlier, later in pairwise(errors):
            later.__context__ = earlier
        errors[0].__context__ = errors[-1]
        text = mapped(log_format="x", log_failure=Failure(errors[-1]))["MESSAGE"].decode()
        self.assertIn("builtins.ValueError: 1999 x", text)
        self.assertIn("\nbuiltins.ValueError: 1998 x", text)

    def test_notes(self) -> None:
        """An exception's notes follow it, those of its cause too."""
        error, cause = ValueError("x"), KeyError("y")
        error.add_note("try\nagain")
        cause.add_note("no key")
        found = mapped(log_format="x", log_failure=caught(error, cause=cause))
        self.assertTrue(found["MESSAGE"].endswith(b"builtins.ValueError: x\ntry\nagain"))
        self.assertIn(b"KeyError: 'y'\nno key\n", found["MESSAGE"])

    def test_group(self) -> None:
        """The members of a group are told, all of them, each with its place and its own members."""
        inner = ExceptionGroup("inner", [KeyError("deep")])
        members = [raised().value, *(ValueError(f"member {n}") for n in range(20)), inner]
        failure = caught(ExceptionGroup("many", [each for each in members if each]))  # type: ignore
        text = mapped(log_format="x", log_failure=failure)["MESSAGE"].decode()
        self.assertIn("in raised\n", text)
        for n in range(20):
            self.assertIn(f"ValueError: member {n}\n", text)
        self.assertIn("KeyError: 'deep'", text)

    def test_exceptionFields(self) -> None:
        """A failure's type is a field, and the number of what the system refused."""
        found = mapped(log_format="x", log_failure=caught(FileNotFoundError(ENOENT, "none")))
        self.assertEqual(found["EXCEPTION_TYPE"], b"builtins.FileNotFoundError")
        self.assertEqual(found["ERRNO"], b"2")
        for error in (OSError("no number"), gaierror(-2, "unknown"), SSLError(1, "handshake")):
            found = mapped(log_format="x", log_failure=caught(error))
            self.assertNotIn("ERRNO", found)
        self.assertEqual(found["EXCEPTION_TYPE"], b"ssl.SSLError")

    def test_hostileExceptions(self) -> None:
        """An exception whose parts cannot be told is a record all the same."""

        class Odd(Exception):
            __notes__ = Nameless()  # type: ignore[assignment]

            def __str__(self) -> str:
                raise SystemExit

        found = mapped(log_format="it failed", log_failure=caught(Odd(), cause=Odd()))
        self.assertTrue(found["MESSAGE"].startswith(b"it failed\n"))
        self.assertTrue(found["EXCEPTION_TYPE"].endswith(b"Odd"))

    def test_askedLevels(self) -> None:
        """
        An event can ask for the levels that Twisted lacks; whatever else it asks for is not heard.
        """
        for asked, number in (("notice", b"5"), ("alert", b"1"), ("emergency", b"0")):
            found = mapped(log_format="x", log_level=LogLevel.debug, journal_priority=asked)
            self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (number, asked.encode()))
            self.assertNotIn("JOURNAL_PRIORITY", found)
        for wrong in ("0", 0, "debug", "Alert", None, ["alert"], Nameless()):
            found = mapped(log_format="x", log_level=LogLevel.warn, journal_priority=wrong)
            self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"4", b"warn"))

    def test_json(self) -> None:
        """A list or a mapping is JSON, with text for what JSON has no word for."""
        value = {"a": [1, 2.5, None, True, "é\x85\n\u2028\ud800"], "b": (b"x", Nameless())}
        found = mapped(log_format="x", value=value, empty=[], pairs=(("a", 1),))
        seen = json.loads(found["VALUE"])
        self.assertEqual(seen["a"], value["a"])
        self.assertEqual(seen["b"][0], "x")
        self.assertIn("RuntimeError", seen["b"][1])
        self.assertIn("é".encode(), found["VALUE"])
        self.assertEqual((found["EMPTY"], found["PAIRS"]), (b"[]", b'[["a", 1]]'))

    def test_noJson(self) -> None:
        """What JSON cannot hold is text as before: circles, odd keys, what is no number."""
        circle: list[object] = []
        circle.append(circle)
        found = mapped(
            log_format="x", circle=circle, keys={(1,): 2}, nan=[math.nan], place=Place(1)
        )
        self.assertEqual(found["CIRCLE"], b"[[...]]")
        self.assertEqual(found["KEYS"], b"{(1,): 2}")
        self.assertEqual(found["NAN"], b"[nan]")
        self.assertEqual(found["PLACE"], b"Place(x=1)")

    def test_streamLine(self) -> None:
        """
        For a stream into the journal a record is one line with its priority, of a length that
        journald does not divide.
        """
        record = journal.fields({"log_format": "while dividing", "log_failure": raised()}, "test")
        line = journal.streamLine(record)
        self.assertTrue(line.startswith(b"<6>while dividing\\nTraceback (most"))
        self.assertTrue(line.endswith(b"ZeroDivisionError: by nothing\n"))
        self.assertEqual(line.count(b"\n"), 1)
        record = journal.fields({"log_format": "{x}", "x": "é" * 60000}, "test")
        line = journal.streamLine(record)
        self.assertLess(len(line), 48 * 1024)
        self.assertTrue(line.decode().endswith("é…\n"))

    def test_legacyMessage(self) -> None:
        """A C{log.msg} informs, and its own keys are fields."""
        found = mapped(**logged(message=("loaded",), system="-", poem="ecstasy"))
        self.assertEqual(
            found,
            {
                "MESSAGE": b"loaded",
                "PRIORITY": b"6",
                "SYSLOG_IDENTIFIER": b"test",
                "LOG_NAMESPACE": b"log_legacy",
                "LOG_LEVEL": b"info",
                "POEM": b"ecstasy",
            },
        )

    def test_legacyFailure(self) -> None:
        """A C{log.err} is an error, with its reason and its traceback once."""
        found = mapped(**logged(failure=raised(), why="while dividing", isError=1))
        self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"3", b"error"))
        self.assertTrue(found["MESSAGE"].startswith(b"while dividing\nTraceback"))
        self.assertEqual(found["MESSAGE"].count(b"Traceback"), 1)
        self.assertEqual(found["CODE_FUNC"], b"raised")
        self.assertFalse({"FAILURE", "WHY", "ISERROR"} & set(found))

    def test_unchanged(self) -> None:
        """The event is as it was."""
        event = {"log_format": "{a}", "a": [1], "log_level": LogLevel.warn, "log_failure": raised()}
        before = dict(event)
        journal.fields(event, "test")
        self.assertEqual(event, before)

    def test_hostileText(self) -> None:
        """Text from a stranger stays one value, and what acts on a terminal is shown instead."""
        peer = "\nPRIORITY=0\n\nMESSAGE=forged\x00\x1b[2J\r\x85\u2028\u202e{}%s\ud800é"
        found = mapped(log_format="from {peer}", log_level=LogLevel.info, peer=peer)
        seen = "\nPRIORITY=0\n\nMESSAGE=forged\\x00\\x1b[2J\\r\\x85\\u2028\\u202e{}%s\\ud800é"
        self.assertEqual(found["PEER"], seen.encode())
        self.assertEqual(found["MESSAGE"], b"from " + seen.encode())
        self.assertEqual(found["PRIORITY"], b"6")

    def test_hostileObjects(self) -> None:
        """
        A value that has no text tells so, and an event that cannot be formatted is a record too.
        """
        for error in (RuntimeError, RecursionError, SystemExit, KeyboardInterrupt):
            found = mapped(log_format="a {thing}", thing=Nameless(error))
            self.assertIn(error.__name__.encode(), found["MESSAGE"])
            self.assertIn(error.__name__.encode(), found["THING"])

    def test_changingObjects(self) -> None:
        """A value that changes the event when it is asked for its text does no harm."""
        event: dict[str, Any] = {"log_format": "x"}

        class Meddler:
            def __str__(self) -> str:
                event[f"more{len(event)}"] = ""
                return "meddled"

        event["thing"] = Meddler()
        self.assertEqual(journal.fields(event, "test")["THING"], b"meddled")

    def test_bytes(self) -> None:
        """Bytes are read as UTF-8 where they are that."""
        found = mapped(log_format="x", good="naïve".encode(), bad=b"\xff\n")
        self.assertEqual((found["GOOD"], found["BAD"]), ("naïve".encode(), rb"b'\xff\n'"))

    def test_long(self) -> None:
        """A value of 64 KiB is whole; a longer one is cut to valid UTF-8, and shows it."""
        found = mapped(log_format="x", whole="x" * 65536, cut="é" * 40000)
        self.assertEqual(found["WHOLE"], b"x" * 65536)
        self.assertEqual(found["CUT"].decode(), "é" * 32766 + "…")

    def test_large(self) -> None:
        """What would make a record too large is left out; what is small still finds its place."""
        large = {f"large{n}": "x" * 65536 for n in range(9)}
        found = mapped(log_format="x", **large, small="y")
        self.assertEqual([name for name in found if name.startswith("LARGE")], ["LARGE0", "LARGE1"])
        self.assertEqual(found["SMALL"], b"y")

    def test_many(self) -> None:
        """A record has no more fields than journald takes."""
        self.assertEqual(len(mapped(log_format="x", **{f"n{n}": n for n in range(2000)})), 1000)

    @settings(deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=70) | st.sampled_from([*TWISTED_KEYS, "a", "A"]),
            st.text() | st.binary() | st.integers() | st.builds(Nameless) | st.lists(st.text()),
        ),
        st.text() | st.binary() | st.integers(),
    )
    def test_anything(self, event: dict[str, Any], format: object) -> None:
        """
        Whatever an event holds, its record is one that journald takes, in valid UTF-8 without
        controls.
        """
        found = mapped(**{"log_format": format, **event})
        self.assertTrue({"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"} <= set(found))
        for value in found.values():
            self.assertNotRegex(value.decode(), "[\x00-\x08\x0b-\x1f\x7f-\x9f]")

    @settings(deadline=None)
    @given(st.text())
    def test_line(self, text: str) -> None:
        """As text, a record is one line, and what follows it is indented."""
        record = journal.fields({"log_format": "{text}", "text": f"a{text}"}, "test")
        first, *rest = journal.line(record, 0).decode().splitlines()
        self.assertRegex(first, rf"^{TIME} \[info\] a")
        self.assertTrue(all(line.startswith("    ") for line in rest))


@contextmanager
def noThreads() -> Iterator[None]:
    """For a while no thread can be made, as where C{TasksMax=} is reached."""
    refusal = RuntimeError("can't start new thread")
    with patch.object(Thread, "start", side_effect=refusal):
        yield


class Journald:
    """What is left of journald when it stands still: its socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.settimeout(20)  # Only a broken test waits so long.
        self._socket.bind(path)
        self.close = self._socket.close

    def take(self) -> dict[str, bytes]:
        """Take the next record."""
        return dict(parsed(self._socket.recv(1 << 20)))

    def idle(self) -> bool:
        """Whether no record has come."""
        readable, _, _ = select([self._socket], [], [], 0)
        return not readable


class JournalObserverTests(SynchronousTestCase):
    """Tests for the way from the observer to the journal."""

    def setUp(self) -> None:
        """Make a place for the journal's socket."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"

    def journald(self) -> Journald:
        """Start a journald."""
        journald = Journald(self.path)
        self.addCleanup(journald.close)
        return journald

    def pipe(self) -> tuple[TextIO, TextIO]:
        """Make a stand-in for standard error: the end to read from, and the end to write to."""
        out, into = os.pipe()
        reader, writer = os.fdopen(out), os.fdopen(into, "w")
        self.addCleanup(reader.close)
        self.addCleanup(writer.close)
        return reader, writer

    def log(self, observer: journal.JournalObserver, *texts: object) -> None:
        """Log some texts."""
        for text in texts:
            observer({"log_format": "{text}", "text": text, "log_level": LogLevel.info})

    def test_interface(self) -> None:
        """It is an observer."""
        verifyObject(ILogObserver, journal.JournalObserver("test", self.path))

    def test_sends(self) -> None:
        """A record is with the journal when the call returns."""
        journald = self.journald()
        self.log(journal.JournalObserver("test", self.path), "a\nb")
        self.assertEqual(journald.take()["MESSAGE"], b"a\nb")

    def test_largest(self) -> None:
        """A record as large as may be goes in one datagram."""
        journald = self.journald()
        values: dict[str, Any] = {f"f{n}": "x" * 64000 for n in range(3)}
        values |= {f"name{n}".ljust(64, "x"): "\n" for n in range(2000)}
        journal.JournalObserver("test", self.path)({"log_format": "x", **values})
        found = journald.take()
        self.assertEqual(len(found["F1"]), 64000)
        self.assertTrue(journald.idle())

    def test_noText(self) -> None:
        """An event without text is no record."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path)
        observer({"log_format": None, "log_level": LogLevel.info})
        observer(logged(eventType="noise"))
        self.assertTrue(journald.idle())

    def test_standstill(self) -> None:
        """
        While journald stands still, what is logged waits; then it comes, all of it and in order.
        """
        journald = self.journald()
        self.log(journal.JournalObserver("test", self.path), *range(1000))
        self.assertEqual([int(journald.take()["TEXT"]) for _ in range(1000)], list(range(1000)))
        self.assertTrue(journald.idle())

    def test_dropped(self) -> None:
        """
        What the backlog cannot hold is dropped; when the backlog is empty again one record tells
        how many were lost, and the journal goes on.
        """
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path, backlogBytes=10_000)
        self.log(observer, *range(2000))
        kept = [int(journald.take()["TEXT"]) for _ in range(20)]
        self.log(observer, "although there is room again")
        while (record := journald.take()).get("MESSAGE_ID") != DROPPED.encode():
            kept.append(int(record["TEXT"]))
        self.assertEqual(kept, list(range(len(kept))))
        self.assertEqual(record["PRIORITY"], b"4")
        self.assertEqual(int(record["DROPPED"]), 2001 - len(kept))
        self.assertIn(record["DROPPED"], record["MESSAGE"])
        self.log(observer, "after")
        self.assertEqual(journald.take()["MESSAGE"], b"after")

    def test_smallestBacklog(self) -> None:
        """However little may wait, one record may."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path, backlogBytes=0)
        self.log(observer, *range(1000))
        while journald.take().get("MESSAGE_ID") != DROPPED.encode():
            pass
        observer.flush()  # What was taken waits until the thread knows.
        self.log(observer, "after")
        self.assertEqual(journald.take()["MESSAGE"], b"after")

    def test_threads(self) -> None:
        """Threads log at will, and the records of each come in order."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path)
        texts = [[f"{name} {n}" for n in range(400)] for name in "abc"]
        threads = [Thread(target=self.log, args=(observer, *each)) for each in texts]
        for thread in threads:
            thread.start()
        found = [journald.take()["TEXT"].decode() for _ in range(1200)]
        for thread in threads:
            thread.join()
        self.assertEqual([[text for text in found if text[0] == name] for name in "abc"], texts)

    def test_noJournal(self) -> None:
        """Without a journal it says so once, and writes the records there."""
        reader, writer = self.pipe()
        observer = journal.JournalObserver("test", self.path, writer)
        self.log(observer, "one", "two\n[info] forged", "three")
        observer.flush()
        self.assertEqual(
            [re.sub(f"^{TIME} ", "", reader.readline()) for _ in range(5)],
            [
                f"[warn] test: cannot write to the journal at {self.path} (No such file or"
                " directory); until that works, records are written here\n",
                *("[info] one\n", "[info] two\n", "    [info] forged\n", "[info] three\n"),
            ],
        )

    def test_journalGoesAndComes(self) -> None:
        """
        When the journal goes away records are written as text, and when it is back it has them.
        """
        reader, writer = self.pipe()
        observer = journal.JournalObserver("test", self.path, writer)
        self.journald().close()
        self.log(observer, "one")
        observer.flush()
        self.assertIn("Connection refused", reader.readline())
        self.assertTrue(reader.readline().endswith(" [info] one\n"))
        os.remove(self.path)
        journald = self.journald()
        self.log(observer, "two")
        self.assertEqual(journald.take()["MESSAGE"], b"two")

    def test_nowhere(self) -> None:
        """Where there is neither a journal nor a standard error, nothing is raised or kept."""
        _, writer = self.pipe()
        writer.close()
        for fallback in (writer, None):
            observer = journal.JournalObserver("test", self.path, fallback)
            self.log(observer, "one")
            observer.flush()
            journald = self.journald()
            self.log(observer, "two")
            self.assertEqual(journald.take()["MESSAGE"], b"two")
            os.remove(self.path)

    def test_fork(self) -> None:
        """A forked child logs, while what waits stays its parent's to send, once."""
        journald = self.journald()
        observer = journal.observer({"SYSLOG_IDENTIFIER": "test"}, self.path)
        self.log(observer, *range(1000))
        with warnings.catch_warnings():
            # From Python 3.12 on a fork beside a thread is warned of; here the thread is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            self.log(observer, "child")
            observer.flush(20)
            os._exit(0)
        texts = [journald.take()["TEXT"] for _ in range(1001)]
        os.waitpid(child, 0)
        texts.remove(b"child")
        self.assertEqual([int(text) for text in texts], list(range(1000)))
        self.assertTrue(journald.idle())

    def test_identifier(self) -> None:
        """The environment names the program in the journal, else it bears its own name."""
        journald = self.journald()
        self.patch(sys, "argv", ["/usr/bin/twistd3", "web"])
        self.log(journal.observer({"SYSLOG_IDENTIFIER": "poems"}, self.path), 1)
        self.log(journal.observer({}, self.path), 2)
        names = [journald.take()["SYSLOG_IDENTIFIER"] for _ in range(2)]
        self.assertEqual(names, [b"poems", b"twistd3"])

    def test_waitedTime(self) -> None:
        """A record that had to wait says when it was logged; one that was sent at once does not."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path)
        for n in range(1000):
            observer({"log_format": "{n}", "n": n, "log_time": 1e9 + n, "LOG_TIME": "forged"})
        times = [journald.take().get("LOG_TIME", b"").decode() for _ in range(1000)]
        waited = [time for time in times if time]
        self.assertEqual(times[0], "")
        self.assertEqual(waited, times[-len(waited) :])
        for n, time in enumerate(waited, 1000 - len(waited)):
            self.assertEqual(datetime.fromisoformat(time).timestamp(), 1e9 + n)

    def test_noTime(self) -> None:
        """A time that is none does no harm: the record bears the time when it came."""
        reader, writer = self.pipe()
        observer = journal.JournalObserver("test", self.path, writer)
        for time in (1e99, float("nan"), "now", None):
            observer({"log_format": "x", "log_time": time})
        observer.flush()
        for _ in range(5):
            self.assertRegex(reader.readline(), f"^{TIME} ")

    def test_journalStream(self) -> None:
        """
        Where standard error is the stream into the journal, records bear their priority there.
        """
        reader, writer = self.pipe()
        found = os.fstat(writer.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        observer = journal.JournalObserver("test", self.path, writer, stream=stream)
        observer({"log_format": "a\nb", "log_level": LogLevel.error})
        observer.flush()
        self.assertRegex(reader.readline(), "^<4>test: cannot write to the journal")
        self.assertEqual(reader.readline(), "<3>a\\nb\n")

    def test_otherStream(self) -> None:
        """Where it was one, and something else has been put in its place, they bear the time."""
        for stream in ("1:1", "nonsense", ""):
            reader, writer = self.pipe()
            observer = journal.JournalObserver("test", self.path, writer, stream=stream)
            self.log(observer, "one")
            observer.flush()
            self.assertRegex(reader.readline(), f"^{TIME} .warn. test: cannot")
            self.assertRegex(reader.readline(), f"^{TIME} .info. one$")

    def test_noThread(self) -> None:
        """
        Where no thread can be made, the reactor sees to it that what waits is sent as soon as one
        can, without another record.
        """
        journald = self.journald()
        time = Clock()
        self.patch(clock, "MonotonicClock", lambda reactor: time)
        reactor = Mock(callFromThread=lambda f, *args: f(*args))
        self.patch(sys, "modules", {**sys.modules, "twisted.internet.reactor": reactor})
        observer = journal.JournalObserver("test", self.path)
        with noThreads():
            self.log(observer, *range(1000))
            for _ in range(3):
                self.assertEqual(len(time.calls), 1)
                time.advance(1)
        sent = 0
        while not journald.idle():
            self.assertEqual(journald.take()["TEXT"], b"%d" % sent)
            sent += 1
        self.assertLess(sent, 1000)
        time.advance(1)
        self.assertEqual(time.calls, [])
        rest = [int(journald.take()["TEXT"]) for _ in range(1000 - sent)]
        self.assertEqual(rest, list(range(sent, 1000)))

    def test_noThreadAtTheEnd(self) -> None:
        """
        Where none can be made until the end, what the journal takes then is sent, and the rest is
        written; nothing is lost, and nobody waits.
        """
        journald = self.journald()
        self.patch(sys, "modules", {**sys.modules, "twisted.internet.reactor": None})
        with TemporaryFile("w+") as fallback:
            observer = journal.JournalObserver("test", self.path, fallback)
            with noThreads():
                self.log(observer, *range(1000))
                sent = [int(journald.take()["TEXT"])]
                observer.flush(1000)
            while not journald.idle():
                sent.append(int(journald.take()["TEXT"]))
            fallback.seek(0)
            first, *lines = fallback.read().splitlines()
        self.assertIn("cannot write to the journal", first)
        self.assertEqual([*sent, *(int(line.split()[-1]) for line in lines)], list(range(1000)))


class JournalHandlerTests(SynchronousTestCase):
    """Tests for the way from C{logging} to the journal."""

    def setUp(self) -> None:
        """Make a journal, and a logger whose only handler sends to it."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.journald = Journald(f"{folder.name}/socket")
        self.addCleanup(self.journald.close)
        self.observer = journal.JournalObserver("test", f"{folder.name}/socket")
        self.handler = journal.JournalHandler(journal=self.observer)
        self.logger = logging.Logger("somebody.else")
        self.logger.addHandler(self.handler)

    def test_record(self) -> None:
        """An entry is a record with its level, its place, its thread and its extra fields."""
        extra = {"peer": "here", "sizes": [1, 2], "message_id": "0" * 32, "PRIORITY": "0"}
        self.logger.warning("from %s", "there", extra=extra)
        found = self.journald.take()
        self.assertEqual(int(found.pop("CODE_LINE")) > 0, True)
        self.assertEqual(
            found,
            {
                "MESSAGE": b"from there",
                "PRIORITY": b"4",
                "SYSLOG_IDENTIFIER": b"test",
                "LOG_NAMESPACE": b"somebody.else",
                "LOG_LEVEL": b"warn",
                "CODE_FILE": __file__.encode(),
                "CODE_FUNC": b"test_record",
                "THREAD_NAME": b"MainThread",
                "PEER": b"here",
                "SIZES": b"[1, 2]",
                "MESSAGE_ID": b"0" * 32,
            },
        )

    def test_levels(self) -> None:
        """Each number has the priority of the level that it has reached, or the one asked for."""
        numbers = {5: 7, 10: 7, 15: 7, 20: 6, 25: 5, 30: 4, 35: 4, 40: 3, 50: 2, 99: 2}
        for number, priority in numbers.items():
            self.logger.log(number, "x")
            self.assertEqual(int(self.journald.take()["PRIORITY"]), priority)
        self.logger.info("x", extra={"journal_priority": "alert"})
        found = self.journald.take()
        self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"1", b"alert"))

    def test_exception(self) -> None:
        """An exception is told once, with all that belongs to it."""
        error = OSError(ENOENT, "none")
        error.__cause__ = raised().value
        error.add_note("a note")
        self.logger.error("it failed", exc_info=error)
        found = self.journald.take()
        text = found["MESSAGE"].decode()
        self.assertTrue(text.startswith("it failed\nTraceback"))
        self.assertTrue(text.endswith("none\na note"))
        self.assertEqual(text.count("FileNotFoundError"), 1)
        self.assertIn("ZeroDivisionError: by nothing", text)
        self.assertEqual(found["EXCEPTION_TYPE"], b"builtins.FileNotFoundError")
        self.assertEqual(found["ERRNO"], b"2")
        self.assertEqual(found["CODE_FUNC"], b"test_exception")

    def test_unformattable(self) -> None:
        """
        An entry with arguments that do not fit is a record all the same, and nothing is raised.
        """
        self.logger.error("%d of %d", "x", exc_info=raised().value)
        text = self.journald.take()["MESSAGE"].decode()
        self.assertTrue(text.startswith("%d of %d ('x',): "))
        self.assertIn("ZeroDivisionError: by nothing", text)

    def test_formatter(self) -> None:
        """The handler's formatter makes the text."""
        self.handler.setFormatter(logging.Formatter("%(levelname)s! %(message)s"))
        self.logger.error("x")
        self.assertEqual(self.journald.take()["MESSAGE"], b"ERROR! x")

    def test_basicConfig(self) -> None:
        """Set up by C{logging.basicConfig}, it does not repeat in the text what are fields."""
        root = logging.getLogger()
        self.patch(root, "handlers", [])
        self.patch(root, "level", logging.INFO)
        logging.basicConfig(handlers=[self.handler])
        logging.info("x")
        self.assertEqual(self.journald.take()["MESSAGE"], b"x")

    def test_noLoop(self) -> None:
        """
        With Twisted's events going to C{logging}, and everything to the journal, each is recorded
        once a way.
        """
        publisher = LogPublisher(self.observer, STDLibLogObserver("bridge"))
        bridge = logging.getLogger("bridge")
        self.addCleanup(bridge.removeHandler, self.handler)
        bridge.addHandler(self.handler)
        Logger("events", observer=publisher).warn("x")
        found = [self.journald.take()["LOG_NAMESPACE"] for _ in range(2)]
        self.assertEqual(found, [b"events", b"bridge"])
        self.assertTrue(self.journald.idle())

    def test_configured(self) -> None:
        """A configuration can name the handler."""
        name = "fastpoetry.systemd.journal.JournalHandler"
        settings = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"journal": {"class": name, "level": "ERROR"}},
            "loggers": {"configured": {"handlers": ["journal"]}},
        }
        logging.config.dictConfig(settings)
        [handler] = logging.getLogger("configured").handlers
        self.addCleanup(logging.getLogger("configured").removeHandler, handler)
        self.assertIsInstance(handler, journal.JournalHandler)
        self.assertEqual(handler.level, logging.ERROR)


class ProgramTests(SynchronousTestCase):
    """Tests for the observer in a program of its own."""

    def runProgram(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program that sees this package."""
        return subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; from fastpoetry.systemd import journal; {program}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_exit(self) -> None:
        """
        The last record of a program that ends at once arrives, also where there is no journal.
        """
        done = self.runProgram(
            "journal.observer({}, '/nowhere')({'log_format': 'end'}); sys.exit(1)"
        )
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.endswith("[info] end\n"))

    def test_alone(self) -> None:
        """The room brings no other room with it, and nothing of poetry."""
        done = self.runProgram(
            "print(*[name for name in sys.modules if name.startswith('fastpoetry.')])"
        )
        self.assertEqual(done.stdout, "fastpoetry.systemd fastpoetry.systemd.journal\n")


class CatalogTests(SynchronousTestCase):
    """Tests for the message catalog."""

    catalog = (ROOT / "packaging/systemd/fastpoetry.catalog").read_text("utf-8")

    def test_complete(self) -> None:
        """Every kind of event that the code logs has one entry, and no other has."""
        logged = [
            name
            for module in ROOT.glob("fastpoetry/**/*.py")
            for name in re.findall(r"""\bmessage_id"?[=:]\s*"([^"]+)""", module.read_text("utf-8"))
        ]
        entries = re.findall(r"^-- (.*)$", self.catalog, re.MULTILINE)
        self.assertEqual(sorted(entries), sorted(set(logged)))
        for name in entries:
            self.assertRegex(name, "^[0-9a-f]{32}$")

    def test_form(self) -> None:
        """Each entry has a subject and says who defined it, then a blank line and a text."""
        for entry in re.split(r"^-- .*$", self.catalog, flags=re.MULTILINE)[1:]:
            head, text = entry.strip().split("\n\n", 1)
            names = [line.split(": ")[0] for line in head.splitlines()]
            self.assertEqual(names[:2], ["Subject", "Defined-By"])
            self.assertTrue(text)
