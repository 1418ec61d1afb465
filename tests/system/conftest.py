"""The machines that the tests share, one for each release."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pluggy
import pytest

from system.machine import Machine, waitFor
from system.package import findPackage, installPackage
from system.roots import CLONE as CLONE
from system.roots import findObstacle, findRoot

UNITS = CLONE / "packaging/systemd"
SOURCE = "/src"
"""The clone's path in the machines."""

# systemd reloads only if a unit was removed: a reload takes longer than all the rest.
_TIDY = """
systemctl stop 'fastpoetry*'
systemctl reset-failed 'fastpoetry*'
rm -rf /etc/fastpoetry/poetry/* /etc/fastpoetry/*.env
removed=$(rm -rfv /run/systemd/system/fastpoetry* /etc/systemd/system/*.wants/fastpoetry*)
[ -z "$removed" ] || systemctl daemon-reload
"""


# At each boot and daemon-reload systemd runs programs that make units from /etc/fstab and the like.
# They take half of a reload, and no test needs them.
_MASK_GENERATORS = """
mkdir -p /etc/systemd/system-generators
for each in /usr/lib/systemd/system-generators/*; do
    ln -sf /dev/null /etc/systemd/system-generators/"${each##*/}"
done
"""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pluggy.Result[Any], None]:
    """Add the journals of a failed test's machines to its report."""
    outcome = yield
    report = outcome.get_result()
    used = getattr(item, "funcargs", {}).values() if report.failed else ()
    for each in dict.fromkeys(each for each in used if isinstance(each, Machine)):
        seen = each.run("journalctl", "--lines=60", "--output=short-precise", check=False).stdout
        report.sections.append((f"Journal of {each.name}", seen))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests that boot a machine once for each requested release."""
    if "release" in metafunc.fixturenames:
        systems = metafunc.config.getoption("--system") or ["bookworm", "trixie"]
        metafunc.parametrize("release", systems, indirect=True, scope="session")


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest) -> str:
    """A release of Debian."""
    obstacle = findObstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def builder(release: str, package: Path) -> Iterator[Machine]:
    """
    A machine with the build dependencies, the source package and an ordinary user, without a
    network.
    """
    machine = startMachine(findRoot(release, "build"), f"{release}-builder", boot=False)
    with closing(machine):
        # The kernel limits the descriptors that one user has in unread messages, and machines share
        # user IDs. So each run of the tests has a user of its own.
        user = f"--uid={20_000 + os.getpid() % 20_000}"
        machine.run("useradd", user, "--create-home", "--shell=/bin/sh", "builder")
        for file in (*package.glob("*.dsc"), *package.glob("*.tar.*")):
            machine.path(f"/tmp/{file.name}").write_bytes(file.read_bytes())
        yield machine


Layers = list[Path]
"""A root, in the form that L{Machine} takes."""


@pytest.fixture(scope="session")
def libraryRoot(release: str, package: Path) -> Layers:
    """A root with what the tests need, and the package of the modules."""
    layer = package.parent / f"{release}-library"
    return install(findRoot(release, "full"), layer, findPackage(package, "python3-fastpoetry"))


@pytest.fixture(scope="session")
def packageRoot(release: str, libraryRoot: Layers, package: Path) -> Layers:
    """The root of L{libraryRoot}, with the units too."""
    return install(libraryRoot, package.parent / f"{release}-units", findPackage(package))


def install(root: Layers, layer: Path, file: Path) -> Layers:
    """
    Install a package, for all machines that start from the result.

    @param layer: the folder for the added files. If it is there, an earlier process has made it.
    """
    if not layer.is_dir():
        with closing(startMachine(root, "install", boot=False)) as machine:
            writeHosts(machine)
            machine.run("sh", "-ec", _MASK_GENERATORS)
            installPackage(machine, file)
            machine.keep(layer)
    return [layer, *root]


@pytest.fixture(scope="session")
def debian(release: str, packageRoot: Layers) -> Iterator[Machine]:
    """A booted system with the package installed, for all tests of a release."""
    with closing(startMachine(packageRoot, f"{release}-booted")) as machine:
        yield machine


@pytest.fixture
def machine(debian: Machine) -> Iterator[Machine]:
    """
    The booted system as it was after the installation: no service runs, and the administrator has
    no poem.
    """
    yield debian
    debian.run("sh", "-c", _TIDY)
    waitFor(lambda: not listUnits(debian), "everything of fastpoetry to end")


@pytest.fixture
def pauseSeconds(machine: Machine) -> float:
    """Shorten the pause after a failure, which L{test_units} checks, to a tenth."""
    unit = (UNITS / "fastpoetry-pause@.service").read_text()
    (command,) = re.findall("^(ExecStart=.*) sleep 5( .*)$", unit, re.M)
    shorter = "[Service]\nExecStart=\n{} sleep 0.5{}\n".format(*command)
    writeDropIn(machine, "fastpoetry-pause@.service", shorter)
    return 0.5


def startMachine(
    root: Layers, name: str, *, binds: Mapping[Path, str] | None = None, **settings: Any
) -> Machine:
    """
    Start a machine that sees the clone.

    @param binds: other paths of the host to show in the machine, and their paths there.
    @param settings: other arguments of L{Machine}.
    """
    shown = {CLONE: SOURCE, **(binds or {})}
    machine = Machine(root, f"fastpoetry-{name}", binds=shown, **settings)
    machine.start()
    return machine


def writeDropIn(machine: Machine, unit: str, text: str) -> None:
    """Change a unit until the end of the test."""
    folder = machine.path(f"/run/systemd/system/{unit}.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "90-test.conf").write_text(text)
    machine.systemctl("daemon-reload")


def writeHosts(machine: Machine) -> None:
    """Give a machine the hosts file that Debian's installer writes and mmdebstrap does not."""
    machine.path("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


def listUnits(machine: Machine) -> str:
    """List the units of fastpoetry that run, listen, wait or have failed."""
    everything = ("list-units", "--all", "--plain", "--no-legend", "fastpoetry*")
    return machine.systemctl(*everything)
