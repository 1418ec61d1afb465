"""Tests for the units in case of faults: names, poems, descriptors."""

from __future__ import annotations

import re
import stat
import subprocess
import time

import pytest
from messages import UNIT_STARTING

from system.conftest import CLONE
from system.machine import Machine, waitFor

POEM = "/etc/fastpoetry/poetry/ecstasy.txt"
STARTING = f"MESSAGE_ID={UNIT_STARTING}"


def countStarts(machine: Machine) -> int:
    """The number of starts of the service so far."""
    return len(machine.journal("--boot", STARTING, "UNIT=fastpoetry@ecstasy.service"))


def readBusySeconds(machine: Machine) -> float:
    """The processor time used by everything in the machine, except a test's own commands."""
    lines = machine.path("/sys/fs/cgroup/cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


def assertPaused(machine: Machine, pauseSeconds: float) -> None:
    """Fail unless a pause lies between each two of three tries to start the service."""
    before = countStarts(machine)
    waitFor(lambda: countStarts(machine) >= before + 3, "three tries", 60)
    tries = machine.journal("--boot", STARTING, "UNIT=fastpoetry@ecstasy.service")[-3:]
    times = [int(each["__REALTIME_TIMESTAMP"]) for each in tries]
    assert min(times[1] - times[0], times[2] - times[1]) > 0.98e6 * pauseSeconds


def listLeft(machine: Machine) -> set[str]:
    """
    The units of fastpoetry that are not at rest: running, listening, waiting, failed or with a job.
    """
    units = ("list-units", "--all", "--plain", "--no-legend", "fastpoetry*")
    lines = machine.systemctl(*units).splitlines()
    return {line.split()[0] for line in lines if " inactive " not in line}


@pytest.mark.parametrize("name", ["ecstacy", "..-..-etc-shadow", "..", ".", r"..\x2f..\x2fetc"])
def test_name(machine: Machine, name: str) -> None:
    """
    A name without a poem is refused, and C{systemctl status} of it lists the existing poems; no
    unit runs, listens or is retried, and only the socket is shown as failed.
    """
    service, socket = (f"fastpoetry@{name}.{kind}" for kind in ("service", "socket"))
    refused = machine.run("systemctl", "start", service, check=False)
    assert refused.returncode != 0
    for unit in (service, socket):
        status = machine.run("systemctl", "status", "--full", unit, check=False).stdout
        assert "fastpoetry: " in status
        assert "; available: alla_sera, ecstasy, " in status
    if name == "ecstacy":
        assert "no poem ecstacy in /etc/fastpoetry/poetry:/usr/share/fastpoetry/poetry; " in status
        assert "did you mean ecstasy?" in status
        shown = machine.run("journalctl", "-xe", "--boot").stdout
        assert f"Subject: No poem or upstream exists for {service}" in shown
    waitFor(lambda: listLeft(machine) == {socket}, "the last trace of it to go")
    assert socket in machine.systemctl("--failed", "--plain", "--no-legend")
    assert not machine.path(f"/run/fastpoetry/{name}.sock").exists()


def test_nameNotAllowed(machine: Machine) -> None:
    """A file whose name cannot be a poem's is refused as if it were missing."""
    machine.path("/etc/fastpoetry/poetry/a.b.txt").write_text("not to be had\n")
    assert machine.run("systemctl", "start", "fastpoetry@a.b", check=False).returncode != 0
    assert machine.journal("--boot", "--unit=fastpoetry@a.b", "--grep=is no name of a poem")
    waitFor(lambda: listLeft(machine) == {"fastpoetry@a.b.socket"}, "the rest of it to go")


def test_portOption(machine: Machine) -> None:
    """
    A port among the options, which the sandbox forbids, is refused, and the refusal names the unit
    that opens it.
    """
    machine.path("/etc/fastpoetry/fastpoetry@ecstasy.env").write_text("OPTIONS=--listen=tcp:1\n")
    assert machine.run("systemctl", "start", "fastpoetry@ecstasy", check=False).returncode != 0
    status = machine.run("systemctl", "status", "fastpoetry@ecstasy", check=False).stdout
    assert "fastpoetry: --listen tcp:1: Address family not supported by protocol" in status
    assert "; a unit's service opens no port: add it to the .socket" in status


POETRY_PATH = "OPTIONS=--poetry-path=/srv/poetry\n"


def test_otherPath(machine: Machine) -> None:
    """A poetry path among the options also applies to the socket's check."""
    machine.run("install", "-d", "/srv/poetry")
    machine.path("/srv/poetry/elsewhere.txt").write_text("elsewhere\n")
    assert machine.run("systemctl", "start", "fastpoetry@elsewhere", check=False).returncode != 0
    machine.path("/etc/fastpoetry/fastpoetry@elsewhere.env").write_text(POETRY_PATH)
    machine.systemctl("start", "fastpoetry@elsewhere")
    assert machine.fetch("-U", "/run/fastpoetry/elsewhere.sock") == b"elsewhere\n"


@pytest.mark.parametrize(
    ("break_", "mend"),
    [
        ("chmod a-x /usr/bin/twistd3", "chmod a+x /usr/bin/twistd3"),
        (
            "echo OPTIONS=--help >/etc/fastpoetry/fastpoetry@ecstasy.env",
            "rm /etc/fastpoetry/fastpoetry@ecstasy.env",
        ),
        ("touch /etc/fastpoetry/poetry/ecstasy.txt", "rm /etc/fastpoetry/poetry/ecstasy.txt"),
    ],
    ids=["no-program", "no-start", "no-poem"],
)
def test_cannotRun(machine: Machine, pauseSeconds: float, break_: str, mend: str) -> None:
    """
    Three services fail visibly: one cannot be executed, one ends before it is ready, and one
    refuses its poem. While a client waits, each is retried after a pause. The socket stays, and the
    client is served once the fault is fixed.
    """
    service, socket = "fastpoetry@ecstasy.service", "fastpoetry@ecstasy.socket"
    machine.systemctl("start", socket)
    machine.run("sh", "-c", break_)
    client = subprocess.Popen(
        machine.command("nc", "-d", "127.0.0.1", "10000"), stdout=subprocess.PIPE
    )
    try:
        assertPaused(machine, pauseSeconds)
        failed = ("--failed", "--plain", "--no-legend")
        waitFor(lambda: service in machine.systemctl(*failed), "its failure between two tries")
        assert machine.show(socket, "ActiveState") == "active"
        assert machine.show(service, "NRestarts") == "0"
    finally:
        machine.run("sh", "-c", mend)
        served = client.communicate(timeout=60)[0]
    assert served == (CLONE / "poetry/ecstasy.txt").read_bytes()


def test_monitoringWaits(machine: Machine, pauseSeconds: float) -> None:
    """A monitoring system that waits for a service with a broken poem starts it as seldom."""
    machine.path(POEM).write_text("")
    options = "OPTIONS=--metrics=adopted:name=metrics\n"
    machine.path("/etc/fastpoetry/fastpoetry@ecstasy.env").write_text(options)
    machine.systemctl("start", "fastpoetry-metrics@ecstasy.socket")
    socket = "/run/fastpoetry/ecstasy.metrics.sock"
    with subprocess.Popen(machine.command("nc", "-dU", socket)) as client:
        try:
            assertPaused(machine, pauseSeconds)
        finally:
            client.kill()


def test_brokenPoem(machine: Machine) -> None:
    """
    Starting by hand with a broken poem fails each time, at once, with the cause in the journal.
    """
    machine.path(POEM).write_text("")
    before = countStarts(machine)
    for _ in range(3):
        # Longer than the start takes, and shorter than the pause after it.
        machine.run("sh", "-c", "! timeout 4 systemctl start fastpoetry@ecstasy")
    assert countStarts(machine) == before + 3
    records = machine.journal("--boot", "--unit=fastpoetry@ecstasy", "--grep=is empty")
    assert records[-1]["SYSLOG_IDENTIFIER"] == "fastpoetry"
    assert records[-1]["MESSAGE"].startswith(f"fastpoetry: --poem ecstasy: {POEM}: is empty")


def test_manyTries(machine: Machine, pauseSeconds: float) -> None:
    """
    While clients wait for a broken poem, the socket stays open and tries once in each pause, at
    little cost, also beyond systemd's default of 5 starts in 10 s. When the poem is fixed, the
    clients are served. A mistyped name in the meantime leaves only a failed socket.
    """
    machine.path(POEM).write_text("")
    machine.systemctl("start", "fastpoetry@ecstasy.socket")
    assert machine.run("systemctl", "start", "fastpoetry@typo", check=False).returncode != 0
    command = machine.command("nc", "-d", "127.0.0.1", "10000")
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        began, before, busy = time.monotonic(), countStarts(machine), readBusySeconds(machine)
        waitFor(lambda: countStarts(machine) >= before + 7, "seven tries", 60)
        spent = readBusySeconds(machine) - busy
        print(f"\n{countStarts(machine) - before} starts with a broken poem: {spent:.1f} s of CPU")
        assert spent < 9
        assert time.monotonic() - began > 5 * pauseSeconds
        assert machine.show("fastpoetry@ecstasy.socket", "ActiveState") == "active"
        assert {unit for unit in listLeft(machine) if "typo" in unit} == {"fastpoetry@typo.socket"}
        assert not machine.path("/run/fastpoetry/typo.sock").exists()
        assert machine.journal("--boot", STARTING, "UNIT=fastpoetry@typo.service") == []
        machine.path(POEM).write_text("mended\n")
        assert [client.communicate(timeout=30)[0] for client in clients] == [b"mended\n"] * 3
    finally:
        for client in clients:
            client.kill()
            client.wait()


def test_otherDescriptor(machine: Machine, pauseSeconds: float) -> None:
    """
    A service that is passed a socket of another name ends with the cause, and leaves the socket
    unchanged. The service that is passed the right name serves the clients.
    """
    folder = machine.path("/run/systemd/system/fastpoetry@ecstasy.socket.d")
    folder.mkdir(parents=True)
    (folder / "name.conf").write_text("[Socket]\nFileDescriptorName=other\n")
    machine.systemctl("daemon-reload")
    assert machine.run("systemctl", "start", "fastpoetry@ecstasy", check=False).returncode != 0
    (record, *_) = machine.journal(
        "--boot", "--unit=fastpoetry@ecstasy", "--grep=^fastpoetry: ", "--reverse"
    )
    assert "adopted:name=ecstasy" in record["MESSAGE"]
    assert "other" in record["MESSAGE"]
    assert machine.show("fastpoetry@ecstasy.socket", "ActiveState") == "active"
    path = "/run/fastpoetry/ecstasy.sock"
    assert stat.S_IMODE(machine.path(path).stat().st_mode) == 0o666
    client = subprocess.Popen(machine.command("nc", "-dU", path), stdout=subprocess.PIPE)
    (folder / "name.conf").unlink()
    machine.systemctl("daemon-reload")
    assert client.communicate(timeout=30)[0] == (CLONE / "poetry/ecstasy.txt").read_bytes()


def test_brokenPoemAtReload(machine: Machine) -> None:
    """
    If the poem is broken, a reload fails with the line of the cause, and the old poem stays. There
    is one record of the error, and the status has its duration, until a reload succeeds.
    """
    machine.path(POEM).write_text("old\n")
    machine.systemctl("start", "fastpoetry@ecstasy")
    machine.path(POEM).write_text("")
    assert machine.run("systemctl", "reload", "fastpoetry@ecstasy", check=False).returncode != 0
    assert machine.fetch("127.0.0.1", "10000") == b"old\n"
    said = machine.systemctl("status", "--full", "fastpoetry@ecstasy")
    assert f"reload failed: {POEM}: is empty" in said
    stale = re.compile(rf'Status: ".*Stale for [0-9]+ s: {re.escape(POEM)}: is empty')
    waitFor(lambda: stale.search(machine.systemctl("status", "fastpoetry@ecstasy")), stale.pattern)
    machine.path(POEM).write_text("new\n")
    machine.systemctl("reload", "fastpoetry@ecstasy")
    assert machine.fetch("127.0.0.1", "10000") == b"new\n"
    assert "Stale" not in machine.show("fastpoetry@ecstasy", "StatusText")
    errors = machine.journal(
        f"_SYSTEMD_INVOCATION_ID={machine.show('fastpoetry@ecstasy', 'InvocationID')}",
        "--priority=err",
    )
    assert [each["MESSAGE"].partition(":")[0] for each in errors] == ["kept the old poem"]
    assert POEM in errors[0]["MESSAGE"]


def test_unreadablePoem(machine: Machine) -> None:
    """The refusal of a poem without read permission says how to fix it."""
    machine.path(POEM).write_text("for root only\n")
    machine.path(POEM).chmod(0o600)
    assert machine.run("systemctl", "start", "fastpoetry@ecstasy", check=False).returncode != 0
    assert machine.journal("--boot", "--unit=fastpoetry@ecstasy", f"--grep=chmod a\\+r {POEM}")


REFUSALS = {
    f"touch {POEM}": f"fastpoetry: --poem ecstasy: {POEM}: is empty",
    "echo OPTIONS=--nosuch >ENV": "fastpoetry: option --nosuch not recognized",
    "echo OPTIONS=--max-readers=0 >ENV": "fastpoetry: --max-readers 0: ",
    "echo OPTIONS=--listen=tcp:1 >ENV": "fastpoetry: --listen tcp:1: ",
    "echo OPTIONS=--listen=adopted:name=x >ENV": "fastpoetry: adopted:name=x: no passed descriptor",
}
"""The causes of failed starts, and the beginning of each refusal."""


@pytest.mark.parametrize("break_", REFUSALS)
def test_priority(machine: Machine, break_: str) -> None:
    """C{journalctl -p err} shows why a start failed."""
    machine.run("sh", "-c", break_.replace("ENV", "/etc/fastpoetry/fastpoetry@ecstasy.env"))
    assert machine.run("systemctl", "start", "fastpoetry@ecstasy", check=False).returncode != 0
    said = listErrors(machine, "fastpoetry@ecstasy")
    assert [line for line in said if line.startswith(REFUSALS[break_])], said


def test_priorityOfOthers(machine: Machine) -> None:
    """
    C{journalctl -p err} also shows a mistyped name, a proxy without an upstream, and the refusal of
    any other program.
    """
    machine.path("/etc/fastpoetry/proxy/none.env").write_text("\n")
    for unit in ("fastpoetry@ecstacy", "fastpoetry-proxy@none"):
        assert machine.run("systemctl", "start", unit, check=False).returncode != 0
        assert [line for line in listErrors(machine, unit) if line.startswith("fastpoetry: ")]
    machine.path("/etc/fastpoetry/proxy/none.env").unlink()
    command = ("/usr/bin/twistd3", "--nodaemon", "--pidfile=", "web", "--listen=adopted:")
    machine.run("systemd-run", "--quiet", "--wait", "--unit=any", *command, check=False)
    assert [line for line in listErrors(machine, "any") if line.startswith("adopted: no descr")]


def listErrors(machine: Machine, unit: str) -> list[str]:
    """The lines of C{journalctl -p err} for a unit."""
    records = machine.journal("--boot", f"--unit={unit}", "--priority=err")
    return [record["MESSAGE"] for record in records]


def test_changedAddress(machine: Machine) -> None:
    """
    A service that gets no descriptor, because its active socket's address was changed, says that
    the socket must be restarted. After that restart it serves.
    """
    machine.systemctl("start", "fastpoetry@alla_sera")
    folder = machine.path("/run/systemd/system/fastpoetry@alla_sera.socket.d")
    folder.mkdir(parents=True)
    (folder / "zz.conf").write_text("[Socket]\nListenStream=\nListenStream=127.0.0.1:10033\n")
    machine.systemctl("daemon-reload")
    machine.run("systemctl", "restart", "fastpoetry@alla_sera", check=False)
    assert machine.show("fastpoetry@alla_sera.socket", "ActiveState") == "active"
    said = listErrors(machine, "fastpoetry@alla_sera")
    assert [line for line in said if "restart" in line], said
    machine.systemctl("restart", "fastpoetry@alla_sera.socket")
    assert machine.fetch("127.0.0.1", "10033")


def test_pauseEnds(machine: Machine) -> None:
    """A restart of the socket ends the pause: the next client is served at once."""
    pause = "fastpoetry-pause@fastpoetry@ecstasy.service"
    machine.path(POEM).write_text("")
    machine.systemctl("start", "fastpoetry@ecstasy.socket")
    client = subprocess.Popen(machine.command("nc", "-d", "127.0.0.1", "10000"))
    waitFor(lambda: machine.show(pause, "ActiveState") == "activating", "the pause")
    machine.path(POEM).write_text("mended\n")
    machine.systemctl("restart", "fastpoetry@ecstasy.socket")
    assert machine.show(pause, "ActiveState") == "inactive"
    assert machine.fetch("127.0.0.1", "10000") == b"mended\n"
    client.wait()
