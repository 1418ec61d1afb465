"""
Tests for the twistd drop-in, which must cost nothing, and for which room may know which.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from subprocess import run
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.internet.testing import MemoryReactor
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

import fastpoetry
from fastpoetry import proxytap, tap
from fastpoetry.adopted import AdoptError

ROOMS = Path(fastpoetry.__file__).parent

WIRING = {"tap", "proxytap", "assembly"}
SYSTEMD = {"adopted", "journal", "notify"}


class PluginTests(SynchronousTestCase):
    """
    Tests for the drop-in.
    """

    def setUp(self) -> None:
        self.plugin: Any = import_module("twisted.plugins.fastpoetry_plugin")

    def test_lazy(self) -> None:
        """
        Looking at it imports nothing of ours, nothing of systemd's, and no reactor: every twistd
        command and every endpoint description of any program does that.
        """
        code = (
            "import sys, twisted.plugins.fastpoetry_plugin\n"
            "for name in sys.modules:\n"
            "    if name.startswith(('fastpoetry', 'systemd', 'twisted.internet.reactor')):\n"
            "        print(name)\n"
        )
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOMS.parent), *sys.path])}
        done = run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("", ""))

    def test_command(self) -> None:
        """
        The command C{fastpoetry} is that of L{tap}.
        """
        maker = self.plugin.fastpoetry
        verifyObject(IPlugin, maker)
        verifyObject(IServiceMaker, maker)
        self.assertEqual(
            (maker.tapname, maker.description), ("fastpoetry", "A fast poetry service.")
        )
        self.assertIs(maker.options, tap.Options)
        self.assertIs(maker.makeService, tap.makeService)

    def test_proxyCommand(self) -> None:
        """
        The command C{fastpoetry-proxy} is that of L{proxytap}.
        """
        maker = self.plugin.proxy
        verifyObject(IPlugin, maker)
        verifyObject(IServiceMaker, maker)
        self.assertEqual(maker.tapname, "fastpoetry-proxy")
        self.assertIs(maker.options, proxytap.Options)
        self.assertIs(maker.makeService, proxytap.makeService)

    def test_endpoint(self) -> None:
        """
        The endpoint C{adopted:} is that of L{fastpoetry.adopted}.
        """
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
    @return: each name that a module imports, with all before its dots, and whether it does so as
        soon as it is imported itself.
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
    """
    Tests for L{imported}, on which the others build.
    """

    def test_all(self) -> None:
        """
        Every way to import is found, wherever it is.
        """
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


class RoomTests(SynchronousTestCase):
    """
    Tests for the arrows between rooms.
    """

    def setUp(self) -> None:
        # False sorts before True: what is imported at once and later too is imported at once.
        self.rooms = {
            path.stem: dict(sorted(imported(path.read_text("utf-8"))))
            for path in ROOMS.glob("*.py")
            if path.stem != "__init__"
        }

    def assertIgnorant(self, room: str, *others: str) -> None:
        """
        A room imports none of these, nor what is in them.
        """
        known = {
            name
            for name in self.rooms[room]
            for other in others
            if name == other or name.startswith(other + ".")
        }
        self.assertEqual(known, set(), f"{room} knows what it must not")

    def test_rooms(self) -> None:
        """
        All the rooms that the others tests speak of are there.
        """
        named = {"poem", "service", "protocol", "port", "proxy", "policy", "ledger", "listen"}
        self.assertLessEqual(named | WIRING | SYSTEMD, set(self.rooms))

    def test_poem(self) -> None:
        """
        Poems know neither the reactor, nor sockets, nor any other room.
        """
        self.assertIgnorant("poem", "twisted", "socket", "select", "asyncio", "fastpoetry")

    def test_service(self) -> None:
        """
        The service knows no protocol and no port, nor what is around them.
        """
        above = ("protocol", "port", "listen", "policy", "ledger", "options")
        self.assertIgnorant("service", "socket", *(f"fastpoetry.{each}" for each in above))

    def test_protocol(self) -> None:
        """
        The protocol knows no files, and not where poems come from.
        """
        sources = ("service", "proxy", "copy", "listen", "options")
        files = ("os", "io", "pathlib", "shutil", "tempfile")
        self.assertIgnorant("protocol", *files, *(f"fastpoetry.{each}" for each in sources))

    def test_port(self) -> None:
        """
        The fast port knows no files, and not where poems come from; nor do its rules and counts.
        """
        above = ("service", "proxy", "copy", "protocol", "listen", "options")
        files = ("os", "io", "pathlib", "shutil", "tempfile")
        for room in ("port", "policy", "ledger"):
            self.assertIgnorant(room, *files, *(f"fastpoetry.{each}" for each in above))

    def test_rules(self) -> None:
        """
        Rules and counts touch no port, and the rules no socket but for what addresses are.
        """
        for room in ("policy", "ledger"):
            self.assertIgnorant(room, "socket.socket", "fastpoetry.port", "fastpoetry.protocol")

    def test_proxy(self) -> None:
        """
        The proxy knows neither options nor ports.
        """
        for each in ("options", "port", "protocol", "listen", "policy", "service"):
            self.assertIgnorant("proxy", f"fastpoetry.{each}")

    def test_systemd(self) -> None:
        """
        The three systemd rooms, which are for any program, know nothing of poetry, and not of
        each other.
        """
        for room in SYSTEMD:
            self.assertIgnorant(room, "fastpoetry")

    def test_poetry(self) -> None:
        """
        Only the wiring knows both of poetry and of systemd.
        """
        for room in self.rooms.keys() - WIRING - SYSTEMD:
            self.assertIgnorant(room, "systemd", *(f"fastpoetry.{each}" for each in SYSTEMD))

    def test_wiring(self) -> None:
        """
        No room knows the twistd commands, nor what they have in common but those two.
        """
        for room in self.rooms:
            self.assertIgnorant(room, "fastpoetry.tap", "fastpoetry.proxytap")
        for room in self.rooms.keys() - WIRING:
            self.assertIgnorant(room, "fastpoetry.assembly")

    def test_oneWay(self) -> None:
        """
        All arrows point one way: no room knows, be it through others, one that knows it.
        """
        arrows = {
            room: {name.split(".")[1] for name in names if name.startswith("fastpoetry.")}
            for room, names in self.rooms.items()
        }
        TopologicalSorter(arrows).prepare()

    def test_reactor(self) -> None:
        """
        Only the twistd commands fall back to the global reactor, and only when they are asked to
        make a service: twistd must be able to install another one first.
        """
        users = {
            (room, atOnce)
            for room, names in self.rooms.items()
            for name, atOnce in names.items()
            if name == "twisted.internet.reactor"
        }
        self.assertEqual(users, {("tap", False), ("proxytap", False)})

    def test_dependencies(self) -> None:
        """
        At run time nothing is needed but Twisted, what it brings, and systemd-python.
        """
        needed = {
            name.split(".")[0]
            for names in self.rooms.values()
            for name in names
            if name.split(".")[0] not in sys.stdlib_module_names
        }
        self.assertEqual(needed, {"fastpoetry", "twisted", "systemd", "zope"})
