"""Tests for the units without faults: systemd watches them serve poems."""

from __future__ import annotations

import re
import subprocess

from messages import NOT_ALIVE, SENT, SERVING, TURNED_AWAY

from system.conftest import CLONE, UNITS, writeDropIn
from system.machine import Machine, waitFor

ECSTASY = ("127.0.0.1", "10000")
SCIENCE = ("127.0.0.1", "10002")
QUOTE = ("127.0.0.1", "17")


# Begins to read, goes on to the end when its input ends, and prints the text.
_READER = """
import socket, sys
with socket.create_connection(("127.0.0.1", 10000)) as reader:
    reader.recv(1)
    print("reading", flush=True)
    sys.stdin.read()
    try:
        while reader.recv(65536):
            pass
        print("end")
    except ConnectionResetError:
        print("reset")
"""

# Waits for a poem, and prints how the wait ends.
_WAITING = """
import socket
with socket.create_connection(("127.0.0.1", 10000)) as client:
    print("waiting", flush=True)
    try:
        print(client.recv(1))
    except ConnectionResetError:
        print("reset")
"""

# Holds 20 connections without reading until its input ends.
_GREEDY = """
import socket, sys
held = [socket.socket(socket.AF_UNIX) for _ in range(20)]
for each in held:
    each.connect("/run/fastpoetry/ecstasy.sock")
print("held", flush=True)
sys.stdin.read()
"""

# Removes the ports from the reactor on SIGUSR2.
_DEAF = """
import signal

def deafen(*_):
    from twisted.internet import reactor
    for each in reactor.getReaders():
        if type(each).__name__ == "FastPort":
            reactor.callFromThread(reactor.removeReader, each)

signal.signal(signal.SIGUSR2, deafen)
"""


def addOptions(machine: Machine, options: str) -> None:
    """Give a service more options, as its manual page says."""
    machine.path("/etc/fastpoetry/fastpoetry@ecstasy.env").write_text(f"OPTIONS={options}\n")


def read(poem: str) -> bytes:
    """A shipped poem."""
    return (CLONE / f"poetry/{poem}.txt").read_bytes()


def readRun(machine: Machine, *matches: str) -> list[dict[str, str]]:
    """The records of the running service."""
    run = machine.show("fastpoetry@ecstasy", "InvocationID")
    return machine.journal(f"_SYSTEMD_INVOCATION_ID={run}", *matches)


def test_start(machine: Machine) -> None:
    """Starting a service by hand serves its poem on its port and on its UNIX socket."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    assert machine.fetch(*ECSTASY) == read("ecstasy")
    assert machine.fetch("-U", "/run/fastpoetry/ecstasy.sock") == read("ecstasy")


def test_firstConnection(machine: Machine) -> None:
    """The first connection starts a service, which serves it."""
    machine.systemctl("start", "fastpoetry@ecstasy.socket")
    assert machine.show("fastpoetry@ecstasy.service", "ActiveState") == "inactive"
    assert machine.fetch(*ECSTASY) == read("ecstasy")
    assert machine.show("fastpoetry@ecstasy.service", "ActiveState") == "active"


def test_shippedPorts(machine: Machine) -> None:
    """Each shipped poem has a port of its own."""
    for port, poem in enumerate(("ecstasy", "fascination", "science", "alla_sera"), 10000):
        machine.systemctl("start", f"fastpoetry@{poem}.socket")
        assert machine.fetch("127.0.0.1", str(port)) == read(poem)


def test_twoInstances(machine: Machine) -> None:
    """Two instances run side by side; one goes on when the other is stopped."""
    machine.systemctl("start", "fastpoetry@ecstasy", "fastpoetry@science")
    assert machine.fetch(*ECSTASY) == read("ecstasy")
    assert machine.fetch(*SCIENCE) == read("science")
    machine.systemctl("stop", "fastpoetry@ecstasy.socket")
    assert machine.fetch(*ECSTASY) == b""
    assert machine.fetch(*SCIENCE) == read("science")


def test_quoteOfTheDay(machine: Machine) -> None:
    """The service without an instance serves any of the poems."""
    machine.systemctl("start", "fastpoetry")
    poems = {path.read_bytes() for path in CLONE.glob("poetry/*.txt")}
    assert machine.fetch(*QUOTE) in poems


def test_administratorsPoem(machine: Machine) -> None:
    """An administrator's poem needs only its file, and replaces a shipped one of its name."""
    for name in ("mine", "ecstasy"):
        machine.path(f"/etc/fastpoetry/poetry/{name}.txt").write_text("a poem of mine\n")
        machine.systemctl("start", f"fastpoetry@{name}")
        assert machine.fetch("-U", f"/run/fastpoetry/{name}.sock") == b"a poem of mine\n"


def test_status(machine: Machine) -> None:
    """C{systemctl status} says in plain words what is served and how often."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    machine.fetch(*ECSTASY)
    status = 'Status: "Serving ecstasy (2735 bytes): 1 poem sent, '
    waitFor(lambda: status in machine.systemctl("status", "fastpoetry@ecstasy"), status)


def test_journalFields(machine: Machine) -> None:
    """A poem sent is one record, with its facts in fields of their own."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    machine.fetch(*ECSTASY)
    (record,) = waitFor(lambda: readRun(machine, "--grep=sending"), "the record")
    assert record["MESSAGE"] == f"sending 2735 bytes of poetry to {record['PEER']}"
    assert record["PEER"].startswith("127.0.0.1:")
    wanted = {
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "fastpoetry",
        "LOG_LEVEL": "info",
        "LOG_NAMESPACE": "fastpoetry.delivery.ledger.Ledger",
        "BYTES": "2735",
        "MESSAGE_ID": SENT,
    }
    assert {name: record.get(name) for name in wanted} == wanted


def test_journalSelection(machine: Machine) -> None:
    """
    C{journalctl -u fastpoetry} shows the quote service, C{-u 'fastpoetry@*'} every instance, and
    C{-t fastpoetry} all of them. The explanation of the start record says so.
    """
    quote, instance = "fastpoetry.service", "fastpoetry@ecstasy.service"
    machine.systemctl("start", quote, instance)

    def ours(*selection: str) -> set[str]:
        # Of all fields only two, since there may be thousands of records.
        records = machine.journal("--boot", *selection, "--output-fields=_COMM,_SYSTEMD_UNIT")
        return {record["_SYSTEMD_UNIT"] for record in records if record.get("_COMM") == "twistd3"}

    assert ours("--unit=fastpoetry") == {quote}
    assert instance in ours("--unit=fastpoetry@*")
    assert quote not in ours("--unit=fastpoetry@*")
    assert {quote, instance} <= ours("--identifier=fastpoetry")
    explained = machine.run("journalctl", "--catalog", "--boot", f"MESSAGE_ID={SERVING}").stdout
    assert "journalctl -t fastpoetry " in explained


def test_catalog(machine: Machine) -> None:
    """C{journalctl -x} explains our records."""
    ours = (UNITS / "fastpoetry.catalog").read_text()
    known = machine.run("journalctl", "--dump-catalog").stdout
    for entry in re.findall("^-- ([0-9a-f]{32})$", ours, re.MULTILINE):
        assert entry in known


def test_reload(machine: Machine) -> None:
    """When C{systemctl reload} returns, the same process serves the file's new content."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    process = machine.show("fastpoetry@ecstasy", "MainPID")
    for poem in ("old\n", "new\n") * 2:
        machine.path("/etc/fastpoetry/poetry/ecstasy.txt").write_text(poem)
        machine.systemctl("reload", "fastpoetry@ecstasy")
        assert machine.fetch(*ECSTASY).decode() == poem
    assert machine.show("fastpoetry@ecstasy", "MainPID") == process


def test_stop(machine: Machine) -> None:
    """A stopped service is started again by its socket."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    machine.systemctl("stop", "fastpoetry@ecstasy")
    assert machine.show("fastpoetry@ecstasy.service", "ActiveState") == "inactive"
    assert machine.fetch(*ECSTASY) == read("ecstasy")


def test_stopDuringReload(machine: Machine) -> None:
    """
    A stop is no failure if SIGTERM kills the command of a reload, for example before Python has
    started.
    """
    service = "fastpoetry@ecstasy.service"
    reload = "[Service]\nExecReload=\nExecReload=/bin/sleep infinity\n"
    writeDropIn(machine, service, reload)
    machine.systemctl("start", service)
    machine.systemctl("reload", "--no-block", service)
    waitFor(lambda: machine.show(service, "ActiveState") == "reloading", "the reload")
    machine.systemctl("stop", service)
    assert machine.show(service, "Result") == "success"


def test_stopInTime(machine: Machine) -> None:
    """A stopped reader is reset at the drain timeout, and the service exits cleanly."""
    addOptions(machine, "--drain-timeout=1")
    machine.path("/etc/fastpoetry/poetry/ecstasy.txt").write_bytes(b"a line\n" * (1 << 21))
    machine.systemctl("start", "fastpoetry@ecstasy")
    reader = subprocess.Popen(
        machine.command("python3", "-c", _READER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    machine.systemctl("stop", "fastpoetry@ecstasy.service")
    assert reader.communicate(timeout=30)[0] == "reset\n"
    assert machine.show("fastpoetry@ecstasy.service", "Result") == "success"


def test_socketStopsEarly(machine: Machine) -> None:
    """A stop of a socket while its check of the name runs is no failure."""
    socket = "fastpoetry@ecstasy.socket"
    for _ in range(5):
        machine.run("sh", "-c", f"systemctl start --no-block {socket}; systemctl stop {socket}")
        assert machine.show(socket, "Result") == "success"


def test_manyStops(machine: Machine) -> None:
    """However often a service is stopped in a row, its socket stays open for a client."""
    service = "fastpoetry@ecstasy.service"
    stops = f"for _ in $(seq 40); do systemctl stop {service} 2>&-; done"
    client = "nc -d 127.0.0.1 10000 >/tmp/poem &"
    machine.run(
        "sh", "-c", f"systemctl start {service}; systemctl stop {service}; {client} {stops}; wait"
    )
    assert machine.path("/tmp/poem").read_bytes() == read("ecstasy")


def test_exitIdle(machine: Machine) -> None:
    """
    A service that exits when idle exits cleanly and leaves its socket, which starts it for the next
    client, even during the exit.
    """
    addOptions(machine, "--exit-idle-time=0.01")
    machine.systemctl("start", "fastpoetry@ecstasy.socket")
    service = "fastpoetry@ecstasy.service"
    for _ in range(3):
        assert machine.fetch(*ECSTASY) == read("ecstasy")
        waitFor(lambda: machine.show(service, "ActiveState") != "active", "the exit")
    waitFor(lambda: machine.show(service, "ActiveState") == "inactive", "the end")
    assert machine.show(service, "Result") == "success"
    assert machine.show("fastpoetry@ecstasy.socket", "ActiveState") == "active"


def test_socketGone(machine: Machine) -> None:
    """When its socket is stopped a service ends too, and leaves no socket file."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    machine.systemctl("stop", "fastpoetry@ecstasy.socket")
    assert machine.show("fastpoetry@ecstasy.service", "ActiveState") == "inactive"
    assert not machine.path("/run/fastpoetry/ecstasy.sock").exists()


def test_socketStops(machine: Machine) -> None:
    """A client that waits when the socket is stopped is reset, since it has no poem."""
    machine.systemctl("start", "fastpoetry@ecstasy.service")
    process = machine.show("fastpoetry@ecstasy.service", "MainPID")
    machine.run("sh", "-c", f"kill -STOP {process}")
    waiting = subprocess.Popen(
        machine.command("python3", "-c", _WAITING), stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "waiting\n"
    machine.run("sh", "-c", f"kill -KILL {process}")
    machine.systemctl("stop", "fastpoetry@ecstasy.socket")
    assert waiting.communicate(timeout=30)[0] == "reset\n"


def test_manyRestarts(machine: Machine) -> None:
    """The number of restarts in quick succession has no limit. systemd's default is 5 in 10 s."""
    for _ in range(7):
        machine.systemctl("restart", "fastpoetry@ecstasy")
    assert machine.fetch(*ECSTASY) == read("ecstasy")


def test_crash(machine: Machine) -> None:
    """
    A client that connects after a crash waits only for the next process, which systemd starts at
    once: crashes have no pause.
    """
    machine.systemctl("start", "fastpoetry@ecstasy")
    for times in ("1", "2"):
        machine.systemctl("kill", "--signal=SIGKILL", "fastpoetry@ecstasy")
        assert machine.fetch(*ECSTASY) == read("ecstasy")
        assert machine.show("fastpoetry@ecstasy", "NRestarts") == times
        pause = "fastpoetry-pause@fastpoetry@ecstasy.service"
        assert machine.show(pause, "ActiveState") == "inactive"


def test_watchdog(machine: Machine) -> None:
    """A service that hangs is restarted."""
    writeDropIn(machine, "fastpoetry@ecstasy.service", "[Service]\nWatchdogSec=2\n")
    machine.systemctl("start", "fastpoetry@ecstasy")
    process = machine.show("fastpoetry@ecstasy", "MainPID")
    machine.systemctl("kill", "--signal=SIGSTOP", "fastpoetry@ecstasy")
    assert machine.fetch(*ECSTASY) == read("ecstasy")
    assert machine.show("fastpoetry@ecstasy", "MainPID") != process
    assert machine.journal("--boot", "--unit=fastpoetry@ecstasy", "--grep=Watchdog timeout")


def test_deaf(machine: Machine) -> None:
    """A service whose port is no longer in the reactor is restarted."""
    machine.path("/run/deaf").mkdir()
    machine.path("/run/deaf/sitecustomize.py").write_text(_DEAF)
    drop = machine.path("/run/systemd/system/fastpoetry@ecstasy.service.d/deaf.conf")
    drop.parent.mkdir()
    drop.write_text("[Service]\nEnvironment=PYTHONPATH=/run/deaf\nWatchdogSec=2\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "fastpoetry@ecstasy")
    process = machine.show("fastpoetry@ecstasy", "MainPID")
    machine.systemctl("kill", "--signal=SIGUSR2", "fastpoetry@ecstasy")
    waitFor(lambda: machine.show("fastpoetry@ecstasy", "NRestarts") == "1", "the restart")
    assert machine.fetch(*ECSTASY) == read("ecstasy")
    assert machine.show("fastpoetry@ecstasy", "MainPID") != process
    assert machine.journal("--boot", "--unit=fastpoetry@ecstasy", f"MESSAGE_ID={NOT_ALIVE}")


def test_enableService(machine: Machine) -> None:
    """Enabling a service enables its socket."""
    machine.systemctl("enable", "fastpoetry@ecstasy.service")
    assert machine.systemctl("is-enabled", "fastpoetry@ecstasy.socket") == "enabled"


def test_users(machine: Machine) -> None:
    """
    On a UNIX socket one user cannot take all places: the service tells users apart in the sandbox.
    """
    poem = b"a line of a long poem\n" * 200_000
    machine.path("/etc/fastpoetry/poetry/ecstasy.txt").write_bytes(poem)
    addOptions(machine, "--max-readers=10 --max-readers-per-source=5")
    machine.systemctl("restart", "fastpoetry@ecstasy")
    greedy = subprocess.Popen(
        machine.command("runuser", "-u", "nobody", "--", "python3", "-c", _GREEDY),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with greedy:
        assert greedy.stdout is not None
        assert greedy.stdout.readline() == b"held\n"
        waitFor(lambda: len(machine.journal(f"MESSAGE_ID={TURNED_AWAY}")) >= 15, "the limit")
        assert machine.fetch("-U", "/run/fastpoetry/ecstasy.sock") == poem
        greedy.communicate()
