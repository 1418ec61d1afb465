"""The machines that the tests share, one a release."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from system.machine import Machine, MachineError, waitFor
from system.package import buildPackage, findBuildObstacle, installPackage
from system.roots import findObstacle, findRoot

CLONE = Path(__file__).resolve().parent.parent.parent
UNITS = CLONE / "packaging/systemd"
SOURCE = "/src"
"""Where the clone is in the machines."""

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "netcat-openbsd"),
    *("python3-twisted", "python3-systemd"),
    *("python3-pytest", "python3-hypothesis", "python3-hamcrest"),
)

_BUILD = """
    dpkg-source --extract /tmp/fastpoetry_*.dsc source && cd source &&
    dpkg-buildpackage --unsigned-source --unsigned-changes
"""

_TIDY = """
systemctl disable --quiet --now 'fastpoetry@ecstasy.socket'
systemctl stop 'fastpoetry*'
systemctl reset-failed 'fastpoetry*'
rm -rf /etc/fastpoetry/poetry/* /etc/fastpoetry/*.env /run/systemd/system/fastpoetry*
systemctl daemon-reload
"""


def skip(reason: object) -> NoReturn:
    """Skip a test; where nobody would notice, fail it instead."""
    if os.environ.get("CI"):
        pytest.fail(f"must not be skipped in CI: {reason}")
    pytest.skip(str(reason))


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    """A release of Debian."""
    obstacle = findObstacle()
    if obstacle is not None:
        skip(obstacle)
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what C{make deb} makes."""
    obstacle = findBuildObstacle()
    if obstacle is not None:
        skip(obstacle)
    return buildPackage(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def builder(release: str, built: Path) -> Iterator[Machine]:
    """
    A machine with what building takes and no network, the source package, and somebody who is not
    root.
    """
    packages = ("build-essential", "fakeroot", "lintian", *readBuildDepends())
    machine = startMachine(release, packages, "builder", boot=False)
    with closing(machine):
        machine.run("useradd", "--create-home", "--shell=/bin/sh", "builder")
        for file in (*built.glob("*.dsc"), *built.glob("*.tar.*")):
            machine.path(f"/tmp/{file.name}").write_bytes(file.read_bytes())
        yield machine


@pytest.fixture(scope="session")
def build(builder: Machine) -> Iterator[subprocess.Popen[str]]:
    """
    The build of the package there, with the tests of single modules as they run with the release's
    own Python and Twisted; then those that only root can run. It goes on beside other tests, so
    that nobody waits for it before the end.
    """
    script = f"""
        runuser --login builder --command '{_BUILD}' &&
        cd {SOURCE} && python3 -B -m pytest -p no:cacheprovider tests/test_twistd.py
    """
    command = builder.command("sh", "-c", script)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def readBuildDepends() -> list[str]:
    """What the package says to take for building, by name."""
    control = (CLONE / "packaging/debian/control").read_text()
    field = control.partition("\nBuild-Depends:\n")[2].partition("\nStandards-Version")[0]
    names = [line.split()[0].rstrip(",") for line in field.splitlines()]
    return ["debhelper" if name == "debhelper-compat" else name for name in names]


@pytest.fixture(scope="session")
def package(built: Path) -> Path:
    """The folder with the packages to install."""
    return built


@pytest.fixture(scope="session")
def debian(release: str, package: Path, build: object) -> Iterator[Machine]:
    """A booted system with the package installed, for all tests of a release."""
    machine = startMachine(release, _PACKAGES, "booted")
    with closing(machine):
        writeHosts(machine)
        installPackage(machine, package)
        yield machine


@pytest.fixture
def machine(debian: Machine) -> Iterator[Machine]:
    """
    That system as it was after the installation: nothing runs, and no poem is the administrator's.
    """
    yield debian
    debian.run("sh", "-c", _TIDY)
    waitFor(lambda: not listUnits(debian), "everything of fastpoetry to end")


def startMachine(
    release: str,
    packages: Sequence[str],
    kind: str,
    *,
    binds: Mapping[Path, str] | None = None,
    **settings: Any,
) -> Machine:
    """
    Start a machine, or skip the test if that cannot be done here.

    @param binds: what to show there of this machine, beside the clone.
    @param settings: more for L{Machine}.
    """
    try:
        root = findRoot(release, packages)
        shown = {CLONE: SOURCE, **(binds or {})}
        machine = Machine(root, f"fastpoetry-{release}-{kind}", binds=shown, **settings)
        machine.start()
    except MachineError as why:
        skip(why)
    return machine


def writeHosts(machine: Machine) -> None:
    """Give a machine the file that Debian's installer writes and mmdebstrap does not."""
    machine.path("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


def listUnits(machine: Machine) -> str:
    """Whatever runs, listens, waits or has failed of fastpoetry."""
    everything = ("list-units", "--all", "--plain", "--no-legend", "fastpoetry*")
    return machine.systemctl(*everything)
