"""
Tests for C{docs/recipes.md}: its commands as printed, with its examples and other programs, on a
booted system.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import pytest

from system.conftest import CLONE, Layers, install, startMachine
from system.machine import Machine
from system.package import findPackage
from system.printed import copyExamples, follow, readFiles, readSections, readSteps
from system.roots import findRoot, makeOnce

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
def equipped(release: str, package: Path, wheels: Path) -> Iterator[Machine]:
    """A booted system with the package, Debian's programs, and those from pip."""
    layer = package.parent / f"{release}-recipes"
    library = findPackage(package, "python3-fastpoetry")
    root = install(findRoot(release, "recipes"), layer, library)
    shown = {wheels: "/opt/wheels"}
    with closing(startMachine(root, f"{release}-equipped", binds=shown)) as machine:
        machine.run("bash", "-ec", _MAKE_VENVS)
        yield machine


@pytest.fixture(scope="module")
def wheels(release: str) -> Path:
    """
    What the page installs with pip: a folder for C{/opt/pip} and one for each virtual environment.
    The cache keeps them, like the roots.
    """
    arguments = readArguments(release)
    root = findRoot(release, "full")
    return makeOnce(release, "wheels", arguments, lambda folder: fill(arguments, root, folder))


def readArguments(release: str) -> dict[str, list[str]]:
    """pip's arguments for each folder of L{wheels}, with the versions of the table."""
    page = re.sub(r"==\$\(.*\)", f"=={_BUILDBOTS[release]}", PAGE.read_text("utf-8"))
    beside = " ".join(re.findall(r"pip install --no-deps --target=/opt/pip\s+([^`]+)", page))
    arguments = {"pip": ["--no-deps", *beside.split()]}
    versions = dict(re.findall(r"^\| (\w+) \| of pip, (\S+) ", GUIDE.read_text("utf-8"), re.M))
    chosen = (f"--python-version={_PYTHONS[release]}", "--only-binary=:all:")
    for venv, programs in _VENVS.items():
        pinned = [f"{package}=={versions[name]}" for name, package in programs.items()]
        arguments[venv] = [*chosen, *pinned]
    return arguments


def fill(arguments: dict[str, list[str]], root: Layers, folder: Path) -> None:
    """Run pip for each folder, below a new one, or skip the test if pip fails."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile")
    for name, wanted in arguments.items():
        command = [*pip, f"--target={folder / name}", *wanted]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(ran.stderr)
    machine = startMachine(root, "wheels", boot=False, shared={folder: "/opt/wheels"})
    with closing(machine):
        # With the release's Python, or each start of a program would compile its modules. The
        # exit status is ignored: it also tells of files for other Pythons, such as templates.
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
    """Whether a record is from a unit whose name matches one of the patterns."""
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
