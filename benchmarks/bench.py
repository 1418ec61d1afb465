"""
One measurement: a server, a load on it, and the figures of both.

This module does not select the servers and does not judge the figures.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

import machine
from peers import HERE, Server, Where

Sample = dict[str, float]
"""The figures of one measurement, or the medians of several."""

POEM_BYTES = 3003
READERS = 64

_LINE = '{:06d} "Our eye-beams twisted, and did thread / Our eyes upon one double string" - Donne\n'


@dataclass
class Bench:
    """
    How thoroughly to measure.

    @ivar seconds: the length of one measurement.
    @ivar rounds: measurements of each server; the median counts.
    @ivar ports: unused port numbers.
    """

    seconds: float
    rounds: int
    ports: Iterator[int] = field(default_factory=lambda: count(10001))

    def prepare(self) -> None:
        """Compile what is written in C."""
        for source in ("load", "loop", "promise", "far"):
            build = ["cc", "-O2", "-o", str(machine.WORK / source), str(HERE / f"{source}.c")]
            subprocess.run(build, check=True)

    def place(
        self,
        size: int = POEM_BYTES,
        host: str = "127.0.0.1",
        options: Sequence[str] = (),
        workers: int = 1,
        upstream: str = "",
    ) -> Where:
        """@return: a poem of a size, and an unused port."""
        return Where(poemOf(size), next(self.ports), host, options, workers, upstream)

    def measure(
        self,
        server: Server,
        *flags: str,
        readers: int = READERS,
        seconds: float | None = None,
        cpus: str | None = None,
        isFar: bool = False,
    ) -> Sample:
        """
        Put load on a server.

        @param flags: more words for the load generator.
        @param cpus: processors of the load generator; by default the processor for clients.
        @param isFar: whether C{far} plays the readers without sockets.
        @raise SystemExit: if a poem was wrong, short, reset, refused or late.
        """
        before = machine.cpuSeconds(server.pids)
        words = ["-c", str(readers), "-t", str(seconds or self.seconds), *flags]
        told = _runLoad("far" if isFar else "load", server, words, cpus)
        spent = machine.cpuSeconds(server.pids) - before
        told["cpuMicroseconds"] = spent * 1e6 / max(1, told["poems"])
        told["serverBusy"] = spent / told["seconds"]
        return told

    def rotate(self, measures: dict[str, Callable[[], Sample]]) -> dict[str, Sample]:
        """
        Measure each in turn, in several rounds, so that a disturbance hits all.

        @return: the medians of each.
        """
        found: dict[str, list[Sample]] = {name: [] for name in measures}
        for _ in range(self.rounds):
            for name, measure in measures.items():
                found[name].append(measure())
        return {name: medians(samples) for name, samples in found.items()}

    def waitUntilIdle(self, server: Server) -> None:
        """Return when a server has become idle."""
        spent = [-1.0]

        def quiet() -> bool:
            time.sleep(0.1)
            spent.append(machine.cpuSeconds(server.pids))
            return spent[-1] == spent[-2]

        machine.waitUntil(quiet, f"{server.title} at rest")


def medians(samples: Sequence[Sample]) -> Sample:
    """@return: the median of each figure."""
    return {key: median(sample[key] for sample in samples) for key in samples[0]}


def poemOf(size: int) -> Path:
    """@return: a poem of exactly C{size} bytes of UTF-8, with quotes and no two lines alike."""
    path = machine.WORK / f"poem-{size}.txt"
    if not path.exists():
        lines = b"".join(_LINE.format(number).encode() for number in range(size // 80 + 1))
        whole = lines[: size - 1].decode(errors="ignore").encode()
        path.write_bytes(whole.ljust(size, b"\n"))
    return path


def _runLoad(program: str, server: Server, words: Sequence[str], cpus: str | None) -> Sample:
    """Run a load generator to its end."""
    where = server.where
    load = ["taskset", "-c", cpus or machine.processors()[1], str(machine.WORK / program)]
    command = [*load, "-e", str(where.poem), *words, where.address]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks: FAULT: {server.title}: {' '.join(words)}: {done.stdout}")
    told: Sample = json.loads(done.stdout)
    return told


@contextmanager
def holding(where: Where, readers: int, *flags: str) -> Iterator[None]:
    """
    Hold connections open, from 200 addresses, while the context lasts.

    @param flags: more words for the load generator.
    @raise SystemExit: if the server sent wrong bytes or closed more than a tenth of them.
    """
    pinned = ["taskset", "-c", machine.processors()[1], str(machine.WORK / "load")]
    words = ["-H", str(readers), "-s", "200", "-e", str(where.poem), *flags, where.address]
    process = subprocess.Popen(
        [*pinned, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    if process.stderr.readline() != "holding\n":
        raise SystemExit("benchmarks: FAULT: could not hold readers")
    yield
    process.terminate()
    told, _ = process.communicate()
    if process.returncode or json.loads(told)["reopened"] > readers / 10:
        raise SystemExit(f"benchmarks: FAULT: of {readers} readers held: {told}")
