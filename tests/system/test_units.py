"""
Tests for the units themselves: their sandbox, and their agreement with each other and the program.
"""

from __future__ import annotations

import json

import pytest

from system.conftest import SOURCE
from system.machine import Machine

SERVICES = ("fastpoetry@ecstasy.service", "fastpoetry.service")

# Tries to make a file in every folder.
_PROBE = r"""
import os
for folder, folders, _ in os.walk("/"):
    if folder in ("/proc", "/sys"):
        folders.clear()
    try:
        os.close(os.open(folder + "/probe", os.O_CREAT | os.O_WRONLY))
    except OSError:
        continue
    print("could write to", folder)
print("through")
"""


def test_verify(machine: Machine) -> None:
    """C{systemd-analyze verify} finds no fault."""
    units = [
        *SERVICES,
        *("fastpoetry@ecstasy.socket", "fastpoetry.socket", "fastpoetry-metrics@ecstasy.socket"),
        "fastpoetry-proxy@x.socket",
        *("fastpoetry-pause@fastpoetry.service", "fastpoetry-pause@fastpoetry@ecstasy.service"),
        "fastpoetry-failed@fastpoetry@ecstasy.service",
    ]
    verified = machine.run("systemd-analyze", "verify", "--man=no", *units)
    assert verified.stdout + verified.stderr == ""


@pytest.mark.parametrize("service", SERVICES)
def test_security(machine: Machine, service: str) -> None:
    """
    C{systemd-analyze security} reports an exposure of at most 0.5, for the file and for the running
    service.
    """
    machine.systemctl("start", service)
    file = f"{SOURCE}/packaging/systemd/{service.replace('ecstasy', '')}"
    for which in ([service], ["--offline=true", file]):
        # systemd-analyze fails above the threshold, which is in tenths.
        machine.run("systemd-analyze", "security", "--threshold=5", *which)


def test_nothingToWrite(machine: Machine) -> None:
    """In the sandbox no folder is writable."""
    probe = "/run/systemd/system/fastpoetry-probe.service"
    machine.path(probe).write_text(
        f"[Service]\nType=oneshot\nExecStart=/usr/bin/python3 -c {json.dumps(_PROBE)}\n"
    )
    machine.run("mkdir", f"{probe}.d")
    sandbox = "/usr/lib/systemd/system/fastpoetry@.service.d/10-sandbox.conf"
    machine.run("cp", sandbox, f"{probe}.d")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "fastpoetry-probe")
    said = machine.journal("--boot", "_SYSTEMD_UNIT=fastpoetry-probe.service")
    assert [record["MESSAGE"] for record in said] == ["through"]


def test_noNetwork(machine: Machine) -> None:
    """The service sees no network, though its readers come from one."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    process = machine.show("fastpoetry@ecstasy", "MainPID")
    assert machine.fetch("127.0.0.1", "10000")
    listening = machine.path(f"/proc/{process}/net/tcp").read_text().splitlines()
    assert len(listening) == 1


@pytest.mark.parametrize("unit", ["fastpoetry@ecstasy", "fastpoetry", "fastpoetry-proxy@copy"])
def test_manyRestarts(machine: Machine, unit: str) -> None:
    """A socket that is restarted many times in a row still listens, and readers are served."""
    machine.path("/etc/fastpoetry/proxy/copy.env").write_text("UPSTREAM=unix:/run/nowhere\n")
    machine.systemctl("start", unit)
    for _ in range(8):
        machine.systemctl("restart", f"{unit}.socket")
    assert machine.show(f"{unit}.socket", "ActiveState") == "active"
    if "proxy" not in unit:
        address = ("-U", "/run/fastpoetry/ecstasy.sock") if "@" in unit else ("127.0.0.1", "17")
        assert machine.fetch(*address)
