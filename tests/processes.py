"""
Real twistd processes for tests, and clients for them.

This module waits for conditions, never for time. It ends only processes that were started here:
each carries a mark in its environment, which identifies those that outlive their parents.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
from fcntl import ioctl
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from fakes import makeFolder, receiveAll
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent

SECONDS = 30.0
"""The timeout for everything: much longer than a busy machine takes for immediate work."""

_MARK = "FASTPOETRY_TEST"

Address = tuple[str, int] | str
"""A server's address: a host and a port, or the path of a UNIX socket."""

_T = TypeVar("_T")


def findTwistd() -> list[str]:
    """
    The twistd of the environment in which the tests run.

    @return: a command, to which arguments are added.
    """
    beside = os.path.dirname(sys.executable)
    for path in (beside, None):
        for name in ("twistd", "twistd3"):  # Debian has only twistd3
            if script := shutil.which(name, path=path):
                return [sys.executable, script]
    raise FileNotFoundError(f"no twistd in {beside} or along the PATH")


def waitUntil(condition: Callable[[], _T], what: str) -> _T:
    """
    Wait until something is true.

    @param what: a description of the condition.
    @return: the condition's result.
    @raise TimeoutError: if the wait takes too long.
    """
    deadline = time.monotonic() + SECONDS
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{SECONDS:g} s were not enough: {what}")
        time.sleep(0.01)
    return result


def findFreePort() -> int:
    """
    A free TCP port of localhost. The kernel gives no such port to other sockets by itself (ip(7),
    C{ip_local_port_range}), so it is still free when a process binds it.
    """
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def fetch(address: Address) -> bytes:
    """
    The bytes that a client gets.

    @raise OSError: if no process listens there.
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(SECONDS)
        client.connect(address)
        return receiveAll(client)


def fetchFrom(process: subprocess.Popen[str], address: Address) -> bytes:
    """
    The bytes that a client gets as soon as a process that was just started listens.

    @raise AssertionError: if the process ends instead.
    """

    def attempt() -> bytes:
        if process.poll() is not None:
            raise AssertionError(finish(process))
        # A client that comes while the port is only being checked, before twistd begins, is reset.
        with suppress(ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
            return fetch(address)
        return b""

    return waitUntil(attempt, f"a poem from {address}")


def isRunning(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    return statusOf(pid).get("State", "Z")[0] != "Z"


def statusOf(pid: int) -> dict[str, str]:
    """The content of proc_pid_status(5) for a process; empty without such a process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


@contextmanager
def ownNetwork() -> Iterator[None]:
    """
    Move to a loopback network of our own, where every port is free, together with the processes
    started later. Without permission to make one, stay on the machine's network.
    """
    libc = CDLL(None, use_errno=True)
    newNetwork = 0x40000000  # CLONE_NEWNET; Python has a name for it only since 3.12
    with open("/proc/thread-self/ns/net", "rb") as before:
        if libc.unshare(newNetwork):
            yield
            return
        try:
            with socket.socket() as control:  # netdevice(7): SIOCSIFFLAGS with IFF_UP
                ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))
            yield
        finally:
            if libc.setns(before.fileno(), newNetwork):
                raise OSError("the test does not get back to the machine's network")


class Workplace:
    """
    A folder with the shipped poems in C{poetry}, in which commands are run.

    @ivar folder: its path, which every user may enter and read.
    """

    def __init__(self, case: SynchronousTestCase) -> None:
        """@param case: the test whose end removes the folder and ends the processes."""
        self.folder = Path(makeFolder(case))
        shutil.copytree(ROOT / "poetry", self.folder / "poetry")
        self._mark = uuid4().hex
        self._started: list[subprocess.Popen[str]] = []
        case.addCleanup(self._clear)

    @property
    def log(self) -> str:
        """twistd's log."""
        return (self.folder / "twistd.log").read_text()

    def findProcesses(self) -> list[int]:
        """The running processes from here."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in entry.read_bytes() and isRunning(int(entry.parent.name)):
                    found.append(int(entry.parent.name))
        return found

    def begin(self, *command: str, closeFiles: bool = True) -> subprocess.Popen[str]:
        """
        Start a command, with pipes for its output and an empty environment.

        @param closeFiles: whether the command inherits no descriptor.
        """
        environ = {
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            _MARK: self._mark,
        }
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environ,
            close_fds=closeFiles,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *command: str) -> tuple[int, str, str]:
        """Run a command to its end; see L{finish}."""
        return finish(self.begin(*command))

    def daemon(self, *arguments: str, pidFile: str = "twistd.pid") -> int:
        """
        Start twistd as a daemon, and wait until it serves.

        @param pidFile: the file of its process ID.
        @return: that ID.
        @raise AssertionError: if it fails, or prints anything.
        """
        ended = self.run(*findTwistd(), *arguments)
        if ended != (0, "", ""):
            raise AssertionError(ended)
        return int((self.folder / pidFile).read_text())

    def _clear(self) -> None:
        for pid in self.findProcesses():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """
    Wait for the end of a process.

    @return: its exit status, its stdout and its stderr.
    @raise TimeoutExpired: if it hangs.
    """
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors
