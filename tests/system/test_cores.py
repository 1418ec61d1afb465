"""Tests for several processes on one listening socket, with the unit that we ship as an example."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from system.conftest import SOURCE
from system.machine import Machine, waitFor
from system.readers import reading

POEM = "/usr/share/fastpoetry/poetry/ecstasy.txt"
UNITS = "/run/systemd/system"
VENDOR = "/usr/lib/systemd/system"

SERVICES = ("fastpoetry@ecstasy", "fastpoetry-ecstasy@2", "fastpoetry-ecstasy@3")
SOCKET = "fastpoetry@ecstasy.socket"

SAME = (
    *("DynamicUser", "SystemCallFilter", "CapabilityBoundingSet", "ReadOnlyPaths", "IPAddressDeny"),
    *("PrivateNetwork", "RestrictAddressFamilies", "Environment", "SyslogIdentifier"),
    *("Type", "NotifyAccess", "Restart", "RestartUSec", "RestartPreventExitStatus", "WatchdogUSec"),
    *("NonBlocking", "TimeoutStopUSec", "LimitNOFILE", "TasksMax", "MemoryMax"),
)
"""The settings that the example repeats from fastpoetry@.service, or that its sandbox adds."""


@pytest.fixture
def cores(machine: Machine) -> Iterator[Machine]:
    """A machine with the unit installed as its comment says."""
    unit = "fastpoetry-ecstasy@.service"
    machine.run("cp", f"{SOURCE}/packaging/examples/cores/{unit}", UNITS)
    machine.run("ln", "-s", f"{VENDOR}/fastpoetry@.service.d", f"{UNITS}/{unit}.d")
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--runtime", *SERVICES[1:])
    yield machine
    machine.systemctl("disable", "--runtime", *SERVICES[1:])


def seeStates(machine: Machine) -> set[str]:
    """The states of the services."""
    return {machine.show(f"{name}.service", "ActiveState") for name in SERVICES}


def countSent(machine: Machine) -> dict[str, int]:
    """The number of poems that each process has sent since its start, from its status."""

    def count(name: str) -> int:
        status = machine.show(f"{name}.service", "StatusText")
        return int(status.partition("): ")[2].partition(" ")[0].replace(",", "") or 0)

    return {name: count(name) for name in SERVICES}


def test_together(cores: Machine) -> None:
    """The first connection starts all processes, in the same sandbox; they serve side by side."""
    cores.systemctl("start", SOCKET)
    assert seeStates(cores) == {"inactive"}
    # Without a rest, since at little load one process may accept everything.
    with reading(cores, 10000, POEM, restSeconds=0) as replies:
        waitFor(lambda: min(countSent(cores).values()) > 100, "each to send some")
    assert replies.faults == {}
    for key in SAME:
        assert len({cores.show(f"{name}.service", key) for name in SERVICES}) == 1, key


def test_oneAtATime(cores: Machine) -> None:
    """Restarting the processes one after the other loses no client."""
    cores.systemctl("start", f"{SERVICES[0]}.service")
    waitFor(lambda: seeStates(cores) == {"active"}, "all of them")
    with reading(cores, 10000, POEM) as replies:
        for name in SERVICES:
            cores.systemctl("restart", name)
    assert (replies.faults, replies.poems > 0) == ({}, True)


def test_nonBlocking(cores: Machine) -> None:
    """While one process starts, the listening sockets of the others stay non-blocking."""
    cores.systemctl("start", f"{SERVICES[0]}.service")
    waitFor(lambda: seeStates(cores) == {"active"}, "all of them")
    slow = cores.path(f"{UNITS}/{SERVICES[2]}.service.d/slow.conf")
    slow.parent.mkdir()
    slow.write_text("[Service]\nType=exec\nExecStart=\nExecStart=/bin/sleep infinity\n")
    cores.systemctl("daemon-reload")
    cores.systemctl("restart", SERVICES[2])
    process = cores.show(SERVICES[0], "MainPID")
    flags = cores.run("sed", "-n", "s/^flags:.//p", f"/proc/{process}/fdinfo/3").stdout
    assert int(flags, 8) & os.O_NONBLOCK


def test_oneLess(cores: Machine) -> None:
    """
    With one service stopped, even the first, the others serve, and their readers do not start it.
    """
    cores.systemctl("start", f"{SERVICES[0]}.service")
    waitFor(lambda: seeStates(cores) == {"active"}, "all of them")
    cores.systemctl("stop", f"{SERVICES[0]}.service")
    with reading(cores, 10000, POEM) as replies:
        before = countSent(cores)[SERVICES[1]]
        waitFor(lambda: countSent(cores)[SERVICES[1]] > before, "the others to send some")
    assert replies.faults == {}
    assert cores.show(f"{SERVICES[0]}.service", "ActiveState") == "inactive"


def test_socketGone(cores: Machine) -> None:
    """When the socket is stopped, all services end."""
    cores.systemctl("start", f"{SERVICES[0]}.service")
    waitFor(lambda: seeStates(cores) == {"active"}, "all of them")
    cores.systemctl("stop", SOCKET)
    waitFor(lambda: seeStates(cores) == {"inactive"}, "all of them to end")
