"""Tests for a disk that does not answer, under the package's units."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from system.machine import Machine

SERVICE = "fastpoetry@still.service"
FOLDER = "/etc/fastpoetry/poetry"

_STUCK = Path(__file__).resolve().parent.parent / "faults/stuck.py"


def test_stop(machine: Machine, tmp_path: Path) -> None:
    """
    While a reload waits for the disk, readers are served. A stop succeeds, and so does a start with
    another poem, even though SIGKILL does not end the process that waits.
    """
    poem = tmp_path / "still.txt"
    poem.write_text("still\n")
    command = [sys.executable, str(_STUCK), str(poem), FOLDER, str(machine.leader)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as disk:
        assert disk.stdout is not None
        try:
            assert disk.stdout.readline() == b"mounted\n"
            machine.systemctl("start", SERVICE)
            assert machine.fetch("-U", "/run/fastpoetry/still.sock") == b"still\n"
            disk.send_signal(signal.SIGUSR1)
            machine.systemctl("reload", "--no-block", SERVICE)
            assert disk.stdout.readline() == b"asked\n"
            assert machine.fetch("-U", "/run/fastpoetry/still.sock") == b"still\n"
            # Less than TimeoutStopSec=, after which systemd would send SIGKILL.
            machine.run("systemctl", "stop", SERVICE, seconds=20)
            assert machine.show(SERVICE, "Result") == "success"
            machine.run("umount", "--lazy", FOLDER)
            machine.path(f"{FOLDER}/still.txt").write_text("moves\n")
            machine.systemctl("start", SERVICE)
            assert machine.fetch("-U", "/run/fastpoetry/still.sock") == b"moves\n"
        finally:
            disk.kill()
            machine.run("umount", "--lazy", FOLDER, check=False)
