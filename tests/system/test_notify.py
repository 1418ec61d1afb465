"""Tests for C{fastpoetry.systemd.notify} with a real systemd, in programs without services."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from system.machine import Machine, waitFor

# Waits for instructions; its child prints what it inherits.
_PROGRAM = """
import os, subprocess, sys
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
WatchdogSec={}
DynamicUser=yes
"""

Run = Callable[..., None]


@pytest.fixture
def run(machine: Machine) -> Iterator[Run]:
    """Start a program as C{alone.service}."""

    def start(do: str = "pass", settings: str = "", watchdogSeconds: int = 1) -> None:
        program = _PROGRAM.replace("DO", do).replace("SETTINGS", settings)
        machine.path("/usr/local/lib/alone.py").write_text(program)
        machine.path("/run/systemd/system/alone.service").write_text(
            _SERVICE.format(watchdogSeconds)
        )
        machine.systemctl("daemon-reload")
        machine.systemctl("start", "alone.service")

    yield start
    machine.run("systemctl", "stop", "alone.service", check=False)
    machine.run("rm", "/run/systemd/system/alone.service", "/usr/local/lib/alone.py")
    machine.run("sh", "-c", "systemctl daemon-reload; systemctl reset-failed")


def fails(machine: Machine) -> str:
    """@return: systemd's result for the program, once it has failed."""
    waitFor(lambda: machine.show("alone.service", "ActiveState") == "failed", "the failure")
    return machine.show("alone.service", "Result")


def test_alone(machine: Machine, run: Run) -> None:
    """
    One line makes a program send READY, watchdog pings, a status and STOPPING, for its own process
    only.
    """
    run()
    said = waitFor(lambda: machine.journal("--unit=alone", "--grep=inherits"), "the child")
    names = said[0]["MESSAGE"].split(",")
    assert not [name for name in names if name.startswith(("NOTIFY_", "WATCHDOG_", "LISTEN_"))]
    assert machine.show("alone.service", "StatusText") == "fine"
    machine.systemctl("stop", "alone.service")
    assert machine.show("alone.service", "Result") == "success"


def test_nothingToReload(machine: Machine, run: Run) -> None:
    """C{systemctl reload} fails, and an error says that the program cannot reload."""
    run()
    assert machine.run("systemctl", "reload", "alone.service", check=False).returncode != 0
    said = "reload failed: there is nothing to reload"
    assert said in machine.systemctl("status", "alone.service")
    errors = machine.journal("--boot", "--unit=alone", "--priority=err")
    assert said in [record["MESSAGE"] for record in errors]


def test_crashDuringReload(machine: Machine, run: Run) -> None:
    """A program that crashes in the middle of a reload has failed at once, without a watchdog."""
    crash = "reactor.callLater(0.5, os.abort)"
    run(settings=f"reload=lambda: ({crash}, Deferred())[1]", watchdogSeconds=0)
    assert machine.run("systemctl", "reload", "alone.service", check=False).returncode != 0
    assert fails(machine) in ("signal", "core-dump")


def test_trouble(machine: Machine, run: Run) -> None:
    """A program that reports trouble is ended like one that hangs."""
    run('notify.tellTrouble("no disk")')
    assert fails(machine) == "watchdog"


def test_notAlive(machine: Machine, run: Run) -> None:
    """A program that reports that it is not alive is ended too, while its reactor turns."""
    run(settings="alive=lambda: False")
    assert fails(machine) == "watchdog"
