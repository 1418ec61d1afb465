"""Tests that the manual pages agree with the program, its units and its records."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from errno import ENOENT
from pathlib import Path
from typing import NamedTuple
from unittest import skipUnless

from fakes import makeFolder
from messages import LEFT, LOADED, SENT, SUMMARY
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart.poems import DEFAULT_POETRY_PATH
from fastpoetry.systemd.records import fields
from fastpoetry.tap import Options

ROOT = Path(__file__).resolve().parent.parent
MAN = ROOT / "packaging" / "man"
UNITS = ROOT / "packaging" / "systemd"

SERVER = "fastpoetry.8"
UNIT = "fastpoetry@.service.8"
RECORDS = "fastpoetry.journal-fields.7"

WIDTH = 67
"""The columns for an example on a terminal of 80, without its indentation of 11 and a margin."""


class Page:
    """A manual page, read without formatting it."""

    def __init__(self, name: str) -> None:
        """@param name: the file's name."""
        self.source = (MAN / name).read_text()

    def section(self, title: str) -> str:
        """@return: the source of a section."""
        found = re.search(rf"(?ms)^\.SH {title}$(.*?)(?=^\.SH|\Z)", self.source)
        if found is None:
            raise AssertionError(f"there is no section {title}")
        return found[1]

    def entries(self, title: str) -> dict[str, str]:
        """@return: the tags under C{.TP} in a section, each with its text in one line."""
        found = {}
        for part in self.section(title).split("\n.TP\n")[1:]:
            tag, *text = re.split(r"(?m)^\.(?:PP|SS)", part)[0].splitlines()
            found[_plain(tag)] = " ".join(map(_plain, text))
        return found

    def examples(self) -> list[str]:
        """@return: the text between C{.EX} and C{.EE}."""
        found = re.findall(r"(?ms)^\.EX\n(.*?)^\.EE$", self.source)
        return [_unescape(each) for each in found]


def _plain(line: str) -> str:
    """@return: a line of a page without its markup."""
    macro, _, rest = line.partition(" ")
    if macro in (".BR", ".IR", ".BI", ".RB", ".RI"):
        words = re.findall(r'"([^"]*)"|(\S+)', rest)
        line = "".join(quoted or word for quoted, word in words)
    elif macro in (".B", ".I"):
        line = rest
    elif macro.startswith("."):
        line = ""
    return _unescape(line)


def _unescape(text: str) -> str:
    """@return: a text without troff's escapes."""
    text = re.sub(r"\\f[BIRP]|\\c|\\&|\\%", "", text)
    for escape, character in ((r"\-", "-"), (r"\(rs", "\\"), (r"\(aq", "'"), (r"\(dq", '"')):
        text = text.replace(escape, character)
    return text


_OF_ALL = ("message_id", "priority", "syslog_facility", "syslog_identifier")
_LEVELS = {"failure": "critical", "send": "error"}
"""The exceptions: C{send} is the journal's own log call, where there is no Twisted."""


class Record(NamedTuple):
    """
    A kind of record.

    @ivar level: Twisted's name.
    @ivar fields: its own fields.
    """

    level: str
    fields: frozenset[str]


def recordsOf(source: str) -> Iterator[tuple[str, Record]]:
    """
    @param source: of a module.
    @return: the kinds of records that the module makes, by message ID.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keys = {str(each.arg).lower(): each.value for each in node.keywords}
            level = getattr(node.func, "attr", "")
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            keys = {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
            level = getattr(keys.get("log_level"), "attr", "")
        else:
            continue
        if "message_id" in keys:
            own = [key for key in keys if key not in _OF_ALL and not key.startswith("log_")]
            names = frozenset(key.upper() for key in own)
            literal = ast.literal_eval(keys["message_id"])
            yield literal, Record(_LEVELS.get(level, level), names)


def announcedRecords() -> Iterator[tuple[str, Record]]:
    """@return: the kinds of records of the script that the units run, by message ID."""
    script = (UNITS / "announce").read_text()
    fields = re.findall("(?m)^([A-Z_]+)=", script)
    names = frozenset(fields) - {"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_FACILITY"}
    for priority, key in re.findall(r'priority=(\d) message_id="(\w+)"', script):
        yield key, Record({"3": "error", "6": "info"}[priority], names - {"SYSLOG_IDENTIFIER"})


def allRecords() -> dict[str, Record]:
    """@return: every kind of record of all modules and of the units."""
    modules = sorted((ROOT / "fastpoetry").rglob("*.py"))
    records = {key: record for each in modules for key, record in recordsOf(each.read_text())}
    return {**records, **dict(announcedRecords())}


class OptionTests(SynchronousTestCase):
    """Tests for fastpoetry(8) and the program's options."""

    def setUp(self) -> None:
        self.options = Options()
        self.entries = {
            re.findall("--([a-z-]+)", tag)[0]: text
            for tag, text in Page(SERVER).entries("OPTIONS").items()
        }

    def default(self, text: str, pattern: str) -> str:
        """@return: the default that a text gives; empty without one."""
        found = re.search(pattern, " ".join(text.split()))
        return found[1] if found else ""

    def test_names(self) -> None:
        """The page lists exactly the options of the program."""
        names = {name.rstrip("=") for name in self.options.longOpt}
        self.assertEqual(set(self.entries), names)

    def test_shortNames(self) -> None:
        """The page lists exactly the short options of the program."""
        letters = re.findall(r"\\-([a-z]) \", \"", Page(SERVER).section("OPTIONS"))
        self.assertEqual(letters, [each for each in self.options.shortOpt if each != ":"])

    def test_values(self) -> None:
        """The page shows a value with each option that takes one."""
        tags = Page(SERVER).entries("OPTIONS")
        shown = {
            name for name, tag in zip(self.entries, tags, strict=True) if tag.split()[-1][0] != "-"
        }
        self.assertEqual(shown, {name[:-1] for name in self.options.longOpt if name[-1] == "="})

    def test_defaults(self) -> None:
        """The page has the same defaults as C{--help}."""
        inPage = {
            name: self.default(text, r"The default is (\S+?)[.,:]? ")
            for name, text in self.entries.items()
        }
        inHelp = {
            name: self.default(self.options.docs[name], r"\[default: ([^],;]+)")
            for name in self.entries
        }
        inHelp["poetry-path"] = DEFAULT_POETRY_PATH  # which the help splits over lines
        self.assertEqual(inPage, inHelp)


class UnitTests(SynchronousTestCase):
    """Tests for fastpoetry@.service(8) and the units."""

    def setUp(self) -> None:
        self.page = Page(UNIT)
        parts = ("fastpoetry@.service", "fastpoetry@.service.d/20-service.conf")
        self.unit = "".join((UNITS / part).read_text() for part in parts)

    def test_limits(self) -> None:
        """Each directive in the page is in the unit, with the same value."""
        tags = self.page.entries("LIMITS")
        directives = [each for tag in tags for each in tag.split(", ")]
        self.assertGreater(len(directives), 7)
        for each in directives:
            self.assertIn(f"\n{each}\n", self.unit)

    def test_allLimits(self) -> None:
        """Each limit in the unit is in the page."""
        found = re.findall(r"(?m)^((?:Limit|Tasks|Memory|Restart|Timeout|Watchdog)\w*=)", self.unit)
        for each in found:
            self.assertIn(each, " ".join(self.page.entries("LIMITS")))

    def test_ports(self) -> None:
        """The ports in the page are those of the drop-ins and of the socket."""
        shown = re.findall(r"(?m)^([0-9.:]+) +(\S+)$", self.page.section("DESCRIPTION"))
        sockets = [*UNITS.glob("fastpoetry@*.socket.d/*.conf"), UNITS / "fastpoetry.socket"]
        expected = [
            (address, re.findall(r"systemd/([^/]+)\.socket", str(each))[0])
            for each in sockets
            for address in re.findall(r"(?m)^ListenStream=(.*)$", each.read_text())
        ]
        self.assertEqual(sorted(shown), sorted(expected))

    def test_options(self) -> None:
        """
        The units read the files that the page names for options, and put them last on the command
        line.
        """
        for unit in ("fastpoetry@.service", "fastpoetry.service"):
            text = (UNITS / unit).read_text()
            self.assertIn("\nEnvironmentFile=-/etc/fastpoetry/%N.env\n", text)
            self.assertIn(" $OPTIONS\n", text)
            name = unit.removesuffix(".service").replace("@", "@NAME")
            self.assertIn(f"/etc/fastpoetry/{name}.env", self.page.entries("FILES"))

    def test_documentation(self) -> None:
        """Each page of ours that a unit or an explanation refers to exists."""
        texts = [each.read_text() for each in UNITS.glob("**/fastpoetry*") if each.is_file()]
        named = set(re.findall(r"man:(fastpoetry\S*)\(([1-8])\)", "\n".join(texts)))
        self.assertIn(("fastpoetry@.service", "8"), named)
        for name, section in named:
            self.assertTrue((MAN / f"{name}.{section}").exists(), name)


class RecordTests(SynchronousTestCase):
    """Tests for fastpoetry.journal-fields(7) and the records in the code."""

    maxDiff = None

    def setUp(self) -> None:
        self.page = Page(RECORDS)
        self.entries = self.page.entries("RECORDS")

    def test_records(self) -> None:
        """The page lists exactly the kinds of records, each with its level and fields."""
        shown = {}
        for key, text in self.entries.items():
            level = re.findall(r"\((critical|error|warn|info|debug)\)", text)[0]
            names = re.findall(r"Fields: ([A-Z_]+(?:, [A-Z_]+)*|none)", text)[0]
            shown[key] = Record(level, frozenset(re.findall("[A-Z_]+", names)))
        self.assertEqual(shown, allRecords())

    def test_catalog(self) -> None:
        """The page lists exactly the kinds of records in the message catalog."""
        catalog = (UNITS / "fastpoetry.catalog").read_text()
        keys = re.findall(r"(?m)^-- ([0-9a-f]{32})$", catalog)
        self.assertEqual(sorted(self.entries), sorted(keys))

    def test_fields(self) -> None:
        """The page explains exactly the fields of the records."""
        used = frozenset[str]().union(*(record.fields for record in allRecords().values()))
        shown = re.findall(r"(?m)^([A-Z_]+)\t", self.page.section("FIELDS"))
        self.assertEqual(shown, sorted(used))

    def test_fieldsOfEveryRecord(self) -> None:
        """The page has the fields that the observer adds to every record."""
        try:
            raise OSError(ENOENT, "none")
        except OSError:
            event = {"log_format": "reload failed", "log_failure": Failure()}
        shown = ", ".join(self.page.entries("FIELDS OF EVERY RECORD")).split(", ")
        self.assertEqual(sorted(shown), sorted([*fields(event, "fastpoetry"), "LOG_TIME"]))


@skipUnless(shutil.which("jq"), "jq is not installed")
class CountingTests(SynchronousTestCase):
    """Tests for the page's command that counts poems, run as printed."""

    # Like the real journalctl, it prints the records that have one of two message IDs.
    journalctl = """#!/bin/sh
        test "$1 $2 $3 $4 $5 $6" = "-q -t fastpoetry -o json --since=-24h" || exit 1
        grep -e "${7#MESSAGE_ID=}" -e "${8#MESSAGE_ID=}" records || true
    """

    def count(self, records: list[dict[str, str]]) -> list[str]:
        """@return: the lines that the command prints for a journal."""
        folder = makeFolder(self)
        program = os.path.join(folder, "journalctl")
        with open(program, "w") as file:
            file.write(self.journalctl)
        os.chmod(program, 0o755)
        with open(os.path.join(folder, "records"), "w") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)
        ran = subprocess.run(
            ["sh", "-c", Page(RECORDS).examples()[-2]],
            cwd=folder,
            env={"PATH": f"{folder}:{os.environ['PATH']}", "TZ": "Asia/Tokyo"},
            capture_output=True,
            text=True,
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        return ran.stdout.splitlines()

    def test_sums(self) -> None:
        """
        A record of one poem counts one, a summary counts many, each in its hour; a loaded poem or
        one not taken counts zero.
        """
        printed = self.count(
            [
                _record(SENT, "01:59:59", BYTES="2735", POEM="ecstasy"),
                _record(SUMMARY, "02:00:00", BYTES="1258", POEMS="2", CONNECTIONS="2"),
                _record(SENT, "02:00:01", BYTES="629", POEM="science"),
                _record(LOADED, "02:30:00", BYTES="629"),
                _record(LEFT, "02:30:01", BYTES="629", TAKEN="1"),
                _record(SUMMARY, "02:59:59", BYTES="0", POEMS="0", CONNECTIONS="7"),
            ]
        )
        self.assertEqual(printed, ["2026-11-23 01:00\t1\t2735", "2026-11-23 02:00\t3\t1887"])

    def test_nothing(self) -> None:
        """Without records there are no lines."""
        self.assertEqual(self.count([]), [])

    def test_example(self) -> None:
        """The example lines in the page have the form that the command prints."""
        for line in Page(RECORDS).examples()[-1].splitlines():
            self.assertRegex(line, r"\A\d{4}-\d\d-\d\d \d\d:00\t\d+\t\d+\Z")


class FormTests(SynchronousTestCase):
    """Tests with programs that read manual pages."""

    def setUp(self) -> None:
        pages = [each.name for each in MAN.iterdir() if not each.read_text().startswith(".so ")]
        self.pages = sorted(pages)

    def say(self, *command: str) -> str:
        """@return: the output of a command for all pages, one after the other."""
        said = ""
        for page in self.pages:
            ran = subprocess.run([*command, page], cwd=MAN, capture_output=True, text=True)
            said += ran.stdout + ran.stderr
        return said

    def test_width(self) -> None:
        """Examples fit into a terminal of 80 columns."""
        for name in self.pages:
            for example in Page(name).examples():
                for line in example.splitlines():
                    self.assertLessEqual(len(line), WIDTH, line)

    @skipUnless(shutil.which("groff"), "groff is not installed")
    def test_groff(self) -> None:
        """groff formats them without a warning."""
        self.assertEqual(self.say("groff", "-t", "-man", "-ww", "-z"), "")

    @skipUnless(shutil.which("groff"), "groff is not installed")
    def test_hyphens(self) -> None:
        """No path, option or unit is broken with a hyphen at the end of a line."""
        self.assertNotIn("\u2010\n", self.say("groff", "-t", "-man", "-Tutf8"))

    @skipUnless(shutil.which("mandoc"), "mandoc is not installed")
    def test_mandoc(self) -> None:
        """mandoc prints no message."""
        self.assertEqual(self.say("mandoc", "-Tlint"), "")


def _record(key: str, time: str, **own: str) -> dict[str, str]:
    """
    @return: a record as C{journalctl -o json} prints it, on a day that begins at 1795392000 s.
    """
    hours, minutes, seconds = map(int, time.split(":"))
    at = 1795392000 + hours * 3600 + minutes * 60 + seconds
    return {"MESSAGE_ID": key, "__REALTIME_TIMESTAMP": f"{at}123456", **own}
