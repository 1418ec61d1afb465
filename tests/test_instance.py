"""Tests for L{fastpoetry.command.instance}."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fakes import makeFolder, write
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.command.instance import findPoem, findProxy
from fastpoetry.poem import DEFAULT_POETRY_PATH, PoemError

ROOT = Path(__file__).resolve().parent.parent


class PoemTests(SynchronousTestCase):
    """Names of poems."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        write(self.folder, "ecstasy.txt")

    def refusal(self, name: str) -> str:
        """@return: why there is no such poem."""
        options = ["--exit-idle-time", "600", f"--poetry-path={self.folder}", "--journal-budget=0"]
        return str(self.assertRaises(PoemError, findPoem, name, options))

    def test_there(self) -> None:
        """A poem along the path of the options is found, be it one that cannot be served."""
        Path(self.folder, "empty.txt").touch()
        for name in ("ecstasy", "empty"):
            findPoem(name, ["--poetry-path", f"/nowhere:{self.folder}"])

    def test_mistyped(self) -> None:
        """A name without a poem is refused with the folders and the nearest name."""
        self.assertEqual(
            self.refusal("ecstacy"),
            f"no poem ecstacy in {self.folder}; there is ecstasy; did you mean ecstasy?",
        )

    def test_noName(self) -> None:
        """What cannot name a poem is refused though there is such a file, with the nearest name."""
        write(self.folder, "a.b.txt")
        self.assertIn("'a.b' is no name of a poem", self.refusal("a.b"))
        self.assertIn("did you mean ecstasy?", self.refusal("ecstasy.txt"))

    def test_wrongOption(self) -> None:
        """An option that is wrong is left to the service, which says so."""
        for options in (["--poetry-path"], ["--poetry-path="], ["--nonsense"], ["x"]):
            why = str(self.assertRaises(PoemError, findPoem, "none", options))
            self.assertIn(f"no poem none in {DEFAULT_POETRY_PATH}; ", why)

    def test_process(self) -> None:
        """
        As systemd runs it, it exits with 1 and one line where there is no journal; and says nothing
        of a poem that is there.
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
        """It loads no Twisted, which each boot would wait for."""
        program = "import sys, fastpoetry.command.instance; sys.exit('twisted' in sys.modules)"
        ran = subprocess.run([sys.executable, "-B", "-c", program], cwd=ROOT)
        self.assertEqual(ran.returncode, 0)


class ProxyTests(SynchronousTestCase):
    """Names of proxies."""

    def test_file(self) -> None:
        """
        A proxy has a file, be it a link that leads nowhere; without it the refusal says which, and
        the nearest there is.
        """
        folder = makeFolder(self)
        write(folder, "edge.env")
        write(folder, "notes")
        os.symlink("gone", os.path.join(folder, "link.env"))
        for name in ("edge", "link"):
            findProxy(name, folder)
        why = str(self.assertRaises(PoemError, findProxy, "edg", folder))
        self.assertIn(f"no {folder}/edg.env", why)
        self.assertTrue(why.endswith("; there is edge, link; did you mean edge?"), why)

    def test_noFolder(self) -> None:
        """Where nobody has set up a proxy yet, there is none."""
        folder = os.path.join(makeFolder(self), "proxy")
        why = str(self.assertRaises(PoemError, findProxy, "edge", folder))
        self.assertTrue(why.endswith("there is none at all"), why)
