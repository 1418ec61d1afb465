"""
Tests for the real twistd without systemd-python, as in a virtual environment.
"""

from __future__ import annotations

import subprocess

from processes import ROOT, Workplace, fetchFrom, findFreePort, findTwistd, finish
from twisted.trial.unittest import SynchronousTestCase

# Python's message for a missing module.
_MISSING = "raise ModuleNotFoundError(\"No module named 'systemd'\", name='systemd')\n"


class WithoutSystemdTests(SynchronousTestCase):
    """A test case with a folder of poems, and without the module C{systemd}."""

    def setUp(self) -> None:
        self.place = Workplace(self)
        (self.place.folder / "systemd.py").write_text(_MISSING)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start twistd."""
        path = f"PYTHONPATH={self.place.folder}:{ROOT}"
        return self.place.begin("env", path, *findTwistd(), *arguments)

    def test_help(self) -> None:
        """Both commands print their help."""
        for command in ("fastpoetry", "fastpoetry-proxy"):
            status, output, errors = finish(self.begin(command, "--help"))
            self.assertEqual((status, errors), (0, ""), output)
            self.assertIn("--listen", output)

    def test_serves(self) -> None:
        """Everything that needs no passed descriptor works, the log to the journal included."""
        poem, port = "poetry/ecstasy.txt", findFreePort()
        for logger in ((), ("--logger=fastpoetry.systemd.journal.observer",)):
            twistd = self.begin(
                *("--nodaemon", "--pidfile=", *logger),
                *("fastpoetry", "--poem", poem, "--port", str(port)),
            )
            expected = (self.place.folder / poem).read_bytes()
            self.assertEqual(fetchFrom(twistd, ("127.0.0.1", port)), expected)
            twistd.terminate()
            _, output, errors = finish(twistd)
            self.assertNotIn("Traceback", output + errors)

    def test_adopted(self) -> None:
        """
        An option that needs passed descriptors is refused in one line that names the missing
        package.
        """
        script = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3</dev/null'
        arguments = ("fastpoetry", "--poem=./poetry/ecstasy.txt", "--listen=adopted:")
        command = (*findTwistd(), "--nodaemon", "--pidfile=", *arguments)
        path = f"PYTHONPATH={self.place.folder}:{ROOT}"
        ended = self.place.run("sh", "-c", script, "sh", path, *command)
        self.assertEqual(ended[:2], (1, ""))
        self.assertRegex(ended[2], r"^fastpoetry: .*systemd-python.*\n$")
