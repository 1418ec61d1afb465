"""
The rows: what each compares, and the bars that the result must meet.

A row measures one thing. L{bench} makes the measurement.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import machine
from bench import READERS, Bench, Sample, holding, medians
from peers import (
    ROOT,
    TWISTD,
    Server,
    Where,
    environment,
    isListening,
    serving,
    started,
    twistdCommand,
)

sys.path.append(str(ROOT / "tests"))

from messages import SENT

MEBIBYTE = 1 << 20
FEW = 4
"""Readers of large poems at a time; more readers would only take turns."""

DEBIAN_TWISTD = "/usr/bin/twistd3"
"""The twistd that the package runs on, if it is installed."""

_ANY = "0.0.0.0"
"""The address of a server that readers reach through the device of C{far}."""

_MANY = ("--max-readers=20000", "--max-readers-per-source=20000")
"""Limits on readers that no row reaches."""

_JOURNAL = "--logger=fastpoetry.systemd.journal.observer"

_SPEED = ("poemsPerSecond", "cpuMicroseconds", "serverBusy", "busy", "p50us", "p99us")


@dataclass(frozen=True)
class Bar:
    """
    A claim about two figures.

    @ivar ratio: the measured ratio of the two.
    @ivar least: the bar for a ratio that should be high.
    @ivar most: the bar for a ratio that should be low.
    """

    claim: str
    ratio: float
    least: float | None = None
    most: float | None = None

    @property
    def isMet(self) -> bool:
        """Whether the ratio meets the bar."""
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )


@dataclass
class Row:
    """
    The results of one row.

    @ivar figures: which figures of the samples to print, the most important first.
    """

    title: str
    figures: Sequence[str]
    samples: dict[str, Sample]
    bars: list[Bar] = field(default_factory=list)

    def compare(
        self,
        key: str,
        other: str,
        least: float | None = None,
        most: float | None = None,
        one: str = "fastpoetry",
    ) -> None:
        """Compare a figure of one server with that of another."""
        ratio = self.samples[one][key] / self.samples[other][key]
        self.bars.append(Bar(f"{key} of {one} against {other}", ratio, least, most))


def rate(bench: Bench) -> Row:
    """How many poems a second, and what one costs the server."""
    names = ("fastpoetry", "nginx", "promise", "loop", "uvloop", "tutorial")
    with _serving(bench, names) as servers:
        row = Row("3,003 bytes, 64 at a time", _SPEED, _rotated(bench, servers))
        if not machine.countRecords(f"MESSAGE_ID={SENT}"):
            raise SystemExit("benchmarks: FAULT: fastpoetry wrote no record to the journal")
    row.compare("poemsPerSecond", "nginx", least=1.0)
    row.compare("cpuMicroseconds", "nginx", most=1.3)
    row.compare("cpuMicroseconds", "promise", most=1.5)
    row.compare("cpuMicroseconds", "tutorial", most=0.5)
    return row


def card(bench: Bench) -> Row:
    """Measure the same where the server's processor does all work of the server only."""
    receivers = f"{1 << int(machine.processors()[0]):x}"
    with _serving(
        bench, ("fastpoetry", "nginx", "promise", "loop", "uvloop"), host=_ANY
    ) as servers:
        samples = _rotated(bench, servers, "-d", "0", "-r", receivers, isFar=True)
    row = Row("the same as through a network card of the server's processor", _SPEED, samples)
    # Without a bar: the same code came to 0.82 to 1.00, by the virtual machine's interrupts.
    row.compare("poemsPerSecond", "nginx")
    row.compare("cpuMicroseconds", "promise", most=1.5)
    row.compare("poemsPerSecond", "uvloop", least=1.0)
    return row


def distance(bench: Bench) -> Row:
    """Measure readers 10 ms away: every acknowledgement is late, and every reader lingers."""
    with _serving(bench, ("fastpoetry", "nginx"), host=_ANY) as servers:
        samples = _rotated(bench, servers, "-d", "10", readers=4000, isFar=True)
    row = Row("3,003 bytes, 4,000 at a time, 10 ms away", _SPEED, samples)
    row.compare("poemsPerSecond", "nginx", least=1.0)
    row.compare("cpuMicroseconds", "nginx")
    return row


def latency(bench: Bench) -> Row:
    """Measure the wait of the slowest hundredth of readers, at half of nginx's poems/s."""
    with _serving(bench, ("fastpoetry", "nginx")) as servers:
        pace = bench.measure(servers["nginx"])["poemsPerSecond"] / 2
        samples = _rotated(bench, servers, "-r", f"{pace:.0f}", readers=1000)
    row = Row(
        "latency at half of nginx's rate", ("p99us", "p50us", "maxus", "poemsPerSecond"), samples
    )
    row.compare("p99us", "nginx", most=2.0)
    return row


def sizes(bench: Bench) -> Row:
    """Measure bytes/s for poems of several sizes."""
    samples: dict[str, Sample] = {}
    for size in (100, 10_000, 100_000, MEBIBYTE, 4 * MEBIBYTE, 16 * MEBIBYTE):
        with _serving(bench, ("fastpoetry", "loop"), size=size) as servers:
            found = _rotated(bench, servers, readers=FEW if size >= MEBIBYTE else READERS)
        samples |= {f"{size} {name}": sample for name, sample in found.items()}
    row = Row("bytes of the poem", ("bytesPerSecond", "poemsPerSecond", "cpuMicroseconds"), samples)
    for size in (MEBIBYTE, 16 * MEBIBYTE):
        row.compare("bytesPerSecond", f"{size} loop", least=0.9, one=f"{size} fastpoetry")
    return row


def held(bench: Bench) -> Row:
    """Measure what 10,000 readers that hardly read take from the others."""
    readers = 10_000
    name = f"beside {readers:,}"
    with _serving(bench, ("fastpoetry",), options=_MANY) as servers:
        server = servers["fastpoetry"]
        measures: dict[str, Callable[[], Sample]] = {
            "fastpoetry": partial(bench.measure, server),
            name: partial(_measureHeld, bench, server, readers),
        }
        samples = bench.rotate(measures)
    row = Row(
        f"the same beside {readers:,} readers of 100 bytes/s",
        ("poemsPerSecond", "cpuMicroseconds", "p99us", "residentMiB", "kernelMiB"),
        samples,
    )
    row.compare("poemsPerSecond", "fastpoetry", least=0.8, one=name)
    return row


def stopped(bench: Bench) -> Row:
    """Measure the memory for 1,000 readers that have stopped in a poem of 16 MiB."""
    with _serving(bench, ("fastpoetry",), size=16 * MEBIBYTE, options=_MANY) as servers:
        server = servers["fastpoetry"]
        bench.measure(server, readers=FEW)
        bench.waitUntilIdle(server)
        before = _memory(server)
        with holding(server.where, 1_000):
            bench.waitUntilIdle(server)
            sample = _grown(_memory(server), before)
    bars = [Bar("resident MiB more", sample["residentMiB"], most=20.0)]
    return Row(
        "memory for 1,000 readers that stopped in 16 MiB",
        tuple(sample),
        {"fastpoetry": sample},
        bars,
    )


def start(bench: Bench) -> Row:
    """
    Measure a cold start, and the memory of the waiting server, on Debian's own Python and Twisted.

    The time runs from the first connection, at which systemd-socket-activate starts the service, to
    the last byte.
    """
    twistd = DEBIAN_TWISTD if Path(DEBIAN_TWISTD).exists() else TWISTD
    poem = f"--poem={bench.place().poem}"
    fast = (_JOURNAL, "fastpoetry", poem, "--listen=adopted:")
    plain = ("tutorial-poetry", poem, "--listen=systemd:domain=INET:index=0")
    measures: dict[str, Callable[[], Sample]] = {
        "fastpoetry": partial(
            _measureStart, bench, "fastpoetry", twistdCommand(*fast, twistd=twistd)
        ),
        "tutorial": partial(_measureStart, bench, "tutorial", twistdCommand(*plain, twistd=twistd)),
        "twistd --version": partial(_measureVersion, twistd),
    }
    rounds = [{name: do() for name, do in measures.items()} for _ in range(2 * bench.rounds + 2)]
    samples = {name: medians([each[name] for each in rounds[1:]]) for name in measures}
    row = Row(
        f"cold start, and memory of who waits, with {twistd}",
        ("milliseconds", "residentMiB"),
        samples,
    )
    row.compare("milliseconds", "twistd --version", most=1.15)
    row.compare("milliseconds", "tutorial", most=0.85)
    row.compare("residentMiB", "tutorial", most=0.85)
    return row


def records(bench: Bench) -> Row:
    """Measure the cost of records about single connections, for several journal budgets."""
    with ExitStack() as stack:
        servers = {
            budget: stack.enter_context(
                serving("fastpoetry", bench.place(options=(f"--journal-budget={budget}",)))
            )
            for budget in ("0", "200", "10000")
        }
        row = Row("records a second", _SPEED, _rotated(bench, servers))
    row.compare("cpuMicroseconds", "0", one="200")
    row.compare("cpuMicroseconds", "0", one="10000")
    return row


def cores(bench: Bench) -> Row:
    """Measure two processes on one socket, on two processors that they share with clients."""
    both = ",".join(machine.processors())
    with ExitStack() as stack:
        servers = {
            f"fastpoetry, {count}": stack.enter_context(_sharing(bench.place(), count, both))
            for count in (1, 2)
        }
        servers["nginx, 2"] = stack.enter_context(serving("nginx", bench.place(workers=2), both))
        samples = _rotated(bench, servers, cpus=both)
    row = Row("processes on two processors for servers and clients together", _SPEED, samples)
    row.compare("poemsPerSecond", "fastpoetry, 1", one="fastpoetry, 2")
    row.compare("poemsPerSecond", "nginx, 2", one="fastpoetry, 2")
    return row


def proxy(bench: Bench) -> Row:
    """Measure proxies of one upstream. Ours has a copy, so it works with the upstream down too."""
    with _serving(bench, ("fastpoetry",), host=_ANY) as servers, ExitStack() as stack:
        upstream = f"127.0.0.1:{servers['fastpoetry'].where.port}"
        for name in ("proxy", "nginx-proxy", "socket-proxyd"):
            where = bench.place(host=_ANY, upstream=upstream)
            servers[name] = stack.enter_context(serving(name, where))
        servers["proxy, upstream down"] = stack.enter_context(_widowed(bench, ("--max-age=1",)))
        # Client sockets would be the limit of ours, and of ours alone.
        samples = _rotated(bench, servers, "-d", "0", isFar=True)
    row = Row("proxies, 3,003 bytes, 64 at a time", _SPEED, samples)
    row.compare("poemsPerSecond", "fastpoetry", least=0.95, one="proxy")
    row.compare("cpuMicroseconds", "fastpoetry", most=1.05, one="proxy")
    row.compare("poemsPerSecond", "nginx-proxy", least=3.0, one="proxy")
    row.compare("poemsPerSecond", "socket-proxyd", least=5.0, one="proxy")
    row.compare("poemsPerSecond", "proxy", least=0.95, one="proxy, upstream down")
    return row


ROWS: dict[str, Callable[[Bench], Row]] = {
    row.__name__: row
    for row in (
        rate, card, distance, latency, sizes, held, stopped, start, records, cores, proxy,
    )
}  # fmt: skip


@contextmanager
def _serving(
    bench: Bench,
    names: Sequence[str],
    size: int = 3003,
    host: str = "127.0.0.1",
    options: Sequence[str] = (),
) -> Iterator[dict[str, Server]]:
    """Run several servers side by side; only one is under load at a time."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(name, bench.place(size, host, options)))
            for name in names
        }


@contextmanager
def _widowed(bench: Bench, options: Sequence[str]) -> Iterator[Server]:
    """Run a proxy that has fetched a poem and whose upstream is down."""
    with ExitStack() as stack:
        with serving("fastpoetry", bench.place()) as upstream:
            where = bench.place(host=_ANY, options=options, upstream=upstream.where.address)
            server = stack.enter_context(serving("proxy", where))
            bench.measure(server, "-d", "0", seconds=0.1, isFar=True)
        time.sleep(1.5)  # the copy is stale now
        yield server


@contextmanager
def _sharing(where: Where, processes: int, cpus: str) -> Iterator[Server]:
    """
    Run processes of fastpoetry on one socket, like instances with the same C{Sockets=}.
    """
    words = twistdCommand(_JOURNAL, "fastpoetry", f"--poem={where.poem}", "--listen=adopted:")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((where.host, where.port), backlog=4096))
        passed = f"exec 3<&{listener.fileno()}; "
        passed += 'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=poetry; exec "$@"'
        command = ["taskset", "-c", cpus, "sh", "-c", passed, "sh", *words]
        pids = [
            stack.enter_context(started(f"shared-{n}", command, [listener.fileno()])).pid
            for n in range(processes)
        ]
        time.sleep(1.5)  # each of them must be up, or the first would be measured alone
        yield Server(f"fastpoetry, {processes}", where, pids)


def _rotated(
    bench: Bench,
    servers: dict[str, Server],
    *flags: str,
    readers: int = READERS,
    cpus: str | None = None,
    isFar: bool = False,
) -> dict[str, Sample]:
    """
    Measure servers in turn, after a moment to warm up.

    @param flags: this and the others are those of L{Bench.measure}.
    """
    measure = partial(bench.measure, readers=readers, cpus=cpus, isFar=isFar)
    for server in servers.values():
        measure(server, *flags, seconds=0.3)
    return bench.rotate(
        {name: partial(measure, server, *flags) for name, server in servers.items()}
    )


def _memory(server: Server) -> Sample:
    """@return: the resident memory of a server, and the kernel's memory for TCP."""
    return {
        "residentMiB": machine.residentBytes(server.pids) / MEBIBYTE,
        "kernelMiB": machine.socketBytes() / MEBIBYTE,
    }


def _grown(after: Sample, before: Sample) -> Sample:
    """@return: the growth of each figure."""
    return {key: after[key] - before[key] for key in before}


def _measureHeld(bench: Bench, server: Server, readers: int) -> Sample:
    """Measure beside held readers, with the smallest buffer and just above the least rate."""
    bench.waitUntilIdle(server)
    before = _memory(server)
    with holding(server.where, readers, "-b", "1", "-p", "100"):
        time.sleep(1.0)
        grown = _grown(_memory(server), before)
        return bench.measure(server) | grown


def _measureStart(bench: Bench, name: str, words: Sequence[str]) -> Sample:
    """Measure the first reader of a service that its connection starts, then the idle memory."""
    where = bench.place()
    handed = [f"--setenv={key}={value}" for key, value in environment(name).items()]
    activate = ["systemd-socket-activate", f"--listen={where.address}", "--fdname=poetry", *handed]
    with started(name, ["taskset", "-c", machine.processors()[0], *activate, *words]) as process:
        machine.waitUntil(lambda: isListening(where), "systemd-socket-activate")
        server = Server(name, where, [process.pid])
        told = bench.measure(server, "-n", "1", readers=1)
        bench.waitUntilIdle(server)
        return {"milliseconds": told["maxus"] / 1000, "residentMiB": _memory(server)["residentMiB"]}


def _measureVersion(twistd: str) -> Sample:
    """Measure how long Python and twistd take to start and exit."""
    begin = time.monotonic()
    command = ["taskset", "-c", machine.processors()[0], twistd, "--version"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return {"milliseconds": (time.monotonic() - begin) * 1000}
