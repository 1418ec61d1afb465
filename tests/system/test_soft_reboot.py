"""Tests for soft-reboots, which systemd has since 254: PID 1 stays, and every service stops."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing

from fakes import LONG, receiveAll

from system.conftest import Layers, startMachine
from system.machine import Machine, waitFor

UNIT = "fastpoetry@ecstasy"
THROUGH = "SystemState=running\nSoftRebootsCount=1\n"
PRESERVE = "[Service]\nFileDescriptorStorePreserve=yes\n"


def isThrough(machine: Machine) -> bool:
    """Whether the machine has soft-rebooted and is up again."""
    show = ("systemctl", "show", "--property=SoftRebootsCount", "--property=SystemState")
    try:
        return machine.run(*show, check=False, seconds=5).stdout == THROUGH
    except subprocess.TimeoutExpired:
        # systemd sends SIGSTOP to all processes before it ends them. nsenter stops with its child,
        # and stays stopped.
        return False


def test_softReboot(release: str, packageRoot: Layers) -> None:
    """With the manual page's drop-in a reader gets the rest of its poem after a soft-reboot."""
    if release == "bookworm":
        return  # systemd 252 has no soft-reboot
    with closing(startMachine(packageRoot, f"{release}-soft")) as machine:
        machine.path("/etc/fastpoetry/poetry/ecstasy.txt").write_bytes(LONG.text)
        folder = machine.path(f"/etc/systemd/system/{UNIT}.service.d")
        folder.mkdir()
        (folder / "preserve.conf").write_text(PRESERVE)
        machine.systemctl("daemon-reload")
        machine.systemctl("enable", "--now", f"{UNIT}.socket")
        with socket.socket(socket.AF_UNIX) as reader:
            reader.settimeout(60)
            reader.connect(str(machine.path("/run/fastpoetry/ecstasy.sock")))
            begun = reader.recv(1)
            machine.run("systemctl", "soft-reboot", check=False)
            waitFor(lambda: isThrough(machine), "the machine to be up again", 60)
            assert machine.fetch("-U", "/run/fastpoetry/ecstasy.sock") == LONG.text
            assert begun + receiveAll(reader) == LONG.text
