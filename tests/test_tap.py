"""
Tests for L{fastpoetry.tap}: from a command line to the ports in a reactor in memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import skipUnless

from fakes import (
    FakeNotify,
    FakePreflight,
    Reactor,
    Threads,
    countDescriptors,
    makeFolder,
    said,
    tree,
    write,
)
from twisted.application.service import IService
from twisted.logger import capturedLogs
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry import tap
from fastpoetry.apart.poems import DEFAULT_POETRY_PATH
from fastpoetry.command import assembly
from fastpoetry.poem import Anthology, PoemAt, PoemNamed
from fastpoetry.service import PoetryService
from fastpoetry.tap import Options, findPoetryPath, makeService


def parse(*line: str) -> Options:
    """@return: the options of a command line."""
    options = Options()
    options.parseOptions(list(line))
    return options


class TapCase(SynchronousTestCase):
    """A test case with a folder of poems, and a reactor."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.ecstasy = write(self.folder, "ecstasy.txt")
        self.science = write(self.folder, "science.txt", b"Science!\n")
        self.reactor = Reactor()
        self.threads = Threads(self)
        self.patch(assembly, "NotifyService", FakeNotify)

    def make(self, *line: str) -> Any:
        """@return: the service of a command line."""
        return makeService(parse("--poetry-path", self.folder, *line), self.reactor, self.reactor)

    def start(self, *line: str) -> Any:
        """@return: the service of a command line, started as twistd does."""
        service = self.make(*line)
        service.privilegedStartService()
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def refusal(self, *line: str) -> str:
        """@return: the refusal, which is one line on stderr and exit status 1."""
        before = countDescriptors()
        why = self.assertRaises(SystemExit, self.make, *line).code
        self.assertIsInstance(why, str)
        self.assertTrue(why.startswith("fastpoetry: ") and why.isprintable(), why)
        self.assertEqual(countDescriptors(), before)
        return str(why.removeprefix("fastpoetry: "))


class OptionsTests(TapCase):
    """Tests for L{Options}."""

    def test_name(self) -> None:
        """
        A poem without a slash is a name, looked up in the folders of the distribution and the
        administrator.
        """
        self.patch(tap, "_PACKAGE", Path(self.folder))
        (block,) = parse("--poem", "ecstasy").blocks
        self.assertEqual(
            block.selection,
            PoemNamed("ecstasy", ["/etc/fastpoetry/poetry", "/usr/share/fastpoetry/poetry"]),
        )

    def test_installed(self) -> None:
        """The folder where pip installs the poems comes last."""
        os.mkdir(f"{self.folder}/poetry")
        self.patch(tap, "_PACKAGE", Path(self.folder))
        self.assertEqual(findPoetryPath(), f"{DEFAULT_POETRY_PATH}:{self.folder}/poetry")

    def test_clone(self) -> None:
        """
        In a clone the poems are beside the package; elsewhere that folder may belong to others, and
        is not used.
        """
        os.mkdir(f"{self.folder}/poetry")
        self.patch(tap, "_PACKAGE", Path(self.folder, "fastpoetry"))
        self.assertEqual(findPoetryPath(), DEFAULT_POETRY_PATH)
        write(self.folder, "pyproject.toml")
        self.assertEqual(findPoetryPath(), f"{DEFAULT_POETRY_PATH}:{self.folder}/poetry")

    def test_poetryPath(self) -> None:
        """A name is looked up in the given folders, wherever the option is on the command line."""
        expected = PoemNamed("x", ["/a", os.path.abspath("b"), "/c"])
        for line in (
            ("--poetry-path=/a:b::/c/:", "--poem=x"),
            ("--poem=x", "--poetry-path=/a:b:/c"),
        ):
            self.assertEqual(parse(*line).blocks[0].selection, expected)

    def test_path(self) -> None:
        """
        A poem with a slash is a path, and means the same file after twistd has changed its folder.
        """
        for path in ("poetry/ecstasy.txt", "./x", "/x/y.txt"):
            (block,) = parse("--poem", path).blocks
            self.assertEqual(block.selection, PoemAt(os.path.abspath(path)))

    def test_anthology(self) -> None:
        """An anthology is every poem in the folders."""
        (block,) = parse("--anthology", "--poetry-path", "/a:/b").blocks
        self.assertEqual(block.selection, Anthology(["/a", "/b"]))

    def test_blocks(self) -> None:
        """Each poem and each anthology opens a block."""
        blocks = parse("--poem", "x", "-p1", "--anthology", "-p2", "--poem", "y", "-p3").blocks
        self.assertEqual(
            [block.option for block in blocks], ["--poem x", "--anthology", "--poem y"]
        )
        self.assertEqual([block.port for block in blocks], [1, 2, 3])

    def test_tutorial(self) -> None:
        """With the tutorial's command line the options have the tutorial's keys."""
        options = parse("--port", "10001", "--poem", "poetry/ecstasy.txt")
        self.assertEqual(options["poem"], "poetry/ecstasy.txt")
        self.assertEqual((options["port"], options["iface"]), (10001, "localhost"))

    def test_help(self) -> None:
        """The help names the folders of poems."""
        text = " ".join(str(Options()).split())
        self.assertIn("/etc/fastpoetry/poetry", text)
        self.assertIn("/usr/share/fastpoetry/poetry", text)
        self.assertIn("--poem", text)


class RefusalTests(TapCase):
    """Tests for refusals before twistd becomes a daemon; each names the option and its value."""

    @skipUnless(os.geteuid() == 0, "only root becomes somebody else")
    def test_onlyRootsPoem(self) -> None:
        """A poem that only root can read is refused if the program will run as another user."""
        os.chmod(self.ecstasy, 0o600)
        options = parse("--poem", self.ecstasy)
        options.parent = usage.Options()
        options.parent.update(uid=65534, gid=None)
        refusal = str(self.assertRaises(SystemExit, makeService, options, self.reactor))
        self.assertTrue(
            refusal.startswith(
                f"fastpoetry: --poem {self.ecstasy}: {self.ecstasy}: Permission denied (uid 65534)"
            ),
            refusal,
        )
        self.assertEqual(os.geteuid(), 0)

    def test_missingPoem(self) -> None:
        """A missing poem is refused with its path and the cause."""
        self.assertEqual(
            self.refusal("--poem", "/nowhere/x.txt"),
            "--poem /nowhere/x.txt: /nowhere/x.txt: No such file or directory",
        )

    def test_unknownPoem(self) -> None:
        """An unknown name is refused with the known ones."""
        self.assertEqual(
            self.refusal("--poem", "extasy"),
            f"--poem extasy: no poem extasy in {self.folder}; "
            "available: ecstasy, science; did you mean ecstasy?",
        )

    def test_noName(self) -> None:
        """A text that is not a name is refused, with a hint about paths."""
        for name in ("", "..", "ecstasy.txt", "..-..-etc-shadow", ".", "\n", "{}"):
            refusal = self.refusal(f"--poem={name}", "--port=0")
            self.assertIn("--poem ", refusal)
            self.assertIn("no name of a poem", refusal)

    def test_emptyAnthology(self) -> None:
        """An empty anthology is refused."""
        self.assertIn(
            "--anthology: no poem to read in /nowhere",
            self.refusalOf("--anthology", "--poetry-path", "/nowhere"),
        )

    def refusalOf(self, *line: str) -> str:
        """@return: the refusal of a command line with its own poetry path."""
        return str(
            self.assertRaises(
                SystemExit, lambda: makeService(parse(*line), self.reactor, self.reactor)
            )
        )

    def test_poetryPathOfNothing(self) -> None:
        """A poetry path without a folder is refused."""
        for path in ("", ":", "::"):
            refusal = self.refusalOf("--poem", "x", "--poetry-path", path)
            self.assertEqual(refusal, f"fastpoetry: --poetry-path {path}: names no folder")

    def test_twoPoetryPaths(self) -> None:
        """A second poetry path is refused."""
        refusal = self.refusal("--poem", "x", "--poetry-path", "/b")
        self.assertEqual(refusal, f"--poetry-path /b: given already, as {self.folder}")

    def test_laterPoem(self) -> None:
        """Every block is checked."""
        refusal = self.refusal("--poem=ecstasy", "--port=0", "--poem=/nowhere/x", "--port=0")
        self.assertIn("--poem /nowhere/x: ", refusal)


class ServiceTests(TapCase):
    """Tests for the service made from a command line."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def poems(self) -> list[str]:
        """@return: the poems that a client of each port would get."""
        factories: list[Any] = [factory for _, factory, _, _ in self.reactor.tcpServers]
        return [factory.source.poem.name for factory in factories]

    def test_tutorial(self) -> None:
        """The tutorial's command line makes a poem and a listener in a block, and a notifier."""
        service = self.start("--port", "10000", "--poem", self.ecstasy)
        verifyObject(IService, service)
        block = ["PoetryService", "PoetryListener"]
        self.assertEqual(tree(service), [block, "HandOverService", "FakeNotify"])
        self.assertEqual(self.poems(), ["ecstasy"])

    def test_blocks(self) -> None:
        """Each block has its own poems."""
        service = self.start("--poem", "science", "--port", "1", "--anthology", "--port", "2")
        *_, notify = service
        self.assertEqual(
            notify.status(),
            "Serving science (9 bytes), an anthology of 2 poems: 0 poems sent, 0 readers",
        )

    def test_atStart(self) -> None:
        """A poem is read again, with a record, when the service starts."""
        service = self.make("--poem", "science")
        write(self.folder, "science.txt", b"later")
        with capturedLogs() as events:
            service.startService()
        self.addCleanup(service.stopService)
        (source, _), _, _ = service
        self.assertIsInstance(source, PoetryService)
        self.assertEqual(source.poem.text, b"later")
        self.assertIn(f"loaded a poem from: {self.science}", said(events))
