"""
Tests for the Makefile's targets, on a machine with only git, make and python3.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from fcntl import LOCK_EX, flock
from pathlib import Path
from ssl import get_default_verify_paths

import pytest

from system.conftest import CLONE, startMachine
from system.machine import Machine, waitFor
from system.roots import findCache, findDownloads, findRoot, readAptSettings

ADDRESS = ("127.0.0.1", 10000)
HOME = "/root/fastpoetry"
CTRL_C = b"\x03"
_SETUP_SECONDS = 300.0

# Compiling every module of a package takes a third of apt's time. Python compiles what it imports.
_WITHOUT_BYTECODE = """
dpkg-divert --quiet --local --rename --add /usr/bin/py3compile
ln --symbolic true /usr/bin/py3compile
"""


@pytest.fixture(scope="module")
def fresh(release: str) -> Iterator[Machine]:
    """A machine on which a user has just cloned the repository, with the host's network."""
    # A file of its own for the host's authorities: Debian's are installed into the usual one.
    bundle = "/etc/host-authorities.pem"
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    settings.update(PIP_CERT=bundle, SSL_CERT_FILE=bundle, PIP_COMPILE="0")
    machine = startMachine(
        # What is already downloaded need not be downloaded again.
        [findDownloads(release), *findRoot(release, "clone")],
        f"{release}-fresh",
        environment=settings,
        boot=False,
        network=True,
    )
    with closing(machine):
        authorities = get_default_verify_paths().cafile
        if authorities is not None:
            shutil.copy(authorities, machine.path(bundle))
        pip = Path("/etc/pip.conf")
        if pip.exists():
            shutil.copy(pip, machine.path(str(pip)))
        apt = "".join(f"{line}\n" for line in readAptSettings())
        machine.path("/etc/apt/apt.conf.d/99host").write_text(apt)
        ours = shutil.ignore_patterns(
            ".git", ".venv", "build", "__pycache__", ".*_cache", "dropin.cache"
        )
        shutil.copytree(CLONE, machine.path(HOME), ignore=ours, symlinks=True)
        machine.run("sh", "-c", _WITHOUT_BYTECODE)
        yield machine


class Terminal:
    """C{make run} in a terminal of the machine, and its output."""

    def __init__(self, machine: Machine) -> None:
        """@param machine: a machine with a clone in L{HOME}."""
        typed = f"script --quiet --return --command 'make --directory={HOME} run' /dev/null"
        self._log = machine.path("/root/terminal")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                machine.command("sh", "-c", f"exec {typed}"),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def read(self) -> str:
        """All output so far."""
        return self._log.read_text(errors="replace")

    def awaitLine(self, line: str) -> None:
        """Wait until a line is printed."""
        waitFor(
            lambda: line in self.read() or self._process.poll() is not None, line, _SETUP_SECONDS
        )
        assert line in self.read(), self.read()

    def interrupt(self) -> int:
        """
        Press Ctrl-C.

        @return: the exit status as a shell sees it.
        """
        keyboard = self._process.stdin
        assert keyboard is not None
        keyboard.write(CTRL_C)
        keyboard.flush()
        status = self._process.wait(30)
        keyboard.close()
        return status


def fetch() -> bytes:
    """The bytes that the server sends, through the network that the machines share with us."""
    with socket.create_connection(ADDRESS, 10) as client:
        return b"".join(iter(lambda: client.recv(65536), b""))


def isFree() -> bool:
    """Whether the server's port is free."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(ADDRESS)
            trial.listen()
        except OSError:
            return False
    return True


@pytest.fixture
def port() -> Iterator[None]:
    """The server's port, which the machines of all shards share with this one."""
    with open(findCache("port"), "w") as lock:
        flock(lock, LOCK_EX)
        waitFor(isFree, f"{ADDRESS} to be free on this machine")
        yield


def test_run(fresh: Machine, port: None) -> None:
    """
    C{make run} sets up what it needs, serves the poem through an adopted socket, prints how to
    fetch it, and ends cleanly on Ctrl-C; the next run works at once.
    """
    poem = (CLONE / "poetry/ecstasy.txt").read_bytes()
    for _ in range(2):
        terminal = Terminal(fresh)
        terminal.awaitLine("Serving poetry/ecstasy.txt on 127.0.0.1:10000. ")
        terminal.awaitLine("Listening on 127.0.0.1:10000 as 3.")
        assert "nc 127.0.0.1 10000" in terminal.read()
        assert fetch() == poem
        assert fetch() == poem
        assert terminal.interrupt() == 0, terminal.read()
        for complaint in ("Error", "Traceback", "***"):
            assert complaint not in terminal.read(), terminal.read()


def test_runUnread(fresh: Machine, port: None) -> None:
    """C{make run} also ends cleanly if no client has connected."""
    terminal = Terminal(fresh)
    terminal.awaitLine("Listening on 127.0.0.1:10000 as 3.")
    assert terminal.interrupt() == 0, terminal.read()


def test_runBrokenPoem(fresh: Machine) -> None:
    """C{make run} checks the poem before it listens."""
    poem = fresh.path(f"{HOME}/poetry/ecstasy.txt")
    text = poem.read_bytes()
    poem.write_bytes(b"")
    try:
        ran = fresh.run("make", f"--directory={HOME}", "run", check=False)
    finally:
        poem.write_bytes(text)
    assert ran.returncode != 0
    assert "ecstasy.txt: is empty" in ran.stderr
    assert "Listening" not in ran.stdout + ran.stderr


def test_runPortTaken(fresh: Machine, port: None) -> None:
    """C{make run} reports that the port is in use."""
    with socket.create_server(ADDRESS):
        ran = fresh.run("make", f"--directory={HOME}", "run", check=False)
    assert ran.returncode != 0
    assert "fastpoetry: cannot listen on 127.0.0.1:10000: Address already in use" in ran.stderr


_FEW_TOOLS = "TEST_PACKAGES=systemd-container mmdebstrap"
"""Instead of all packages with the tests' tools, which take as long to unpack as all the rest."""


def test_test(fresh: Machine) -> None:
    """
    C{make test} sets up what it needs and runs tests, and has little to set up the second time.
    Each release has all packages that it names.
    """
    command = ("sh", "-c", f"cd {HOME} && make test TESTS=tests/test_instance.py '{_FEW_TOOLS}'")
    first = fresh.run(*command, seconds=_SETUP_SECONDS)
    assert " passed in " in first.stdout.splitlines()[-1]
    assert "Setting up" not in fresh.run(*command, seconds=_SETUP_SECONDS).stdout
    print_ = ("make", f"--directory={HOME}", "--silent", "--eval=tools:;@echo $(TEST_PACKAGES)")
    tools = fresh.run(*print_, "tools").stdout.split()
    assert "rpm" in tools
    # Works out the whole installation, in a quarter of the time of --simulate.
    fresh.run("apt-get", "install", "--yes", "--print-uris", "--no-install-recommends", *tools)


_CONTAINER = (
    *("setpriv", "--inh-caps=-all", "--bounding-set"),
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap"
    ",+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap",
)
"""Runs a command as root with the capabilities that a container commonly has."""


def test_testUnbooted(fresh: Machine, release: str) -> None:
    """
    All of C{make test} passes for a user without sudo, and for the root user of a container: it
    makes no Debian, and one line says what it leaves out and why.

    What may be done does not depend on the release, so one release has the user and the others have
    the container.
    """
    isUser = release == "bookworm"
    why = f"starting machines needs {'root' if isUser else 'CAP_SYS_ADMIN'}"
    fresh.run("make", f"--directory={HOME}", ".venv/test", seconds=_SETUP_SECONDS)
    clone = "/srv/fastpoetry"
    fresh.run("cp", "--archive", HOME, clone)
    if isUser:
        fresh.run("useradd", "anybody")
        fresh.run("chown", "-R", "anybody", clone)
    few = (
        "modules=tests/test_instance.py",
        "faults=tests/faults/test_p6_broken_poem.py::ReloadTests::test_deleted",
        _FEW_TOOLS,
    )
    become = ("runuser", "--user=anybody") if isUser else _CONTAINER
    typed = (*become, "--", "make", "--no-print-directory", f"--directory={clone}", "test", *few)
    ran = fresh.run(*typed, seconds=_SETUP_SECONDS)
    assert " passed" in ran.stdout.splitlines()[-1]
    (line,) = [each for each in ran.stderr.splitlines() if each.startswith("Without the tests on")]
    assert f"bookworm and trixie: {why}" in line


def test_need(fresh: Machine) -> None:
    """
    Missing packages are named before they are installed. A user who may not install them is told
    what to do; a user who has all sees no message.
    """
    need = f"{HOME}/packaging/need"
    assert fresh.run(need, "make", "python3").stdout == ""
    fresh.run("install", "-m755", need, "/usr/local/bin/need")
    refused = fresh.run("runuser", "-unobody", "need", "make", "hello", check=False)
    assert refused.returncode == 1
    assert refused.stderr == "Missing, and only root can install it: apt-get install hello\n"
    said = fresh.run("need", "make", "hello", seconds=_SETUP_SECONDS).stdout
    assert said == "About to install, with apt-get: hello\n"


def test_installHere(fresh: Machine) -> None:
    """After C{make install} without C{DESTDIR}, twistd3 and journalctl find the installed files."""
    fresh.run("make", f"--directory={HOME}", "ready-to-run", "install", seconds=_SETUP_SECONDS)
    listed = fresh.run("runuser", "-unobody", "twistd3", "--", "--help")
    assert "    fastpoetry " in listed.stdout
    assert listed.stderr == ""
    assert "fastpoetry" in fresh.run("journalctl", "--list-catalog").stdout


def test_deb(fresh: Machine, package: Path) -> None:
    """C{make deb} builds the packages on each release, with the same files as here."""
    commit = (
        "git init --quiet && git add --all && git -c user.name=a -c user.email=a commit --quiet"
    )
    fresh.run("sh", "-c", f"cd {HOME} && {commit} --message=all")
    fresh.run("make", f"--directory={HOME}", "deb", seconds=_SETUP_SECONDS)
    for here in package.glob("*.deb"):
        list_ = ("dpkg-deb", "--contents")
        there = fresh.run(*list_, f"{HOME}/dist/{here.name}").stdout
        ours = subprocess.run([*list_, here], check=True, capture_output=True, text=True).stdout
        assert _listFiles(there) == _listFiles(ours)


def _listFiles(contents: str) -> set[str]:
    """
    The files in a package's listing, independent of the release's place for units. Files that
    Python's packaging tools add beside a module are left out.
    """
    files = (line.split()[5] for line in contents.splitlines() if not line.endswith("/"))
    return {file.replace("./usr/lib/", "./lib/") for file in files if "-info/" not in file}
