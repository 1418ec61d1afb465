"""Tests for the package that C{packaging/rpm/fastpoetry.spec} builds."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from test_package import listFiles, run

from fastpoetry import __version__
from system.conftest import CLONE, startMachine
from system.roots import findRoot

SPEC = CLONE / "packaging/rpm/fastpoetry.spec"
PYTHON = "/usr/lib/python3/dist-packages"
_SOURCE = f"fastpoetry-{__version__}"

_CHANGES = 'cd "$0" && commit=$(git stash create) && git archive --prefix="$1/" ${commit:-HEAD}'
_EXTRACT = 'cd "$1" && rpm2archive - <"$0" | tar --extract --gzip'


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from the clone's present content."""
    if shutil.which("rpmbuild") is None:
        pytest.skip("no rpmbuild; Debian has it in the package rpm")
    if not (CLONE / ".git").exists():
        pytest.skip("building the package needs a git checkout")
    folder = tmp_path_factory.mktemp("rpm")
    (folder / "SOURCES").mkdir()
    with (folder / f"SOURCES/{_SOURCE}.tar").open("wb") as archive:
        subprocess.run(["sh", "-c", _CHANGES, CLONE, _SOURCE], check=True, stdout=archive)
    run("gzip", folder / f"SOURCES/{_SOURCE}.tar")
    defined = (f"--define=_topdir {folder}", f"--define=python3_sitelib {PYTHON}")
    # Debian's rpm has no list of installed packages.
    run("rpmbuild", "-bb", "--nodeps", *defined, SPEC)
    (package,) = folder.glob("RPMS/noarch/*.rpm")
    return package


@pytest.fixture(scope="session")
def tree(rpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package's files."""
    folder = tmp_path_factory.mktemp("tree")
    run("sh", "-c", _EXTRACT, rpm, folder)
    return folder


def test_version() -> None:
    """The spec has the program's version, also in its source's name."""
    text = SPEC.read_text()
    assert re.findall("(?m)^Version: (.+)$", text) == [__version__]
    assert set(re.findall(r"fastpoetry-([0-9][0-9.]*[0-9])", text)) == {__version__}


def test_tree(tree: Path, tmp_path: Path) -> None:
    """The package has the files of C{make install}, its license, and twistd by its usual name."""
    run("make", f"--directory={CLONE}", "install", f"DESTDIR={tmp_path}", "twistd=/usr/bin/twistd")
    files, installed = listFiles(tree), listFiles(tmp_path)
    assert {name: files.get(name) for name in installed} == installed
    assert [Path(name).name for name in files.keys() - installed.keys()] == ["LICENSE"]
    units = [text for name, text in files.items() if name.endswith(".service")]
    assert len([text for text in units if b"=/usr/bin/twistd --nodaemon" in text]) == 4
    outside = {name for name, text in files.items() if b"twistd3" in text}
    assert {name for name in outside if not name.startswith(f"{PYTHON[1:]}/fastpoetry/")} == set()


def test_metadata(tree: Path) -> None:
    """Python finds the distribution with its version and dependencies."""
    script = (
        "from importlib.metadata import distribution;"
        "found = distribution('fastpoetry');"
        "print(found.version, found.requires)"
    )
    seen = run("env", f"PYTHONPATH={tree}{PYTHON}", "/usr/bin/python3", "-c", script)
    assert seen == f"{__version__} ['twisted>=22.4', 'systemd-python>=234']\n"


def test_boot(release: str, rpm: Path, tree: Path) -> None:
    """
    On a Debian without our packages, where twistd has its usual name, the package's files and
    scripts suffice: one command starts a poem and another fetches it.
    """
    scripts = run("rpm", "--query", "--package", "--queryformat=%{POSTIN}", rpm)
    with closing(startMachine(findRoot(release, "package"), f"{release}-rpm")) as machine:
        machine.run("ln", "--symbolic", "twistd3", "/usr/bin/twistd")
        for each in tree.iterdir():
            shutil.copytree(each, machine.path(f"/{each.name}"), dirs_exist_ok=True)
        machine.run("sh", "-e", "-c", scripts, "sh", "1")
        machine.systemctl("start", "fastpoetry@ecstasy", "fastpoetry")
        poem = (CLONE / "poetry/ecstasy.txt").read_bytes()
        assert machine.fetch("127.0.0.1", "10000") == poem
        assert machine.fetch("127.0.0.1", "17")
        assert machine.journal("-u", "fastpoetry", "--grep=fastpoetry@ecstasy is starting")
