"""Tests of C{fastpoetry.systemd.notify} with a real systemd, in programs without services."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from system.machine import Machine, waitFor

# Waits to be told what to do; its child tells what it inherits.
_PROGRAM = """
import subprocess, sys
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred
from fastpoetry.systemd.notify import startNotifying

def main(reactor):
    notify = startNotifying(reactor, status=lambda: "fine", SETTINGS)
    reactor.callWhenRunning(reactor.callLater, 0, begin, notify)
    return Deferred()

def begin(notify):
    subprocess.run([sys.executable, "-c", "import os; print('inherits', *os.environ, sep=',')"])
    DO

task.react(main)
"""

_SERVICE = """
[Service]
Type=notify
ExecStart=/usr/bin/python3 -B /usr/local/lib/alone.py
ExecReload=/usr/bin/python3 -BI -m fastpoetry.systemd.reload
WatchdogSec=1
DynamicUser=yes
"""

Run = Callable[..., None]


@pytest.fixture
def run(machine: Machine) -> Iterator[Run]:
    """Starts a program as C{alone.service}."""

    def start(do: str = "pass", settings: str = "") -> None:
        program = _PROGRAM.replace("DO", do).replace("SETTINGS", settings)
        machine.path("/usr/local/lib/alone.py").write_text(program)
        machine.path("/run/systemd/system/alone.service").write_text(_SERVICE)
        machine.systemctl("daemon-reload")
        machine.systemctl("start", "alone.service")

    yield start
    machine.run("systemctl", "stop", "alone.service", check=False)
    machine.run("rm", "/run/systemd/system/alone.service", "/usr/local/lib/alone.py")
    machine.run("sh", "-c", "systemctl daemon-reload; systemctl reset-failed")


def fails(machine: Machine) -> str:
    """@return: how systemd says that the program has failed, once it has."""
    waitFor(lambda: machine.show("alone.service", "ActiveState") == "failed", "the failure")
    return machine.show("alone.service", "Result")


def test_alone(machine: Machine, run: Run) -> None:
    """One line has a program be ready, watched, have a status and stop, for itself alone."""
    run()
    said = waitFor(lambda: machine.journal("--unit=alone", "--grep=inherits"), "the child")
    names = said[0]["MESSAGE"].split(",")
    assert not [name for name in names if name.startswith(("NOTIFY_", "WATCHDOG_", "LISTEN_"))]
    assert machine.show("alone.service", "StatusText") == "fine"
    machine.systemctl("stop", "alone.service")
    assert machine.show("alone.service", "Result") == "success"


def test_nothingToReload(machine: Machine, run: Run) -> None:
    """C{systemctl reload} fails, and says that there is nothing to reload."""
    run()
    assert machine.run("systemctl", "reload", "alone.service", check=False).returncode != 0
    assert "reload failed: there is nothing to reload" in machine.systemctl(
        "status", "alone.service"
    )


def test_trouble(machine: Machine, run: Run) -> None:
    """A program that is in trouble is ended as one that hangs."""
    run('notify.tellTrouble("no disk")')
    assert fails(machine) == "watchdog"


def test_notAlive(machine: Machine, run: Run) -> None:
    """So is one that says that it is not alive, while its reactor turns."""
    run(settings="alive=lambda: False")
    assert fails(machine) == "watchdog"
