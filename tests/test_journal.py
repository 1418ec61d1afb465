"""
Tests for L{fastpoetry.systemd.journal}, with a socket that has no journald behind it.
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from errno import ENOENT
from pathlib import Path
from select import select
from socket import AF_UNIX, SOCK_DGRAM, socket
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Thread
from typing import Any, TextIO
from unittest.mock import Mock, patch

from entries import TIME, logged, parsed, raised
from messages import DROPPED
from twisted.internet.task import Clock
from twisted.logger import (
    ILogObserver,
    Logger,
    LogLevel,
    LogPublisher,
    STDLibLogObserver,
)
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.systemd import clock, journal

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def noThreads() -> Iterator[None]:
    """Make every start of a thread fail, as when C{TasksMax=} is reached."""
    refusal = RuntimeError("can't start new thread")
    with patch.object(Thread, "start", side_effect=refusal):
        yield


class Journald:
    """The socket of a journald that hangs; the process itself is not needed."""

    def __init__(self, path: str) -> None:
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.settimeout(20)  # Only a failing test waits this long.
        self._socket.bind(path)
        self.close = self._socket.close

    def take(self) -> dict[str, bytes]:
        """Read the next record."""
        return dict(parsed(self._socket.recv(1 << 20)))

    def idle(self) -> bool:
        """Whether no record has come."""
        readable, _, _ = select([self._socket], [], [], 0)
        return not readable


class JournalObserverTests(SynchronousTestCase):
    """Tests for the path from the observer to the journal."""

    def setUp(self) -> None:
        """Choose a path for the journal's socket."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = f"{folder.name}/socket"

    def journald(self) -> Journald:
        """Start a journald."""
        journald = Journald(self.path)
        self.addCleanup(journald.close)
        return journald

    def pipe(self) -> tuple[TextIO, TextIO]:
        """Make a pipe in place of standard error: its end to read, and its end to write."""
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
        """The journal observer provides the interface of a log observer."""
        verifyObject(ILogObserver, journal.JournalObserver("test", self.path))

    def test_sends(self) -> None:
        """A record is in the journal's socket when the call returns."""
        journald = self.journald()
        self.log(journal.JournalObserver("test", self.path), "a\nb")
        self.assertEqual(journald.take()["MESSAGE"], b"a\nb")

    def test_largest(self) -> None:
        """The largest record goes in one datagram."""
        journald = self.journald()
        values: dict[str, Any] = {f"f{n}": "x" * 64000 for n in range(3)}
        values |= {f"name{n}".ljust(64, "x"): "\n" for n in range(2000)}
        journal.JournalObserver("test", self.path)({"log_format": "x", **values})
        found = journald.take()
        self.assertEqual(len(found["F1"]), 64000)
        self.assertTrue(journald.idle())

    def test_noText(self) -> None:
        """An event without text makes no record."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path)
        observer({"log_format": None, "log_level": LogLevel.info})
        observer(logged(eventType="noise"))
        self.assertTrue(journald.idle())

    def test_standstill(self) -> None:
        """While journald hangs, records wait; afterwards they arrive completely and in order."""
        journald = self.journald()
        self.log(journal.JournalObserver("test", self.path), *range(1000))
        self.assertEqual([int(journald.take()["TEXT"]) for _ in range(1000)], list(range(1000)))
        self.assertTrue(journald.idle())

    def test_dropped(self) -> None:
        """
        Records beyond the backlog are dropped; when the backlog is empty again, one record counts
        the lost ones, and the journal goes on.
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

    def test_lostAgain(self) -> None:
        """
        If the record of the losses is lost too, because the journal hangs again, the next one
        counts them as well.
        """
        self.patch(journal, "_END_SECONDS", 0.01)
        journald = self.journald()
        reader, writer = self.pipe()
        observer = journal.JournalObserver("test", self.path, writer, backlogBytes=10_000)
        self.log(observer, *range(2000))
        waiting = len(observer._backlog)
        found = [journald.take() for _ in range(waiting)]
        with observer._changed:
            observer._changed.wait_for(lambda: len(observer._backlog) == 1, 20)
        observer.end()
        self.assertIn("cannot write to the journal", reader.readline())
        lost = int(reader.readline().rpartition(": ")[2])
        while "MESSAGE_ID" not in (record := journald.take()):
            found.append(record)
        self.assertEqual(len(found) + lost, 2000)

    def test_smallestBacklog(self) -> None:
        """Even the smallest backlog holds one record."""
        journald = self.journald()
        observer = journal.JournalObserver("test", self.path, backlogBytes=0)
        self.log(observer, *range(1000))
        while journald.take().get("MESSAGE_ID") != DROPPED.encode():
            pass
        observer.flush()  # A taken record stays in the backlog until the thread continues.
        self.log(observer, "after")
        self.assertEqual(journald.take()["MESSAGE"], b"after")

    def test_threads(self) -> None:
        """Threads may log freely, and the records of each arrive in order."""
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
        """
        Without a journal the observer reports that once on standard error, and writes the records
        there.
        """
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
        Without the journal, records are written as text; once it is back, it gets records again.
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
        """Without a journal and standard error, no exception is raised and no record is kept."""
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
        """A forked child logs; its parent sends the waiting records, once."""
        journald = self.journald()
        observer = journal.observer({"SYSLOG_IDENTIFIER": "test"}, self.path)
        self.log(observer, *range(1000))
        with warnings.catch_warnings():
            # Since Python 3.12 a fork beside a thread gives a warning; here the thread is the
            # point.
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
        """
        The environment names the program in the journal; the default is the program's own name.
        """
        journald = self.journald()
        self.patch(sys, "argv", ["/usr/bin/twistd3", "web"])
        self.log(journal.observer({"SYSLOG_IDENTIFIER": "poems"}, self.path), 1)
        self.log(journal.observer({}, self.path), 2)
        names = [journald.take()["SYSLOG_IDENTIFIER"] for _ in range(2)]
        self.assertEqual(names, [b"poems", b"twistd3"])

    def test_facility(self) -> None:
        """Each record has the facility daemon, unless the environment names another."""
        journald = self.journald()
        for environ in ({}, {"SYSLOG_FACILITY": ""}, {"SYSLOG_FACILITY": "16"}):
            self.log(journal.observer(environ, self.path), 1)
        facilities = [journald.take()["SYSLOG_FACILITY"] for _ in range(3)]
        self.assertEqual(facilities, [b"3", b"3", b"16"])

    def test_waitedTime(self) -> None:
        """
        A record that had to wait carries the time of its log call; a record sent at once does not.
        """
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
        """An invalid time does no harm: the record carries the time of its arrival."""
        reader, writer = self.pipe()
        observer = journal.JournalObserver("test", self.path, writer)
        for time in (1e99, float("nan"), "now", None):
            observer({"log_format": "x", "log_time": time})
        observer.flush()
        for _ in range(5):
            self.assertRegex(reader.readline(), f"^{TIME} ")

    def test_journalStream(self) -> None:
        """If standard error is the stream to the journal, records carry their priority there."""
        reader, writer = self.pipe()
        found = os.fstat(writer.fileno())
        stream = f"{found.st_dev}:{found.st_ino}"
        observer = journal.JournalObserver("test", self.path, writer, stream=stream)
        observer({"log_format": "a\nb", "log_level": LogLevel.error})
        observer.flush()
        self.assertRegex(reader.readline(), "^<4>test: cannot write to the journal")
        self.assertEqual(reader.readline(), "<3>a\\nb\n")

    def test_otherStream(self) -> None:
        """If standard error is no longer the stream to the journal, records carry the time."""
        for stream in ("1:1", "nonsense", ""):
            reader, writer = self.pipe()
            observer = journal.JournalObserver("test", self.path, writer, stream=stream)
            self.log(observer, "one")
            observer.flush()
            self.assertRegex(reader.readline(), f"^{TIME} .warn. test: cannot")
            self.assertRegex(reader.readline(), f"^{TIME} .info. one$")

    def test_noThread(self) -> None:
        """
        If no thread can start, the reactor sends the waiting records as soon as one can, without
        another record.
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
        If no thread can start until the end, the journal gets the records that it takes, and
        standard error gets the others. No record is lost, and the program does not wait.
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

    def test_slowFallback(self) -> None:
        """Without a journal and a thread, a reader of stderr that stands still stops no program."""
        self.patch(sys, "modules", {**sys.modules, "twisted.internet.reactor": None})
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        with open(writing, "w") as fallback:
            observer = journal.JournalObserver("test", "/nonexistent", fallback)

            def say() -> None:
                with noThreads():
                    self.log(observer, *["x" * 60_000] * 10)
                    observer.flush(0.1)

            saying = Thread(target=say, daemon=True)
            saying.start()
            saying.join(60)
            isStuck = saying.is_alive()
            while saying.is_alive():
                os.read(reading, 1 << 20)
        self.assertFalse(isStuck)


class JournalHandlerTests(SynchronousTestCase):
    """Tests for the path from C{logging} to the journal."""

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
        """An entry is a record with its level, place, thread and extra fields."""
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
                "SYSLOG_FACILITY": b"3",
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
        """
        A numeric level has the priority of the highest named level that it reaches, unless the
        entry gives a priority.
        """
        numbers = {5: 7, 10: 7, 15: 7, 20: 6, 25: 5, 30: 4, 35: 4, 40: 3, 50: 2, 99: 2}
        for number, priority in numbers.items():
            self.logger.log(number, "x")
            self.assertEqual(int(self.journald.take()["PRIORITY"]), priority)
        self.logger.info("x", extra={"journal_priority": "alert"})
        found = self.journald.take()
        self.assertEqual((found["PRIORITY"], found["LOG_LEVEL"]), (b"1", b"alert"))

    def test_exception(self) -> None:
        """An exception is recorded once, with all its details."""
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
        """An entry whose arguments do not fit is a record all the same, and raises no exception."""
        self.logger.error("%d of %d", "x", exc_info=raised().value)
        text = self.journald.take()["MESSAGE"].decode()
        self.assertTrue(text.startswith("%d of %d ('x',): "))
        self.assertIn("ZeroDivisionError: by nothing", text)

    def test_odd(self) -> None:
        """An unusual entry or formatter raises no exception in the program that logs."""
        self.patch(logging, "raiseExceptions", False)
        self.handler.handle(logging.makeLogRecord({"msg": "x", "levelno": "high"}))
        formatter: Any = logging.Formatter()
        formatter.format = lambda record: None
        self.handler.setFormatter(formatter)
        self.logger.error("x")
        self.assertTrue(self.journald.idle())

    def test_formatter(self) -> None:
        """The handler's formatter makes the text."""
        self.handler.setFormatter(logging.Formatter("%(levelname)s! %(message)s"))
        self.logger.error("x")
        self.assertEqual(self.journald.take()["MESSAGE"], b"ERROR! x")

    def test_basicConfig(self) -> None:
        """Under C{logging.basicConfig}, the text does not repeat what the fields contain."""
        root = logging.getLogger()
        self.patch(root, "handlers", [])
        self.patch(root, "level", logging.INFO)
        logging.basicConfig(handlers=[self.handler])
        logging.info("x")
        self.assertEqual(self.journald.take()["MESSAGE"], b"x")

    def test_noLoop(self) -> None:
        """
        If Twisted's events go to C{logging}, and everything to the journal, each event has one
        record on each path.
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
        """The last record of a program that ends at once arrives, even without a journal."""
        done = self.runProgram(
            "journal.observer({}, '/nowhere')({'log_format': 'end'}); sys.exit(1)"
        )
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.endswith("[info] end\n"))


class CatalogTests(SynchronousTestCase):
    """Tests for the message catalog."""

    catalog = (ROOT / "packaging/systemd/fastpoetry.catalog").read_text("utf-8")

    def test_complete(self) -> None:
        """
        Each kind of event that the code logs has one entry in the catalog, and each entry has such
        an event.
        """
        pattern = re.compile(r"""\bmessage_id"?[=:]\s*"([^"]+)""", re.IGNORECASE)
        sources = [*ROOT.glob("fastpoetry/**/*.py"), ROOT / "packaging/systemd/announce"]
        logged = [name for source in sources for name in pattern.findall(source.read_text("utf-8"))]
        entries = re.findall(r"^-- (.*)$", self.catalog, re.MULTILINE)
        self.assertEqual(sorted(entries), sorted(set(logged)))
        for name in entries:
            self.assertRegex(name, "^[0-9a-f]{32}$")

    def test_form(self) -> None:
        """Each entry has the lines Subject and Defined-By, then a blank line and a text."""
        for entry in re.split(r"^-- .*$", self.catalog, flags=re.MULTILINE)[1:]:
            head, text = entry.strip().split("\n\n", 1)
            names = [line.split(": ")[0] for line in head.splitlines()]
            self.assertEqual(names[:2], ["Subject", "Defined-By"])
            self.assertTrue(text)
