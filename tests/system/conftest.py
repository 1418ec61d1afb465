"""
The machines that the tests share, one a release.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
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

_TIDY = """
systemctl disable --quiet --now 'fastpoetry@ecstasy.socket'
systemctl stop 'fastpoetry*'
systemctl reset-failed 'fastpoetry*'
rm -rf /etc/fastpoetry/poetry/* /etc/fastpoetry/*.env /run/systemd/system/fastpoetry*
systemctl daemon-reload
"""


def skip(reason: object) -> NoReturn:
    """
    Skip a test; where nobody would notice, fail it instead.
    """
    if os.environ.get("CI"):
        pytest.fail(f"must not be skipped in CI: {reason}")
    pytest.skip(str(reason))


@pytest.fixture(scope="session", params=["bookworm", "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    """
    A release of Debian.
    """
    obstacle = findObstacle()
    if obstacle is not None:
        skip(obstacle)
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def unitTests(release: str) -> Iterator[subprocess.Popen[str]]:
    """
    The tests of single modules, as they run with the release's own Python and Twisted: on a machine
    of their own, so that nobody waits for them before the end.
    """
    machine = startMachine(release, _PACKAGES, "unit", boot=False)
    with closing(machine):
        writeHosts(machine)
        script = f"cd {SOURCE} && python3 -B -m pytest -p no:cacheprovider tests/test_*.py"
        with subprocess.Popen(
            machine.command("sh", "-c", script), stdout=subprocess.PIPE, text=True
        ) as tests:
            yield tests
            tests.kill()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The folder with what C{make deb} makes.
    """
    obstacle = findBuildObstacle()
    if obstacle is not None:
        skip(obstacle)
    return buildPackage(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def package(built: Path) -> Path:
    """
    The folder with the packages to install.
    """
    return built


@pytest.fixture(scope="session")
def debian(release: str, package: Path, unitTests: object) -> Iterator[Machine]:
    """
    A booted system with the package installed, for all tests of a release.
    """
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


def startMachine(release: str, packages: Sequence[str], kind: str, **settings: Any) -> Machine:
    """
    Start a machine, or skip the test if that cannot be done here.

    @param settings: more for L{Machine}.
    """
    try:
        root = findRoot(release, packages)
        machine = Machine(root, f"fastpoetry-{release}-{kind}", binds={CLONE: SOURCE}, **settings)
        machine.start()
    except MachineError as why:
        skip(why)
    return machine


def writeHosts(machine: Machine) -> None:
    """
    Give a machine the file that Debian's installer writes and mmdebstrap does not.
    """
    machine.path("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


def listUnits(machine: Machine) -> str:
    """
    Whatever runs, listens, waits or has failed of fastpoetry.
    """
    everything = ("list-units", "--all", "--plain", "--no-legend", "fastpoetry*")
    return machine.systemctl(*everything)
