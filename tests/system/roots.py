"""
Whole Debians in folders, from which machines start.

A root is made of layers, which are kept in the user's cache together with their packages. To get
newer packages, remove its folder. C{python -m system.roots RELEASE} makes all roots before any test
needs them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from fcntl import LOCK_EX, flock
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from system.machine import Machine, MachineError

CLONE = Path(__file__).resolve().parent.parent.parent

_BUILD_SECONDS = 1800.0

_NO_INDEX = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
"""Makes apt keep no index of its lists, which is larger than many layers."""


class Kind(NamedTuple):
    """
    The purpose of a root.

    @ivar base: the kind that it extends.
    @ivar packages: the packages it adds.
    @ivar disabled: units that systemd must not start there by itself.
    """

    base: str
    packages: Sequence[str]
    disabled: Sequence[str] = ()


def _readBuildDepends() -> list[str]:
    """The names of the package's build dependencies."""
    # In the clone, the folder is packaging/debian; where dpkg builds the package, it is debian.
    (control,) = (
        each.read_text()
        for each in (*CLONE.glob("packaging/debian/control"), *CLONE.glob("debian/control"))
    )
    field = control.partition("\nBuild-Depends:\n")[2].partition("\nStandards-Version")[0]
    names = [line.split()[0].rstrip(",") for line in field.splitlines()]
    return ["debhelper" if name == "debhelper-compat" else name for name in names]


KINDS = {
    # What C{mmdebstrap --variant=minbase} makes.
    "minimal": Kind("", ()),
    # The machine of a user who has just cloned the repository.
    "clone": Kind("minimal", ("git", "make", "python3")),
    # A chroot to build the package in.
    "build": Kind("minimal", ("build-essential", "fakeroot", "lintian", *_readBuildDepends())),
    # The package's dependencies, and no other Python modules.
    "package": Kind(
        "minimal",
        (
            *("systemd", "systemd-sysv", "dbus", "netcat-openbsd", "man-db", "autopkgtest"),
            *("python3-twisted", "python3-systemd"),
        ),
    ),
    # What all other tests and the pages of docs/ need.
    "full": Kind(
        "package",
        (
            *("python3-pytest", "python3-hypothesis", "python3-hamcrest", "python3-werkzeug"),
            *("curl", "openssl", "openssh-client", "bind9-dnsutils", "iproute2", "haproxy"),
            *("prometheus", "python3-prometheus-client", "nginx-light"),
            *("libpam-systemd", "dbus-user-session"),
        ),
        disabled=("haproxy", "prometheus", "nginx"),
    ),
    # Other projects' programs. twistd loads carbon at each start if it is installed, whatever it
    # starts: a third of a start's CPU.
    "recipes": Kind(
        "full",
        (
            *("buildbot", "buildbot-worker", "graphite-carbon"),
            *("magic-wormhole-transit-relay", "python3-magic-wormhole-mailbox-server"),
            *("python3-autobahn", "python3-eliot", "python3-structlog", "python3-txsni"),
            *("python3-daphne", "python3-django", "python3-foolscap", "python3-scrapy"),
        ),
        disabled=("carbon-cache",),
    ),
}

_DOWNLOADS = ("var/cache/apt/archives", "var/lib/apt/lists")
"""Where apt keeps what it has downloaded."""

_TOOLS = ("systemd-nspawn", "mmdebstrap", "nsenter", "unshare")

# What a container needs of the kernel.
_TRIAL = """
mount -t tmpfs tmpfs /mnt &&
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root &&
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
"""


def findObstacle() -> str | None:
    """The reason why no machine can be started here, or an empty text."""
    if os.geteuid() != 0:
        return "starting machines needs root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}; Debian has them in systemd-container and mmdebstrap"
    spaces = ("--mount", "--pid", "--fork", "--net", "--uts", "--ipc")
    tried = subprocess.run(["unshare", *spaces, "sh", "-c", _TRIAL], capture_output=True, text=True)
    if tried.returncode:
        return f"starting machines needs CAP_SYS_ADMIN and overlays: {tried.stderr.strip()}"
    return None


def findRoot(release: str, kind: str) -> list[Path]:
    """
    Find a root of one release of Debian. If it does not exist yet, make it.

    @param kind: one of L{KINDS}.
    @return: its layers, the uppermost first.
    @raise MachineError: if it cannot be made, with the last output.
    """
    base, packages, disabled = KINDS[kind]
    below = findRoot(release, base) if base else []
    make = partial(_addLayer, release, kind, below) if below else partial(_bootstrap, release)
    return [makeOnce(release, kind, (below, packages, disabled), make), *below]


def makeOnce(release: str, kind: str, source: object, make: Callable[[Path], None]) -> Path:
    """
    Find a folder in the cache for a release. If it does not exist yet, make it. Other processes see
    only a complete folder.

    @param source: what the folder is made from. Each source has a folder of its own.
    @param make: makes the folder at a path. It must not call L{makeOnce} for that release: the call
        would wait for itself.
    """
    known = sha256(repr(source).encode()).hexdigest()[:8]
    folder = findCache(f"{release}-{kind}-{known}")
    with open(findCache(f"{release}-lock"), "w") as lock:
        flock(lock, LOCK_EX)
        if not folder.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=f"{release}-", dir=folder.parent))
            try:
                make(scratch / "new")
                (scratch / "new").rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def findCache(name: str) -> Path:
    """The path in the cache for that name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpoetry"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / name


def findDownloads(release: str) -> Path:
    """A layer with the packages and the lists that were downloaded for the roots of a release."""
    layer = findCache(f"{release}-downloads")
    for folder in _DOWNLOADS:
        (layer / folder).mkdir(parents=True, exist_ok=True)
    return layer


def _bootstrap(release: str, root: Path) -> None:
    """Make the smallest Debian."""
    command = ["mmdebstrap", "--variant=minbase"]
    # A mirror may be a snapshot, whose lists have expired.
    settings = (*readAptSettings(), 'Acquire::Check-Valid-Until "false"')
    command += [f"--aptopt={setting}" for setting in settings]
    made = subprocess.run(
        [*command, release, str(root)], capture_output=True, text=True, timeout=_BUILD_SECONDS
    )
    if made.returncode != 0:
        raise MachineError(f"{' '.join(command)} {release}: {made.stderr.strip()[-1000:]}")


def _addLayer(release: str, kind: str, below: list[Path], layer: Path) -> None:
    """Install the packages of a kind on the root that it extends, and keep the changes."""
    shared = {findDownloads(release) / folder: f"/{folder}" for folder in _DOWNLOADS}
    machine = Machine(below, f"root-{release}", shared=shared, boot=False, network=True)
    machine.start()
    with closing(machine):
        runApt(machine, *_NO_INDEX, "update")
        runApt(machine, *_NO_INDEX, "install", "--no-install-recommends", *KINDS[kind].packages)
        if KINDS[kind].disabled:
            machine.run("systemctl", "disable", *KINDS[kind].disabled)
        machine.keep(layer)


def runApt(machine: Machine, *command: str, seconds: float = _BUILD_SECONDS) -> str:
    """
    Run apt-get without questions.

    @param seconds: its timeout.
    @return: its output.
    @raise MachineError: if it fails.
    """
    quiet = ("DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "-o", "Dpkg::Use-Pty=0")
    ran = machine.run("env", *quiet, *command, seconds=seconds)
    return ran.stdout + ran.stderr


def readAptSettings() -> list[str]:
    """The settings with which this machine's apt reaches its mirrors, as lines of apt.conf(5)."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [
        line
        for line in dump.splitlines()
        if line.startswith(("Acquire::http::", "Acquire::https::"))
    ]


if __name__ == "__main__":
    for each in sys.argv[1:]:
        for one in KINDS:
            findRoot(each, one)
