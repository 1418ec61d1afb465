"""
A program that makes records on a booted system. They show how the journal observer works with a
real journald.

Run C{python3 journal_probe.py PROBE RUN} as root, with this package importable and on a system that
is only for tests: some probes stop journald. Every record has the field C{RUN}, so that
C{journalctl -o json RUN=...} finds those of one run. The probe prints its own results as one line
of JSON; the caller judges the journal and standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger, globalLogBeginner
from twisted.python import log as legacy

from fastpoetry.systemd import journal

Seen = dict[str, Any]

_log = Logger()

HOSTILE = "\nPRIORITY=0\n\nMESSAGE=forged\nFORGED=1\n\x00\x1b[2J\r\x85\u2028\ud800{}%s"
"""Bytes with which a client could forge a record or a field, or change a terminal's screen."""


def levels(run: str) -> Seen:
    """
    Log one record of each level, then C{log.msg} and C{log.err}: seven records, C{STEP} 0 to 6.
    """
    for step, emit in enumerate([_log.debug, _log.info, _log.warn, _log.error, _log.critical]):
        emit("step {step}", run=run, step=step, message_id="0123456789abcdef" * 2)
    legacy.msg("step 5", run=run, step=5)
    legacy.err(ValueError("nothing raised"), "step 6", run=run, step=6)
    return {}


def failures(run: str) -> Seen:
    """Log a failure in each of Twisted's ways: two records, C{STEP} 0 and 1, from the same line."""
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        _log.failure("step {step}", run=run, step=0)
        legacy.err(None, "step 1", run=run, step=1)
    return {}


def hostile(run: str) -> Seen:
    """Log hostile text as a value, in the text, as bytes, and as a key: one record."""
    values = {"peer": HOSTILE, "raw": HOSTILE.encode("utf-8", "surrogatepass"), "a\nFORGED=1": 1}
    _log.info("from {peer}", run=run, **values)
    return {}


def large(run: str) -> Seen:
    """
    Log a record of 64 KiB in a value, then one that must be cut: two records, C{STEP} 0 and 1.
    """
    _log.info("{poem}", run=run, step=0, poem="x" * 65536)
    _log.info("{poem}", run=run, step=1, poem="é\n" * 2**20, more="y" * 2**20, most="z" * 65536)
    return {}


def steady(run: str, seconds: float = 2, rate: int = 200) -> Seen:
    """
    Log records at an even rate, C{STEP} from 0, while journald is restarted.

    @return: the number of records, and the duration of the slowest call in milliseconds.
    """
    worst = 0.0
    start = time.monotonic()
    total = int(seconds * rate)
    for step in range(total):
        time.sleep(max(0.0, start + step / rate - time.monotonic()))
        before = time.perf_counter()
        _log.info("step {step}", run=run, step=step)
        worst = max(worst, time.perf_counter() - before)
    return {"logged": total, "worstMilliseconds": round(worst * 1000, 3)}


def standstill(run: str) -> Seen:
    """
    Log 5,000 records a second while journald hangs for 3 s, then one more.

    @return: the result of L{steady}, and the resident memory before and after, in KiB.
    """
    journald = _journald()
    before = _resident()
    os.kill(journald, signal.SIGSTOP)
    try:
        seen = steady(run, 3, 5000)
    finally:
        os.kill(journald, signal.SIGCONT)
    time.sleep(2)
    _log.info("after", run=run, step=-1)
    return {**seen, "residentBefore": before, "residentAfter": _resident()}


def stuckExit(run: str) -> Seen:
    """
    End while journald hangs: the end takes no longer than the observer's last wait for journald.
    Wake journald afterwards.
    """
    os.kill(_journald(), signal.SIGSTOP)
    return steady(run, 0.5, 4000)


def gone(run: str) -> Seen:
    """
    Log three records. C{STEP} 1 and 3 go to the journal. C{STEP} 2 goes to standard error, because
    journald and its socket are gone then.
    """
    _log.info("step {step}", run=run, step=1)
    units = ["systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald"]
    subprocess.run(["systemctl", "stop", *units], check=True)
    _log.info("step {step}\n{text}", run=run, step=2, text="[info] forged")
    time.sleep(0.5)
    subprocess.run(["systemctl", "start", *units], check=True)
    _log.info("step {step}", run=run, step=3)
    return {}


def daemon(run: str) -> Seen:
    """
    Fork twice as twistd does, while journald hangs: C{STEP} 0 to 999 from the parent and 1000 from
    the daemon, each once.
    """
    journald = _journald()
    os.kill(journald, signal.SIGSTOP)
    for step in range(1000):
        _log.info("step {step}", run=run, step=step)
    if not os.fork():
        if not os.fork():
            os.kill(journald, signal.SIGCONT)
            _log.info("step {step}", run=run, step=1000)
            sys.exit()
        os._exit(0)
    os.wait()
    return {}


def _journald() -> int:
    show = ["systemctl", "show", "--property=MainPID", "--value", "systemd-journald"]
    return int(subprocess.run(show, check=True, capture_output=True).stdout)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


_PROBES = (levels, failures, hostile, large, steady, standstill, stuckExit, gone, daemon)
PROBES: dict[str, Callable[[str], Seen]] = {probe.__name__: probe for probe in _PROBES}

if __name__ == "__main__":
    observers: list[Any] = [journal.observer()]
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
    print(json.dumps(PROBES[sys.argv[1]](sys.argv[2])), flush=True)
