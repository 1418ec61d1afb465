"""
Tests of the Debian package: what is in it, and what it does when it comes and goes.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastpoetry import __version__
from system.conftest import CLONE, listUnits, skip, startMachine
from system.machine import Machine, waitFor
from system.package import (
    buildPackage,
    findBuildObstacle,
    findPackage,
    installPackage,
    runApt,
)

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "netcat-openbsd", "man-db", "autopkgtest"),
    # What the package depends on; the machines have no network to fetch it by.
    *("python3-twisted", "python3-systemd"),
)

_CACHE = "/usr/lib/python3/dist-packages/twisted/plugins/dropin.cache"
_RUNNING = ("fastpoetry@ecstasy", "fastpoetry", "fastpoetry-proxy@copy")
_ECSTASY = ("127.0.0.1", "10000")
_UPSTREAM = "UPSTREAM=tcp:host=127.0.0.1:port=10000\n"

# Reads from addresses, each again and again, until its input ends. Fails on the first reader who is
# refused, or gets anything but a whole poem.
_READERS = """
import select, socket, sys
from pathlib import Path

poems = {path.read_bytes() for path in Path("/usr/share/fastpoetry/poetry").glob("*.txt")}
read = 0
while not select.select([sys.stdin], [], [], 0.005)[0]:
    for address in (("127.0.0.1", 10000), ("127.0.0.1", 17), "/run/fastpoetry/ecstasy.sock"):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family) as reader:
            reader.connect(address)
            assert reader.makefile("rb").read() in poems
        read += 1
print(read)
"""

# Every file that may matter: not logs, caches and notes of dpkg, unless they are called after us.
_LIST_FILES = r"""
find / -xdev \( -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/cache \
    -o -name __pycache__ \) -prune -o -print
find / -xdev -path '*fastpoetry*'
find /var/cache -maxdepth 1
find /run -maxdepth 1
"""


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
    The package.
    """
    return findPackage(built)


@pytest.fixture(scope="session")
def bare(release: str) -> Iterator[Machine]:
    """
    A booted system with what the package depends on, for all tests of a release.
    """
    with closing(startMachine(release, _PACKAGES, "package")) as machine:
        yield machine


@pytest.fixture
def fresh(bare: Machine) -> Iterator[Machine]:
    """
    That system without the package, as if it had never been there.
    """
    if isInstalled(bare):
        runApt(bare, "purge", "fastpoetry")
    yield bare
    tidy(bare)


@pytest.fixture
def installed(bare: Machine, package: Path) -> Iterator[Machine]:
    """
    That system with the package, nothing of which runs.
    """
    if not isInstalled(bare):
        installPackage(bare, package)
    yield bare
    tidy(bare)


@pytest.fixture
def newer(installed: Machine, package: Path, tmp_path: Path) -> Path:
    """
    The package as the next version, whose files are newer than the cache of plugins.
    """
    run("dpkg-deb", "--raw-extract", package, tmp_path / "tree")
    control = tmp_path / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 9"))
    # A package has whole seconds only, and none of the future.
    now = math.ceil(time.time())
    for file in (tmp_path / "tree/usr/lib/python3").rglob("*.py"):
        os.utime(file, (now, now))
    waitFor(lambda: time.time() > now, "the next second")
    run("dpkg-deb", "--build", tmp_path / "tree", tmp_path)
    return findPackage(tmp_path)


def tidy(machine: Machine) -> None:
    """
    Stop everything, remove what an administrator added, and see that nothing ever complained.
    """
    stop = "systemctl stop 'fastpoetry*.socket' 'fastpoetry*.service'"
    machine.run("sh", "-c", f"{stop}; rm -rf /etc/fastpoetry/*/*")
    complaints = ("journalctl", "--quiet", "--grep=Unable to write to plugin cache")
    assert machine.run(*complaints, check=False).stdout == ""


def isInstalled(machine: Machine) -> bool:
    """
    Whether the package is there, and not merely its configuration.
    """
    status = machine.run("dpkg-query", "-Wf${db:Status-Status}", "fastpoetry", check=False)
    return status.stdout == "installed"


def run(*command: str | Path) -> str:
    """
    Run a command out here, and return what it printed.
    """
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def listListeners(machine: Machine) -> list[str]:
    """
    The TCP ports somebody listens on.
    """
    lines = machine.run("cat", "/proc/net/tcp", "/proc/net/tcp6").stdout.splitlines()
    fields = [line.split() for line in lines]
    return [field[1] for field in fields if field[3] == "0A"]


def startEverything(machine: Machine) -> None:
    """
    Have one unit of each kind run, L{_RUNNING}, and one socket listen that nobody has read from.
    """
    machine.path("/etc/fastpoetry/proxy/copy.env").write_text(_UPSTREAM)
    machine.systemctl("start", *_RUNNING, "fastpoetry@science.socket")
    waitFor(lambda: machine.fetch("-U", "/run/fastpoetry-proxy/copy.sock"), "the proxy's poem")


def test_contents(package: Path) -> None:
    """
    The package has every module, unit, poem, page and completion that there is, and the two folders
    for the administrator; the plugin comes without what Twisted or Python make beside it.
    """
    lines = run("dpkg-deb", "--contents", package).splitlines()
    files = {line.split()[5].removeprefix(".").replace("/usr/lib/", "/lib/") for line in lines}
    python = "/lib/python3/dist-packages"
    for folder, pattern, inside in (
        ("fastpoetry", "*.py", f"{python}/fastpoetry"),
        ("fastpoetry", "py.typed", f"{python}/fastpoetry"),
        ("packaging/systemd", "*.service", "/lib/systemd/system"),
        ("packaging/systemd", "*.socket", "/lib/systemd/system"),
        ("packaging/systemd", "*.d/*.conf", "/lib/systemd/system"),
        ("packaging/systemd", "*.catalog", "/lib/systemd/catalog"),
        ("poetry", "*.txt", "/usr/share/fastpoetry/poetry"),
    ):
        for path in (CLONE / folder).glob(pattern):
            assert f"{inside}/{path.relative_to(CLONE / folder)}" in files
    for page in (CLONE / "packaging/man").glob("*.[1-8]"):
        assert f"/usr/share/man/man{page.suffix[1]}/{page.name}.gz" in files
    for one in (
        "/etc/fastpoetry/poetry/",
        "/etc/fastpoetry/proxy/",
        "/usr/share/bash-completion/completions/_twistd3",
        "/usr/share/doc/fastpoetry/README.Debian",
    ):
        assert one in files
    twisted = {file for file in files if "/twisted/" in file and not file.endswith("/")}
    assert twisted == {f"{python}/twisted/plugins/fastpoetry_plugin.py"}


def test_version(package: Path) -> None:
    """
    The package has the version of the program.
    """
    assert run("dpkg-deb", "--field", package, "Version").strip() == __version__


def test_dependencies(package: Path) -> None:
    """
    It depends on the distribution's Twisted and systemd for Python, and on Python itself.
    """
    depends = run("dpkg-deb", "--field", package, "Depends").strip().split(", ")
    names = {name.split()[0] for name in depends}
    assert names == {"python3:any", "python3-systemd", "python3-twisted"}


def test_reproducible(built: Path, tmp_path: Path) -> None:
    """
    Whoever builds it again, elsewhere and with other habits, gets the same files.
    """
    umask = os.umask(0o077)
    try:
        again = buildPackage(tmp_path, TZ="Pacific/Kiritimati", LC_ALL="C", LANG="C")
    finally:
        os.umask(umask)
    names = {path.name for path in built.iterdir()}
    assert {path.suffix for path in built.iterdir()} == {".deb", ".dsc", ".xz"}
    assert {path.name for path in again.iterdir()} == names
    assert all((built / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_lintian(built: Path) -> None:
    """
    lintian has nothing to say of the package and of its source, as picky as it can be.
    """
    (changes,) = (built.parent / "deb").glob("*.changes")
    assert run("lintian", "--no-cfg", "-i", "-I", "--pedantic", changes) == ""


def test_install(fresh: Machine, package: Path) -> None:
    """
    Installing lists the commands, and enables nothing, starts nothing and opens no port.
    """
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


def test_start(installed: Machine) -> None:
    """
    One command starts an instance, and another fetches its poem.
    """
    installed.systemctl("start", "fastpoetry@ecstasy")
    assert installed.fetch(*_ECSTASY) == (CLONE / "poetry/ecstasy.txt").read_bytes()


def test_help(installed: Machine) -> None:
    """
    C{systemctl help} finds the manual page.
    """
    assert "fastpoetry@.socket" in installed.systemctl("help", "fastpoetry@ecstasy")


def test_autopkgtest(installed: Machine, built: Path) -> None:
    """
    The tests that the package brings pass, as autopkgtest runs them: the first as nobody.
    """
    tree = installed.path("/tmp/tree")
    shutil.copytree(built.parent / "deb/fastpoetry", tree, dirs_exist_ok=True)
    # This machine is the isolated container that one of the tests asks for.
    setting = ("--user=nobody", "--ignore-restrictions=isolation-container")
    command = ("autopkgtest", "--no-built-binaries", *setting, "/tmp/tree", "--", "null")
    said = installed.run(*command, check=False, seconds=120)
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stderr.count("PASS") == 2, said.stderr


def test_upgrade(installed: Machine, newer: Path) -> None:
    """
    An upgrade restarts the services that run, and no others; no socket closes meanwhile, so that
    each reader gets a whole poem.
    """
    startEverything(installed)

    def see() -> tuple[set[str], set[str], list[str]]:
        units = installed.systemctl("list-units", "--plain", "--no-legend", "fastpoetry*")
        processes = {installed.show(f"{unit}.service", "MainPID") for unit in _RUNNING}
        sockets = [installed.show(f"{unit}.socket", "InvocationID") for unit in _RUNNING]
        return {line.split()[0] for line in units.splitlines()}, processes, sockets

    units, processes, sockets = see()
    command = installed.command("python3", "-c", _READERS)
    readers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        installPackage(installed, newer)
    finally:
        read = readers.communicate(timeout=30)[0]
    assert readers.returncode == 0
    assert int(read) > 0
    unitsAfter, processesAfter, socketsAfter = see()
    assert unitsAfter == units
    assert processesAfter.isdisjoint(processes)
    assert socketsAfter == sockets


def test_remove(installed: Machine) -> None:
    """
    Removal stops everything: no unit, no socket and no command is left.
    """
    startEverything(installed)
    runApt(installed, "remove", "fastpoetry")
    assert listUnits(installed) == ""
    assert listListeners(installed) == []
    assert list(installed.path("/run").glob("fastpoetry*")) == []
    assert b"fastpoetry" not in installed.path(_CACHE).read_bytes()
    listed = installed.run("runuser", "-unobody", "twistd3", "--", "--help")
    assert "fastpoetry" not in listed.stdout
    assert listed.stderr == ""


def test_purge(fresh: Machine, package: Path) -> None:
    """
    After a purge there is nothing that was not there before, except for what an administrator
    wrote.
    """
    runApt(fresh, "purge", "fastpoetry")  # which another test may have left removed only
    before = set(fresh.run("sh", "-c", _LIST_FILES).stdout.splitlines())
    installPackage(fresh, package)
    poem = "/etc/fastpoetry/poetry/mine.txt"
    fresh.path(poem).write_text("a poem of mine\n")
    fresh.systemctl("enable", "fastpoetry", "fastpoetry@ecstasy", "fastpoetry-proxy@copy")
    startEverything(fresh)
    runApt(fresh, "purge", "fastpoetry")
    after = set(fresh.run("sh", "-c", _LIST_FILES).stdout.splitlines())
    written = [Path(poem), Path("/etc/fastpoetry/proxy/copy.env")]
    folders = {str(folder) for path in written for folder in path.parents}
    assert after - before == {str(path) for path in written} | (folders - before)
    assert before - after == set()
