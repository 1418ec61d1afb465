"""
The end of C{make test}: prints the shards' logs like one run of pytest.

summary.py BEGUN LOG ...

BEGUN is the time in seconds since 1970. Prints each failure with its reason, its shard and the
command that repeats it, and each reason to skip. Fails if a test failed, or if a shard did not
finish.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

_END = re.compile(r"^=* ?((?:\d+ [a-z]+(?:, )?)+) in ([\d.]+)s\b", re.M)
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)((?: - .*)?)$", re.M)
_SKIP = re.compile(r"^SKIPPED \[\d+\] (.*)$", re.M)


def readCounts(log: str) -> Counter[str]:
    """
    The number of tests for each outcome, from the last line of a log.

    @return: an C{error} if there is no such line.
    """
    found = _END.findall(log)
    if not found:
        return Counter(error=1)
    pairs = (each.split() for each in found[-1][0].split(", "))
    return Counter({kind.removesuffix("s"): int(number) for number, kind in pairs})


def tell(shard: str, log: str) -> Iterator[str]:
    """Print a shard's failures and skips."""
    if not _END.search(log):
        yield f"{shard} did not get to its end:\n{log[-2000:]}"
    for test, reason in _FAILURE.findall(log):
        yield f"FAILED {test}{reason}; in {shard}; alone: make test TESTS='{test}'"
    for reason in _SKIP.findall(log):
        yield f"SKIPPED {reason}"


def main(paths: Iterable[Path], seconds: float) -> int:
    """
    Print the summary.

    @param seconds: the total time.
    @return: the exit status.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        log = path.read_text(errors="replace")
        counts += readCounts(log)
        for line in tell(path.stem, log):
            print(line)
    failed = counts["failed"] + counts["error"]
    if os.environ.get("CI"):
        print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    shown = {"failed": failed, "passed": counts["passed"], "skipped": counts["skipped"]}
    told = ", ".join(f"{number} {kind}" for kind, number in shown.items() if number)
    print(f" {told} in {seconds:.2f}s ".center(80, "="))
    return 1 if failed else 0


if __name__ == "__main__":
    begun, *logs = sys.argv[1:]
    sys.exit(main(map(Path, logs), time.time() - float(begun)))
