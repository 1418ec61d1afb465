"""Tests for the content of the Debian packages."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from email.utils import parsedate_to_datetime
from pathlib import Path

from system.package import buildPackage, findPackage
from system.roots import CLONE

from fastpoetry import __version__

_PACKAGE_ONLY = re.compile(
    r"usr/(share/doc/(python3-)?fastpoetry|share/lintian"
    r"|lib/python3/dist-packages/fastpoetry-[^/]*-info)/"
)
"""Documents, and files about the package for the tools of dpkg and Python."""


def run(*command: str | Path) -> str:
    """Run a command, and return its output."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def listContents(package: Path) -> set[str]:
    """The files of a package, with each unit under the path that every release has."""
    lines = run("dpkg-deb", "--contents", package).splitlines()
    return {line.split()[5].removeprefix(".").replace("/usr/lib/", "/lib/") for line in lines}


def listFiles(root: Path) -> dict[str, bytes]:
    """The files below a folder, with each unit under systemd's path and each page uncompressed."""
    found = {}
    for path in filter(Path.is_file, root.rglob("*")):
        name, text = str(path.relative_to(root)), path.read_bytes()
        if "/man/" in name and path.suffix == ".gz":
            name, text = name.removesuffix(".gz"), gzip.decompress(text)
        found[re.sub("^lib/", "usr/lib/", name)] = text
    return found


def test_contents(package: Path) -> None:
    """
    The packages have every module, unit, poem, page, completion and example, and the
    administrator's two folders. The plugin comes without the cache files that Twisted and Python
    make beside it. The package of modules has no unit.
    """
    library = listContents(findPackage(package, "python3-fastpoetry"))
    assert not [file for file in library if "/lib/systemd/system" in file]
    files = library | listContents(findPackage(package))
    python = "/lib/python3/dist-packages"
    for folder, pattern, inside in (
        ("fastpoetry", "**/*.py", f"{python}/fastpoetry"),
        ("fastpoetry", "py.typed", f"{python}/fastpoetry"),
        ("packaging/systemd", "*.service", "/lib/systemd/system"),
        ("packaging/systemd", "*.socket", "/lib/systemd/system"),
        ("packaging/systemd", "*.d/*.conf", "/lib/systemd/system"),
        ("packaging/systemd", "announce", "/usr/libexec/fastpoetry"),
        ("packaging/systemd", "*.catalog", "/lib/systemd/catalog"),
        ("packaging/systemd", "*.preset", "/lib/systemd/system-preset"),
        ("packaging/examples", "**/*.*", "/usr/share/doc/fastpoetry/examples"),
        ("packaging/haproxy", "*", "/usr/share/doc/fastpoetry/examples/haproxy"),
        ("docs/examples", "**/*", "/usr/share/doc/python3-fastpoetry/examples"),
        ("poetry", "*.txt", "/usr/share/fastpoetry/poetry"),
    ):
        for path in filter(Path.is_file, (CLONE / folder).glob(pattern)):
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
    assert f"{python}/fastpoetry/tap.py" in library
    twisted = {file for file in files if f"{python}/twisted/" in file and not file.endswith("/")}
    assert twisted == {f"{python}/twisted/plugins/fastpoetry_plugin.py"}


def test_sameAsInstalled(package: Path, tmp_path: Path) -> None:
    """
    C{make install} and the packages put the same files in the same places; only the packages have
    the files that every Debian package has.
    """
    run("make", f"--directory={CLONE}", "install", f"DESTDIR={tmp_path / 'staged'}")
    for each in package.glob("*.deb"):
        run("dpkg-deb", "--extract", each, tmp_path / "packed")
    staged = listFiles(tmp_path / "staged")
    packed = listFiles(tmp_path / "packed")
    # Debian has only twistd3, and its tools write more metadata.
    del staged["usr/share/bash-completion/completions/_twistd"]
    del staged[f"usr/lib/python3/dist-packages/fastpoetry-{__version__}.dist-info/METADATA"]
    assert {name: packed.get(name) for name in staged} == staged
    assert [each for each in packed.keys() - staged.keys() if not _PACKAGE_ONLY.match(each)] == []


def test_version(package: Path) -> None:
    """The packages have the program's version, and its release date agrees in both changelogs."""
    for each in package.glob("*.deb"):
        assert run("dpkg-deb", "--field", each, "Version").strip() == __version__
    ours = (CLONE / "CHANGELOG.md").read_text()
    (told,) = re.findall(rf"^## \[{re.escape(__version__)}\] - (.+)$", ours, re.M)
    changelog = CLONE / "packaging/debian/changelog"
    date = run("dpkg-parsechangelog", f"--file={changelog}", "--show-field=Date").strip()
    assert parsedate_to_datetime(date).date().isoformat() == told


def test_dependencies(package: Path) -> None:
    """
    The modules depend on the distribution's Twisted, systemd for Python, and Python; the units
    depend on the modules of the same version.
    """
    library, units = findPackage(package, "python3-fastpoetry"), findPackage(package)
    depends = run("dpkg-deb", "--field", library, "Depends").strip().split(", ")
    names = {name.split()[0] for name in depends}
    assert names == {"python3:any", "python3-systemd", "python3-twisted"}
    on = run("dpkg-deb", "--field", units, "Depends").strip()
    assert on == f"python3-fastpoetry (= {__version__})"


def test_reproducible(package: Path, tmp_path: Path) -> None:
    """A second build, in another place and environment, makes the same files."""
    umask = os.umask(0o077)
    try:
        again = buildPackage(tmp_path, TZ="Pacific/Kiritimati", LC_ALL="C", LANG="C")
    finally:
        os.umask(umask)
    names = {path.name for path in package.iterdir()}
    assert {path.suffix for path in package.iterdir()} == {".deb", ".dsc", ".xz"}
    assert {path.name for path in again.iterdir()} == names
    assert all((package / name).read_bytes() == (again / name).read_bytes() for name in names)
