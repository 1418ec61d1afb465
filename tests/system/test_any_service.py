"""
Tests for C{docs/twisted-under-systemd.md}: its commands as printed, with its examples, on a booted
system.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from system.conftest import CLONE, Layers, startMachine
from system.machine import Machine, waitFor
from system.printed import EXAMPLES, copyExamples, follow, readSteps

TEXT = (CLONE / "docs/twisted-under-systemd.md").read_text("utf-8")

_UNKNOWN = "bf959922182f406294f59108d0a5d6d0"
"""The MESSAGE_ID of the guide's own kind of record."""

_QUICK = """
[Service]
WatchdogSec=2
RestartSec=100ms
"""

_TIDY = """
systemctl --quiet disable --now web.socket signpost.socket
systemctl stop tally.socket
systemctl stop web.service
systemctl reset-failed
rm -rf /run/systemd/system/*
systemctl daemon-reload
journalctl --quiet --rotate --vacuum-files=1
"""


@pytest.fixture(scope="module")
def guided(release: str, libraryRoot: Layers) -> Iterator[Machine]:
    """A booted system with the package of the modules."""
    with closing(startMachine(libraryRoot, f"{release}-guided")) as machine:
        yield machine


@pytest.fixture
def machine(guided: Machine) -> Iterator[Machine]:
    """The booted system with the guide's files; no service of the guide runs."""
    copyExamples(guided, TEXT)
    yield guided
    guided.run("sh", "-c", _TIDY)


def get(machine: Machine, *options: str) -> str:
    """curl's output for a request."""
    return machine.run("curl", "--silent", "--show-error", "--max-time", "20", *options).stdout


def test_guide(machine: Machine) -> None:
    """A user who types the guide's commands sees the guide's output."""
    assert len(readSteps(TEXT)) > 15
    follow(machine, TEXT)


def test_sixLines(machine: Machine) -> None:
    """The smallest unit has six lines, and can also be started by hand."""
    unit = EXAMPLES / "web/etc/systemd/system/web.service"
    assert len(unit.read_text().splitlines()) == 6
    machine.systemctl("start", "web.service")
    listing = get(machine, "http://127.0.0.1:8080/")
    assert "systemd" in listing
    assert get(machine, "--unix-socket", "/run/web.sock", "http://web/") == listing
    assert {record["SYSLOG_IDENTIFIER"] for record in machine.journal("_COMM=twistd3")} == {"web"}


def test_quiet(machine: Machine) -> None:
    """Once started, neither of the guide's services logs a complaint."""
    machine.run("sh", "-c", "PYTHONPATH=/opt/signpost twistd3 --help")
    machine.systemctl("start", "web.service", "signpost.service")
    get(machine, "http://127.0.0.1:8080/", "http://127.0.0.1:8081/wiki")
    for unit in ("web", "signpost"):
        records = machine.journal(f"--unit={unit}")
        assert [each for each in records if int(each["PRIORITY"]) < 5] == []
        assert [each for each in records if "plugin cache" in each["MESSAGE"]] == []


def test_readiness(machine: Machine) -> None:
    """When C{systemctl start} returns, the application has sent its readiness and its status."""
    machine.systemctl("start", "signpost.service")
    assert machine.show("signpost.service", "ActiveState") == "active"
    assert machine.show("signpost.service", "StatusText") == "2 names, 0 requests"
    assert machine.show("signpost.service", "WatchdogUSec") == "30s"


def test_record(machine: Machine) -> None:
    """A client's text makes one record of the application's own kind, with only its fields."""
    machine.systemctl("start", "signpost.socket")
    get(machine, "http://127.0.0.1:8081/a%0aPRIORITY=0%0aFORGED=1")
    (record,) = machine.journal(f"MESSAGE_ID={_UNKNOWN}")
    assert record["NAME"] == "a\nPRIORITY=0\nFORGED=1"
    assert record["PRIORITY"] == "4"
    assert record["SYSLOG_IDENTIFIER"] == "signpost"
    assert record["LOG_NAMESPACE"] == "signpost.Signpost"
    assert record["_SYSTEMD_UNIT"] == "signpost.service"
    assert "FORGED" not in record


def test_reload(machine: Machine) -> None:
    """When C{systemctl reload} returns, the same process has the new table."""
    machine.systemctl("start", "signpost.service")
    process = machine.show("signpost.service", "MainPID")
    for number in range(5):
        with machine.path("/etc/signpost").open("a") as table:
            print(f"{number} https://example.org/{number}", file=table)
        machine.systemctl("reload", "signpost.service")
        status = machine.show("signpost.service", "StatusText")
        assert status == f"{3 + number} names, 0 requests"
    assert machine.show("signpost.service", "MainPID") == process


def test_refusal(machine: Machine) -> None:
    """An unreadable table is refused in one line; once it is fixed, waiting clients are served."""
    table = machine.path("/etc/signpost")
    good = table.read_text()
    table.write_text("nonsense\n")
    machine.systemctl("start", "signpost.socket")
    waiting = subprocess.Popen(
        machine.command("curl", "--silent", "--head", "http://127.0.0.1:8081/wiki"),
        stdout=subprocess.PIPE,
        text=True,
    )
    waitFor(lambda: machine.show("signpost.service", "NRestarts") == "2", "the second restart", 30)
    said = machine.journal("--unit=signpost", "_COMM=twistd3", "_TRANSPORT=stdout")
    assert {record["MESSAGE"][:36] for record in said} == {"signpost: --table /etc/signpost: dic"}
    table.write_text(good)
    answer, _ = waiting.communicate(timeout=30)
    assert "https://wiki.debian.org/" in answer


def test_watchdog(machine: Machine) -> None:
    """
    A hanging application logs where it hangs, and is restarted; clients that connect in the
    meantime are served.
    """
    dropIn = machine.path("/run/systemd/system/signpost.service.d/quick.conf")
    dropIn.parent.mkdir(parents=True)
    dropIn.write_text(_QUICK)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "signpost.service")
    machine.systemctl("kill", "--kill-who=main", "--signal=STOP", "signpost.service")
    assert "wiki.debian.org" in get(machine, "--head", "http://127.0.0.1:8081/wiki")
    assert machine.show("signpost.service", "NRestarts") == "1"
    assert machine.journal("--identifier=signpost", "--grep=Fatal Python error: Aborted")
    assert machine.journal("--identifier=signpost", "--grep=in doPoll")


def test_stop(machine: Machine) -> None:
    """A stop is clean; stopping the socket stops the service too."""
    machine.systemctl("start", "signpost.service")
    machine.systemctl("stop", "signpost.socket")
    assert machine.show("signpost.service", "ActiveState") == "inactive"
    assert machine.show("signpost.service", "Result") == "success"
    assert machine.journal("--unit=signpost", "--priority=warning") == []
