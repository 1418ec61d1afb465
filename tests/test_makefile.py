"""Tests for the Makefile that need only make."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from system.roots import CLONE

from fastpoetry import __version__

UNITS = CLONE / "packaging/systemd"

_PAGES = "packaging/man/*.[1-8]"
_OTHER_NAMES = (
    *("fastpoetry.service", "fastpoetry.socket", "fastpoetry@.socket"),
    "fastpoetry-proxy@.socket",
)


def test_install(tmp_path: Path) -> None:
    """C{make install} puts each file into the given place, and no file elsewhere."""
    where = (f"DESTDIR={tmp_path}", "prefix=/usr", "unitdir=/lib/systemd/system")
    subprocess.run(["make", f"--directory={CLONE}", "install", *where], check=True)
    files = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    commands = {path for path in files if path.stat().st_mode & 0o7777 == 0o755}
    assert [path.name for path in commands] == ["announce"]
    assert {path.stat().st_mode & 0o7777 for path in files - commands} == {0o644}
    assert {str(path.relative_to(tmp_path)) for path in files} == {
        *_list("usr/lib/python3/dist-packages", "fastpoetry/**/*.py", "fastpoetry/py.typed"),
        *_list("usr/lib/python3/dist-packages", "twisted/plugins/*.py"),
        *_list("usr/share/fastpoetry", "poetry/*.txt"),
        *_list("lib/systemd/system", "*.socket", "*.service", "*.d/*.conf", within=UNITS),
        *_list("usr/libexec/fastpoetry", "announce", within=UNITS),
        *_list("usr/lib/systemd/catalog", "*.catalog", within=UNITS),
        *_list("usr/lib/systemd/system-preset", "*.preset", within=UNITS),
        *_list("usr/share/doc/fastpoetry", "SECURITY.md", "docs/scaling.md"),
        *_list("usr/share/doc/fastpoetry", "examples/**/*.*", within=CLONE / "packaging"),
        *_list("usr/share/doc/fastpoetry/examples", "haproxy/*", within=CLONE / "packaging"),
        f"usr/lib/python3/dist-packages/fastpoetry-{__version__}.dist-info/METADATA",
        *(f"usr/share/bash-completion/completions/_{name}" for name in ("twistd", "twistd3")),
        *(f"usr/share/man/man{page.suffix[1:]}/{page.name}" for page in CLONE.glob(_PAGES)),
        *(f"usr/share/man/man8/{name}.8" for name in _OTHER_NAMES),
    }
    assert (tmp_path / "etc/fastpoetry/poetry").is_dir()


def _list(folder: str, *patterns: str, within: Path = CLONE) -> Iterator[str]:
    """@return: the places where files of the clone are installed."""
    for pattern in patterns:
        files = filter(Path.is_file, within.glob(pattern))
        yield from (f"{folder}/{path.relative_to(within)}" for path in files)
