"""
Tests for C{docs/recipes.md}: its commands as printed, with its examples and other programs, on a
booted system.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

import pytest

from system.conftest import CLONE, Layers, startMachine
from system.machine import Machine
from system.printed import copyExamples, follow, readFiles, readSections, readSteps
from system.roots import findCache, findRoot

PAGE = CLONE / "docs/recipes.md"
GUIDE = CLONE / "docs/twisted-under-systemd.md"
SECTIONS = readSections(PAGE)
SHARED = SECTIONS["The shared units"]
RECIPES = {title: SHARED + text for title, text in SECTIONS.items() if readSteps(text)}

_TIDY = """
systemctl stop {units}
systemctl reset-failed
rm -rf {files}
systemctl daemon-reload
journalctl --quiet --rotate --vacuum-files=1
"""


_PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
_BUILDBOTS = {"bookworm": "3.7.0", "trixie": "4.2.1"}

_VENVS = {
    "venv": {"scrapyd": "scrapyd", "Synapse": "matrix-synapse"},
    "cowrie": {"cowrie": "cowrie"},
}
"""For each virtual environment of the page: a program's name in the table, and its name for pip."""

_MAKE_VENVS = r"""
ln -s /opt/wheels/pip /opt/pip
for venv in venv cowrie; do
    python3 -m venv --without-pip /opt/$venv
    cd /opt/$venv/lib/python3*/site-packages
    printf '%s\n' /opt/wheels/$venv /src >fastpoetry.pth
    ln -s /usr/lib/python3/dist-packages/systemd .
    sed "1s|.*|#!/opt/$venv/bin/python|" /opt/wheels/$venv/bin/twistd >/opt/$venv/bin/twistd
    chmod +x /opt/$venv/bin/twistd
done
"""
"""The same environments with the same wheels and this clone, without a network."""


@pytest.fixture(scope="module")
def equipped(release: str, libraryRoot: Layers, wheels: Path) -> Iterator[Machine]:
    """A booted system with the package, Debian's programs, and those from pip."""
    shown = {wheels: "/opt/wheels"}
    with closing(startMachine(libraryRoot, f"{release}-equipped", binds=shown)) as machine:
        machine.run("bash", "-ec", _MAKE_VENVS)
        yield machine


@pytest.fixture(scope="module")
def wheels(release: str) -> Path:
    """
    What the page installs with pip, in the table's versions: a folder for C{/opt/pip} and one for
    each virtual environment. The cache keeps them, like the roots.
    """
    page = re.sub(r"==\$\(.*\)", f"=={_BUILDBOTS[release]}", PAGE.read_text("utf-8"))
    loose = " ".join(re.findall(r"pip install --no-deps --target=/opt/pip\s+([^`]+)", page))
    versions = dict(re.findall(r"^\| (\w+) \| of pip, (\S+) ", GUIDE.read_text("utf-8"), re.M))
    chosen = [f"--python-version={_PYTHONS[release]}", "--only-binary=:all:"]
    wanted = {"pip": ["--no-deps", *loose.split()]}
    for venv, programs in _VENVS.items():
        pinned = [f"{package}=={versions[name]}" for name, package in programs.items()]
        wanted[venv] = [*chosen, *pinned]
    folder = findCache(f"{release}-wheels-{sha256(repr(wanted).encode()).hexdigest()[:8]}")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for name, arguments in wanted.items():
                install(Path(scratch, "wheels", name), *arguments)
            compileIn(release, Path(scratch, "wheels"))
            Path(scratch, "wheels").rename(folder)
    return folder


def install(folder: Path, *arguments: str) -> None:
    """Install packages into a folder with pip, or skip the test if that is not possible."""
    options = ("--quiet", "--no-compile", f"--target={folder}")
    command = [sys.executable, "-m", "pip", "install", *options, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(ran.stderr)


def compileIn(release: str, wheels: Path) -> None:
    """Compile the modules with the release's Python. Otherwise each start of a program would."""
    machine = startMachine(
        findRoot(release, "full"), "wheels", boot=False, shared={wheels: "/opt/wheels"}
    )
    with closing(machine):
        # The status counts modules for other Pythons, such as templates.
        machine.run("python3", "-m", "compileall", "-qq", "/opt/wheels", check=False, seconds=300)


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(equipped: Machine, title: str) -> None:
    """A user who follows a recipe sees its output."""
    text = RECIPES[title]
    copyExamples(equipped, text)
    files = readFiles(text)
    names = [Path(each).name for each in files if each.endswith((".socket", ".service"))]
    units = [each.replace("@.", "@*.") for each in names]
    try:
        follow(equipped, text)
        said = equipped.journal("--priority=err")
        own = [each["MESSAGE"].splitlines()[0] for each in said if isOf(units, each)]
        assert own == expectedErrors(text)
    finally:
        sockets = sorted(units, key=lambda each: not each.endswith(".socket"))
        equipped.run(
            "sh",
            "-c",
            _TIDY.format(units=" ".join(sockets) or "''", files=" ".join(files)),
            check=False,
        )


def isOf(units: list[str], record: dict[str, str]) -> bool:
    """Whether a record is from a process of one of those units, by patterns of their names."""
    return any(fnmatch(record.get("_SYSTEMD_UNIT", ""), each) for each in units)


def expectedErrors(text: str) -> list[str]:
    """The errors that a recipe itself provokes, and shows."""
    shown = [step.printed for step in readSteps(text) if " -p err " in step.command]
    return "".join(shown).splitlines()


def test_table(equipped: Machine) -> None:
    """The versions in the table are those of the programs that ran."""
    column = {"Debian 12": 0, "Debian 13": 1}
    release = equipped.run("sh", "-c", ". /etc/os-release; echo Debian $VERSION_ID").stdout.strip()
    query = ("dpkg-query", "--show", "--showformat=${Version}")
    for package, row in (
        ("python3-twisted", r"`twistd web` \| Twisted"),
        ("magic-wormhole-transit-relay", r"Magic Wormhole's transit relay \|"),
        ("buildbot", r"Buildbot, master and worker \|"),
        ("python3-autobahn", r"Autobahn \|"),
        ("graphite-carbon", r"carbon \|"),
        ("python3-daphne", r"daphne, with Django \|"),
        ("python3-foolscap", r"foolscap's flappserver \|"),
        ("python3-scrapy", r"Scrapy \|"),
    ):
        versions = re.search(rf"^\| {row} ([\d.]+), ([\d.]+) ", GUIDE.read_text(), re.M)
        assert versions, row
        installed = equipped.run(*query, package).stdout
        assert re.match(rf"{re.escape(versions[1 + column[release]])}\b", installed)
