"""
The machine of a measurement: its own namespaces, a journal, and what processes cost there.

This module knows no poems. Network settings, the journal and every process belong to namespaces
that end with the run.
"""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WORK = Path("/run/bench")
"""The folder for programs, poems and logs: in memory, and only for the run."""

_INSIDE = "BENCH_INSIDE"
_JOURNALD = Path("/usr/lib/systemd/systemd-journald")
_JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

# Ephemeral ports begin above the servers' ports. A minute of TIME_WAIT must leave some free.
_SETTINGS = {"net/ipv4/ip_local_port_range": "12000 65535", "net/core/somaxconn": "8192"}


def isolate() -> None:
    """
    Start this program again in its own network, mount and process namespaces; prepare them.

    @raise SystemExit: without root or without two processors.
    """
    if os.geteuid() != 0:
        raise SystemExit("benchmarks: namespaces and a journal need root (try sudo)")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("benchmarks: needs two processors, one for servers and one for clients")
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", ["unshare", *namespaces, sys.executable, *sys.argv])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # servers and clients inherit it
    _raiseLoopback()
    for name, value in _SETTINGS.items():
        Path("/proc/sys", name).write_text(value)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    # Mount sysfs for this network namespace. journald needs the control groups below it.
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    WORK.mkdir()


def _raiseLoopback() -> None:
    """Set the loopback interface up, which is down in a new network namespace."""
    setFlags, up = 0x8914, 0x1  # SIOCSIFFLAGS and IFF_UP, linux/sockios.h and linux/if.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, setFlags, struct.pack("16sH14x", b"lo", up))


def othersBusy(seconds: float = 1.0) -> float:
    """@return: the share of all processors that other programs use before a measurement."""

    def read() -> list[int]:
        return [
            int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ]

    before = read()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(read(), before, strict=False)]
    return 1 - (spent[3] + spent[4]) / sum(spent)  # idle, and iowait


def processors() -> tuple[str, str]:
    """@return: the processor for servers and the processor for clients."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return str(first), str(second)


def startJournal() -> subprocess.Popen[bytes]:
    """
    Start a real journald, with its usual limits, that keeps records in memory.

    It runs on the clients' processor, so that the server has its own processor alone.
    """
    settings = Path("/run/systemd/journald.conf.d/bench.conf")
    settings.parent.mkdir(parents=True)
    settings.write_text("[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\n")
    journald = subprocess.Popen(
        ["taskset", "-c", processors()[1], _JOURNALD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    waitUntil(_JOURNAL_SOCKET.exists, "journald")
    return journald


def countRecords(*matches: str) -> int:
    """@return: how many records of the journal match."""
    found = subprocess.run(
        ["journalctl", "--quiet", "--output=cat", "--output-fields=PRIORITY", *matches],
        capture_output=True,
        check=True,
    )
    return found.stdout.count(b"\n")


def waitUntil(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """
    Return when a condition holds.

    @param condition: called without arguments, again and again.
    @raise SystemExit: if it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"benchmarks: {what} is not ready after {seconds:g} s")
        time.sleep(0.005)


def family(pid: int) -> list[int]:
    """@return: a process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    for child in children.read_text().split():
        found += family(int(child))
    return found


def cpuSeconds(pids: list[int]) -> float:
    """@return: user and system time of processes, with all their threads."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def residentBytes(pids: list[int]) -> int:
    """@return: the resident memory of processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * resource.getpagesize()


def socketBytes() -> int:
    """
    @return: the memory that the kernel holds for all TCP sockets.

    The kernel counts in pages and in batches: exact enough for thousands of sockets, not for one.
    """
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        name, _, rest = line.partition(": ")
        if name == "TCP":
            fields = rest.split()
            return int(fields[fields.index("mem") + 1]) * resource.getpagesize()
    raise SystemExit("benchmarks: no TCP line in /proc/net/sockstat")


def describe() -> dict[str, str]:
    """@return: what a reader must know of the machine to judge its figures."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "processors": str(os.cpu_count()),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": platform.python_version(),
        "twisted": _versionOf("twisted"),
        "Debian's Twisted": _packageVersion("python3-twisted"),
        "uvloop": _versionOf("uvloop"),
        "nginx": _nginxVersion(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _field(path: str, name: str) -> str:
    """@return: the first value of a name in a file of C{name: value} lines."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _versionOf(distribution: str) -> str:
    """@return: the version of an installed Python distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def _packageVersion(name: str) -> str:
    """@return: the version of an installed Debian package."""
    told = subprocess.run(
        ["dpkg-query", "-Wf", "${Version}", name], capture_output=True, check=False, text=True
    )
    return told.stdout or "none"


def _nginxVersion() -> str:
    """@return: the version that nginx prints."""
    if shutil.which("nginx") is None:
        return "none"
    told = subprocess.run(["nginx", "-v"], capture_output=True, check=True, text=True)
    return told.stderr.strip().rpartition("/")[2]
