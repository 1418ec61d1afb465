"""
The Debian package, built from this clone and installed in machines.

It is built with C{make deb} alone and installed with apt alone, as a reader of the README does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from system.machine import Machine, MachineError
from system.roots import CLONE, runApt

_BUILD_SECONDS = 600.0


def findBuildObstacle() -> str | None:
    """The reason why no package can be built here, or an empty text."""
    if shutil.which("apt-get") is None:
        return "building a Debian package needs Debian"
    if os.geteuid() != 0:
        return "installing what the build needs takes root"
    if not (CLONE / ".git").exists():
        return "building the package needs a git checkout"
    return None


def buildPackage(folder: Path, **environment: str) -> Path:
    """
    Build the package from the clone's present content, without files unknown to git.

    @param folder: where to build, and to leave everything.
    @param environment: variables for the build besides this machine's own.
    @return: the folder of the packages.
    @raise MachineError: if the build fails, with the last output.
    """
    # The uncommitted changes, as a commit that belongs to no branch; empty without changes. The
    # package's time is that of the commit, so each run must give the commit the same time.
    git = ["git", "-C", str(CLONE)]
    date = _run([*git, "log", "-1", "--format=%cI"], environment).strip()
    changes = _run([*git, "stash", "create"], {**environment, "GIT_COMMITTER_DATE": date})
    _run(
        [
            *("make", f"--directory={CLONE}", "deb", f"COMMIT={changes.strip() or 'HEAD'}"),
            *(f"BUILDDIR={folder}", f"DISTDIR={folder / 'dist'}"),
        ],
        environment,
    )
    return folder / "dist"


def findPackage(folder: Path, name: str = "fastpoetry") -> Path:
    """The binary package of that name in a folder."""
    (package,) = folder.glob(f"{name}_*.deb")
    return package


def installPackage(machine: Machine, *packages: Path) -> str:
    """
    Install packages or upgrade to them.

    @param packages: the files, or folders with all of them.
    @return: apt's output.
    @raise MachineError: if that fails.
    """
    files = [file for each in packages for file in ([each], each.glob("*.deb"))[each.is_dir()]]
    for file in files:
        machine.path(f"/tmp/{file.name}").write_bytes(file.read_bytes())
    return runApt(machine, "install", *(f"/tmp/{file.name}" for file in files))


def _run(command: list[str], environment: dict[str, str]) -> str:
    ran = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_BUILD_SECONDS,
    )
    if ran.returncode != 0:
        raise MachineError(f"{' '.join(command)}: {(ran.stdout + ran.stderr)[-3000:]}")
    return ran.stdout


if __name__ == "__main__":
    # If there is an obstacle, the tests that need the package are skipped with it as reason.
    if findBuildObstacle() is None:
        buildPackage(Path(sys.argv[1]))
