"""
Tests of restarts as readers see them: what each of them waits for its poem.

This one test measures time, since that nobody waits for a second is itself what is promised. It
took 0.4 s on two quiet cores, nearly all of it Python's own start.
"""

from __future__ import annotations

import subprocess
import time

from system.machine import Machine, awaitTime, waitFor
from system.readers import reading

SERVICES = ("fastpoetry@ecstasy.service", "fastpoetry@science.service")
SMALL = "/usr/share/fastpoetry/poetry/ecstasy.txt"
LARGE = "/etc/fastpoetry/poetry/science.txt"

_RESTARTS = 20


def test_underLoad(machine: Machine, unitTests: subprocess.Popen[str]) -> None:
    """
    While services of 3 kB and of 1 MiB are each restarted 20 times in 20 s, none of their readers
    is refused, gets less than all, or waits for a second.
    """
    # They would take all of a core, of which the readers know nothing.
    waitFor(lambda: unitTests.poll() is not None, "the tests beside this one to end", 300)
    lines = b"".join(b"%07d, a line that is told apart from any\n" % n for n in range(30_000))
    machine.path(LARGE).write_bytes(lines[: 1 << 20])
    machine.systemctl("start", *SERVICES)
    with (
        reading(machine, 10000, SMALL) as small,
        reading(machine, 10002, LARGE, times=4) as large,
    ):
        began = time.monotonic()
        for number in range(_RESTARTS):
            awaitTime(began + number)
            for service in SERVICES:
                machine.systemctl("restart", service)
    for replies in (small, large):
        print(f"\n{replies.poems:,} poems, each within {replies.longestSeconds:.3f} s")
        assert (replies.faults, replies.poems > _RESTARTS) == ({}, True)
        assert replies.longestSeconds < 1
