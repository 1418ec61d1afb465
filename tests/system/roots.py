"""
Whole Debians in folders, for machines to start from.

Each is made once and kept in the user's cache; to have newer packages in it, remove the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from system.machine import MachineError

_TOOLS = ("systemd-nspawn", "mmdebstrap", "nsenter", "unshare")
_BUILD_SECONDS = 600.0


def findObstacle() -> str | None:
    """Why no machine can be started here, or nothing."""
    if os.geteuid() != 0:
        return "starting machines needs root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}; Debian has them in systemd-container and mmdebstrap"
    return None


def findRoot(release: str, packages: Sequence[str]) -> Path:
    """
    A root of one release of Debian, made now if there is none yet.

    @param packages: what is in it beyond C{mmdebstrap --variant=minbase}.
    @raise MachineError: if it cannot be made, with what mmdebstrap said last.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpoetry"
    key = sha256(" ".join(sorted(packages)).encode()).hexdigest()[:12]
    root = cache / f"{release}-{key}"
    if not root.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _makeRoot(release, packages, root)
    return root


def _makeRoot(release: str, packages: Sequence[str], root: Path) -> None:
    # Nobody ever sees half a root.
    scratch = Path(tempfile.mkdtemp(prefix=f"{release}-", dir=root.parent))
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--aptopt={setting}" for setting in readAptSettings()]
    try:
        made = subprocess.run(
            [*command, release, str(scratch / "root")],
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
        )
        if made.returncode != 0:
            raise MachineError(f"{' '.join(command)} {release}: {made.stderr.strip()[-1000:]}")
        if not root.is_dir():
            (scratch / "root").rename(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def readAptSettings() -> list[str]:
    """How this machine's apt reaches its mirrors, as lines of apt.conf(5)."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [
        line
        for line in dump.splitlines()
        if line.startswith(("Acquire::http::", "Acquire::https::"))
    ]
