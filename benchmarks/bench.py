"""
One measurement: a server, a load on it, and what both came to.

Decides nothing about which servers are compared, or what is good enough.
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
"""What one measurement came to, or the medians of several."""

POEM_BYTES = 3003
READERS = 64

_LINE = '{:06d} "Our eye-beams twisted, and did thread / Our eyes upon one double string" - Donne\n'


@dataclass
class Bench:
    """
    How thoroughly to measure.

    @ivar seconds: of one measurement.
    @ivar rounds: measurements of each server; the median counts.
    @ivar ports: nobody has had them yet.
    """

    seconds: float
    rounds: int
    ports: Iterator[int] = field(default_factory=lambda: count(10001))

    def prepare(self) -> None:
        """Compile what is written in C."""
        for source in ("load", "loop", "far"):
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
        """A poem of a size, and a port nobody has had."""
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
        @param cpus: processors of the load generator; without, the one for clients.
        @param isFar: whether readers are no sockets but the network itself (C{far}).
        @raise SystemExit: when a single poem was not as it should be.
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
        Measure each in turn, several times over, so that what disturbs one disturbs all.

        @return: for each the medians.
        """
        found: dict[str, list[Sample]] = {name: [] for name in measures}
        for _ in range(self.rounds):
            for name, measure in measures.items():
                found[name].append(measure())
        return {name: medians(samples) for name, samples in found.items()}

    def waitUntilIdle(self, server: Server) -> None:
        """Return when a server has nothing to do any more."""
        spent = [-1.0]

        def quiet() -> bool:
            time.sleep(0.1)
            spent.append(machine.cpuSeconds(server.pids))
            return spent[-1] == spent[-2]

        machine.waitUntil(quiet, f"{server.title} at rest")


def medians(samples: Sequence[Sample]) -> Sample:
    """Of each figure the median."""
    return {key: median(sample[key] for sample in samples) for key in samples[0]}


def poemOf(size: int) -> Path:
    """A file with a poem of exactly so many bytes: quotes, UTF-8, and no two lines alike."""
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
    So many connections that are held open, from 200 addresses, while the context lasts.

    @param flags: more words for the load generator.
    @raise SystemExit: when the server gave one of them wrong bytes, or did not keep them.
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
