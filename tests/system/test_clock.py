"""
Tests for steps of the wall clock while the package's unit runs in its whole sandbox.

Only the clock of the one process is faked, by a module that Python imports first: the machine's own
clock is shared with everything that runs beside these tests.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from messages import GAVE_UP

from system.machine import Machine, waitFor

SERVICE = "fastpoetry@ecstasy.service"
POEM = "/usr/share/fastpoetry/poetry/ecstasy.txt"
FOLDER = "/run/clock"

_FAKE = """
import mmap, struct, time
with open("/run/clock/offset", "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", offset[:8])[0]
"""


@pytest.fixture
def stepped(machine: Machine) -> Machine:
    """A machine whose service has a settable clock, and a watchdog of two seconds."""
    folder = machine.path(FOLDER)
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_FAKE)
    setClock(machine, 0)
    dropIns = machine.path(f"/run/systemd/system/{SERVICE}.d")
    dropIns.mkdir(parents=True, exist_ok=True)
    (dropIns / "clock.conf").write_text(
        f"[Service]\nEnvironment=PYTHONPATH={FOLDER}\nWatchdogSec=2\n"
    )
    machine.systemctl("daemon-reload")
    machine.systemctl("start", SERVICE)
    return machine


def setClock(machine: Machine, seconds: float) -> None:
    """Set the service's clock to so many seconds from the true time."""
    path = machine.path(f"{FOLDER}/offset")
    if not path.exists():
        path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        file.write(struct.pack("d", seconds))


def test_step(stepped: Machine) -> None:
    """
    After a step back the watchdog is pinged, readers are served and closed, and a reload and a stop
    end.
    """
    pid = stepped.show(SERVICE, "MainPID")
    poem = stepped.path(POEM).read_bytes()
    assert f"{FOLDER}/offset" in stepped.run("cat", f"/proc/{pid}/maps").stdout
    before = countDescriptors(stepped, pid)
    setClock(stepped, -3600)
    # Twice the watchdog's interval.
    stepped.run("sleep", "4")
    for _ in range(20):
        assert stepped.fetch("127.0.0.1", "10000") == poem
    waitFor(lambda: countDescriptors(stepped, pid) <= before, "the readers to be closed")
    stepped.systemctl("reload", SERVICE)
    assert stepped.show(SERVICE, "MainPID") == pid
    assert not stepped.journal(f"MESSAGE_ID={GAVE_UP}", f"_PID={pid}")
    stepped.systemctl("stop", SERVICE)
    assert stepped.show(SERVICE, "Result") == "success"


def countDescriptors(machine: Machine, pid: str) -> int:
    """@return: the number of a process's descriptors."""
    return len(machine.run("ls", str(Path("/proc") / pid / "fd")).stdout.split())
