"""Tests for the proxy's units, with a server of the same machine as upstream."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from messages import FAILED, FETCHED

from system.conftest import SOURCE, UNITS
from system.machine import Machine, waitFor
from system.test_refusals import listLeft

EDGE = "fastpoetry-proxy@edge"
SOCKET = "/run/fastpoetry-proxy/edge.sock"
UPSTREAM = "tcp:host=127.0.0.1:port=10000"

_TIDY = """
systemctl stop 'fastpoetry*'
rm -rf /etc/fastpoetry/proxy/* /var/cache/private/fastpoetry-proxy /var/cache/fastpoetry-proxy
"""

# Prints the folders in which a file can be made.
_PROBE = """
import os
for folder, folders, _ in os.walk("/"):
    if folder in ("/proc", "/sys"):
        folders.clear()
    try:
        os.close(os.open(folder + "/probe", os.O_CREAT | os.O_WRONLY))
    except OSError:
        continue
    print(folder)
"""

# Another user binds names of the socket for reloads, and fills their queues.
_INTRUDER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
taken = []
for suffix in sys.argv[2:]:
    name = f"\\0fastpoetry/reload/{sys.argv[1]}/{suffix}"
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(0)
    client.connect(name)
    taken += [listener, client]
print("taken", flush=True)
sys.stdin.read()
"""

Set = Callable[..., None]


@pytest.fixture
def setEdge(machine: Machine) -> Iterator[Set]:
    """Write the file of the proxy C{edge}."""

    def write(**settings: str) -> None:
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        machine.path("/etc/fastpoetry/proxy/edge.env").write_text(lines)

    write(UPSTREAM=UPSTREAM)
    yield write
    machine.run("sh", "-c", _TIDY)


@pytest.fixture
def edge(machine: Machine, setEdge: Set) -> Machine:
    """
    A machine with a listening proxy of a shipped poem's port, which listens too; neither service
    runs.
    """
    machine.systemctl("start", "fastpoetry@ecstasy.socket", f"{EDGE}.socket")
    return machine


def read(poem: str) -> bytes:
    """A shipped poem."""
    return (UNITS.parent.parent / f"poetry/{poem}.txt").read_bytes()


def readJournal(machine: Machine, *matches: str) -> list[dict[str, str]]:
    """The records of the running proxy."""
    invocation = machine.show(EDGE, "InvocationID")
    return machine.journal(f"_SYSTEMD_INVOCATION_ID={invocation}", *matches)


def test_chain(edge: Machine) -> None:
    """
    The first connection starts the proxy and gets the poem; the proxy's own connection starts its
    upstream.
    """
    for unit in (EDGE, "fastpoetry@ecstasy"):
        assert edge.show(f"{unit}.service", "ActiveState") == "inactive"
    assert edge.fetch("-U", SOCKET) == read("ecstasy")
    for unit in (EDGE, "fastpoetry@ecstasy"):
        assert edge.show(f"{unit}.service", "ActiveState") == "active"


def test_start(machine: Machine, setEdge: Set) -> None:
    """Starting the service starts its socket, and fetches no poem yet."""
    machine.systemctl("start", EDGE)
    assert machine.show(f"{EDGE}.socket", "ActiveState") == "active"
    assert not readJournal(machine, f"UPSTREAM={UPSTREAM}")


@pytest.mark.parametrize("name", ["edg", "..", "..-edge"])
def test_name(machine: Machine, setEdge: Set, name: str) -> None:
    """
    C{systemctl status} of a name without a file shows the refusal, with the nearest name; no unit
    runs, listens or is retried.
    """
    unit = f"fastpoetry-proxy@{name}"
    assert machine.run("systemctl", "start", unit, check=False).returncode != 0
    status = machine.run("systemctl", "status", "--full", unit, check=False).stdout
    assert f"fastpoetry: no /etc/fastpoetry/proxy/{name}.env, " in status
    assert "available: edge" in status
    waitFor(lambda: listLeft(machine) == {f"{unit}.socket"}, "the rest of it to go")
    assert not machine.path(f"/run/fastpoetry-proxy/{name}.sock").exists()


def test_fileGone(machine: Machine, setEdge: Set) -> None:
    """
    A proxy whose file disappears while its socket listens fails like one that refuses its file; it
    is not retried by itself.
    """
    machine.systemctl("start", f"{EDGE}.socket")
    machine.path("/etc/fastpoetry/proxy/edge.env").unlink()
    assert machine.run("systemctl", "restart", EDGE, check=False).returncode != 0
    assert machine.show(EDGE, "Result") == "exit-code"
    assert machine.show(EDGE, "NRestarts") == "0"


def test_noCacheFolder(machine: Machine, setEdge: Set, pauseSeconds: float) -> None:
    """
    A proxy whose folder for copies is not usable fails visibly, is not retried by itself, and keeps
    its socket; once the folder is fixed, it runs.
    """
    machine.path("/var/cache/private").mkdir(mode=0o700, exist_ok=True)
    machine.path("/var/cache/private/fastpoetry-proxy").write_text("in the way\n")
    machine.systemctl("start", "fastpoetry@ecstasy.socket")
    assert machine.run("systemctl", "start", EDGE, check=False).returncode != 0
    assert machine.show(EDGE, "ExecMainStatus") == "239"
    assert machine.show(EDGE, "ActiveState") == "failed"
    assert machine.show(EDGE, "NRestarts") == "0"
    assert machine.show(f"{EDGE}.socket", "ActiveState") == "active"
    machine.path("/var/cache/private/fastpoetry-proxy").unlink()
    assert machine.fetch("-U", SOCKET) == read("ecstasy")


def test_journal(edge: Machine) -> None:
    """A fetch is one record, with its facts in fields of their own."""
    edge.fetch("-U", SOCKET)
    edge.fetch("-U", SOCKET)
    (record,) = readJournal(edge, f"UPSTREAM={UPSTREAM}")
    wanted = {
        "MESSAGE": f"fetched 2735 bytes of poetry from {UPSTREAM}",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "fastpoetry",
        "LOG_NAMESPACE": "fastpoetry.proxy.service.PoetryProxyService",
        "BYTES": "2735",
        "MESSAGE_ID": FETCHED,
    }
    assert {name: record.get(name) for name in wanted} == wanted
    sent = readJournal(edge, f"POEM={UPSTREAM}")
    assert [each["MESSAGE"] for each in sent] == ["sending 2735 bytes of poetry to unix"] * 2


def test_outage(edge: Machine) -> None:
    """
    While the upstream is down a reload fails and the old poem is served; the status has the
    duration and the cause, and the catalog explains them.
    """
    edge.fetch("-U", SOCKET)
    edge.systemctl("stop", "fastpoetry@ecstasy.socket")
    assert edge.run("systemctl", "reload", EDGE, check=False).returncode != 0
    assert "reload failed: upstream refused" in edge.systemctl("status", EDGE)
    assert edge.fetch("-U", SOCKET) == read("ecstasy")
    stale = re.compile("Stale for [1-9][0-9]* s: upstream refused")
    waitFor(lambda: stale.search(edge.systemctl("status", EDGE)), stale.pattern)
    shown = edge.run("journalctl", "-x", "--boot", f"--unit={EDGE}").stdout
    assert f"Subject: {UPSTREAM} gives no poem" in shown


def test_restart(edge: Machine) -> None:
    """A proxy that is restarted while its upstream is down serves its copy."""
    edge.fetch("-U", SOCKET)
    kept = edge.path("/var/cache/private/fastpoetry-proxy/edge")
    waitFor(lambda: list(kept.glob("*.poem")), "the copy")
    edge.systemctl("stop", "fastpoetry@ecstasy.socket", EDGE)
    assert edge.fetch("-U", SOCKET) == read("ecstasy")


def test_reload(edge: Machine) -> None:
    """When C{systemctl reload} returns, the same process serves the upstream's present poem."""
    edge.fetch("-U", SOCKET)
    process = edge.show(EDGE, "MainPID")
    for poem in ("old\n", "new\n") * 2:
        edge.path("/etc/fastpoetry/poetry/ecstasy.txt").write_text(poem)
        edge.systemctl("reload", "fastpoetry@ecstasy")
        edge.systemctl("reload", EDGE)
        assert edge.fetch("-U", SOCKET).decode() == poem
    assert edge.show(EDGE, "MainPID") == process


def test_intruder(edge: Machine) -> None:
    """A reload succeeds, whatever names another local user has bound."""
    edge.fetch("-U", SOCKET)
    names = (edge.show(EDGE, "InvocationID"), edge.show(EDGE, "MainPID"), "0" * 32)
    command = edge.command("python3", "-c", _INTRUDER, *names)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as intruder:
        assert intruder.stdin
        assert intruder.stdout
        assert intruder.stdout.readline() == b"taken\n"
        edge.systemctl("reload", EDGE)
        intruder.stdin.close()


def test_upstreams(edge: Machine, setEdge: Set) -> None:
    """From inside the sandbox an upstream is reached by its name, and on a UNIX socket."""
    for upstream in ("tcp:host=localhost:port=10000", "unix:path=/run/fastpoetry/ecstasy.sock"):
        setEdge(UPSTREAM=upstream)
        edge.systemctl("restart", EDGE)
        assert edge.fetch("-U", SOCKET) == read("ecstasy")


def test_tls(edge: Machine, setEdge: Set, tmp_path: Path) -> None:
    """
    An upstream behind TLS is reached if its certificate is trusted; if not, the status says so.
    """
    key, certificate = tmp_path / "key.pem", tmp_path / "trusted.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    edge.run("install", "-d", "/srv/trust")
    for file, inside in ((key, "/root/key.pem"), (certificate, "/srv/trust/trusted.pem")):
        edge.path(inside).write_bytes(file.read_bytes())
    secure = "ssl:10443:privateKey=/root/key.pem:certKey=/srv/trust/trusted.pem"
    server = ("twistd3", "--nodaemon", "--pidfile=", "fastpoetry", "--poem=science")
    run = ("systemd-run", "--quiet", "--unit=fastpoetry-tls", "--service-type=notify")
    edge.run(*run, *server, f"--listen={secure}")
    setEdge(UPSTREAM="tls:localhost:10443:trustRoots=/srv/trust")
    assert edge.fetch("-U", SOCKET) == read("science")
    setEdge(UPSTREAM="tls:localhost:10443", OPTIONS="--total-timeout=3")
    edge.systemctl("restart", EDGE)
    assert edge.fetch("-U", SOCKET) == b""
    assert "certificate verify failed" in edge.show(EDGE, "StatusText")


def test_options(edge: Machine, setEdge: Set) -> None:
    """The file may have further options."""
    edge.systemctl("start", "fastpoetry@ecstasy")
    setEdge(UPSTREAM=UPSTREAM, OPTIONS=f"--max-age=5 --expect-sha256={'0' * 64} --total-timeout=3")
    assert edge.fetch("-U", SOCKET) == b""
    (record,) = readJournal(edge, f"UPSTREAM={UPSTREAM}")
    assert record["CAUSE"].startswith("upstream sent another poem, SHA-256 ")


def test_noUpstream(machine: Machine, setEdge: Set) -> None:
    """
    A file without an upstream is refused in one line that names the file and the right form, and
    the socket goes on listening.
    """
    for upstream, why in {
        "poems.example": "not a Twisted client endpoint: ",
        "tcp:host=poems.example": "port '' is not from 1 to 65535; ",
        "": "names no upstream; ",
    }.items():
        setEdge(UPSTREAM=upstream)
        assert machine.run("systemctl", "start", EDGE, check=False).returncode != 0
        records = machine.journal("--boot", f"--unit={EDGE}", "--grep=^fastpoetry: ")
        line = records[-1]["MESSAGE"]
        assert line.startswith(f"fastpoetry: --upstream {upstream}: {why}")
        form = "the right form is tcp:host=poems.example:port=10000"
        assert line.endswith(f"{form} (UPSTREAM= in /etc/fastpoetry/proxy/edge.env)")
        assert records[-1]["SYSLOG_IDENTIFIER"] == "fastpoetry"
        assert machine.show(f"{EDGE}.socket", "ActiveState") == "active"
        machine.systemctl("reset-failed", EDGE)


@pytest.fixture
def silent(machine: Machine) -> Iterator[None]:
    """A resolver that receives questions and never answers."""
    listening = "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
    listening += "s.bind(('127.0.0.1', 53)); print(flush=True); input()"
    command = machine.command("python3", "-c", listening)
    resolver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    settings = machine.path("/etc/resolv.conf")
    before = settings.read_bytes() if settings.exists() else None
    settings.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    try:
        assert resolver.stdout is not None
        resolver.stdout.readline()
        yield
    finally:
        resolver.kill()
        resolver.communicate()
        settings.unlink() if before is None else settings.write_bytes(before)


def test_silentResolver(machine: Machine, setEdge: Set, silent: None) -> None:
    """A silent resolver does not delay a stop: systemd does not need to kill the proxy."""
    setEdge(UPSTREAM="tcp:host=poems.example:port=10000", OPTIONS="--connect-timeout=0.5")
    machine.systemctl("start", EDGE)
    reader = subprocess.Popen(machine.command("nc", "-d", "-U", SOCKET), stdin=subprocess.DEVNULL)
    try:
        waitFor(lambda: readJournal(machine, f"MESSAGE_ID={FAILED}"), "an outage")
        (record,) = readJournal(machine, f"MESSAGE_ID={FAILED}")
        assert record["CAUSE"] == "upstream took too long"
        machine.systemctl("stop", EDGE)
    finally:
        reader.kill()
        reader.communicate()
    assert machine.show(EDGE, "Result") == "success"


def test_verify(machine: Machine, setEdge: Set) -> None:
    """C{systemd-analyze verify} finds no fault."""
    units = (f"{EDGE}.service", f"{EDGE}.socket", f"fastpoetry-pause@{EDGE}.service")
    verified = machine.run("systemd-analyze", "verify", "--man=no", *units)
    assert verified.stdout + verified.stderr == ""


def test_security(edge: Machine) -> None:
    """
    C{systemd-analyze security} reports an exposure of at most 1.4, for the file and for the running
    service.
    """
    edge.fetch("-U", SOCKET)
    file = f"{SOURCE}/packaging/systemd/fastpoetry-proxy@.service"
    for which in ([EDGE], ["--offline=true", file]):
        # systemd-analyze fails above the threshold, which is in tenths.
        edge.run("systemd-analyze", "security", "--threshold=14", *which)


def test_write(machine: Machine, setEdge: Set) -> None:
    """Only the folder for the copy is writable, and only root and the proxy can read it."""
    folder = f"/run/systemd/system/{EDGE}.service.d"
    machine.run("mkdir", folder)
    machine.path("/run/probe.py").write_text(_PROBE)
    machine.path(f"{folder}/probe.conf").write_text(
        "[Service]\nType=oneshot\nExecStart=\nExecStart=/usr/bin/python3 /run/probe.py\n"
    )
    machine.systemctl("daemon-reload")
    machine.systemctl("start", EDGE)
    run = machine.show(EDGE, "InvocationID")  # reloads before this one have records too
    said = machine.journal("--boot", f"_SYSTEMD_INVOCATION_ID={run}", "_COMM=python3")
    assert [record["MESSAGE"] for record in said] == ["/var/cache/private/fastpoetry-proxy/edge"]
    kept = machine.path("/var/cache/private/fastpoetry-proxy/edge")
    assert kept.stat().st_mode & 0o777 == 0o700
