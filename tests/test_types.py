"""Tests for the public interface: its names, its annotations in another program, its pages."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest import SkipTest

from fakes import makeFolder
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests/annotated"

MODULES = [
    f"fastpoetry.systemd.{name}"
    for name in ("adopted", "clock", "descriptors", "journal", "notify", "store")
]


class NamesTests(SynchronousTestCase):
    """Tests for the names that the version number covers."""

    def test_all(self) -> None:
        """Each public module lists its public names, and has them, with a docstring each."""
        for name in MODULES:
            module = import_module(name)
            for public in module.__all__:
                self.assertTrue(getattr(module, public).__doc__, f"{name}.{public}")
                self.assertFalse(public.startswith("_"))

    def test_guide(self) -> None:
        """The guide names each public module."""
        text = (ROOT / "docs/twisted-under-systemd.md").read_text("utf-8")
        _, _, promise = text.partition("## What you can build on")
        for name in MODULES:
            self.assertIn(f".{name.rpartition('.')[2]}`", promise)


class UsesTests(SynchronousTestCase):
    """Tests that the annotated program uses every public name."""

    def setUp(self) -> None:
        nodes = list(ast.walk(ast.parse((PROGRAM / "program.py").read_text("utf-8"))))
        self.names = {node.id for node in nodes if isinstance(node, ast.Name)}
        self.members = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        self.keywords = {node.arg for node in nodes if isinstance(node, ast.keyword)}
        self.public = {
            name: getattr(import_module(module), name)
            for module in MODULES
            for name in import_module(module).__all__
        }

    def test_names(self) -> None:
        """The annotated program uses every name."""
        self.assertEqual(self.public.keys() - self.names, set())

    def test_members(self) -> None:
        """The annotated program uses every member of a class."""
        members = {
            f"{name}.{member}"
            for name, found in self.public.items()
            if inspect.isclass(found)
            for member in vars(found)
            if not member.startswith("_") and member not in self.members
        }
        self.assertEqual(members, set())

    def test_keywords(self) -> None:
        """The annotated program uses every keyword-only argument."""
        functions = [*self.public.values()]
        for found in filter(inspect.isclass, self.public.values()):
            functions += [
                member
                for name, member in vars(found).items()
                if name == "__init__" or not name.startswith("_")
            ]
        keywords = {
            f"{function.__qualname__}({each.name}=)"
            for function in filter(inspect.isfunction, functions)
            for each in inspect.signature(function).parameters.values()
            if each.kind is each.KEYWORD_ONLY and each.name not in self.keywords
        }
        self.assertEqual(keywords, set())


class TypesTests(SynchronousTestCase):
    """Tests for the annotations of public names."""

    def check(self, tool: str, *arguments: str) -> None:
        """Run a tool of C{make check} in the program's folder."""
        command = shutil.which(tool, path=os.path.dirname(sys.executable))
        if command is None:
            raise SkipTest(f"{tool} is not installed; make check installs it")
        done = subprocess.run(
            [command, *arguments],
            cwd=PROGRAM,
            env={**os.environ, "MYPYPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_mypy(self) -> None:
        """Strict mypy accepts the program with one line of configuration, for zope.interface."""
        self.check("mypy", "--config-file=mypy.ini", f"--cache-dir={os.devnull}", "program.py")

    def test_pyright(self) -> None:
        """pyright accepts the program; it has no plugin and needs none."""
        # The same checker with its program included, which pyright fetches from npm at its first
        # run.
        self.check("basedpyright", f"--pythonpath={sys.executable}", "--project=.")

    def test_pages(self) -> None:
        """The API pages build without a warning."""
        quiet = ("--quiet", "--warnings-as-errors", "--docformat=epytext")
        where = (f"--project-base-dir={ROOT}", f"--html-output={makeFolder(self)}")
        self.check("pydoctor", *quiet, *where, str(ROOT / "fastpoetry"))
