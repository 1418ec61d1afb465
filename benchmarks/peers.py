"""
The servers that are compared, and how each is started.

This module measures nothing. By default, a server has its processor to itself.
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
    The poem and the address of a server.

    @ivar options: more words for the command line of fastpoetry.
    @ivar workers: the number of processes, for servers that have such a setting.
    @ivar upstream: host and port of the upstream, for a proxy.
    """

    poem: Path
    port: int
    host: str = "127.0.0.1"
    options: Sequence[str] = ()
    workers: int = 1
    upstream: str = ""

    @property
    def address(self) -> str:
        """Host and port, as clients write them."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Server:
    """
    A running server.

    @ivar leaders: the started processes, which may have children.
    """

    title: str
    where: Where
    leaders: Sequence[int]

    @property
    def pids(self) -> list[int]:
        """The leaders and their descendants."""
        return [pid for leader in self.leaders for pid in machine.family(leader)]


TWISTD = str(Path(sys.executable).parent / "twistd")
"""The twistd of the project's virtual environment, which has the newest Twisted."""


def environment(name: str) -> dict[str, str]:
    """
    @return: a small environment, with only the server's own plugin.

    twistd imports every plugin that it finds, even for another command.
    """
    plugins = HERE / "tutorial" if name == "tutorial" else ROOT
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(plugins)}


def twistdCommand(*words: str, twistd: str = TWISTD) -> list[str]:
    """@return: a command line for twistd in the foreground."""
    return [twistd, "--nodaemon", "--pidfile=", *words]


def _fastpoetry(where: Where) -> list[str]:
    """Run everything as installed: records go to the journal."""
    return twistdCommand(
        "--logger=fastpoetry.systemd.journal.observer",
        "fastpoetry",
        f"--poem={where.poem}",
        f"--port={where.port}",
        f"--iface={where.host}",
        *where.options,
    )


def _tutorial(where: Where) -> list[str]:
    """Log to a file that twistd rotates: twistd's default, and its cheapest log."""
    log = machine.WORK / f"tutorial-{where.port}.log"
    words = [f"--poem={where.poem}", f"--port={where.port}", f"--iface={where.host}"]
    return twistdCommand(f"--logfile={log}", "tutorial-poetry", *words)


def _uvloop(where: Where) -> list[str]:
    """Use the Python of this process."""
    server = str(HERE / "uvloop_server.py")
    return [sys.executable, server, str(where.poem), where.host, str(where.port)]


def _nginx(where: Where) -> list[str]:
    """
    Write the poem into the configuration.

    @raise SystemExit: if the poem contains a dollar sign.
    """
    poem = where.poem.read_text()
    if "$" in poem:  # text without variables is also nginx's fastest case
        raise SystemExit("benchmarks: nginx's return takes a dollar sign for a variable")
    escaped = poem.replace("\\", "\\\\").replace('"', '\\"')
    return _configured(where, f'return "{escaped}"')


def _nginxProxy(where: Where) -> list[str]:
    """Ask the upstream for every poem."""
    return _configured(where, f"proxy_pass {where.upstream}")


def _configured(where: Where, answer: str) -> list[str]:
    """Run nginx with its own configuration."""
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
    """@return: the path of nginx's stream module, on Debian and elsewhere."""
    for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"):
        module = Path(folder, "ngx_stream_module.so")
        if module.exists():
            return str(module)
    raise SystemExit("benchmarks: nginx's stream module is missing (Debian: libnginx-mod-stream)")


def _loop(where: Where) -> list[str]:
    """Compiled by the run."""
    return [str(machine.WORK / "loop"), where.host, str(where.port), str(where.poem)]


def _promise(where: Where) -> list[str]:
    """Compiled by the run."""
    return [str(machine.WORK / "promise"), where.host, str(where.port), str(where.poem)]


def _proxy(where: Where) -> list[str]:
    """Run everything as installed: the proxy asks its upstream once, then now and then."""
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
    """Run systemd's proxy, which takes its listening socket from its environment."""
    proxyd = "/usr/lib/systemd/systemd-socket-proxyd"
    return ["systemd-socket-activate", f"--listen={where.address}", proxyd, where.upstream]


PEERS: dict[str, Callable[[Where], list[str]]] = {
    "fastpoetry": _fastpoetry,
    "nginx": _nginx,
    "loop": _loop,
    "promise": _promise,
    "uvloop": _uvloop,
    "tutorial": _tutorial,
    "proxy": _proxy,
    "socket-proxyd": _socketProxyd,
    "nginx-proxy": _nginxProxy,
}
"""The command line of each server."""


def isListening(where: Where) -> bool:
    """
    Whether a server listens there.

    The kernel's table says so. A trial connection would be counted as a reader.
    """
    wanted = f"{_hexOf(where.host)}:{where.port:04X}"
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            _, local, _, state, *_ = line.split()
            if state != "0A":  # listening sockets come first; the rest may be long
                return False
            if local == wanted:
                return True
    return False


def _hexOf(host: str) -> str:
    """@return: an address as in /proc/net/tcp: a number in the machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


@contextmanager
def serving(name: str, where: Where, cpus: str | None = None) -> Iterator[Server]:
    """
    Run a server for as long as the context.

    @param cpus: its processors, in taskset's form; by default the processor for servers.
    @raise SystemExit: if it does not listen in time, or ends by itself.
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
    Run a process, and terminate it with the context.

    @param descriptors: those that the process inherits.
    @raise SystemExit: if it ended by itself; the end of its output is printed first.
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
