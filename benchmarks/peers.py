"""
The servers that are compared, and how each is started.

Measures nothing. Every server is the only thing on its processor, unless it is told otherwise.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Where:
    """
    What a server is to serve, and where.

    @ivar options: more words for the command line of fastpoetry.
    @ivar workers: processes, where a server knows of them.
    @ivar upstream: host and port of the server that a proxy stands before.
    """

    poem: Path
    port: int
    host: str = "127.0.0.1"
    options: Sequence[str] = ()
    workers: int = 1
    upstream: str = ""

    @property
    def address(self) -> str:
        """As clients write it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Server:
    """
    A server that runs.

    @ivar leaders: the processes that were started; they may have others.
    """

    title: str
    where: Where
    leaders: Sequence[int]

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return [pid for leader in self.leaders for pid in machine.family(leader)]


TWISTD = str(Path(sys.executable).parent / "twistd")
"""The newest, as the project's virtual environment has it."""


def environment(name: str) -> dict[str, str]:
    """
    What a server finds in its environment: little, and only its own plugin.

    twistd imports every plugin it can see, whether it is to run or not.
    """
    plugins = HERE / "tutorial" if name == "tutorial" else ROOT
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(plugins)}


def twistdCommand(*words: str, twistd: str = TWISTD) -> list[str]:
    """A command line of twistd in the foreground."""
    return [twistd, "--nodaemon", "--pidfile=", *words]


def _fastpoetry(where: Where) -> list[str]:
    """Everything on, as installed: records go to the journal."""
    return twistdCommand(
        "--logger=fastpoetry.systemd.journal.observer",
        "fastpoetry",
        f"--poem={where.poem}",
        f"--port={where.port}",
        f"--iface={where.host}",
        *where.options,
    )


def _tutorial(where: Where) -> list[str]:
    """Its log goes to a file that twistd rotates: twistd's own default, and the cheapest for it."""
    log = machine.WORK / f"tutorial-{where.port}.log"
    words = [f"--poem={where.poem}", f"--port={where.port}", f"--iface={where.host}"]
    return twistdCommand(f"--logfile={log}", "tutorial-poetry", *words)


def _uvloop(where: Where) -> list[str]:
    """Beside the Python that runs this."""
    server = str(HERE / "uvloop_server.py")
    return [sys.executable, server, str(where.poem), where.host, str(where.port)]


def _nginx(where: Where) -> list[str]:
    """
    The poem stands in its configuration.

    @raise SystemExit: for a poem that cannot stand there as it is.
    """
    poem = where.poem.read_text()
    if "$" in poem:  # and text without variables is its fastest case
        raise SystemExit("benchmarks: nginx's return takes a dollar sign for a variable")
    escaped = poem.replace("\\", "\\\\").replace('"', '\\"')
    return _configured(where, f'return "{escaped}"')


def _nginxProxy(where: Where) -> list[str]:
    """Asks its upstream for every poem."""
    return _configured(where, f"proxy_pass {where.upstream}")


def _configured(where: Where, answer: str) -> list[str]:
    """nginx, with a configuration of its own."""
    filled = (HERE / "nginx.conf").read_text()
    for name, value in {
        "WORK": str(machine.WORK),
        "MODULE": _streamModule(),
        "WORKERS": str(where.workers),
        "HOST": where.host,
        "PORT": str(where.port),
        "ANSWER": answer,
    }.items():
        filled = filled.replace(f"@{name}@", value)
    configuration = machine.WORK / f"nginx-{where.port}.conf"
    configuration.write_text(filled)
    return ["nginx", "-c", str(configuration)]


def _streamModule() -> str:
    """Where Debian and others keep nginx's stream module."""
    for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"):
        module = Path(folder, "ngx_stream_module.so")
        if module.exists():
            return str(module)
    raise SystemExit("benchmarks: nginx's stream module is missing (Debian: libnginx-mod-stream)")


def _loop(where: Where) -> list[str]:
    """Compiled by the run."""
    return [str(machine.WORK / "loop"), where.host, str(where.port), str(where.poem)]


def _proxy(where: Where) -> list[str]:
    """Everything on, as installed: it asks its upstream once, and now and then."""
    host, port = where.upstream.split(":")
    return twistdCommand(
        "--logger=fastpoetry.systemd.journal.observer",
        "fastpoetry-proxy",
        f"--upstream=tcp:host={host}:port={port}",
        f"--port={where.port}",
        f"--iface={where.host}",
        *where.options,
    )


def _socketProxyd(where: Where) -> list[str]:
    """systemd's own, which takes its listening socket from its environment."""
    proxyd = "/usr/lib/systemd/systemd-socket-proxyd"
    return ["systemd-socket-activate", f"--listen={where.address}", proxyd, where.upstream]


PEERS: dict[str, Callable[[Where], list[str]]] = {
    "fastpoetry": _fastpoetry,
    "nginx": _nginx,
    "loop": _loop,
    "uvloop": _uvloop,
    "tutorial": _tutorial,
    "proxy": _proxy,
    "socket-proxyd": _socketProxyd,
    "nginx-proxy": _nginxProxy,
}
"""How each server is started."""


def isListening(where: Where) -> bool:
    """
    Whether somebody accepts connections there.

    It is looked up instead of tried: a trial would be a reader, and be counted.
    """
    wanted = f"{_hexOf(where.host)}:{where.port:04X}"
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            _, local, _, state, *_ = line.split()
            if state != "0A":  # those that listen come first, and what follows may be long
                return False
            if local == wanted:
                return True
    return False


def _hexOf(host: str) -> str:
    """An address as /proc/net/tcp writes it: a number in the machine's own order of bytes."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


@contextmanager
def serving(name: str, where: Where, cpus: str | None = None) -> Iterator[Server]:
    """
    A server that runs for as long as the context.

    @param cpus: its processors, as taskset has them; without, the one for servers.
    @raise SystemExit: when it does not come to listen, or ends by itself.
    """
    command = ["taskset", "-c", cpus or machine.processors()[0], *PEERS[name](where)]
    with started(name, command) as process:
        machine.waitUntil(lambda: isListening(where) or process.poll() is not None, name)
        yield Server(name, where, [process.pid])


@contextmanager
def started(
    name: str, command: Sequence[str], descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """
    A process that is ended with the context.

    @param descriptors: what it is to inherit.
    @raise SystemExit: if it ended by itself, after the end of what it printed.
    """
    said = machine.WORK / f"{name}.out"
    with said.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=machine.WORK,
            env=environment(name),
            pass_fds=descriptors,
        )
    try:
        yield process
    finally:
        status = process.poll()
        process.terminate()
        process.wait()
        if status is not None:
            sys.stderr.write(said.read_text(errors="replace")[-2000:])
            raise SystemExit(f"benchmarks: {name} ended by itself with {status}")
