"""
A server on sockets that the test owns, as systemd would.

A socket outlives its server, which may stop, die and be started again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from .clients import HANG_SECONDS, Address, Reply, connect, readAll

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parent.parent

# As systemd does between fork and exec: LISTEN_PID is known only there.
_LAUNCH = """
import fcntl, os, resource, sys
limit, fds, *command = sys.argv[1:]
passed = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds.split(",") if fd]
for number, fd in enumerate(passed, 3):
    os.dup2(fd, number)
os.closerange(3 + len(passed), 200)
if passed:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)))
if int(limit):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
os.execvp(command[0], command)
"""
_TWISTD = "from twisted.scripts.twistd import run; run()"


def makeText(size: int, seed: int = 0) -> bytes:
    """
    Make a poem of so many bytes, in which all pieces differ.

    @param seed: another seed makes another poem.
    """
    line = b"%07d %07d of a line that is told apart from any\n"
    return b"".join(line % (seed, n) for n in range(size // 54 + 1))[:size]


def wait(condition: Callable[[], object], what: str, seconds: float = HANG_SECONDS) -> None:
    """
    Wait until a condition is true.

    @raise TimeoutError: if it is not true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def command(
    arguments: Sequence[str],
    listeners: dict[str, socket.socket],
    *,
    logger: str = "observers.records",
    descriptors: int = 0,
    before: Sequence[str] = (),
) -> list[str]:
    """
    The command line of a twistd that adopts sockets.

    @param arguments: for twistd, after the common ones.
    @param listeners: the sockets to pass, by name.
    @param logger: the observer of twistd's log.
    @param descriptors: its limit of open files, if any.
    @param before: a command that runs a command.
    """
    fds = ",".join(str(each.fileno()) for each in listeners.values())
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(descriptors), fds, *before]
    options = ["--nodaemon", "--pidfile=", "--no_save", f"--logger={logger}"]
    return [*launch, sys.executable, "-c", _TWISTD, *options, *arguments]


def environment(listeners: dict[str, socket.socket], **others: str) -> dict[str, str]:
    """The environment of such a twistd."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": f"{ROOT}:{_HERE}",
        "LISTEN_FDNAMES": ":".join(listeners),
        **others,
    }


class Server:
    """
    One process of twistd.

    @ivar log: the file of its log and output.
    @ivar pid: the process ID, until it has been waited for.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        listeners: dict[str, socket.socket],
        log: Path,
        environ: dict[str, str],
        **how: Any,
    ) -> None:
        """
        Start the server; until it serves, clients wait in the backlog.

        @param arguments: for twistd, after the common ones.
        @param listeners: the sockets to pass, by name.
        @param environ: additional environment variables.
        @param how: see L{command}.
        """
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command(arguments, listeners, **how),
                env=environment(listeners, **environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[each.fileno() for each in listeners.values()],
            )
        self.pid = self.process.pid

    def records(self, messageID: str = "") -> list[dict[str, Any]]:
        """Its records so far, of one kind or all."""
        return readRecords(self.log, messageID)

    def tracebacks(self) -> list[str]:
        """The tracebacks it has logged or printed."""
        return re.findall(r"(?m)^.*(?:Traceback|log_failure).*$", self.log.read_text())

    def waitFor(self, messageID: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait for so many records of one kind, and return them."""
        # Counting is cheaper than parsing, on a machine that is busy already.
        wait(lambda: self.log.read_text().count(messageID) >= times, f"{times} of {messageID}")
        return self.records(messageID)

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the server, and return its status, negative for a signal."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until the server has ended, and return its status."""
        return self.process.wait(HANG_SECONDS)

    def residentKiB(self, key: str = "VmRSS") -> int:
        """
        Its memory.

        @param key: C{VmHWM} for the maximum since L{forgetPeak}.
        """
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{key}:")[2].split()[0])

    def forgetPeak(self) -> None:
        """Reset C{VmHWM} (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def cpuSeconds(self) -> float:
        """The processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """The number of its open descriptors. A clock's timer comes and goes."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def sockets(self) -> int:
        """The number of its sockets."""
        count = 0
        for each in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a timer has gone
                count += os.readlink(each).startswith("socket:")
        return count

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Nursery:
    """A process that forks servers, one at a time, each within milliseconds."""

    def __init__(
        self, arguments: Sequence[str], listeners: dict[str, socket.socket], log: Path
    ) -> None:
        """
        @param arguments: for twistd, after the common ones.
        @param listeners: the sockets to pass, by name.
        @param log: the file of the servers' logs.
        """
        twistd = command(arguments, listeners)
        # The same arguments, for another program.
        where = twistd.index(_TWISTD)
        twistd[where - 1 : where + 1] = [str(_HERE / "nursery.py")]
        count = str(len(listeners))
        self._process = subprocess.Popen(
            twistd,
            env=environment(listeners, FAULTS_FDS=count, FAULTS_LOG=str(log)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[each.fileno() for each in listeners.values()],
        )

    def order(self, what: str) -> int:
        """
        C{start} a server and return its process ID, or C{kill} or C{wait} for it and return its
        status.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{what}\n")
        if not select.select([stdout], [], [], HANG_SECONDS)[0]:
            raise TimeoutError(what)
        return int(stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=HANG_SECONDS)


def kernelBytes(port: int) -> int | None:
    """
    The memory that the kernel holds for the sockets of one local port: input, output and reserves.
    The result is empty without C{ss}.
    """
    if shutil.which("ss") is None:
        return None
    told = subprocess.run(
        ["ss", "--no-header", "--tcp", "--memory", "--numeric", "sport", "=", f":{port}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sum(map(int, re.findall(r"\b[rwf](\d+)", " ".join(re.findall(r"skmem:\S+", told)))))


def readRecords(log: Path, messageID: str = "") -> list[dict[str, Any]]:
    """Read the records in a log, of one kind or all."""
    lines = log.read_text().split("\n")[:-1]  # the last line may be incomplete
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [each for each in events if messageID in ("", each.get("message_id"))]


class FaultCase(SynchronousTestCase):
    """
    A test case with a folder, sockets and servers, all removed at its end.

    @ivar folder: for the poems and the log.
    @ivar log: of all its servers, one after the other.
    @ivar listeners: the sockets, by name; each serves the poem of its name.
    """

    def setUp(self) -> None:
        """Make the folder, and raise the limits for thousands of clients."""
        self.folder = Path(tempfile.mkdtemp(prefix="fastpoetry-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.log = self.folder / "log"
        self.listeners: dict[str, socket.socket] = {}
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def write(self, text: bytes, name: str = "poem") -> bytes:
        """Replace a poem atomically, as an administrator should."""
        new = self.folder / "new"
        new.write_bytes(text)
        new.rename(self.folder / f"{name}.txt")
        return text

    def listen(self, name: str = "poem", family: int = socket.AF_INET) -> Address:
        """Make a socket that stays open until the test ends."""
        listener = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(listener.close)
        listener.bind(
            str(self.folder / f"{name}.sock") if family == socket.AF_UNIX else ("127.0.0.1", 0)
        )
        listener.listen(4096)
        self.listeners[name] = listener
        address: Address = listener.getsockname()
        return address

    def arguments(self, *options: str, endpoint: str = "adopted") -> list[str]:
        """A command line that serves on each socket the poem of its name."""
        blocks = [
            [f"--poem={self.folder}/{name}.txt", f"--listen={endpoint}:name={name}"]
            for name in self.listeners
        ]
        return ["fastpoetry", *options, *itertools.chain(*blocks)]

    def serve(
        self,
        *options: str,
        endpoint: str = "adopted",
        environ: dict[str, str] | None = None,
        **how: Any,
    ) -> Server:
        """Start a server; see L{Server}."""
        arguments = self.arguments(*options, endpoint=endpoint)
        server = Server(arguments, self.listeners, self.log, environ or {}, **how)
        self.addCleanup(server.close)
        return server

    def nurse(self, *options: str) -> Nursery:
        """Start a process that forks servers. The log exists from now on."""
        self.log.touch()
        nursery = Nursery(self.arguments(*options), self.listeners, self.log)
        self.addCleanup(nursery.close)
        return nursery

    def hold(self, times: int, address: Address, **how: Any) -> list[socket.socket]:
        """
        Connect so many idle clients, see L{connect}; leave out clients that the server has reset in
        the meantime.
        """
        clients = []
        for _ in range(times):
            with contextlib.suppress(ConnectionResetError):
                clients.append(connect(address, **how))
                self.addCleanup(clients[-1].close)
        return clients

    def waitUntilAccepted(self, name: str = "poem") -> None:
        """Wait until a server has accepted every client of a TCP socket."""

        def isEmpty() -> bool:
            # tcpi_unacked of a listening socket counts the clients in its backlog.
            information = self.listeners[name].getsockopt(socket.SOL_TCP, socket.TCP_INFO, 28)
            return information[24:28] == bytes(4)

        wait(isEmpty, "the clients of the backlog")

    def assertAll(self, quality: str, replies: Iterable[Reply]) -> None:
        """Assert that every reply is C{isExact}, or C{isHonest}, and show the others."""
        self.assertEqual([each for each in replies if not getattr(each, quality)][:5], [])

    def assertKillResets(self, server: Server, clients: list[socket.socket], poem: bytes) -> None:
        """
        Kill a server half-way through a poem, and assert that each of its clients gets a reset.
        """
        for client in clients:
            self.assertTrue(client.recv(1000))
        server.end(signal.SIGKILL)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
