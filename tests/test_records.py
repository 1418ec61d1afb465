"""Tests for L{fastpoetry.systemd.records}."""

from __future__ import annotations

import json
import math
from collections import UserDict
from collections.abc import Iterator
from errno import ENOENT
from itertools import pairwise
from socket import gaierror
from ssl import SSLError
from typing import Any, NamedTuple

from entries import TIME, logged, parsed, raised
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd import records

TWISTED_KEYS = [
    *("log_failure", "log_flattened", "log_level", "log_namespace", "log_system", "log_text"),
    *("failure", "isError", "message", "time"),
]


def mapped(**event: Any) -> dict[str, bytes]:
    """The fields that journald finds in an event's record."""
    found = parsed(records.datagram(records.fields(event, "test")))
    if len(found) != len(dict(found)):
        raise ValueError("a field comes twice")
    return dict(found)


def caught(error: BaseException, *, cause: BaseException | None = None) -> Failure:
    """An exception's failure as a Deferred leaves it: the exception itself has no traceback."""
    try:
        raise error from cause
    except BaseException:
        failure = Failure()
    failure.cleanFailure()
    return failure


class Place(NamedTuple):
    x: int


class Nameless:
    """An exception without text."""

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error("no text")


class FieldsTests(SynchronousTestCase):
    """Tests for the path from an event to the fields of a record."""

    def test_levels(self) -> None:
        """Each level has its syslog priority."""
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

    def test_strange(self) -> None:
        """Whatever an event contains, it makes a record."""
        found = mapped(log_format="x", log_failure=caught(OSError([1], "y")))
        self.assertTrue(found["MESSAGE"].startswith(b"x\n"))

        class Strange:
            @property
            def errno(self) -> int:
                raise LookupError("no number")

        error = type("Error", (Strange, OSError), {})()
        found = mapped(log_format="x", log_failure=caught(error))
        self.assertEqual(found["PRIORITY"], b"3")
        self.assertIn(b"LookupError: no number", found["MESSAGE"])

    def test_longTraceback(self) -> None:
        """However long a text and a traceback are, the record has the error itself, at the end."""
        error = RecursionError("the very " + "long " * 10_000 + "cause")
        found = mapped(log_format="x" * 100_000, log_failure=caught(error))
        self.assertTrue(found["MESSAGE"].rstrip().endswith(b"long cause"))
        self.assertTrue(found["MESSAGE"].startswith(b"xxx"))

    def test_lastYear(self) -> None:
        """A time is shown with the local offset; one beyond the calendar is the present."""
        self.assertEqual(len(records.shownTime(253402300799)), len(records.shownTime(0)))
        self.assertIn(b"-", records.shownTime(1e30))

    def test_noLevel(self) -> None:
        """An event without a level has the priority info."""
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
                "SYSLOG_FACILITY": b"3",
                "LOG_NAMESPACE": b"fastpoetry.protocol",
                "LOG_LEVEL": b"info",
                "BYTES": b"3003",
                "PEER": b"127.0.0.1:1",
                "MESSAGE_ID": b"0" * 32,
            },
        )

    def test_noOverride(self) -> None:
        """An event's own keys never replace the observer's fields."""
        event = {"log_format": "x", "log_failure": raised()}
        names = ["MESSAGE", "PRIORITY", "priority", "SYSLOG_IDENTIFIER", "syslog_identifier"]
        names += ["LOG_LEVEL", "LOG_NAMESPACE", "CODE_FILE", "code_line"]
        self.assertEqual(mapped(**event, **dict.fromkeys(names, "0")), mapped(**event))

    def test_impossibleNames(self) -> None:
        """A key without a value, or one that cannot be a field's name, is left out."""
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
        """An object that is no failure, and a failure never raised, add no C{CODE_FILE}."""
        for pretender in (None, "failure", Failure(ValueError("never raised"))):
            found = mapped(log_format="x", log_failure=pretender)
            self.assertNotIn("CODE_FILE", found)

    def test_cause(self) -> None:
        """A failure's causes come before it, each with its traceback, back to the first."""
        cause = caught(ValueError("second"), cause=raised().value).value
        failure = caught(RuntimeError("third"), cause=cause)
        text = mapped(log_format="x", log_failure=failure)["MESSAGE"].decode()
        ends = ("ZeroDivisionError: by nothing", "ValueError: second", "RuntimeError: third")
        places = [text.index(f"{end}\n") for end in ends[:2]] + [text.index(ends[2])]
        self.assertEqual(places, sorted(places))
        self.assertEqual(text.count("the direct cause of the following"), 2)
        self.assertTrue(text.endswith(ends[2]))

    def test_context(self) -> None:
        """
        An exception that was being handled comes before the failure too, unless the failure was
        raised C{from None}.
        """

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
        """
        The StopIteration of a coroutine that returned in the meantime is not part of the record.
        """
        real, error = KeyError("real"), ValueError("then")
        error.__context__ = StopIteration([1])
        error.__context__.__context__ = StopIteration([2])
        error.__context__.__context__.__context__ = real
        text = mapped(log_format="x", log_failure=Failure(error))["MESSAGE"].decode()
        self.assertNotIn("StopIteration", text)
        self.assertIn("KeyError: 'real'\n\nDuring handling", text)

    def test_longChain(self) -> None:
        """However many causes a failure has, even in a circle, the failure itself is recorded."""
        errors = [ValueError(f"{n} " + "x" * 1000) for n in range(2000)]
        for earlier, later in pairwise(errors):
            later.__context__ = earlier
        errors[0].__context__ = errors[-1]
        text = mapped(log_format="x", log_failure=Failure(errors[-1]))["MESSAGE"].decode()
        self.assertIn("builtins.ValueError: 1999 x", text)
        self.assertIn("\nbuiltins.ValueError: 1998 x", text)

    def test_notes(self) -> None:
        """An exception's notes follow it, and so do those of its cause."""
        error, cause = ValueError("x"), KeyError("y")
        error.add_note("try\nagain")
        cause.add_note("no key")
        found = mapped(log_format="x", log_failure=caught(error, cause=cause))
        self.assertTrue(found["MESSAGE"].endswith(b"builtins.ValueError: x\ntry\nagain"))
        self.assertIn(b"KeyError: 'y'\nno key\n", found["MESSAGE"])

    def test_group(self) -> None:
        """All members of a group are recorded, each with its place and its own members."""
        inner = ExceptionGroup("inner", [KeyError("deep")])
        members = [raised().value, *(ValueError(f"member {n}") for n in range(20)), inner]
        failure = caught(ExceptionGroup("many", [each for each in members if each]))  # type: ignore
        text = mapped(log_format="x", log_failure=failure)["MESSAGE"].decode()
        self.assertIn("in raised\n", text)
        for n in range(20):
            self.assertIn(f"ValueError: member {n}\n", text)
        self.assertIn("KeyError: 'deep'", text)

    def test_exceptionFields(self) -> None:
        """A failure's type is a field, and so is the error number of a system call."""
        found = mapped(log_format="x", log_failure=caught(FileNotFoundError(ENOENT, "none")))
        self.assertEqual(found["EXCEPTION_TYPE"], b"builtins.FileNotFoundError")
        self.assertEqual(found["ERRNO"], b"2")
        for error in (OSError("no number"), gaierror(-2, "unknown"), SSLError(1, "handshake")):
            found = mapped(log_format="x", log_failure=caught(error))
            self.assertNotIn("ERRNO", found)
        self.assertEqual(found["EXCEPTION_TYPE"], b"ssl.SSLError")

    def test_hostileExceptions(self) -> None:
        """An exception whose parts cannot be read makes a record all the same."""

        class Odd(Exception):
            __notes__ = Nameless()  # type: ignore[assignment]

            def __str__(self) -> str:
                raise SystemExit

        found = mapped(log_format="it failed", log_failure=caught(Odd(), cause=Odd()))
        self.assertTrue(found["MESSAGE"].startswith(b"it failed\n"))
        self.assertTrue(found["EXCEPTION_TYPE"].endswith(b"Odd"))

    def test_askedLevels(self) -> None:
        """An event can ask for the levels that Twisted lacks; other requests are ignored."""
        for asked, number in (("notice", b"5"), ("alert", b"1"), ("emergency", b"0")):
            found = mapped(log_format="x", log_level=LogLevel.debug, journal_priority=asked)
            self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (number, asked.encode()))
            self.assertNotIn("JOURNAL_PRIORITY", found)
        for wrong in ("0", 0, "debug", "Alert", None, ["alert"], Nameless()):
            found = mapped(log_format="x", log_level=LogLevel.warn, journal_priority=wrong)
            self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"4", b"warn"))

    def test_json(self) -> None:
        """A list or a mapping becomes JSON, with text for values that JSON lacks."""
        value = {"a": [1, 2.5, None, True, "é\x85\n\u2028\ud800"], "b": (b"x", Nameless())}
        found = mapped(log_format="x", value=value, empty=[], pairs=(("a", 1),))
        seen = json.loads(found["VALUE"])
        self.assertEqual(seen["a"], value["a"])
        self.assertEqual(seen["b"][0], "x")
        self.assertIn("RuntimeError", seen["b"][1])
        self.assertIn("é".encode(), found["VALUE"])
        self.assertEqual((found["EMPTY"], found["PAIRS"]), (b"[]", b'[["a", 1]]'))

    def test_noJson(self) -> None:
        """Values that JSON cannot hold become text: circles, unusual keys, NaN."""
        circle: list[object] = []
        circle.append(circle)
        found = mapped(
            log_format="x", circle=circle, keys={(1,): 2}, nan=[math.nan], place=Place(1)
        )
        self.assertEqual(found["CIRCLE"], b"[[...]]")
        self.assertEqual(found["KEYS"], b"{(1,): 2}")
        self.assertEqual(found["NAN"], b"[nan]")
        self.assertEqual(found["PLACE"], b"Place(x=1)")

    def test_raisingMapping(self) -> None:
        """A foreign mapping that raises an exception becomes text."""

        class Odd(UserDict[str, int]):
            def __iter__(self) -> Iterator[str]:
                raise SystemExit

            def __repr__(self) -> str:
                return "odd"

        self.assertEqual(mapped(log_format="x", value=Odd(a=1))["VALUE"], b"odd")

    def test_streamLine(self) -> None:
        """
        On a stream to the journal a record is one line with its priority, short enough that
        journald does not split it.
        """
        record = records.fields({"log_format": "while dividing", "log_failure": raised()}, "test")
        line = records.streamLine(record)
        self.assertTrue(line.startswith(b"<6>while dividing\\nTraceback (most"))
        self.assertTrue(line.endswith(b"ZeroDivisionError: by nothing\n"))
        self.assertEqual(line.count(b"\n"), 1)
        record = records.fields({"log_format": "{x}", "x": "é" * 60000}, "test")
        line = records.streamLine(record)
        self.assertLess(len(line), 48 * 1024)
        self.assertTrue(line.decode().endswith("é…\n"))

    def test_legacyMessage(self) -> None:
        """A C{log.msg} has the priority info, and its own keys are fields."""
        found = mapped(**logged(message=("loaded",), system="-", poem="ecstasy"))
        self.assertEqual(
            found,
            {
                "MESSAGE": b"loaded",
                "PRIORITY": b"6",
                "SYSLOG_IDENTIFIER": b"test",
                "SYSLOG_FACILITY": b"3",
                "LOG_NAMESPACE": b"log_legacy",
                "LOG_LEVEL": b"info",
                "POEM": b"ecstasy",
            },
        )

    def test_legacyFailure(self) -> None:
        """A C{log.err} is an error, with its reason, and its traceback once."""
        found = mapped(**logged(failure=raised(), why="while dividing", isError=1))
        self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"3", b"error"))
        self.assertTrue(found["MESSAGE"].startswith(b"while dividing\nTraceback"))
        self.assertEqual(found["MESSAGE"].count(b"Traceback"), 1)
        self.assertEqual(found["CODE_FUNC"], b"raised")
        self.assertFalse({"FAILURE", "WHY", "ISERROR"} & set(found))

    def test_unchanged(self) -> None:
        """Making a record leaves the event unchanged."""
        event = {"log_format": "{a}", "a": [1], "log_level": LogLevel.warn, "log_failure": raised()}
        before = dict(event)
        records.fields(event, "test")
        self.assertEqual(event, before)

    def test_hostileText(self) -> None:
        """A client's text stays one value, and its terminal control characters are made visible."""
        peer = "\nPRIORITY=0\n\nMESSAGE=forged\x00\x1b[2J\r\x85\u2028\u202e{}%s\ud800é"
        found = mapped(log_format="from {peer}", log_level=LogLevel.info, peer=peer)
        seen = "\nPRIORITY=0\n\nMESSAGE=forged\\x00\\x1b[2J\\r\\x85\\u2028\\u202e{}%s\\ud800é"
        self.assertEqual(found["PEER"], seen.encode())
        self.assertEqual(found["MESSAGE"], b"from " + seen.encode())
        self.assertEqual(found["PRIORITY"], b"6")

    def test_hostileObjects(self) -> None:
        """
        If a value has no text because its C{__str__} raises, the record names the exception. An
        event that cannot be formatted makes a record too.
        """
        for error in (RuntimeError, RecursionError, SystemExit, KeyboardInterrupt):
            found = mapped(log_format="a {thing}", thing=Nameless(error))
            self.assertIn(error.__name__.encode(), found["MESSAGE"])
            self.assertIn(error.__name__.encode(), found["THING"])

    def test_lazyObjects(self) -> None:
        """A proxy whose class cannot be asked for, as Django's C{request.user}, makes a record."""

        class Lazy:
            @property  # type: ignore[misc]
            def __class__(self) -> type:
                raise LookupError("no database")

        found = mapped(log_format="x", user=Lazy(), users=[Lazy()])
        self.assertIn(b"no database", found["USER"])
        self.assertIn("USERS", found)

    def test_changingObjects(self) -> None:
        """A value that changes the event while it is formatted does no harm."""
        event: dict[str, Any] = {"log_format": "x"}

        class Meddler:
            def __str__(self) -> str:
                event[f"more{len(event)}"] = ""
                return "meddled"

        event["thing"] = Meddler()
        self.assertEqual(records.fields(event, "test")["THING"], b"meddled")

    def test_bytes(self) -> None:
        """Bytes that are UTF-8 are decoded."""
        found = mapped(log_format="x", good="naïve".encode(), bad=b"\xff\n")
        self.assertEqual((found["GOOD"], found["BAD"]), ("naïve".encode(), rb"b'\xff\n'"))

    def test_long(self) -> None:
        """A value of 64 KiB is whole; a longer one is cut to valid UTF-8, with a mark."""
        found = mapped(log_format="x", whole="x" * 65536, cut="é" * 40000)
        self.assertEqual(found["WHOLE"], b"x" * 65536)
        self.assertEqual(found["CUT"].decode(), "é" * 32766 + "…")

    def test_large(self) -> None:
        """Fields that would make a record too large are left out; small ones are kept."""
        large = {f"large{n}": "x" * 65536 for n in range(9)}
        found = mapped(log_format="x", **large, small="y")
        self.assertEqual([name for name in found if name.startswith("LARGE")], ["LARGE0", "LARGE1"])
        self.assertEqual(found["SMALL"], b"y")

    def test_many(self) -> None:
        """A record has no more fields than journald accepts."""
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
        Whatever an event contains, journald accepts its record, in valid UTF-8 without control
        characters.
        """
        found = mapped(**{"log_format": format, **event})
        self.assertTrue({"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"} <= set(found))
        for value in found.values():
            self.assertNotRegex(value.decode(), "[\x00-\x08\x0b-\x1f\x7f-\x9f]")

    @settings(deadline=None)
    @given(st.text())
    def test_line(self, text: str) -> None:
        """As text, a record begins with its time and level, and its further lines are indented."""
        record = records.fields({"log_format": "{text}", "text": f"a{text}"}, "test")
        first, *rest = records.line(record, 0).decode().splitlines()
        self.assertRegex(first, rf"^{TIME} \[info\] a")
        self.assertTrue(all(line.startswith("    ") for line in rest))
