"""Tests for installing and removing the Debian package, on booted systems."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from test_package import run

from system.conftest import CLONE, SOURCE, listUnits, startMachine
from system.machine import Machine, waitFor
from system.package import findPackage, installPackage
from system.roots import findRoot, runApt

_CACHE = "/usr/lib/python3/dist-packages/twisted/plugins/dropin.cache"
_RUNNING = ("fastpoetry@ecstasy", "fastpoetry", "fastpoetry-proxy@copy")
_MODULE = "/usr/lib/python3/dist-packages/fastpoetry/tap.py"
_ECSTASY = ("127.0.0.1", "10000")
_UPSTREAM = "UPSTREAM=tcp:host=127.0.0.1:port=10000\n"

# Reads from addresses, each repeatedly, until its input ends. Fails on the first reader that is
# refused or gets anything but a whole poem, and when a file in its arguments is missing.
_READERS = """
import select, socket, sys
from pathlib import Path

poems = {path.read_bytes() for path in Path("/usr/share/fastpoetry/poetry").glob("*.txt")}
modules = [Path(each) for each in sys.argv[1:]]
read = 0
while not select.select([sys.stdin], [], [], 0.005)[0]:
    for address in (("127.0.0.1", 10000), ("127.0.0.1", 17), "/run/fastpoetry/ecstasy.sock"):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family) as reader:
            reader.connect(address)
            assert reader.makefile("rb").read() in poems
        assert all(each.exists() for each in modules)
        read += 1
print(read)
"""

_SINGLE = """\
Package: fastpoetry
Version: 1.0.0
Architecture: all
Maintainer: The fastpoetry authors <fastpoetry@packages.debian.org>
Depends: python3-systemd, python3-twisted (>= 22.4), python3:any
Description: poetry server that is native to systemd
 As it was.
"""

# The user who types the README's commands has sudo, and is in the folder where `make deb` ran.
_SHELL = """
set -e
cd /root
sudo() { "$@"; }
"""

# In place of an editor, which systemctl starts only on a terminal.
_EDIT = """#!/bin/sh
shift $(($# - 1))
cp /root/written "$1"
"""

# Root runs only the tests that an ordinary user cannot run.
_BUILD = f"""
    runuser --login builder --command '
        dpkg-source --extract /tmp/fastpoetry_*.dsc source && cd source &&
        dpkg-buildpackage --unsigned-source --unsigned-changes
    ' &&
    cd {SOURCE} && python3 -B -m pytest -p no:cacheprovider tests/test_twistd.py -k OwnFeaturesTests
"""

# Debian 13's lintian looks in each line of the source for 23 modules that Python 3.13 has removed.
# That takes 15 s, and importing such a module would fail in the tests of the build.
_LINT = """
slow=languages/python/stdlib-deprecation
test -e /usr/share/lintian/lib/Lintian/Check/Languages/Python/StdlibDeprecation.pm || slow=
lintian --no-cfg --allow-root -I --pedantic ${slow:+-X $slow} """

# Every file that may matter: not logs, caches and dpkg's notes, unless their names are ours.
_LIST_FILES = r"""
find / -xdev \( -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/cache \
    -o -name __pycache__ \) -prune -o -print
find / -xdev -path '*fastpoetry*'
find /var/cache -maxdepth 1
find /run -maxdepth 1
"""


_TIDY = """
systemctl stop 'fastpoetry*.socket' 'fastpoetry*.service'
rm -rf /etc/fastpoetry/*/* /etc/systemd/system/fastpoetry*.d
rm -f /etc/systemd/system/*.wants/fastpoetry*
systemctl daemon-reload
"""


@pytest.fixture(scope="session")
def bare(release: str) -> Iterator[Machine]:
    """A booted system with the package's dependencies, for all tests of a release."""
    with closing(startMachine(findRoot(release, "package"), f"{release}-package")) as machine:
        yield machine


@pytest.fixture
def fresh(bare: Machine) -> Iterator[Machine]:
    """The booted system without the package, as if it had never been installed."""
    bare.run("dpkg", "--purge", "fastpoetry", "python3-fastpoetry")
    yield bare
    tidy(bare)


@pytest.fixture
def installed(bare: Machine, package: Path) -> Iterator[Machine]:
    """The booted system with the package; no unit of ours runs."""
    if not isInstalled(bare):
        installPackage(bare, package)
    yield bare
    tidy(bare)


@pytest.fixture
def newer(package: Path, tmp_path: Path) -> Path:
    """The packages as the next version, whose files are newer than the plugin cache."""
    # A package's times are whole seconds, and never in the future.
    now = math.ceil(time.time())
    for name in ("fastpoetry", "python3-fastpoetry"):
        tree = tmp_path / name
        run("dpkg-deb", "--raw-extract", findPackage(package, name), tree)
        control = tree / "DEBIAN/control"
        versions = control.read_text().replace("\nVersion: ", "\nVersion: 9")
        control.write_text(versions.replace("(= ", "(= 9"))
        for file in tree.rglob("*.py"):
            os.utime(file, (now, now))
        waitFor(lambda: time.time() > now, "the next second")
        run("dpkg-deb", "--build", tree, tmp_path)
    return tmp_path


@pytest.fixture
def single(package: Path, tmp_path: Path) -> Path:
    """The content of both packages in one package, as before 1.1.0."""
    tree = tmp_path / "single"
    run("dpkg-deb", "--raw-extract", findPackage(package, "python3-fastpoetry"), tree)
    run("dpkg-deb", "--extract", findPackage(package), tree)
    run("dpkg-deb", "--control", findPackage(package), tree / "DEBIAN")
    (tree / "DEBIAN/control").write_text(_SINGLE)
    run("dpkg-deb", "--build", tree, tmp_path)
    return findPackage(tmp_path)


def tidy(machine: Machine) -> None:
    """
    Stop everything, remove the administrator's additions, and check that no unit ever logged an
    error.
    """
    machine.run("sh", "-c", _TIDY)
    complaints = ("journalctl", "--quiet", "--grep=Unable to write to plugin cache")
    assert machine.run(*complaints, check=False).stdout == ""


def isInstalled(machine: Machine) -> bool:
    """Whether the package is installed, and not only its configuration left."""
    status = machine.run("dpkg-query", "-Wf${db:Status-Status}", "fastpoetry", check=False)
    return status.stdout == "installed"


def listListeners(machine: Machine) -> list[str]:
    """List the TCP ports with a listener."""
    lines = machine.run("cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.splitlines()
    fields = [line.split() for line in lines]
    return [field[1] for field in fields if field[3] == "0A"]


def readInstallation() -> list[str]:
    """The commands in the README's section on installing, block by block."""
    section = (CLONE / "README.md").read_text().partition("\n## Install it\n")[2]
    return re.findall(r"^```\n(.*?)^```", section.partition("\n## ")[0], re.M | re.S)


def startEverything(machine: Machine) -> None:
    """Run one unit of each kind, L{_RUNNING}, and have one socket listen without a reader yet."""
    machine.path("/etc/fastpoetry/proxy/copy.env").write_text(_UPSTREAM)
    machine.systemctl("start", *_RUNNING, "fastpoetry@science.socket")
    waitFor(lambda: machine.fetch("-U", "/run/fastpoetry-proxy/copy.sock"), "the proxy's poem")


def test_build(builder: Machine) -> None:
    """
    An ordinary user builds the packages in a clean chroot of each release, without a network, and
    the module tests pass there, under the release's own Python and Twisted. lintian finds no fault
    in the result and its source.
    """
    built = builder.run("sh", "-c", _BUILD, check=False, seconds=900)
    failures = built.stdout.partition("= FAILURES =")[2][:5000]
    assert built.returncode == 0, failures or (built.stdout + built.stderr)[-5000:]
    assert lint(builder, "/home/builder/fastpoetry_*.changes") == []


def test_lintianElsewhere(builder: Machine, package: Path) -> None:
    """
    The packages built here have no lintian finding on the other release either. L{test_build} has
    checked their source.
    """
    folder = builder.path("/tmp/elsewhere")
    folder.mkdir()
    for file in package.glob("*.deb"):
        shutil.copy(file, folder)
    assert lint(builder, "/tmp/elsewhere/*.deb") == []


def lint(machine: Machine, packages: str) -> list[str]:
    """lintian's findings for packages, or for a build's list of changes."""
    return findings(machine.run("sh", "-c", _LINT + packages, seconds=120).stdout)


def findings(said: str) -> list[str]:
    """
    The findings of lintian, without those of a single release.

    Debian 12's lintian knows no newer standards. It wants two fields that have a default since dpkg
    1.22.13; without it, the binary packages lack one of them. It wants an init script beside a
    service unless a timer or a path starts the service, and has forgotten sockets. An override for
    that is an error in the newer lintian. Debian's newest lintian wants a debhelper that Debian 12
    lacks.
    """
    only = (
        "newer-standards-version",
        "out-of-date-standards-version",
        "silent-on-rules-requiring-root",
        "package-supports-alternative-init-but-no-init.d-script",
        "package-uses-old-debhelper-compat-version",
    )
    priority = re.compile("recommended-field .*Priority")
    return [
        line
        for line in said.splitlines()
        if not priority.search(line) and not any(tag in line for tag in only)
    ]


def test_install(fresh: Machine, package: Path) -> None:
    """Installing lists the commands. It enables no unit, starts none and opens no port."""
    listeners = listListeners(fresh)
    said = installPackage(fresh, package)
    assert "warning" not in said.lower()
    assert b"fastpoetry" in fresh.path(_CACHE).read_bytes()
    listed = fresh.run("runuser", "-unobody", "twistd3", "--", "--help")
    assert "    fastpoetry " in listed.stdout
    assert "    fastpoetry-proxy " in listed.stdout
    assert listed.stderr == ""
    assert listUnits(fresh) == ""
    assert listListeners(fresh) == listeners
    files = ("list-unit-files", "--no-legend", "--state=enabled", "fastpoetry*")
    assert fresh.run("systemctl", *files, check=False).stdout == ""
    assert fresh.systemctl("is-system-running") == "running"


def test_dpkg(fresh: Machine, package: Path) -> None:
    """
    C{dpkg -i} of both packages in one call installs them, in the order of their names, and upgrades
    them, in the other order.
    """
    debs = sorted(package.glob("*.deb"))
    for each in debs:
        fresh.path(f"/tmp/{each.name}").write_bytes(each.read_bytes())
    for order in (debs, debs[::-1]):
        fresh.run("dpkg", "--install", *(f"/tmp/{each.name}" for each in order))
        fresh.systemctl("start", "fastpoetry@ecstasy")
        assert fresh.fetch(*_ECSTASY) == (CLONE / "poetry/ecstasy.txt").read_bytes()


def test_readme(fresh: Machine, package: Path) -> None:
    """
    A user who types the README's commands for installing has a poem, one of their own, and a port
    for it.
    """

    def enter(block: str, *, terminal: bool = False) -> str:
        typed = ["sh", "-c", _SHELL + block]
        if terminal:
            typed = ["script", "--quiet", "--return", "--command", shlex.join(typed), "/dev/null"]
        return fresh.run("env", "SYSTEMD_EDITOR=/root/edit", *typed).stdout

    fresh.path("/root/dist").mkdir(exist_ok=True)
    for each in package.glob("*.deb"):
        fresh.path(f"/root/dist/{each.name}").write_bytes(each.read_bytes())
    install, start, enable, own, port = readInstallation()
    assert install.startswith("make deb\n")
    # apt asks, because one of the packages that the user names is installed already.
    enter("yes | " + install.removeprefix("make deb\n"))
    seen = enter(start)
    assert seen.startswith((CLONE / "poetry/ecstasy.txt").read_text())
    assert "sending 2735 bytes of poetry to 127.0.0.1:" in seen
    assert 'Status: "Serving ecstasy (2735 bytes): ' in seen
    enter(enable)
    assert fresh.systemctl("is-enabled", "fastpoetry@ecstasy.socket") == "enabled"
    fresh.path("/root/raven.txt").write_text("Once upon a midnight dreary\n")
    fresh.path("/root/raven.txt").chmod(0o600)
    assert enter(own) == "Once upon a midnight dreary\n"
    fresh.path("/root/written").write_text(port)
    fresh.path("/root/edit").write_text(_EDIT)
    fresh.path("/root/edit").chmod(0o755)
    readme = (CLONE / "README.md").read_text()
    for command in ("edit", "restart"):
        typed = f"sudo systemctl {command} fastpoetry@raven.socket"
        assert typed in readme
        enter(typed, terminal=True)
    assert fresh.fetch("127.0.0.1", "10004") == b"Once upon a midnight dreary\n"
    fresh.path("/etc/fastpoetry/poetry/raven.txt").write_text("Nevermore\n")
    assert "sudo systemctl reload fastpoetry@raven`" in readme
    enter("sudo systemctl reload fastpoetry@raven")
    assert fresh.fetch("127.0.0.1", "10004") == b"Nevermore\n"


def test_firstBoot(release: str, package: Path) -> None:
    """
    When an image boots for the first time, systemd enables every unit without a contrary preset. No
    unit of ours is enabled, and no port of ours is open.
    """
    with closing(startMachine(findRoot(release, "package"), f"{release}-image")) as image:
        installPackage(image, package)
        image.path("/etc/machine-id").write_text("uninitialized\n")
        # Debian's presets enable this unit again, which shows that presets were applied.
        image.systemctl("disable", "getty@tty1.service")
        # It would ask questions, and no user is there to answer.
        image.systemctl("mask", "systemd-firstboot.service")
        image.reboot()
        assert image.systemctl("is-enabled", "getty@tty1.service") == "enabled"
        for unit in ("fastpoetry.socket", "fastpoetry@ecstasy.socket"):
            enabled = image.run("systemctl", "is-enabled", unit, check=False).stdout
            assert enabled == "disabled\n"
        assert listUnits(image) == ""
        assert listListeners(image) == []


def test_libraryAlone(fresh: Machine, package: Path) -> None:
    """Installing only the modules gives the twistd commands and no unit."""
    installPackage(fresh, findPackage(package, "python3-fastpoetry"))
    typed = ("runuser", "-unobody", "--", "twistd3", "fastpoetry", "--help")
    assert "--poem" in fresh.run(*typed).stdout
    files = ("list-unit-files", "--no-legend", "fastpoetry*")
    assert fresh.run("systemctl", *files, check=False).stdout == ""


def test_start(installed: Machine) -> None:
    """One command starts an instance, and another fetches its poem."""
    installed.systemctl("start", "fastpoetry@ecstasy")
    assert installed.fetch(*_ECSTASY) == (CLONE / "poetry/ecstasy.txt").read_bytes()


def test_help(installed: Machine) -> None:
    """C{systemctl help} finds the manual page."""
    assert "fastpoetry@.socket" in installed.systemctl("help", "fastpoetry@ecstasy")


def test_autopkgtest(installed: Machine, package: Path) -> None:
    """The package's own tests pass, as autopkgtest runs them: the first as the user nobody."""
    tree = installed.path("/tmp/tree")
    shutil.copytree(package.parent / "deb/fastpoetry", tree, dirs_exist_ok=True)
    # This machine is the isolated container that one of the tests asks for.
    setting = ("--user=nobody", "--ignore-restrictions=isolation-container")
    command = ("autopkgtest", "--no-built-binaries", *setting, "/tmp/tree", "--", "null")
    said = installed.run(*command, check=False, seconds=120)
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stderr.count("PASS") == 2, said.stderr


def test_upgrade(installed: Machine, newer: Path) -> None:
    """
    An upgrade restarts the running services, and no others. Sockets stay open, so that each reader
    gets a whole poem; the modules are present at each moment.
    """
    startEverything(installed)
    upgrade(installed, newer, _MODULE)


def test_upgradeFromOne(fresh: Machine, single: Path, package: Path) -> None:
    """
    An upgrade from the single package of earlier versions restarts the running services too. The
    modules move to another package: a service that starts in between finds no modules, and
    its readers wait in the socket.
    """
    installPackage(fresh, single)
    startEverything(fresh)
    upgrade(fresh, package)


def upgrade(installed: Machine, packages: Path, *modules: str) -> None:
    """
    Upgrade a machine where everything runs, while readers read, and check the result.

    @param modules: files that must be present at each moment.
    """

    def see() -> tuple[set[str], set[str], list[str]]:
        units = installed.systemctl("list-units", "--plain", "--no-legend", "fastpoetry*")
        processes = {installed.show(f"{unit}.service", "MainPID") for unit in _RUNNING}
        sockets = [installed.show(f"{unit}.socket", "InvocationID") for unit in _RUNNING]
        return {line.split()[0] for line in units.splitlines()}, processes, sockets

    units, processes, sockets = see()
    command = installed.command("python3", "-c", _READERS, *modules)
    readers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        installPackage(installed, packages)
    finally:
        read = readers.communicate(timeout=30)[0]
    assert readers.returncode == 0
    assert int(read) > 0
    unitsAfter, processesAfter, socketsAfter = see()
    assert unitsAfter == units
    assert processesAfter.isdisjoint(processes)
    assert socketsAfter == sockets


def test_remove(installed: Machine) -> None:
    """Removal stops everything, and leaves no unit, socket or command."""
    startEverything(installed)
    installed.run("systemctl", "start", "fastpoetry@typo", check=False)
    runApt(installed, "remove", "fastpoetry", "python3-fastpoetry")
    assert listUnits(installed) == ""
    assert listListeners(installed) == []
    assert list(installed.path("/run").glob("fastpoetry*")) == []
    assert b"fastpoetry" not in installed.path(_CACHE).read_bytes()
    listed = installed.run("runuser", "-unobody", "twistd3", "--", "--help")
    assert "fastpoetry" not in listed.stdout
    assert listed.stderr == ""


def test_purge(fresh: Machine, package: Path) -> None:
    """
    A purge leaves only the files that were there before, and those that an administrator wrote.
    """
    before = set(fresh.run("sh", "-c", _LIST_FILES).stdout.splitlines())
    installPackage(fresh, package)
    poem = "/etc/fastpoetry/poetry/mine.txt"
    fresh.path(poem).write_text("a poem of mine\n")
    fresh.systemctl("enable", "fastpoetry", "fastpoetry@ecstasy", "fastpoetry-proxy@copy")
    startEverything(fresh)
    runApt(fresh, "purge", "fastpoetry", "python3-fastpoetry")
    after = set(fresh.run("sh", "-c", _LIST_FILES).stdout.splitlines())
    written = [Path(poem), Path("/etc/fastpoetry/proxy/copy.env")]
    folders = {str(folder) for path in written for folder in path.parents}
    assert after - before == {str(path) for path in written} | (folders - before)
    assert before - after == set()
