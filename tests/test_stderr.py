"""Tests for L{fastpoetry.systemd.stderr}: the text and priority of a refused start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]
TWISTD = "from twisted.scripts.twistd import run; run()"

REFUSALS = {
    ("fastpoetry",): "fastpoetry: nothing to serve",
    ("fastpoetry", "--poem", "nosuch"): "fastpoetry: --poem nosuch: ",
    ("fastpoetry", "--nosuch"): "fastpoetry: option --nosuch not recognized",
    ("fastpoetry-proxy",): "fastpoetry: nothing to serve",
    ("systemd",): "systemd: which command? ",
    ("web", "--listen=adopted:", "--path=/"): "adopted: no descriptor was passed",
    ("web", "--listen=adopted:nosuch=x", "--path=/"): "adopted:nosuch=x: takes name=NAME",
}
"""Command lines, and the beginning of each refusal."""


class RefusalTests(SynchronousTestCase):
    """Tests for programs that cannot start."""

    def refusal(self, *command: str, stream: str | None = None) -> str:
        """
        @param command: a command of twistd.
        @param stream: the value of C{JOURNAL_STREAM}; C{None} for the true one.
        @return: the text on stderr.
        """
        out, into = os.pipe()
        with os.fdopen(out) as reader:
            with os.fdopen(into, "w") as writer:
                found = os.fstat(writer.fileno())
                environ = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
                    "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"
                    if stream is None
                    else stream,
                }
                done = subprocess.run(
                    [sys.executable, "-c", TWISTD, "--nodaemon", "--pidfile=", *command],
                    env=environ,
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=writer,
                    timeout=60,
                    check=False,
                )
            self.assertEqual(done.returncode, 1)
            return reader.read()

    def test_inJournal(self) -> None:
        """If stderr is a stream to the journal, each refusal is one line of priority err."""
        for command, beginning in REFUSALS.items():
            said = self.refusal(*command)
            self.assertTrue(said.startswith(f"<3>{beginning}"), said)
            self.assertEqual((said.count("\n"), said[-1]), (1, "\n"), said)

    def test_elsewhere(self) -> None:
        """
        On a terminal or in a file, also for a child process of a unit, the line begins with the
        program's name.
        """
        for stream in ("", "1:1", "nonsense"):
            said = self.refusal("fastpoetry", stream=stream)
            self.assertTrue(said.startswith("fastpoetry: nothing to serve"), said)
