"""Tests for C{fastpoetry.systemd.store} with the store of a real systemd, in a unit of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from system.machine import Machine, waitFor

_SOCKET = """
[Socket]
ListenStream=127.0.0.1:8090
ListenDatagram=127.0.0.1:8090
"""

_SERVICE = """
[Unit]
Requires=keep.socket
After=keep.socket

[Service]
NotifyAccess=main
FileDescriptorStoreMax={most}
LimitNOFILE=4096
ExecStart=/usr/bin/python3 -B /usr/local/lib/keep.py
Restart=on-failure
RestartSec=100ms
SyslogIdentifier=keep

DynamicUser=yes
ProtectSystem=strict
PrivateNetwork=yes
PrivateUsers=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX
CapabilityBoundingSet=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

# Prints the descriptors it finds, stores descriptors for the next process, and waits for its end.
# Both ends of each of its connections are its own.
_PROGRAM = """
import json, os, signal, socket
from fastpoetry.systemd.adopted import inherited
from fastpoetry.systemd.store import Store, StoreError, makeMemory, pack, readMemory, unpack

store = Store()
state, packed = store.take("state"), store.take("packed")
extra, ends = store.take("extra"), store.take("end")
found = {
    "web": [each.nature for each in inherited().claim()],
    "state": [readMemory(each.number, 100).decode() for each in state],
    "packed": [readMemory(each, 9).decode() for one in packed for each in unpack(one.number)],
    "extra": [each.listens for each in extra],
    "ends": [],
}
if ends:
    one, other = (socket.socket(fileno=each.number) for each in ends)
    one.sendall(b"still there")
    found["ends"] = [each.nature.split()[-1] for each in ends] + [other.recv(100).decode()]

start = int(found["state"][0]) + 1 if state else 1
memories = [makeMemory(str(n).encode()) for n in range(600)]
listening = socket.socket(socket.AF_UNIX)
listening.bind("")
listening.listen()
pair = socket.socketpair()
try:
    store.removeNow("state", "packed", "extra", "end")
    store.putNow({"state": [makeMemory(str(start).encode())], "extra": [listening]})
    store.putNow({"packed": [pack(memories)], "end": pair}, poll=False)
except StoreError as why:
    found["why"] = str(why)
print(json.dumps(found), flush=True)
signal.pause()
"""


class Keep:
    """The unit that runs the program."""

    def __init__(self, machine: Machine, most: int) -> None:
        self.machine = machine
        self._starts = 0
        for path, text in (
            ("/usr/local/lib/keep.py", _PROGRAM),
            ("/run/systemd/system/keep.socket", _SOCKET),
            ("/run/systemd/system/keep.service", _SERVICE.format(most=most)),
        ):
            machine.path(path).write_text(text)
        machine.run("journalctl", "--quiet", "--rotate", "--vacuum-files=1")
        machine.systemctl("daemon-reload")

    def found(self) -> dict[str, Any]:
        """The descriptors that the next process found."""
        self._starts += 1
        records = waitFor(
            lambda: self.machine.journal("--identifier=keep", "_COMM=python3")[self._starts - 1 :],
            "the next start",
        )
        found: dict[str, Any] = json.loads(records[0]["MESSAGE"])
        return found

    def held(self) -> int:
        """The number of descriptors in systemd's store."""
        return int(self.machine.show("keep.service", "NFileDescriptorStore"))

    def close(self) -> None:
        """Stop the unit and remove its files."""
        self.machine.run("systemctl", "stop", "keep.socket", "keep.service", check=False)
        self.machine.run("sh", "-c", "rm /run/systemd/system/keep.* /usr/local/lib/keep.py")
        self.machine.systemctl("daemon-reload")


@pytest.fixture
def keep(machine: Machine, request: pytest.FixtureRequest) -> Any:
    """The unit, whose store has the size that the test asks for, or a sufficient one."""
    made = Keep(machine, getattr(request, "param", 6))
    yield made
    made.close()


_WHOLE = {
    "web": ["AF_INET 127.0.0.1:8090"],
    "packed": [str(n) for n in range(600)],
    "extra": [True],
    "ends": ["connection", "connection", "still there"],
}

_NOTHING: dict[str, list[object]] = {key: [] for key in _WHOLE}


def test_kept(keep: Keep) -> None:
    """
    After restarts, a crash and a re-execution of systemd, the next process finds every descriptor,
    beside the sockets of its own unit.
    """
    machine = keep.machine
    machine.systemctl("start", "keep.service")
    assert keep.found() == {**_NOTHING, "web": _WHOLE["web"], "state": []}
    assert keep.held() == 5
    machine.systemctl("restart", "keep.service")
    assert keep.found() == {**_WHOLE, "state": ["1"]}
    assert keep.held() == 5
    machine.systemctl("kill", "--signal=KILL", "keep.service")
    assert keep.found() == {**_WHOLE, "state": ["2"]}
    machine.systemctl("daemon-reexec")
    machine.systemctl("restart", "keep.service")
    assert keep.found() == {**_WHOLE, "state": ["3"]}


def test_stopped(keep: Keep) -> None:
    """After a stop the store is empty."""
    machine = keep.machine
    machine.systemctl("start", "keep.service")
    keep.found()
    machine.systemctl("stop", "keep.service")
    assert keep.held() == 0
    machine.systemctl("start", "keep.service")
    assert keep.found()["state"] == []


@pytest.mark.parametrize("keep", [0, 5], indirect=True)
def test_noRoom(keep: Keep) -> None:
    """If the unit has no store, or a store too small, the program gets an error."""
    keep.machine.systemctl("start", "keep.service")
    assert "FileDescriptorStoreMax=" in keep.found()["why"]
