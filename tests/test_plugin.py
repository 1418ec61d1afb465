"""
Tests for the twistd drop-in, which must be cheap to import, and for the directions of imports.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from subprocess import run
from types import ModuleType
from typing import Any, NamedTuple

from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.internet.testing import MemoryReactor
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import fastpoetry
from fastpoetry import proxytap, tap
from fastpoetry.systemd.adopted import AdoptError

PACKAGE = Path(fastpoetry.__file__).parent

HOUSE = """
floor | where                  | must not import
6     | tap proxytap           | -
5     | command                | delivery.fastport
4     | listen                 | service proxy systemd
3     | protocol               | os io pathlib shutil tempfile service proxy
2     | delivery               | io pathlib shutil tempfile systemd proxy service
2     | proxy                  | select asyncio systemd
2     | service                | socket systemd
1     | poem                   | twisted socket select asyncio systemd
0     | apart                  | io pathlib shutil tempfile socket asyncio systemd
1     | systemd                | -
"""
"""
The floors: a module imports only from lower floors and from its own folder, besides other packages.
The last column excludes further modules, of ours or of others.
"""


class PluginTests(SynchronousTestCase):
    """Tests for the drop-in."""

    def setUp(self) -> None:
        self.plugin: Any = import_module("twisted.plugins.fastpoetry_plugin")

    def made(self, maker: Any, module: ModuleType) -> object:
        """
        @return: the service of a command without options; its module returns what it is given.
        """
        self.patch(module, "makeService", lambda options: options)
        self.addCleanup(gc.unfreeze)
        return maker.makeService(maker.options())

    def test_lazy(self) -> None:
        """
        Reading the drop-in imports no module of ours or of systemd's, and no reactor. Every twistd
        command and every endpoint description of any program reads it.
        """
        code = (
            "import sys, twisted.plugins.fastpoetry_plugin\n"
            "for name in sys.modules:\n"
            "    if name.startswith(('fastpoetry', 'systemd', 'twisted.internet.reactor')):\n"
            "        print(name)\n"
        )
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
        done = run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_command(self) -> None:
        """The command C{fastpoetry} is L{tap}'s."""
        maker = self.plugin.fastpoetry
        verifyObject(IPlugin, maker)
        verifyObject(IServiceMaker, maker)
        self.assertEqual(
            (maker.tapname, maker.description), ("fastpoetry", "A fast poetry service.")
        )
        self.assertIs(maker.options, tap.Options)
        self.assertEqual(self.made(maker, tap), tap.Options())

    def test_noPause(self) -> None:
        """
        Modules loaded at the start are excluded from garbage collection, which would pause all
        readers.
        """
        self.assertEqual(gc.get_freeze_count(), 0)
        self.made(self.plugin.fastpoetry, tap)
        self.assertGreater(gc.get_freeze_count(), 1000)

    def test_proxyCommand(self) -> None:
        """The command C{fastpoetry-proxy} is L{proxytap}'s."""
        maker = self.plugin.proxy
        verifyObject(IPlugin, maker)
        verifyObject(IServiceMaker, maker)
        self.assertEqual(maker.tapname, "fastpoetry-proxy")
        self.assertIs(maker.options, proxytap.Options)
        self.assertEqual(self.made(maker, proxytap), proxytap.Options())

    def test_endpoint(self) -> None:
        """The endpoint C{adopted:} is L{fastpoetry.systemd.adopted}'s."""
        parser = self.plugin.adopted
        verifyObject(IPlugin, parser)
        verifyObject(IStreamServerEndpointStringParser, parser)
        self.assertEqual(parser.prefix, "adopted")
        why = self.assertRaises(
            AdoptError, parser.parseStreamServer, MemoryReactor(), "", name="x", nosuch="y"
        )
        self.assertIn("nosuch=y", str(why))


def imported(source: str) -> Iterator[tuple[str, bool]]:
    """
    @return: each name that a module imports, with the packages before its dots, and whether the
        import runs at the module's own import.
    """
    tree = ast.parse(source)
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"fastpoetry.{node.module or ''}".strip(".") if node.level else node.module
            names = [str(module), *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield name, node not in lazy


class ImportedTests(SynchronousTestCase):
    """Tests for L{imported}, which the other tests use."""

    def test_all(self) -> None:
        """Every way to import is found, in any place of a module."""
        found = imported(
            "import os.path\n"
            "from fastpoetry import tap\n"
            "from . import poem\n"
            "from .port import FastPort\n"
            "def f():\n"
            "    import socket as s\n"
            "    from twisted.internet import reactor\n"
        )
        self.assertEqual(
            set(found),
            {
                ("os.path", True),
                ("fastpoetry", True),
                ("fastpoetry.tap", True),
                ("fastpoetry.poem", True),
                ("fastpoetry.port", True),
                ("fastpoetry.port.FastPort", True),
                ("socket", False),
                ("twisted.internet", False),
                ("twisted.internet.reactor", False),
            },
        )


class Floor(NamedTuple):
    """
    A line of the table.

    @ivar number: a higher floor may import more.
    @ivar excluded: modules that it must not import, on any floor.
    """

    number: int
    excluded: Sequence[str]


def readHouse(table: str) -> dict[str, Floor]:
    """@return: the floor of each file and folder."""
    floors = {}
    for line in table.strip().splitlines()[1:]:
        number, where, excluded = line.split("|")
        floor = Floor(int(number), [name for name in excluded.split() if name != "-"])
        floors.update(dict.fromkeys(where.split(), floor))
    return floors


def isWithin(name: str, outer: str) -> bool:
    """@return: whether a dotted name equals another, or is inside it."""
    return name == outer or name.startswith(f"{outer}.")


class HouseTests(SynchronousTestCase):
    """Tests for the imports between modules."""

    def setUp(self) -> None:
        self.house = readHouse(HOUSE)
        # False sorts before True: a module that is imported both at once and later counts as
        # imported at once.
        self.modules = {
            ".".join(path.relative_to(PACKAGE).with_suffix("").parts): dict(
                sorted(imported(path.read_text("utf-8")))
            )
            for path in PACKAGE.rglob("*.py")
            if path.name != "__init__.py"
        }

    def arrows(self, module: str) -> set[str]:
        """@return: the other modules of ours that a module imports."""
        names = [name.removeprefix("fastpoetry.") for name in self.modules[module]]
        return {other for other in self.modules for name in names if isWithin(name, other)}

    def test_everybody(self) -> None:
        """Each module has a floor, and each module in the table exists."""
        self.assertEqual({name.split(".")[0] for name in self.modules}, set(self.house))

    def test_architecture(self) -> None:
        """The page on the architecture lists each module and folder, in reading order."""
        page = (Path(__file__).parent.parent / "docs/architecture.md").read_text("utf-8")
        rows = re.findall(r"(?m)^\| `(\w+)(?:\.py|/)` \|", page)
        self.assertEqual(set(rows), set(self.house))
        self.assertEqual(rows[:5], ["tap", "service", "poem", "listen", "protocol"])

    def test_down(self) -> None:
        """Imports point down, or to a neighbour in the same folder."""
        for module in self.modules:
            place = module.split(".")[0]
            for other in self.arrows(module):
                there = other.split(".")[0]
                if there != place:
                    low, high = self.house[there].number, self.house[place].number
                    self.assertLess(low, high, f"{module} imports {other}")

    def test_noCircle(self) -> None:
        """There is no circle of imports."""
        TopologicalSorter({each: self.arrows(each) for each in self.modules}).prepare()

    def test_excluded(self) -> None:
        """No floor imports a module that the table excludes for it."""
        for module, names in self.modules.items():
            for outer in self.house[module.split(".")[0]].excluded:
                outers = (outer, f"fastpoetry.{outer}")
                known = [name for name in names if any(isWithin(name, each) for each in outers)]
                self.assertEqual(known, [], f"{module} knows what it must not")

    def test_systemd(self) -> None:
        """
        Modules for any program import none of ours from outside their folder. Only the wiring
        connects them with poetry, except for the default clock of a factory.
        """
        users = set()
        for module in self.modules:
            for other in self.arrows(module):
                if other.split(".")[0] == "systemd":
                    users.add(module.split(".")[0])
                    continue
                self.assertNotEqual(module.split(".")[0], "systemd", f"{module} imports {other}")
        self.assertLessEqual(users, {"systemd", "command", "tap", "proxytap", "protocol"})
        clock = {each for each in self.arrows("protocol") if isWithin(each, "systemd")}
        self.assertEqual(clock, {"systemd.clock"})

    def test_reactor(self) -> None:
        """
        Only the twistd commands and hand-made services fall back to the global reactor, and only
        when they need one: twistd must be able to install another one first.
        """
        users = {
            (module, atOnce)
            for module, names in self.modules.items()
            for name, atOnce in names.items()
            if name == "twisted.internet.reactor"
        }
        byHand = {("service", False), ("protocol", False)}
        self.assertEqual(users, {("command.assembly", False), *byHand, ("systemd.command", False)})

    def test_dependencies(self) -> None:
        """
        At run time only Twisted with its dependencies and systemd-python are needed, and
        prometheus_client for metrics; it is imported only where metrics are asked for.
        """
        needed: dict[str, set[str]] = {}
        for module, names in self.modules.items():
            for name, atOnce in names.items():
                self.assertFalse(atOnce and name.endswith("command.metrics"), module)
                if name.split(".")[0] not in sys.stdlib_module_names:
                    needed.setdefault(name.split(".")[0], set()).add(module)
        self.assertEqual(needed.pop("prometheus_client", set()), {"command.metrics"})
        self.assertEqual(set(needed), {"fastpoetry", "twisted", "systemd", "zope"})
