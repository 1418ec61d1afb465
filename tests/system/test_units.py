"""
Tests of the units themselves: what they allow, and that they agree with each other and the program.
"""

from __future__ import annotations

import json

import pytest

from fastpoetry.delivery.limits import Limits
from fastpoetry.poem import MAX_POEM_BYTES
from system.conftest import SOURCE, UNITS
from system.machine import Machine

SERVICES = ("fastpoetry@ecstasy.service", "fastpoetry.service")

# Tries to make a file in every folder that there is.
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
    """C{systemd-analyze verify} has nothing to say."""
    units = [
        *SERVICES,
        *("fastpoetry@ecstasy.socket", "fastpoetry.socket"),
        *("fastpoetry-pause@fastpoetry.service", "fastpoetry-pause@fastpoetry@ecstasy.service"),
        "fastpoetry-failed@fastpoetry@ecstasy.service",
    ]
    verified = machine.run("systemd-analyze", "verify", "--man=no", *units)
    assert verified.stdout + verified.stderr == ""


@pytest.mark.parametrize("service", SERVICES)
def test_security(machine: Machine, service: str) -> None:
    """
    C{systemd-analyze security} sees an exposure of 0.5 at most, in the file and while it runs.
    """
    machine.systemctl("start", service)
    file = f"{SOURCE}/packaging/systemd/{service.replace('ecstasy', '')}"
    for which in ([service], ["--offline=true", file]):
        # It fails above the threshold, which is in tenths.
        machine.run("systemd-analyze", "security", "--threshold=5", *which)


def test_nothingToWrite(machine: Machine) -> None:
    """In the sandbox there is no folder that a file could be written to."""
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
    """A socket that is restarted many times in a row listens afterwards, and readers are served."""
    machine.path("/etc/fastpoetry/proxy/copy.env").write_text("UPSTREAM=unix:/run/nowhere\n")
    machine.systemctl("start", unit)
    for _ in range(8):
        machine.systemctl("restart", f"{unit}.socket")
    assert machine.show(f"{unit}.socket", "ActiveState") == "active"
    if "proxy" not in unit:
        address = ("-U", "/run/fastpoetry/ecstasy.sock") if "@" in unit else ("127.0.0.1", "17")
        assert machine.fetch(*address)


def test_limits() -> None:
    """The limits in the units leave room for what the program allows itself."""
    limits = Limits()
    unit = readSettings("fastpoetry@")
    assert int(unit["LimitNOFILE"]) >= 2 * limits.maxReaders + 100
    assert float(unit["TimeoutStopSec"]) >= limits.drainSeconds + 5
    program, stopped = 50 * 1024**2, 320 * 1024
    most = program + 3 * MAX_POEM_BYTES + limits.maxReaders * stopped
    assert int(unit["MemoryMax"].removesuffix("G")) * 1024**3 >= most


def test_sameSettings() -> None:
    """
    The two services differ in their names and in what they serve, and in nothing else; the proxy
    in its network and its copy too. All share their drop-ins.
    """
    poem, quote, proxy = map(readSettings, ("fastpoetry@", "fastpoetry", "fastpoetry-proxy@"))
    named = {"Description", "Requires", "After", "Also", "ExecStart"}
    assert listDiffering(poem, quote) == named
    network = {"PrivateNetwork", "RestrictAddressFamilies", "IPAddressDeny"}
    copy = {"CacheDirectory", "CacheDirectoryMode"}
    source = {"Documentation", "Environment", "EnvironmentFile"}
    assert listDiffering(poem, proxy) == named | network | copy | source
    for name in ("fastpoetry", "fastpoetry-proxy@"):
        for drop in ("10-sandbox.conf", "20-service.conf"):
            ours, shared = (UNITS / f"{each}.service.d" / drop for each in (name, "fastpoetry@"))
            assert ours.read_bytes() == shared.read_bytes()
    announce = [each.read_bytes() for each in UNITS.glob("*.service.d/40-announce.conf")]
    assert (len(announce), len(set(announce))) == (2, 1)


def listDiffering(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """Which settings two units do not share."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def readSettings(name: str) -> dict[str, str]:
    """
    The settings of a service and of the drop-in that says how it runs; those of one name together.
    """
    settings: dict[str, str] = {}
    parts = (f"{name}.service", f"{name}.service.d/20-service.conf")
    text = "".join((UNITS / part).read_text() for part in parts)
    for line in text.replace("\\\n", "").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[key] = f"{settings[key]}\n{value}" if key in settings else value
    return settings
