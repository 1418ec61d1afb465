"""
Tests for restarts as readers see them: how long each waits for its poem.

No reader waits much longer than Python and Twisted take to start. That time depends on the machine
and its load, so it is measured beside the restarts. A reader that waits for a few
starts shows that the machine is busy. A reader that waits for many starts was forgotten, or waited
for a pause.
"""

from __future__ import annotations

import subprocess

import pytest

from system.machine import Machine
from system.readers import reading

SERVICES = ("fastpoetry@ecstasy.service", "fastpoetry@science.service")
SMALL = "/usr/share/fastpoetry/poetry/ecstasy.txt"
LARGE = "/etc/fastpoetry/poetry/science.txt"

# Prints the time that twistd takes to start and do nothing.
_START = (
    "python3",
    "-c",
    "import subprocess as s, time; begun = time.monotonic();"
    "s.run(['twistd3', '--version'], stdout=s.DEVNULL, check=True);"
    "print(time.monotonic() - begun)",
)

_RESTARTS = 6
_STARTS = 4
"""
How long a reader may wait, in starts of twistd. On a quiet machine a reader waits for one start and
a drain. Load slows some parts down more than others, so under load a reader may wait longer.
"""


@pytest.mark.alone
def test_underLoad(machine: Machine) -> None:
    """
    Services of 3 kB and of 1 MiB are restarted together six times. No reader is refused, gets less
    than all, or waits longer than a few starts of twistd take at that time.
    """
    lines = b"".join(b"%07d, a line that is told apart from any\n" % n for n in range(30_000))
    machine.path(LARGE).write_bytes(lines[: 1 << 20])
    machine.systemctl("start", *SERVICES)
    starts = []
    with (
        reading(machine, 10000, SMALL) as small,
        reading(machine, 10002, LARGE, times=4) as large,
    ):
        for _ in range(_RESTARTS):
            timing = subprocess.Popen(machine.command(*_START), stdout=subprocess.PIPE)
            machine.systemctl("restart", *SERVICES)
            starts.append(float(timing.communicate(timeout=60)[0]))
    for replies in (small, large):
        print(f"\n{replies.poems:,} poems, each within {replies.longestSeconds:.3f} s")
        print(f"a start of twistd took {max(starts):.3f} s at most")
        assert (replies.faults, replies.poems > _RESTARTS) == ({}, True)
        assert replies.longestSeconds < _STARTS * max(starts)
