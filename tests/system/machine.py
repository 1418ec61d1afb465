"""
A Debian in a container, for as long as a test needs it.

This module starts the container, runs commands in it, reads its journal and removes it. It does not
make the root from which a container starts (L{system.roots} does), and does not write to the root.
The host is the machine that runs the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

_BOOT_SECONDS = 60.0
_HALT_SECONDS = 30.0
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 0.4
_POWEROFF = signal.SIGRTMIN + 4
"""Tells systemd to power off; see systemd(1), Signals."""

_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
    "TERM": "dumb",
}
"""The environment of a command in the machine: without settings of the host."""

# Every change goes to an overlay in memory, mounted where no other process sees it. The overlay
# outlasts a reboot, and is gone with the machine's last process. When the machine reboots,
# systemd-nspawn exits with 133 and must be run again.
_START = """
set -e
[ -z "$1" ] || echo $$ >"$1/cgroup.procs"
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$3,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
shift 3
while "$@"; [ $? -eq 133 ]; do :; done
"""

_T = TypeVar("_T")


class MachineError(Exception):
    """A machine did not start, or a command in it failed; the text has the output."""


class Machine:
    """
    One container.

    @ivar name: its name in the list of processes.
    """

    def __init__(
        self,
        layers: Sequence[Path],
        name: str,
        *,
        binds: Mapping[Path, str] | None = None,
        shared: Mapping[Path, str] | None = None,
        environment: Mapping[str, str] | None = None,
        boot: bool = True,
        network: bool = False,
    ) -> None:
        """
        @param layers: folders that make up a whole Debian, the uppermost first.
        @param binds: paths of the host to show read-only in the machine, and their paths there.
        @param shared: the same for paths that are writable.
        @param environment: variables for commands in the machine.
        @param boot: whether its first process is its systemd; otherwise an idle process.
        @param network: share the host's network, instead of a loopback of its own.
        """
        self.name = name
        self._layers = ":".join(map(str, layers))
        self._binds = dict(binds or {})
        self._shared = dict(shared or {})
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._boots = boot
        self._network = network
        self._folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._console = self._folder / "console"
        self._cgroup = _makeCgroup(name)
        self._container: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def start(self) -> None:
        """
        Start the machine and wait until its start is complete.

        @raise MachineError: if that fails, with the last output.
        """
        memory = self._folder / "memory"
        memory.mkdir()
        start = ("unshare", "--mount", "sh", "-c", _START, "sh", self._cgroup or "", memory)
        with self._console.open("wb") as console:
            self._container = subprocess.Popen(
                [*map(str, start), self._layers, *self._nspawn(memory / "root")],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        try:
            self._awaitStart()
        except BaseException:
            self.close()
            raise

    def _nspawn(self, directory: Path) -> list[str]:
        """The container's command line."""
        first = ["--boot"] if self._boots else ["--as-pid2", "sleep", "infinity"]
        return [
            "systemd-nspawn",
            f"--directory={directory}",
            f"--machine={self.name}",
            "--register=no",
            "--console=pipe",
            "--timezone=off",
            f"--resolv-conf={'replace-host' if self._network else 'off'}",
            *([] if self._network else ["--private-network"]),
            *([] if self._cgroup is None else ["--keep-unit"]),
            *(f"--bind-ro={here}:{there}" for here, there in self._binds.items()),
            *(f"--bind={here}:{there}" for here, there in self._shared.items()),
            *first,
        ]

    def _awaitStart(self) -> None:
        deadline = time.monotonic() + _BOOT_SECONDS
        state = ""
        while time.monotonic() < deadline and self._isAlive():
            self._leader = self._findLeader()
            if self._leader and not self._boots:
                return
            if self._leader:
                state = self._readState()
            if state == "running":
                return
            if state == "degraded":
                raise MachineError(self.run("systemctl", "--failed").stdout)
            time.sleep(_POLL_SECONDS)
        seen = self._console.read_text(errors="replace").strip()[-2000:]
        raise MachineError(f"{self.name} did not start ({state or 'no first process'}): {seen}")

    def _readState(self) -> str:
        """The machine's state, once its start is complete; empty before that."""
        look = ("systemctl", "is-system-running", "--wait")
        return self.run(*look, check=False).stdout.strip()

    def _isAlive(self) -> bool:
        return self._container is not None and self._container.poll() is None

    def _findLeader(self) -> int:
        """The host's process ID of the machine's first process; 0 before there is one."""
        assert self._container is not None
        for nspawn in _findChildren(self._container.pid):
            for child in _findChildren(nspawn):
                if _isFirst(child):
                    return child
        return 0

    def reboot(self) -> None:
        """
        Reboot the machine and wait until it is up again, with everything that was written to it.
        """
        before = Path(f"/proc/{self._leader}")
        self.run("systemctl", "reboot", check=False)
        waitFor(lambda: not before.exists(), "the machine to go down", _HALT_SECONDS)
        self._awaitStart()

    def keep(self, folder: Path) -> None:
        """
        Copy the changes since the start.

        @param folder: made now, as a whole; a layer that other machines can start from.
        """
        assert self._container is not None
        written = f"/proc/{self._container.pid}/root{self._folder}/memory/upper"
        part = folder.with_name(f"{folder.name}.part")
        command = ("cp", "--archive", "--no-target-directory", written, part)
        subprocess.run(command, check=True)
        part.rename(folder)

    def close(self) -> None:
        """Halt the machine and remove its files."""
        if self._isAlive():
            self._leader = self._findLeader() or self._leader
            self._end()
        if self._cgroup is not None:
            _removeCgroup(self._cgroup)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        """Power the machine off, or kill it if that fails."""
        assert self._container is not None
        for number in (_POWEROFF, signal.SIGKILL) if self._boots else (signal.SIGKILL,):
            # Before the machine has a first process, kill systemd-nspawn.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader or self._container.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._container.wait(_HALT_SECONDS)
                return

    @property
    def leader(self) -> int:
        """The host's process ID of the machine's first process."""
        return self._leader

    def path(self, inside: str) -> Path:
        """
        A file of the machine, as a path on the host.

        @param inside: the absolute path in the machine. Symbolic links in it must be relative.
        """
        return Path(f"/proc/{self._leader}/root{inside}")

    def command(self, *command: str) -> list[str]:
        """The command of the host that runs a command in the machine, as root."""
        settings = (f"{name}={value}" for name, value in self._environment.items())
        enter = ("nsenter", f"--target={self._leader}", "--all")
        return [*enter, "env", "--chdir=/", "-i", *settings, *command]

    def run(
        self, *command: str, check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """
        Run a command in the machine and wait for it.

        @param check: raise if its exit status is not 0.
        @param seconds: its timeout.
        @raise MachineError: if the check fails, with all output.
        """
        ran = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
        if check and ran.returncode != 0:
            raise MachineError(f"{command} exited {ran.returncode}: {ran.stdout}{ran.stderr}")
        return ran

    def fetch(self, *address: str) -> bytes:
        """
        The bytes that a server in the machine sends to a silent client.

        @param address: a host and a port, or C{-U} and a path.
        """
        command = self.command("nc", "-d", *address)
        return subprocess.run(command, stdout=subprocess.PIPE, timeout=30).stdout

    def systemctl(self, *arguments: str) -> str:
        """
        Run systemctl.

        @return: its output, without the last newline.
        @raise MachineError: if it fails.
        """
        return self.run("systemctl", *arguments).stdout.rstrip("\n")

    def show(self, unit: str, key: str) -> str:
        """A property of a unit, from C{systemctl show}."""
        return self.systemctl("show", f"--property={key}", "--value", unit)

    def journal(self, *matches: str) -> list[dict[str, str]]:
        """
        Records of the machine's journal, oldest first.

        @param matches: options and matches of journalctl. With C{--grep} its exit status is 1 if
            no record matches.
        @raise MachineError: if journalctl writes to standard error.
        """
        # Waits until journald has read all messages so far.
        self.run("journalctl", "--sync")
        found = self.run("journalctl", "--output=json", "--all", *matches, check=False)
        if found.stderr:
            raise MachineError(found.stderr)
        return [_readRecord(line) for line in found.stdout.splitlines()]


def _readRecord(line: str) -> dict[str, str]:
    """
    Read a record of journalctl in JSON, where a value that is not text is a list of its bytes.
    """
    record: dict[str, str] = json.loads(line)
    for name, value in record.items():
        if isinstance(value, list):
            record[name] = bytes(value).decode(errors="replace")
    return record


def waitFor(seek: Callable[[], _T], what: str, seconds: float = 20.0) -> _T:
    """
    Call a function until it succeeds.

    @param seek: returns the result, or something false while there is no result.
    @param what: the text of the error.
    @raise MachineError: if there is no result in time.
    """
    deadline = time.monotonic() + seconds
    pause = _POLL_SECONDS
    while True:
        found = seek()
        if found:
            return found
        if time.monotonic() > deadline:
            raise MachineError(f"waited {seconds:g} s for {what}; found {found!r}")
        time.sleep(pause)
        # Each call may start processes in a machine. Too many calls would keep a small host busy.
        pause = min(2 * pause, _LONGEST_POLL_SECONDS)


def _findChildren(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in children.split()]


def _isFirst(process: int) -> bool:
    """Whether a process is the first of a machine, and not one that starts the machine."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return numbers.split()[-1] == "1"


def _makeCgroup(name: str) -> Path | None:
    """
    Make a control group for one machine, if the host has no systemd that does so.

    If two machines shared a group, each systemd would take the other's processes for its own.
    """
    if Path("/run/systemd/system").is_dir():
        return None
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    hierarchy = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    if hierarchy is None:
        return None
    group = hierarchy / f"{name}-{os.getpid()}"
    group.mkdir(exist_ok=True)
    return group


def _removeCgroup(group: Path) -> None:
    """Remove a control group and its children, each as soon as its last process has ended."""

    def isGone() -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not group.exists()

    waitFor(isGone, f"the last process in {group}", _HALT_SECONDS)
