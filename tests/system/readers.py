"""
Readers inside a machine, which fetch a poem repeatedly while a test does something to its servers.

They are the clients of L{faults}, which check every byte and how the connection ends.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from system.conftest import SOURCE
from system.machine import Machine

# Ends at the end of its input: when the last process that writes to it has closed it.
_FETCH = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from faults.clients import fetchSteadily

async def main(times, rest, host, port, *poems):
    stop, replies = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: sys.stdin.buffer.raw.read(1) or (loop.remove_reader(0), stop.set()))
    texts = [Path(each).read_bytes() for each in poems]
    print("started", flush=True)
    await fetchSteadily(
        replies, stop, int(times), (host, int(port)), *texts, restSeconds=float(rest)
    )
    json.dump([dataclasses.astuple(each) for each in replies], sys.stdout)

asyncio.run(main(*sys.argv[1:]))
"""


class Replies:
    """
    What readers got.

    @ivar kinds: the number of results of each kind: C{poem}, or what was wrong with it.
    @ivar longestSeconds: the slowest reader's time from its connect to the last byte.
    """

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.longestSeconds = 0.0

    def add(self, count: int, isWhole: bool, isPart: bool, end: str, seconds: float) -> None:
        """Count a reply; see L{faults.clients.Reply}."""
        self.longestSeconds = max(self.longestSeconds, seconds)
        if isWhole and end == "end":
            self.kinds["poem"] += 1
        elif isPart:
            self.kinds[f"{count} bytes, then {end}"] += 1
        else:
            self.kinds["something else"] += 1

    @property
    def poems(self) -> int:
        """The number of readers with the exact poem."""
        return self.kinds["poem"]

    @property
    def faults(self) -> dict[str, int]:
        """The results of the other readers, with their numbers."""
        return {kind: times for kind, times in self.kinds.items() if kind != "poem"}


@contextmanager
def reading(
    machine: Machine,
    port: int,
    *poems: str,
    times: int = 16,
    restSeconds: float = 0.02,
    host: str = "127.0.0.1",
) -> Iterator[Replies]:
    """
    Run readers while the context lasts.

    @param poems: the paths in the machine of all poems they may get.
    @param times: the number of readers at a time.
    @param restSeconds: each reader's pause after a poem. Without it, the readers and their server
        keep two cores busy.
    @return: the results, complete after the context.
    """
    settings = (f"PYTHONPATH={SOURCE}/tests", "PYTHONDONTWRITEBYTECODE=1")
    arguments = ("python3", "-c", _FETCH, str(times), str(restSeconds), host, str(port), *poems)
    replies = Replies()
    process = subprocess.Popen(
        machine.command("env", *settings, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        yield replies
    finally:
        told, _ = process.communicate(timeout=60)
    for each in json.loads(told):
        replies.add(*each)
