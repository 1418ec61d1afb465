"""
What is compared with what, and how good is good enough.

Each row measures one thing and knows its bars. How a measurement is made is not its business.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import machine
from bench import Bench, Sample, holding, medians
from peers import (
    Server,
    Where,
    environment,
    isListening,
    serving,
    started,
    twistd,
    twistdCommand,
)

MEBIBYTE = 1 << 20
FEW = 4
"""Readers of large poems at a time: more only take turns."""

_ANY = "0.0.0.0"
"""Where a server listens that is reached through the device of C{far}."""

_MANY = ("--max-readers=20000", "--max-readers-per-source=20000")
"""The limits on readers, out of the way."""


@dataclass(frozen=True)
class Bar:
    """
    A claim about two figures.

    @ivar ratio: what it came to.
    @ivar least: it should be at least that,
    @ivar most: or at most that.
    """

    claim: str
    ratio: float
    least: float | None = None
    most: float | None = None

    @property
    def isMet(self) -> bool:
        """
        Whether it is as it should be.
        """
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )


@dataclass
class Row:
    """
    What was found.

    @ivar figures: which figures of the samples to print, first the one that matters.
    """

    title: str
    figures: Sequence[str]
    samples: dict[str, Sample]
    bars: list[Bar] = field(default_factory=list)


def rate(bench: Bench) -> Row:
    """
    How many poems a second, and what one costs the server.
    """
    names = ("fastpoetry", "nginx", "loop", "uvloop", "asyncio", "silent", "tutorial")
    with _serving(bench, names) as servers:
        samples = _rotated(bench, servers)
        records = machine.countRecords("MESSAGE_ID=51c4b039c6b549da8188e2ad236b9868")
    if not records:
        raise SystemExit("benchmarks: FAULT: fastpoetry wrote no record to the journal")
    rates = _figure(samples, "poemsPerSecond")
    costs = _figure(samples, "cpuMicroseconds")
    return Row(
        "3,003 bytes, 64 at a time, records to the journal",
        ("poemsPerSecond", "cpuMicroseconds", "serverBusy", "busy", "p50us", "p99us"),
        samples,
        [
            Bar("poems/s against nginx", rates["fastpoetry"] / rates["nginx"], least=1.0),
            Bar("poems/s against the tutorial", rates["fastpoetry"] / rates["tutorial"], least=2.5),
            Bar("CPU a poem against nginx", costs["fastpoetry"] / costs["nginx"], most=1.3),
        ],
    )


def card(bench: Bench) -> Row:
    """
    The same when the server's processor does all that a server's does, and nothing for clients.
    """
    names = ("fastpoetry", "nginx", "loop", "uvloop")
    receivers = f"{1 << int(machine.processors()[0]):x}"
    with _serving(bench, names, host=_ANY) as servers:
        samples = _rotated(bench, servers, "-d", "0", "-r", receivers, program="far")
    rates = _figure(samples, "poemsPerSecond")
    costs = _figure(samples, "cpuMicroseconds")
    return Row(
        "3,003 bytes, 64 at a time, as through a network card of the server's processor",
        ("poemsPerSecond", "cpuMicroseconds", "serverBusy", "busy", "p50us", "p99us"),
        samples,
        [
            Bar("poems/s against nginx", rates["fastpoetry"] / rates["nginx"]),
            Bar("CPU a poem against nginx", costs["fastpoetry"] / costs["nginx"], most=1.3),
        ],
    )


def held(bench: Bench) -> Row:
    """
    What 10,000 readers that hardly read take from the others.
    """
    readers = 10_000
    with _serving(bench, ("fastpoetry", "nginx"), options=_MANY) as servers:
        measures: dict[str, Callable[[], Sample]] = {}
        for name, server in servers.items():
            measures[name] = partial(bench.measure, server)
            measures[f"{name}, {readers:,} held"] = partial(_measureHeld, bench, server, readers)
        samples = bench.rotate(measures)
    rates = _figure(samples, "poemsPerSecond")
    kept = {name: rates[f"{name}, {readers:,} held"] / rates[name] for name in servers}
    return Row(
        f"the same beside {readers:,} slow readers",
        ("poemsPerSecond", "cpuMicroseconds", "p99us", "residentPerHeld", "kernelPerHeld"),
        samples,
        [
            Bar("fastpoetry keeps of its poems/s", kept["fastpoetry"], least=0.8),
            Bar("nginx keeps of its poems/s", kept["nginx"]),
        ],
    )


def big(bench: Bench) -> Row:
    """
    How fast a poem of 16 MiB leaves.
    """
    with _serving(bench, ("fastpoetry", "loop"), size=16 * MEBIBYTE) as servers:
        samples = _rotated(bench, servers, readers=FEW)
    bytes_ = _figure(samples, "bytesPerSecond")
    return Row(
        f"16 MiB, {FEW} at a time",
        ("bytesPerSecond", "cpuMicroseconds", "serverBusy", "busy"),
        samples,
        [Bar("bytes/s against the C loop", bytes_["fastpoetry"] / bytes_["loop"], least=0.9)],
    )


def stopped(bench: Bench) -> Row:
    """
    What 1,000 readers that have stopped in a poem of 16 MiB cost in memory.
    """
    readers = 1_000
    with _serving(bench, ("fastpoetry",), size=16 * MEBIBYTE, options=_MANY) as servers:
        server = servers["fastpoetry"]
        bench.measure(server, readers=FEW)
        bench.settle(server)
        resident, kernel = machine.residentBytes(server.pids), machine.socketBytes()
        with holding(server.where, readers):
            bench.settle(server)
            resident = machine.residentBytes(server.pids) - resident
            kernel = machine.socketBytes() - kernel
    sample = {"residentMiB": resident / MEBIBYTE, "kernelMiB": kernel / MEBIBYTE}
    return Row(
        f"memory for {readers:,} readers that stopped in 16 MiB",
        tuple(sample),
        {"fastpoetry": sample},
        [Bar("resident MiB more", sample["residentMiB"], most=20.0)],
    )


def latency(bench: Bench) -> Row:
    """
    How long one reader in a hundred has to wait, under half of what each server can do.
    """
    with _serving(bench, ("fastpoetry", "nginx", "tutorial")) as servers:
        most = _figure(_rotated(bench, servers), "poemsPerSecond")
        measures: dict[str, Callable[[], Sample]] = {
            name: partial(_measureAt, bench, server, most[name] / 2)
            for name, server in servers.items()
        }
        equal = "fastpoetry at nginx's rate"
        measures[equal] = partial(_measureAt, bench, servers["fastpoetry"], most["nginx"] / 2)
        samples = bench.rotate(measures)
    late = _figure(samples, "p99us")
    return Row(
        "latency under half load",
        ("p99us", "p50us", "maxus", "poemsPerSecond"),
        samples,
        [
            Bar("p99 against nginx, half of its own", late["fastpoetry"] / late["nginx"], most=2.0),
            Bar("p99 against nginx, same rate", late[equal] / late["nginx"], most=2.0),
        ],
    )


def distance(bench: Bench) -> Row:
    """
    Readers 10 ms away, where nothing is acknowledged at once and every reader lingers.
    """
    with _serving(bench, ("fastpoetry", "nginx", "uvloop"), host=_ANY) as servers:
        samples = bench.rotate(
            {
                name: partial(bench.measure, server, "-d", "10", readers=4000, program="far")
                for name, server in servers.items()
            }
        )
    rates = _figure(samples, "poemsPerSecond")
    costs = _figure(samples, "cpuMicroseconds")
    return Row(
        "3,003 bytes, 4,000 at a time, 10 ms away",
        ("poemsPerSecond", "cpuMicroseconds", "serverBusy", "busy", "p50us", "p99us"),
        samples,
        [
            Bar("poems/s against nginx", rates["fastpoetry"] / rates["nginx"], least=1.0),
            Bar("CPU a poem against nginx", costs["fastpoetry"] / costs["nginx"]),
        ],
    )


def cold(bench: Bench) -> Row:
    """
    From the first connection to the last byte when the service has yet to start.
    """
    poem = f"--poem={bench.place().poem}"
    fast = ("--logger=fastpoetry.systemd.journal.observer", "fastpoetry", poem, "--listen=adopted:")
    plain = ("tutorial-poetry", poem, "--listen=systemd:domain=INET:index=0")
    measures: dict[str, Callable[[], Sample]] = {
        "fastpoetry": partial(_measureCold, bench, "fastpoetry", fast),
        "tutorial": partial(_measureCold, bench, "tutorial", plain),
        "twistd --version": _measureVersion,
    }
    rounds = [{name: measure() for name, measure in measures.items()} for _ in range(11)]
    samples = {name: medians([one[name] for one in rounds[1:]]) for name in measures}
    times = _figure(samples, "milliseconds")
    return Row(
        "cold start: from the first connection to the last byte",
        ("milliseconds",),
        samples,
        [Bar("against the tutorial", times["fastpoetry"] / times["tutorial"], most=1.05)],
    )


def idle(bench: Bench) -> Row:
    """
    What a server that waits has in memory.
    """
    samples: dict[str, Sample] = {}
    with _serving(bench, ("fastpoetry", "tutorial", "uvloop", "nginx")) as servers:
        for name, server in servers.items():
            bench.settle(server)
            samples[name] = {"residentMiB": machine.residentBytes(server.pids) / MEBIBYTE}
    sizes = _figure(samples, "residentMiB")
    return Row(
        "memory of an idle server",
        ("residentMiB",),
        samples,
        [Bar("against the tutorial", sizes["fastpoetry"] / sizes["tutorial"], most=1.1)],
    )


def cores(bench: Bench) -> Row:
    """
    Two processes on one listening socket, on two processors that they share with the clients.
    """
    both = ",".join(machine.processors())
    with ExitStack() as stack:
        servers = {
            "fastpoetry, one process": stack.enter_context(_sharing(bench.place(), 1, both)),
            "fastpoetry, two processes": stack.enter_context(_sharing(bench.place(), 2, both)),
            "nginx, two workers": stack.enter_context(
                serving("nginx", bench.place(workers=2), both)
            ),
        }
        samples = _rotated(bench, servers, cpus=both)
    rates = _figure(samples, "poemsPerSecond")
    one, two, nginx = rates.values()
    return Row(
        "two processors for servers and clients together",
        ("poemsPerSecond", "cpuMicroseconds", "p99us"),
        samples,
        [
            Bar("two processes against one", two / one),
            Bar("two processes against nginx's two workers", two / nginx),
        ],
    )


def heldCurve(bench: Bench) -> Row:
    """
    How cost grows with readers held.
    """
    bench = bench.brief
    samples: dict[str, Sample] = {}
    with _serving(bench, ("fastpoetry",), options=_MANY) as servers:
        for readers in (1, 10, 100, 1_000, 10_000):
            measures = [
                _measureHeld(bench, servers["fastpoetry"], readers) for _ in range(bench.rounds)
            ]
            samples[str(readers)] = medians(measures)
    return Row("readers held", ("poemsPerSecond", "cpuMicroseconds", "p99us"), samples)


def sizeCurve(bench: Bench) -> Row:
    """
    How cost grows with the size of the poem, against a loop in C.
    """
    bench = bench.brief
    samples: dict[str, Sample] = {}
    for size in (1, 100, 1_000, 10_000, 100_000, MEBIBYTE, 4 * MEBIBYTE, 16 * MEBIBYTE):
        with _serving(bench, ("fastpoetry", "loop"), size=size) as servers:
            readers = FEW if size >= MEBIBYTE else 64
            for name, sample in _rotated(bench, servers, readers=readers).items():
                samples[f"{size} {name}"] = sample
    return Row(
        "bytes of the poem", ("poemsPerSecond", "bytesPerSecond", "cpuMicroseconds"), samples
    )


def journalCurve(bench: Bench) -> Row:
    """
    How cost grows with the records a second that single connections may have.
    """
    bench = bench.brief
    samples: dict[str, Sample] = {}
    for budget in (0, 1, 10, 100, 200, 1_000, 10_000, 100_000):
        options = (f"--journal-budget={budget}",)
        with _serving(bench, ("fastpoetry",), options=options) as servers:
            samples[str(budget)] = _rotated(bench, servers)["fastpoetry"]
    return Row("records a second", ("poemsPerSecond", "cpuMicroseconds", "p99us"), samples)


def proxy(bench: Bench) -> Row:
    """
    Proxies before one upstream: one of them need not ask, whether it can be asked or not.
    """
    names = ("proxy", "nginx-proxy", "socket-proxyd")
    # Client sockets would be the limit of ours, and of ours alone.
    near = ("-d", "0")
    with _serving(bench, ("fastpoetry",), host=_ANY) as servers, ExitStack() as stack:
        upstream = f"127.0.0.1:{servers['fastpoetry'].where.port}"
        for name in names:
            where = bench.place(host=_ANY, upstream=upstream)
            servers[name] = stack.enter_context(serving(name, where))
        servers["proxy, upstream down"] = stack.enter_context(_widowed(bench, ("--max-age=1",)))
        samples = _rotated(bench, servers, *near, program="far")
    rates = _figure(samples, "poemsPerSecond")
    costs = _figure(samples, "cpuMicroseconds")
    mine = rates["proxy"]
    return Row(
        "proxies, 3,003 bytes, 64 at a time",
        ("poemsPerSecond", "cpuMicroseconds", "serverBusy", "busy", "p99us"),
        samples,
        [
            Bar("poems/s against the server", mine / rates["fastpoetry"], least=0.95),
            Bar("CPU a poem against the server", costs["proxy"] / costs["fastpoetry"], most=1.05),
            Bar("poems/s against nginx's proxy_pass", mine / rates["nginx-proxy"], least=3.0),
            Bar("poems/s against socket-proxyd", mine / rates["socket-proxyd"], least=5.0),
            Bar("stale poems/s against fresh", rates["proxy, upstream down"] / mine, least=0.95),
        ],
    )


ROWS: dict[str, Callable[[Bench], Row]] = {
    "rate": rate,
    "card": card,
    "held": held,
    "big": big,
    "stopped": stopped,
    "latency": latency,
    "distance": distance,
    "cold": cold,
    "idle": idle,
    "cores": cores,
    "proxy": proxy,
    "held-curve": heldCurve,
    "size-curve": sizeCurve,
    "journal-curve": journalCurve,
}


@contextmanager
def _serving(
    bench: Bench,
    names: Sequence[str],
    size: int = 3003,
    host: str = "127.0.0.1",
    options: Sequence[str] = (),
) -> Iterator[dict[str, Server]]:
    """
    Several servers side by side; only one is under load at a time.
    """
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(name, bench.place(size, host, options)))
            for name in names
        }


@contextmanager
def _widowed(bench: Bench, options: Sequence[str]) -> Iterator[Server]:
    """
    A proxy that fetched a poem once and whose upstream is down since.
    """
    with ExitStack() as stack:
        with serving("fastpoetry", bench.place()) as upstream:
            where = bench.place(host=_ANY, options=options, upstream=upstream.where.address)
            server = stack.enter_context(serving("proxy", where))
            bench.measure(server, "-d", "0", seconds=0.1, program="far")
        time.sleep(1.5)  # what it has is stale now
        yield server


def _rotated(
    bench: Bench,
    servers: dict[str, Server],
    *flags: str,
    readers: int = 64,
    cpus: str | None = None,
    program: str = "load",
) -> dict[str, Sample]:
    """
    Measure servers in turn, after a moment to warm up.

    @param flags: and the rest as in L{Bench.measure}.
    """
    measure = partial(bench.measure, readers=readers, cpus=cpus, program=program)
    for server in servers.values():
        measure(server, *flags, seconds=0.3)
    return bench.rotate(
        {name: partial(measure, server, *flags) for name, server in servers.items()}
    )


def _figure(samples: dict[str, Sample], key: str) -> dict[str, float]:
    """
    One figure of each sample.
    """
    return {name: sample[key] for name, sample in samples.items()}


def _measureHeld(bench: Bench, server: Server, readers: int) -> Sample:
    """
    Measure beside readers that are held: with the smallest buffer, and above the least rate.
    """
    bench.settle(server)
    resident, kernel = machine.residentBytes(server.pids), machine.socketBytes()
    with holding(server.where, readers, "-b", "1", "-p", "100"):
        time.sleep(1.0)
        resident = machine.residentBytes(server.pids) - resident
        kernel = machine.socketBytes() - kernel
        sample = bench.measure(server)
    sample["residentPerHeld"] = resident / readers
    sample["kernelPerHeld"] = kernel / readers
    return sample


def _measureAt(bench: Bench, server: Server, perSecond: float) -> Sample:
    """
    Measure with readers that come at their own pace.
    """
    return bench.measure(server, "-r", f"{perSecond:.0f}", readers=1000)


def _measureCold(bench: Bench, name: str, words: Sequence[str]) -> Sample:
    """
    One reader of a service that its first connection starts.
    """
    where = bench.place()
    handed = [f"--setenv={key}={value}" for key, value in environment(name).items()]
    activate = ["systemd-socket-activate", f"--listen={where.address}", "--fdname=poetry", *handed]
    pinned = ["taskset", "-c", machine.processors()[0], *activate, *twistdCommand(*words)]
    with started(name, pinned) as process:
        machine.waitUntil(lambda: isListening(where), "systemd-socket-activate")
        server = Server(name, where, [process.pid])
        told = bench.measure(server, "-n", "1", readers=1)
    return {"milliseconds": told["maxus"] / 1000}


def _measureVersion() -> Sample:
    """
    What Python and twistd take to come up and do nothing.
    """
    begin = time.monotonic()
    subprocess.run(
        ["taskset", "-c", machine.processors()[0], twistd(), "--version"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {"milliseconds": (time.monotonic() - begin) * 1000}


@contextmanager
def _sharing(where: Where, processes: int, cpus: str) -> Iterator[Server]:
    """
    Processes of fastpoetry that accept from one socket, as instances with the same C{Sockets=} do.
    """
    words = ("--logger=fastpoetry.systemd.journal.observer", "fastpoetry", f"--poem={where.poem}")
    command = ["taskset", "-c", cpus, *twistdCommand(*words, "--listen=adopted:")]
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((where.host, where.port), backlog=4096))
        passed = f"exec 3<&{listener.fileno()}; "
        passed += 'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=poetry; exec "$@"'
        pids = [
            stack.enter_context(
                started(f"shared-{n}", ["sh", "-c", passed, "sh", *command], [listener.fileno()])
            ).pid
            for n in range(processes)
        ]
        server = Server(f"fastpoetry, {processes} processes", where, pids)
        time.sleep(1.5)  # each of them must be up, or the first would be measured alone
        yield server
