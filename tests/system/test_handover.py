"""
Tests for readers in mid-poem across restarts, stops and crashes: each gets a whole poem or a reset.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import IO

import pytest
from messages import NOT_HANDED_OVER, TOOK_OVER, TOOK_OVER_PART

from system.conftest import CLONE, SOURCE
from system.machine import Machine, waitFor
from system.readers import reading

SERVICE = "fastpoetry@science.service"
POEM = "/etc/fastpoetry/poetry/science.txt"
OPTIONS = "/etc/fastpoetry/fastpoetry@science.env"
PORT = 10002
SOCKET = "/run/fastpoetry/science.sock"

ALL_KINDS = "slow=50,stopped=50,tiny=1"


def text(number: int, size: int = 8 << 20) -> bytes:
    """@return: a poem that differs from every other in each of its lines."""
    lines = b"".join(b"%03d %07d, a line that is told apart\n" % (number, n) for n in range(30_000))
    return (lines * (size // len(lines) + 1))[:size]


class Held:
    """
    Readers that stay in the middle of a poem until they are told to go on.

    @ivar got: the result of each: kind, bytes, whether these are a poem, and how it ended.
    """

    def __init__(self, stdin: IO[str]) -> None:
        self.got: list[tuple[str, int, bool, str]] = []
        self._stdin = stdin

    def hurry(self) -> None:
        """Make all readers read on; a second call has no effect."""
        with suppress(BrokenPipeError):
            self._stdin.write("go\n")
            self._stdin.flush()

    def outcomes(self) -> dict[str, int]:
        """@return: the number of readers for each end."""
        return dict(
            Counter("whole" if whole and end == "end" else end for _, _, whole, end in self.got)
        )


@contextmanager
def holding(machine: Machine, kinds: str, *poems: str, host: str = "127.0.0.1") -> Iterator[Held]:
    """Keep readers in the middle of a poem while the context lasts; afterwards all have ended."""
    process = subprocess.Popen(
        machine.command(
            *("python3", f"{SOURCE}/tests/system/handover_probe.py", host, str(PORT), kinds, *poems)
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    held = Held(process.stdin)
    try:
        assert process.stdout.readline() == "reading\n"
        yield held
        held.hurry()
    finally:
        told, _ = process.communicate(timeout=120)
    held.got = [tuple(each) for each in json.loads(told)]


@pytest.fixture
def server(machine: Machine) -> Machine:
    """A machine that serves a poem of 8 MiB."""
    machine.path(POEM).write_bytes(text(0))
    machine.path(OPTIONS).write_text("OPTIONS=--stall-timeout=300 --min-rate=0\n")
    machine.systemctl("start", SERVICE)
    return machine


def starts(machine: Machine, message: str = TOOK_OVER) -> list[dict[str, str]]:
    """@return: the records of readers taken over, since the machine's start."""
    return machine.journal(f"MESSAGE_ID={message}")


@contextmanager
def handingOver(machine: Machine, *counts: int) -> Iterator[None]:
    """Assert how many readers are taken over, by each start that takes over any."""
    before = len(starts(machine))
    yield
    assert tuple(int(each["READERS"]) for each in starts(machine)[before:]) == counts


def copies(machine: Machine, *poems: bytes) -> list[str]:
    """Put the poems into files, with which readers compare what they get."""
    paths = [f"/root/poem{number}.txt" for number in range(len(poems))]
    for path, poem in zip(paths, poems, strict=True):
        machine.path(path).write_bytes(poem)
    return paths


def test_restarts(server: Machine) -> None:
    """
    Over six restarts under load, with the poem replaced in between, each reader gets the old or the
    new poem, whole: slow readers, stopped ones, and one with the smallest buffer.
    """
    poems = copies(server, text(0), text(1))
    before = len(starts(server))
    with (
        holding(server, ALL_KINDS, *poems) as held,
        reading(server, PORT, *poems, times=2) as others,
    ):
        for number in range(6):
            if number == 3:
                server.path(POEM).write_bytes(text(1))
            server.systemctl("restart", SERVICE)
    assert held.outcomes() == {"whole": 101}
    assert others.faults == {}
    counts = [int(each["READERS"]) for each in starts(server)[before:]]
    assert (len(counts), min(counts) >= 101) == (6, True)
    assert not starts(server, TOOK_OVER_PART)


def test_upgrade(server: Machine, package: Path) -> None:
    """
    Each reader also gets a whole poem over an upgrade of the package, here to the same version.
    """
    poems = copies(server, text(0))
    files = [f"/root/{file.name}" for file in package.glob("*.deb")]
    for file in files:
        server.path(file).write_bytes((package / Path(file).name).read_bytes())
    with (
        holding(server, ALL_KINDS, *poems) as held,
        reading(server, PORT, *poems, times=2) as others,
    ):
        server.run("dpkg", "--install", *files)
    assert held.outcomes() == {"whole": 101}
    assert others.faults == {}


def test_status(server: Machine) -> None:
    """The status has the number of readers taken over."""
    with holding(server, "stopped=3", *copies(server, text(0))):
        server.systemctl("restart", SERVICE)
        waitFor(lambda: "; took over 3 readers" in server.show(SERVICE, "StatusText"), "the status")


def test_ledgers(server: Machine) -> None:
    """
    No reader is lost or counted twice: the counts of the two processes add up to what clients saw.
    """
    with holding(server, "stopped=7", *copies(server, text(0))) as held:
        server.systemctl("restart", SERVICE)
    assert held.outcomes() == {"whole": 7}
    waitFor(lambda: "7 poems sent, 0 readers" in server.show(SERVICE, "StatusText"), "the count")


def test_stop(server: Machine) -> None:
    """
    A stop does not wait for stopped readers and leaves no reader in the store; a reader in mid-poem
    gets a reset.
    """
    with (
        handingOver(server),
        holding(server, "stopped=20,tiny=1", *copies(server, text(0))) as held,
    ):
        server.systemctl("stop", SERVICE)
        assert server.show(SERVICE, "Result") == "success"
        server.systemctl("start", SERVICE)
    assert held.outcomes() == {"reset": 21}


def test_crash(server: Machine) -> None:
    """
    After a crash that follows a restart no stale reader is taken over; a reader in mid-poem gets a
    reset.
    """
    with handingOver(server, 20), holding(server, "stopped=20", *copies(server, text(0))) as held:
        server.systemctl("restart", SERVICE)
        pid = server.show(SERVICE, "MainPID")
        server.systemctl("kill", "--signal=KILL", "--kill-who=main", SERVICE)
        waitFor(lambda: server.show(SERVICE, "MainPID") not in ("0", pid), "the next process")
        waitFor(lambda: server.show(SERVICE, "ActiveState") == "active", "the next start")
    assert held.outcomes() == {"reset": 20}


def test_killed(server: Machine) -> None:
    """
    Whenever the processes are killed during a restart, each reader gets a whole poem or a reset.
    """
    outcomes: Counter[str] = Counter()
    for number in range(6):
        with holding(server, "stopped=20,slow=5", *copies(server, text(0))) as held:
            restart = subprocess.Popen(server.command("systemctl", "restart", SERVICE))
            server.run("sleep", f"{number * 0.07:.2f}")
            server.run(
                *("systemctl", "kill", "--signal=KILL", "--kill-who=main", SERVICE), check=False
            )
            restart.wait(60)
            waitFor(lambda: server.show(SERVICE, "ActiveState") == "active", "the next start")
        outcomes.update(held.outcomes())
    print(f"\n{dict(outcomes)}")
    assert outcomes.keys() <= {"whole", "reset"}


@pytest.mark.alone
def test_newcomers(server: Machine) -> None:
    """
    A client that comes during a restart waits as long with a hundred stopped readers as without.

    This test measures time, because that is the promise: it compares with the same restart without
    readers.
    """
    alone = [wait(server) for _ in range(3)]
    with holding(server, ALL_KINDS, *copies(server, text(0))):
        among = [wait(server) for _ in range(3)]
    print(f"\nalone {sorted(alone)}, among 101 readers {sorted(among)}")
    assert median(among) < 3 * median(alone)


def wait(machine: Machine) -> float:
    """
    @return: seconds from a restart to the first byte, for a client that connects when it begins.
    """
    program = """
import socket, subprocess, sys, time
restart = subprocess.Popen(["systemctl", "restart", sys.argv[1]])
while subprocess.run(["systemctl", "is-active", "-q", sys.argv[1]]).returncode == 0:
    pass
began = time.monotonic()
with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as client:
    client.recv(1)
print(time.monotonic() - began)
restart.wait()
"""
    return float(machine.run("python3", "-c", program, SERVICE, str(PORT)).stdout)


def test_reexec(server: Machine) -> None:
    """Stored readers outlast systemd's re-execution."""
    with holding(server, "stopped=5", *copies(server, text(0))) as held:
        server.systemctl("restart", SERVICE)
        server.systemctl("daemon-reexec")
        server.systemctl("restart", SERVICE)
    assert held.outcomes() == {"whole": 5}


def test_full(server: Machine) -> None:
    """If the store lacks room for all readers, the server drains instead."""
    folder = server.path(f"/run/systemd/system/{SERVICE}.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store.conf").write_text("[Service]\nFileDescriptorStoreMax=1\n")
    server.systemctl("daemon-reload")
    server.systemctl("restart", SERVICE)
    with holding(server, "slow=5", *copies(server, text(0))) as held:
        restart = subprocess.Popen(server.command("systemctl", "restart", SERVICE))
        waitFor(
            lambda: starts(server, NOT_HANDED_OVER),
            "the record",
        )
        held.hurry()
        assert restart.wait(60) == 0
    assert held.outcomes() == {"whole": 5}


def test_fewerDescriptors(server: Machine) -> None:
    """
    A process with fewer descriptors takes over as many readers as it can, and counts the others as
    lost.
    """
    folder = server.path(f"/run/systemd/system/{SERVICE}.d")
    folder.mkdir(parents=True, exist_ok=True)
    with holding(server, "stopped=100", *copies(server, text(0))) as held:
        (folder / "files.conf").write_text("[Service]\nLimitNOFILE=80\n")
        server.systemctl("daemon-reload")
        server.systemctl("restart", SERVICE)
    (record,) = starts(server, TOOK_OVER_PART)
    readers, lost = int(record["READERS"]), int(record["LOST"])
    assert (readers + lost, readers > 0, lost > 0) == (100, True, True)
    assert "LimitNOFILE=" in record["CAUSE"]
    assert held.outcomes() == {"whole": readers, "reset": lost}


def test_UNIX(server: Machine) -> None:
    """Readers on the UNIX socket are handed over too."""
    with (
        handingOver(server, 5),
        holding(server, "stopped=5", *copies(server, text(0)), host=SOCKET) as held,
    ):
        server.systemctl("restart", SERVICE)
    assert held.outcomes() == {"whole": 5}


def test_proxy(server: Machine) -> None:
    """A proxy's readers are handed over too."""
    folder = server.path("/etc/fastpoetry/proxy")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verse.env").write_text(f"UPSTREAM=unix:{SOCKET}\n")
    service, address = "fastpoetry-proxy@verse.service", "/run/fastpoetry-proxy/verse.sock"
    server.systemctl("start", service)
    with (
        handingOver(server, 5),
        holding(server, "stopped=5", *copies(server, text(0)), host=address) as held,
    ):
        server.systemctl("restart", service)
    assert held.outcomes() == {"whole": 5}


def test_cores(server: Machine) -> None:
    """Each of several processes on one socket hands over its own readers."""
    example = CLONE / "packaging/examples/cores/fastpoetry-ecstasy@.service"
    folder = server.path("/run/systemd/system")
    (folder / "fastpoetry-science@.service").write_text(example.read_text())
    (folder / "fastpoetry-science@.service.d").symlink_to(
        "/usr/lib/systemd/system/fastpoetry@.service.d"
    )
    services = [SERVICE, "fastpoetry-science@2.service"]
    server.systemctl("daemon-reload")
    server.systemctl("start", *services)
    with holding(server, "stopped=60", *copies(server, text(0))) as held:
        for service in services:
            server.systemctl("restart", service)
    assert held.outcomes() == {"whole": 60}
