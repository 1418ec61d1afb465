"""Tests for L{fastpoetry.command.instance}."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fakes import makeFolder, write
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart.poems import DEFAULT_POETRY_PATH
from fastpoetry.command.instance import findPoem, findProxy
from fastpoetry.poem import PoemError

ROOT = Path(__file__).resolve().parent.parent


class PoemTests(SynchronousTestCase):
    """Tests for the names of poems."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        write(self.folder, "ecstasy.txt")

    def refusal(self, name: str) -> str:
        """@return: the refusal of a poem's name."""
        options = ["--exit-idle-time", "600", f"--poetry-path={self.folder}", "--journal-budget=0"]
        return str(self.assertRaises(PoemError, findPoem, name, options))

    def test_there(self) -> None:
        """A poem on the poetry path is found, even if it cannot be served."""
        Path(self.folder, "empty.txt").touch()
        for name in ("ecstasy", "empty"):
            findPoem(name, ["--poetry-path", f"/nowhere:{self.folder}"])

    def test_mistyped(self) -> None:
        """A name without a poem is refused, with the folders and the nearest name."""
        self.assertEqual(
            self.refusal("ecstacy"),
            f"no poem ecstacy in {self.folder}; available: ecstasy; did you mean ecstasy?",
        )

    def test_noName(self) -> None:
        """
        A name that no poem can have is refused even if such a file exists, with the nearest name.
        """
        write(self.folder, "a.b.txt")
        self.assertIn("'a.b' is no name of a poem", self.refusal("a.b"))
        self.assertIn("did you mean ecstasy?", self.refusal("ecstasy.txt"))

    def test_wrongOption(self) -> None:
        """A wrong option is left to the service, which refuses it."""
        for options in (["--poetry-path"], ["--poetry-path="], ["--nonsense"], ["x"]):
            why = str(self.assertRaises(PoemError, findPoem, "none", options))
            self.assertIn(f"no poem none in {DEFAULT_POETRY_PATH}; ", why)

    def test_process(self) -> None:
        """
        Under systemd, the check exits with 1 and one line on a machine without a journal; for a
        poem that exists it prints nothing.
        """
        for name, status in (("ecstasy", 0), ("ecstacy", 1)):
            command = (sys.executable, "-B", "-m", "fastpoetry.command.instance", "fastpoetry")
            ran = subprocess.run(
                [*command, name, "--poetry-path", self.folder],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            self.assertEqual(ran.returncode, status)
            self.assertEqual(ran.stderr.count("\n"), status)
            self.assertEqual(ran.stderr.startswith("fastpoetry: no poem ecstacy"), bool(status))

    def test_light(self) -> None:
        """The check does not import Twisted, which would delay each boot."""
        program = "import sys, fastpoetry.command.instance; sys.exit('twisted' in sys.modules)"
        ran = subprocess.run([sys.executable, "-B", "-c", program], cwd=ROOT)
        self.assertEqual(ran.returncode, 0)


class ProxyTests(SynchronousTestCase):
    """Tests for the names of proxies."""

    def test_file(self) -> None:
        """
        A proxy has a file, or a link, even a broken one; without it the refusal has its path and
        the nearest name.
        """
        folder = makeFolder(self)
        write(folder, "edge.env")
        write(folder, "notes")
        os.symlink("gone", os.path.join(folder, "link.env"))
        for name in ("edge", "link"):
            findProxy(name, folder)
        why = str(self.assertRaises(PoemError, findProxy, "edg", folder))
        self.assertIn(f"no {folder}/edg.env", why)
        self.assertTrue(why.endswith("; available: edge, link; did you mean edge?"), why)

    def test_noFolder(self) -> None:
        """If the folder of proxies is missing, no proxy exists."""
        folder = os.path.join(makeFolder(self), "proxy")
        why = str(self.assertRaises(PoemError, findProxy, "edge", folder))
        self.assertTrue(why.endswith("available: none"), why)
