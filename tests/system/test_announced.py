"""
Tests for the records about instances in the journal of C{fastpoetry}, where people look first.
"""

from __future__ import annotations

import pytest
from messages import INSTANCE_FAILED, INSTANCE_STARTING, INSTANCE_STOPPED

from system.machine import Machine, waitFor

ECSTASY = "fastpoetry@ecstasy"
KINDS = {
    INSTANCE_STARTING: "is starting",
    INSTANCE_STOPPED: "has stopped",
    INSTANCE_FAILED: "has failed",
}
FORGE = """logger --journald <<END
MESSAGE=forged
OBJECT_SYSTEMD_UNIT=fastpoetry.service
END
"""


class Journal:
    """The records of C{journalctl -u fastpoetry} from now on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._before = len(machine.journal("-u", "fastpoetry"))

    def read(self) -> list[tuple[str, str]]:
        """The announcements, each with its unit."""
        records = self._machine.journal("-u", "fastpoetry")[self._before :]
        for each in records:
            text = f"{each['UNIT_NAME']} {KINDS[each['MESSAGE_ID']]}. Its records: "
            assert each["MESSAGE"] == f"{text}journalctl -u {each['UNIT_NAME']}"
        return [(KINDS[each["MESSAGE_ID"]], each["UNIT_NAME"]) for each in records]


def test_announced(machine: Machine) -> None:
    """
    C{journalctl -u fastpoetry} and C{systemctl status fastpoetry} show each start, stop and crash
    of an instance, with the command that shows its records.
    """
    journal = Journal(machine)
    machine.systemctl("start", ECSTASY)
    line = f"{ECSTASY} is starting. Its records: journalctl -u {ECSTASY}"
    machine.run("journalctl", "--sync")
    assert line in machine.run("systemctl", "status", "fastpoetry", check=False).stdout
    machine.systemctl("restart", ECSTASY)
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", ECSTASY)
    waitFor(lambda: len(journal.read()) == 5, "the start after the crash")
    machine.systemctl("stop", f"{ECSTASY}.socket")
    stop, crash = ("has stopped", "has failed")
    events = ["is starting", stop, "is starting", crash, "is starting", stop]
    assert journal.read() == [(event, ECSTASY) for event in events]


@pytest.mark.parametrize(
    ("break_", "mend"),
    [
        ("chmod a-x /usr/bin/twistd3", "chmod a+x /usr/bin/twistd3"),
        ("echo OPTIONS=--help >FILE", "rm FILE"),
        ("echo OPTIONS=--nonsense >FILE", "rm FILE"),
        ("touch /etc/fastpoetry/poetry/ecstasy.txt", "rm /etc/fastpoetry/poetry/ecstasy.txt"),
    ],
)
def test_failure(machine: Machine, break_: str, mend: str) -> None:
    """A service that fails to start is announced once, even if it could not be executed."""
    journal = Journal(machine)
    for command in (break_, f"! systemctl start {ECSTASY}", mend):
        machine.run("sh", "-c", command.replace("FILE", f"/etc/fastpoetry/{ECSTASY}.env"))
    machine.systemctl("stop", f"{ECSTASY}.socket")
    assert journal.read() == [("is starting", ECSTASY), ("has failed", ECSTASY)]
    assert machine.journal("-u", "fastpoetry", "--priority=err")


@pytest.mark.parametrize("instance", ["fastpoetry@typo", "fastpoetry-proxy@typo"])
def test_mistyped(machine: Machine, instance: str) -> None:
    """
    An instance whose socket has failed is announced once. The announcement names the socket, whose
    records show the cause.
    """
    journal = Journal(machine)
    assert machine.run("systemctl", "start", instance, check=False).returncode != 0
    waitFor(journal.read, "the announcement")
    assert journal.read() == [("has failed", f"{instance}.socket")]
    assert machine.journal("-u", f"{instance}.socket", "--priority=err", "--grep=typo")


def test_forged(machine: Machine) -> None:
    """A record of the same form is not shown if a user other than root made it."""
    machine.run("runuser", "-unobody", "--", "sh", "-c", FORGE)
    assert machine.journal("--boot", "--grep=^forged$")
    shown = machine.run("journalctl", "-u", "fastpoetry", "--grep=^forged$", check=False)
    assert "forged" not in shown.stdout
