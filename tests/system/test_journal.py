"""
Tests for the journal observer with a real journald: what arrives, and what happens when journald
hangs or is gone.
"""

from __future__ import annotations

import json
from typing import Any

from messages import DROPPED, SENT

from system.conftest import SOURCE
from system.journal_probe import HOSTILE
from system.machine import Machine, waitFor
from system.readers import reading
from system.test_serving import ECSTASY, addOptions, read


def probe(machine: Machine, name: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """
    Run one of the probes.

    @return: its own results, and the records that it made.
    """
    script = f"{SOURCE}/tests/system/journal_probe.py"
    run = f"{name}-{machine.show('systemd-journald', 'InvocationID')}"
    seen = machine.run("env", f"PYTHONPATH={SOURCE}", "python3", "-B", script, name, run)
    machine.run("journalctl", "--sync")
    records = machine.journal(f"RUN={run}")
    return json.loads(seen.stdout), records


def test_levels(machine: Machine) -> None:
    """Each of Twisted's levels, new and old, has its priority, and each event is one record."""
    _, records = probe(machine, "levels")
    found = {record["STEP"]: (record["PRIORITY"], record["LOG_LEVEL"]) for record in records}
    assert len(records) == 7
    assert {record["SYSLOG_FACILITY"] for record in records} == {"3"}
    assert found == {
        "0": ("7", "debug"),
        "1": ("6", "info"),
        "2": ("4", "warn"),
        "3": ("3", "error"),
        "4": ("2", "critical"),
        "5": ("6", "info"),
        "6": ("3", "error"),
    }


def test_failures(machine: Machine) -> None:
    """A failure is one record, with its traceback and the place where it was raised."""
    _, records = probe(machine, "failures")
    assert [record["STEP"] for record in records] == ["0", "1"]
    for record in records:
        assert "Traceback" in record["MESSAGE"]
        assert record["CODE_FUNC"] == "failures"
        assert "FORGED" not in record


def test_stream(machine: Machine) -> None:
    """
    Without a journal socket, a service's lines on standard error have their priority, and a
    traceback is one record.
    """
    script = f"{SOURCE}/tests/system/journal_probe.py"
    settings = ("--property=InaccessiblePaths=/run/systemd/journal/socket", "--unit=stream")
    command = ("env", f"PYTHONPATH={SOURCE}", "python3", "-B", script, "failures", "stream")
    machine.run("systemd-run", "--quiet", "--wait", *settings, *command)
    said = machine.journal("--unit=stream", "_TRANSPORT=stdout", "--priority=warning")
    priorities = [record["PRIORITY"] for record in said]
    assert priorities == ["4", "2", "3"]
    assert [record["MESSAGE"][:6] for record in said[1:]] == ["step 0", "step 1"]
    assert all("Traceback" in record["MESSAGE"] for record in said[1:])


def test_hostile(machine: Machine) -> None:
    """Hostile text in any place adds no record and no field."""
    _, records = probe(machine, "hostile")
    assert len(records) == 1
    assert records[0]["PRIORITY"] == "6"
    assert "FORGED" not in records[0]
    assert HOSTILE.count("\x1b") == 1
    assert "\x1b" not in records[0]["PEER"]


def test_standsStill(machine: Machine) -> None:
    """
    While journald hangs no caller waits for it; afterwards the log goes on, and counts the lost
    records.
    """
    seen, records = probe(machine, "standstill")
    kept = [record for record in records if record["STEP"] != "-1"]
    lost = [int(record["DROPPED"]) for record in machine.journal(f"MESSAGE_ID={DROPPED}")]
    assert len(kept) + lost[-1] == seen["logged"]
    assert records[-1]["STEP"] == "-1"
    assert seen["residentAfter"] - seen["residentBefore"] < 16 * 1024


def test_restarted(machine: Machine) -> None:
    """
    If the journal is gone for a moment no record is lost: records of that time are on standard
    error.
    """
    _, records = probe(machine, "gone")
    assert [record["STEP"] for record in records] == ["1", "3"]


def test_servesOn(machine: Machine) -> None:
    """The server serves while journald hangs, and its records arrive afterwards."""
    machine.systemctl("start", "fastpoetry@ecstasy")
    journald = machine.show("systemd-journald", "MainPID")
    machine.run("sh", "-c", f"kill -STOP {journald}")
    try:
        poems = [machine.fetch(*ECSTASY) for _ in range(20)]
    finally:
        machine.run("sh", "-c", f"kill -CONT {journald}")
    assert poems == [read("ecstasy")] * 20
    run = machine.show("fastpoetry@ecstasy", "InvocationID")
    sent = (f"MESSAGE_ID={SENT}", f"_SYSTEMD_INVOCATION_ID={run}")
    waitFor(lambda: len(machine.journal(*sent)) == 20, "the records of twenty poems")


def test_servesOnUnderLoad(machine: Machine) -> None:
    """With journald hanging and its socket full, every reader is served."""
    poem = "/usr/share/fastpoetry/poetry/ecstasy.txt"
    # 513 records fill the socket; journald takes 10,000 in 30 s.
    addOptions(machine, "--journal-budget=600")
    machine.systemctl("start", "fastpoetry@ecstasy")
    journald = machine.show("systemd-journald", "MainPID")

    def countSent() -> int:
        status = machine.show("fastpoetry@ecstasy", "StatusText")
        return int(status.partition("): ")[2].partition(" ")[0].replace(",", ""))

    machine.run("sh", "-c", f"kill -STOP {journald}")
    try:
        with reading(machine, int(ECSTASY[1]), poem, restSeconds=0) as replies:
            waitFor(lambda: countSent() > 10_000, "many poems", 60)
    finally:
        machine.run("sh", "-c", f"kill -CONT {journald}")
    assert (replies.faults, replies.poems > 10_000) == ({}, True)
    run = machine.show("fastpoetry@ecstasy", "InvocationID")
    sent = (f"MESSAGE_ID={SENT}", f"_SYSTEMD_INVOCATION_ID={run}")
    waitFor(lambda: len(machine.journal(*sent)) > 513, "more records than fit into the socket")


def test_lastWords(machine: Machine) -> None:
    """A stop waits until a journald that was hanging has every record, to twistd's last line."""
    # 513 records fill the socket.
    addOptions(machine, "--journal-budget=1000")
    machine.systemctl("start", "fastpoetry@ecstasy")
    run = machine.show("fastpoetry@ecstasy", "InvocationID")
    journald = machine.show("systemd-journald", "MainPID")
    fetching = "for each in $(seq 600); do nc -d 127.0.0.1 10000 >/dev/null; done"
    stop = "systemctl stop --no-block fastpoetry@ecstasy"
    machine.run("sh", "-c", f"kill -STOP {journald}; {fetching}; {stop}; kill -CONT {journald}")
    waitFor(lambda: machine.show("fastpoetry@ecstasy", "ActiveState") == "inactive", "the stop")
    machine.run("journalctl", "--sync")
    records = machine.journal(f"_SYSTEMD_INVOCATION_ID={run}")
    assert len([each for each in records if each.get("MESSAGE_ID") == SENT]) == 600
    assert "Server Shut Down." in [each["MESSAGE"] for each in records]
