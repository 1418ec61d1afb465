"""
Tests for servers behind Debian's haproxy, with the configuration and the units that we ship for it.

Three servers have addresses of their own on one machine. The cost of losing a server is counted,
and printed (C{pytest -s}) for C{docs/scaling.md}.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing

import pytest
from messages import SENT, TURNED_AWAY, UNIT_STARTING

from system.conftest import CLONE, SOURCE, Layers, startMachine
from system.machine import Machine, waitFor
from system.readers import reading

SERVERS = {"a": "192.0.2.11", "b": "192.0.2.12", "c": "192.0.2.13"}
"""The poems, all with the same text, and the addresses of their servers in C{fastpoetry.cfg}."""

READERS = 10000
LOCAL, ALONE = 10001, 10002
"""Ports that lead to one server each: through its UNIX socket, and without checks."""

POEM = (CLONE / "poetry/ecstasy.txt").read_bytes()

_CONFIGURATION = f"{SOURCE}/packaging/haproxy/fastpoetry.cfg"

# Version 1 of the header, and the UNIX socket's path inside Debian's haproxy.
_MORE = f"""
listen local
    bind 127.0.0.1:{LOCAL}
    server a unix@/fastpoetry/a.sock send-proxy check inter 1s
listen alone
    bind 127.0.0.1:{ALONE}
    server a {SERVERS["a"]}:10100 send-proxy-v2
"""

# A container may not raise the limit on descriptors as far as maxconn in the configuration needs.
_START = f"""
CONFIG={_CONFIGURATION}
EXTRAOPTS="-S /run/haproxy-master.sock -f /etc/haproxy/more.cfg -n 2000"
"""

_ADDRESS = """
[Socket]
ListenStream={}:10100
"""


@pytest.fixture(scope="module")
def balanced(release: str, packageRoot: Layers) -> Iterator[Machine]:
    """Three servers and a balancer."""
    with closing(startMachine(packageRoot, f"{release}-balanced")) as machine:
        units = "/etc/systemd/system"
        machine.run("cp", "-r", f"{SOURCE}/packaging/examples/haproxy/.", units)
        for name, address in SERVERS.items():
            machine.run("ip", "address", "add", f"{address}/32", "dev", "lo")
            machine.path(f"/etc/fastpoetry/poetry/{name}.txt").write_bytes(POEM)
            folder = machine.path(f"{units}/haproxy-fastpoetry@{name}.socket.d")
            folder.mkdir()
            (folder / "address.conf").write_text(_ADDRESS.format(address))
            machine.path(f"/etc/fastpoetry/fastpoetry@{name}.env").write_text(
                f"OPTIONS=--listen=haproxy:adopted:name={name}.haproxy\n"
            )
        machine.systemctl("daemon-reload")
        machine.systemctl("start", *(f"fastpoetry@{name}" for name in SERVERS))
        machine.path("/etc/haproxy/more.cfg").write_text(_MORE)
        machine.path("/etc/default/haproxy").write_text(_START)
        machine.systemctl("restart", "haproxy")
        yield machine


@pytest.fixture
def machine(balanced: Machine) -> Machine:
    """The same machine with all services up."""
    for name in SERVERS:
        balanced.systemctl("start", f"fastpoetry@{name}")
        ask(balanced, f"set server poetry/{name} state ready")
    awaitServers(balanced, "UP", *SERVERS)
    return balanced


@pytest.fixture
def quiet(machine: Machine) -> Machine:
    """
    The same machine once the previous test's load no longer uses the journal's budget: a reader of
    each server has a record of its own.
    """
    since = fromNowOn(machine)
    header = "PROXY TCP4 192.0.2.9 192.0.2.2 40000 10000\\r\\n"

    def areRecorded() -> bool:
        for address in SERVERS.values():
            machine.run("sh", "-c", f"printf '{header}' | nc -N {address} 10100 >/dev/null")
        records = machine.journal(since, f"MESSAGE_ID={SENT}", "PEER=192.0.2.9:40000")
        return {each["POEM"] for each in records} == SERVERS.keys()

    waitFor(areRecorded, "readers to be recorded")
    return machine


def ask(machine: Machine, command: str) -> str:
    """haproxy's answer to an administrator's command."""
    return machine.run("sh", "-c", f"echo '{command}' | nc -U /run/haproxy/admin.sock").stdout


def seeServers(machine: Machine, backend: str = "poetry") -> dict[str, tuple[str, int]]:
    """haproxy's view of each server, and its number of readers."""
    lines = ask(machine, f"show stat {backend} 4 -1").lstrip("# ").splitlines()
    names = lines[0].split(",")
    servers = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
    return {each["svname"]: (each["status"], int(each["scur"])) for each in servers}


def awaitServers(machine: Machine, status: str, *names: str) -> None:
    """Wait until haproxy sees these servers in this status."""
    waitFor(lambda: {seeServers(machine)[name][0] for name in names} == {status}, status)


def countSent(machine: Machine) -> dict[str, int]:
    """The number of poems that each server has sent since its start, from its status."""

    def count(name: str) -> int:
        status = machine.show(f"fastpoetry@{name}.service", "StatusText")
        return int(status.partition("): ")[2].split()[0].replace(",", ""))

    return {name: count(name) for name in SERVERS}


def fromNowOn(machine: Machine) -> str:
    """A journalctl option for records from now on."""
    # Not by its cursor: systemd 252 omits the first match if the entry at the cursor does not
    # match.
    (last,) = machine.journal("--lines=1")
    seconds, rest = divmod(int(last["__REALTIME_TIMESTAMP"]) + 1, 1_000_000)
    return f"--since=@{seconds}.{rest:06}"


def seePeers(machine: Machine, since: str) -> set[str]:
    """The clients that got a poem, from the records."""
    return {record["PEER"] for record in machine.journal(since, f"MESSAGE_ID={SENT}")}


def test_configuration(machine: Machine) -> None:
    """Debian's haproxy accepts the configuration unchanged, without a warning."""
    checked = machine.run("haproxy", "-c", "-f", _CONFIGURATION)
    assert "WARNING" not in checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("client", "balancer", "port", "peer"),
    [
        ("127.0.0.5", "127.0.0.1", READERS, "127.0.0.5:"),
        ("::1", "::1", READERS, "[::1]:"),
        ("127.0.0.5", "127.0.0.1", LOCAL, "127.0.0.5:"),
    ],
    ids=["v2", "v2-IPv6", "v1-UNIX"],
)
def test_peer(quiet: Machine, client: str, balancer: str, port: int, peer: str) -> None:
    """A client behind the balancer gets the poem, and is recorded with its own address."""
    since = fromNowOn(quiet)
    assert quiet.fetch("-s", client, balancer, str(port)) == POEM
    waitFor(lambda: [each for each in seePeers(quiet, since) if each.startswith(peer)], peer)


def test_trust(quiet: Machine) -> None:
    """
    A header is trusted only on the balancer's socket, and only the balancer can use that socket.
    """
    said = "printf 'PROXY TCP4 192.0.2.7 192.0.2.2 40000 10000\\r\\n' | nc -NU "
    since = fromNowOn(quiet)
    quiet.run("sh", "-c", f"{said} /run/fastpoetry/a.sock")
    waitFor(lambda: "unix" in seePeers(quiet, since), "the record")
    assert not [each for each in seePeers(quiet, since) if each.startswith("192.0.2.7:")]
    path = quiet.path("/var/lib/haproxy/fastpoetry/a.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert quiet.run("stat", "-c", "%G", "/var/lib/haproxy/fastpoetry/a.sock").stdout == "haproxy\n"


def test_malformed(quiet: Machine) -> None:
    """
    A client that reaches the balancer's socket without a header makes one record, while the
    balancer's readers get their poems.
    """

    def say(line: str) -> None:
        command = f"printf '{line}\\r\\n\\r\\n' | nc {SERVERS['a']} 10100"
        assert quiet.run("sh", "-c", command).stdout == ""

    since = fromNowOn(quiet)
    say("GET / HTTP/1.0")
    say("PROXY TCP4 a b c d")
    waitFor(lambda: len(quiet.journal(since, f"MESSAGE_ID={TURNED_AWAY}")) >= 2, "the records")
    causes = [record["CAUSE"] for record in quiet.journal(since, f"MESSAGE_ID={TURNED_AWAY}")]
    assert causes == ["no valid PROXY header"] * 2
    with reading(quiet, READERS, "/etc/fastpoetry/poetry/a.txt") as replies:
        for _ in range(5):
            say("nonsense")
    assert (replies.faults, replies.poems > 0) == ({}, True)


def test_check(quiet: Machine) -> None:
    """A check makes no record, neither haproxy's own nor one that only connects and leaves."""
    quiet.run("sleep", "2")  # a status may be a second old
    since = fromNowOn(quiet)
    before = countSent(quiet)
    for address in SERVERS.values():
        quiet.run("nc", "-z", address, "10100")
    quiet.run("sleep", "3")  # haproxy checks each server every second
    assert quiet.journal(since, "SYSLOG_IDENTIFIER=fastpoetry") == []
    assert countSent(quiet) == before


def test_brokenPoem(machine: Machine) -> None:
    """
    A server that cannot start is not retried for the balancer's checks, and serves once its poem is
    fixed.
    """
    since = fromNowOn(machine)
    path = machine.path("/etc/fastpoetry/poetry/b.txt")
    path.write_bytes(b"")
    machine.run("systemctl", "restart", "fastpoetry@b", check=False)
    machine.run("sleep", "6")
    path.write_bytes(POEM)
    waitFor(lambda: machine.show("fastpoetry@b", "ActiveState") == "active", "the next start")
    assert (
        len(machine.journal(since, f"MESSAGE_ID={UNIT_STARTING}", "UNIT=fastpoetry@b.service")) <= 4
    )


def test_restart(machine: Machine) -> None:
    """Restarting the services under load, one after the other, loses no client."""
    with reading(machine, READERS, "/etc/fastpoetry/poetry/a.txt") as replies:
        for name in SERVERS:
            machine.systemctl("restart", f"fastpoetry@{name}")
    assert (replies.faults, replies.poems > 0) == ({}, True)


def test_stop(machine: Machine) -> None:
    """
    Stopping a server under load, once haproxy sends it no client, and starting it again loses no
    client.
    """
    with reading(machine, READERS, "/etc/fastpoetry/poetry/a.txt") as replies:
        ask(machine, "set server poetry/b state drain")
        waitFor(lambda: seeServers(machine)["b"][1] == 0, "the last reader to go")
        machine.systemctl("stop", "fastpoetry@b.socket")
        awaitServers(machine, "DOWN", "b")
        machine.systemctl("start", "fastpoetry@b")
        ask(machine, "set server poetry/b state ready")
        awaitServers(machine, "UP", "b")
        waitFor(lambda: countSent(machine)["b"] > 100, "readers to come back")
    assert replies.faults == {}
    assert min(countSent(machine).values()) > 100


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_loss(machine: Machine, how: str) -> None:
    """
    A server that disappears without notice loses at most its present readers; all others go on,
    also when it is back.
    """
    with reading(machine, READERS, "/etc/fastpoetry/poetry/a.txt") as replies:
        if how == "kill":
            machine.systemctl("kill", "--signal=KILL", "fastpoetry@b")
        else:
            machine.systemctl("stop", "fastpoetry@b.socket")
            awaitServers(machine, "DOWN", "b")
        machine.systemctl("start", "fastpoetry@b")
        awaitServers(machine, "UP", "b")
        waitFor(lambda: countSent(machine)["b"] > 100, "readers to come back")
    print(f"\n{how}: {replies.poems:,} poems; lost: {replies.faults or 'nobody'}")
    assert sum(replies.faults.values()) <= 4 * len(SERVERS) * 16
    assert "something else" not in replies.faults


def test_lossHalfWay(machine: Machine) -> None:
    """
    A reader of a long poem whose server is killed gets a short poem with a normal end, since
    haproxy hides the reset. haproxy logs that the server broke off.
    """
    path = "/etc/fastpoetry/poetry/a.txt"
    machine.path(path).write_bytes(POEM * 15_000)
    machine.systemctl("reload", "fastpoetry@a")
    since = fromNowOn(machine)
    with reading(machine, ALONE, path, times=4) as replies:
        waitFor(lambda: seeServers(machine, "alone")["a"][1] >= 4, "the readers")
        machine.systemctl("kill", "--signal=KILL", "fastpoetry@a")
    # systemd restarts the service meanwhile, and it refuses a poem that is not yet whole.
    part = machine.path(f"{path}.part")
    part.write_bytes(POEM)
    part.rename(machine.path(path))
    machine.systemctl("start", "fastpoetry@a")
    machine.systemctl("reload", "fastpoetry@a")
    assert replies.faults
    assert [kind for kind in replies.faults if not kind.endswith("bytes, then end")] == []
    logged = machine.journal(since, "--unit=haproxy", "--grep= alone/a .* SD ")
    assert len(logged) >= sum(replies.faults.values())
