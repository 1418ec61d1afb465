"""
Tests for pip installations of the wheel and of the clone, each in an environment of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest
from zipfile import ZipFile

from fakes import makeFolder
from processes import fetchFrom
from twisted.trial.unittest import SynchronousTestCase

import twisted

ROOT = Path(__file__).resolve().parent.parent

BUILD = """
import sys
from hatchling.build import build_editable, build_sdist, build_wheel
for build, folder in zip((build_wheel, build_sdist, build_editable), sys.argv[1:]):
    build(folder)
"""
"""Calls what pip calls for a wheel, for a source distribution and with C{--editable} (PEP 660)."""

ADOPT = """
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
serverFromString(reactor, "adopted:")
"""


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with only its own folder on the path."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class PipTests(SynchronousTestCase):
    """Tests for building and installing."""

    _folder: TemporaryDirectory[str]
    wheel: Path
    sdist: Path
    editable: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Build all distributions at once."""
        try:
            import hatchling  # noqa: F401
            import pip  # noqa: F401
        except ImportError as why:
            raise SkipTest(f"no {why.name}") from None
        if not (ROOT / ".git").exists():
            raise SkipTest("building takes a clone, whose .gitignore says what is not part of it")
        cls._folder = TemporaryDirectory()
        folders = [Path(cls._folder.name, name) for name in ("wheel", "sdist", "editable")]
        built = run(sys.executable, "-c", BUILD, *folders, cwd=ROOT)
        if built.returncode:
            cls._folder.cleanup()
            raise RuntimeError(built.stdout + built.stderr)
        ([cls.wheel], [cls.sdist], [cls.editable]) = (folder.iterdir() for folder in folders)

    @classmethod
    def tearDownClass(cls) -> None:
        """Remove them."""
        cls._folder.cleanup()

    def environment(self, what: Path) -> Path:
        """
        Make a virtual environment with this one's packages, and install a wheel in it.

        @return: its folder.
        """
        folder = Path(makeFolder(self))
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        [site] = folder.glob("lib/python*/site-packages")
        (site / "beneath.pth").write_text(f"{Path(twisted.__file__).parents[1]}\n")
        install = (sys.executable, "-m", "pip", "--python", folder, "install", "--quiet")
        done = run(*install, "--no-deps", "--no-index", what)
        self.assertEqual(done.returncode, 0, done.stderr)
        return folder

    def check(self, folder: Path) -> None:
        """
        Check that an environment has the commands and the endpoint, whatever the current folder.
        """
        python = folder / "bin/python"
        twistd = "from twisted.scripts.twistd import run; run()"
        listed = run(python, "-c", twistd, "--help", cwd=folder)
        self.assertRegex(listed.stdout, r"(?m)^ +fastpoetry +A fast poetry service\.$")
        self.assertRegex(listed.stdout, r"(?m)^ +fastpoetry-proxy ")
        refused = run(python, "-c", ADOPT, cwd=folder)
        self.assertRegex(refused.stderr, r"\Aadopted: no descriptor was passed[^\n]*\n\Z")

    def checkPoem(self, folder: Path) -> None:
        """Check that an environment serves a poem by name."""
        path = folder / "socket"
        twistd = "from twisted.scripts.twistd import run; run()"
        command = [folder / "bin/python", "-c", twistd, "--nodaemon", "--pidfile="]
        command += ["fastpoetry", "--poem", "ecstasy", "--listen", f"unix:{path}"]
        with subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=subprocess.DEVNULL, text=True
        ) as server:
            try:
                poem = fetchFrom(server, str(path))
            finally:
                server.terminate()
        self.assertEqual(poem, (ROOT / "poetry/ecstasy.txt").read_bytes())

    def test_wheel(self) -> None:
        """
        An installation from the wheel has commands, endpoint and poems: the page's command line
        serves one.
        """
        folder = self.environment(self.wheel)
        self.check(folder)
        self.checkPoem(folder)

    def test_editable(self) -> None:
        """An editable installation has the same, and runs the clone's code."""
        folder = self.environment(self.editable)
        self.check(folder)
        python = folder / "bin/python"
        where = run(python, "-c", "import fastpoetry; print(fastpoetry.__file__)", cwd=folder)
        self.assertEqual(where.stdout, f"{ROOT}/fastpoetry/__init__.py\n")
        self.checkPoem(folder)

    def test_wheelContents(self) -> None:
        """The wheel has exactly every module, the drop-in and the poems."""
        modules = {str(each.relative_to(ROOT)) for each in ROOT.glob("fastpoetry/**/*.py")}
        poems = {f"fastpoetry/poetry/{each.name}" for each in ROOT.glob("poetry/*.txt")}
        others = {"fastpoetry/py.typed", "twisted/plugins/fastpoetry_plugin.py"}
        with ZipFile(self.wheel) as wheel:
            found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        self.assertEqual(found, modules | poems | others)

    def test_sdist(self) -> None:
        """The source distribution has every file of the commit, and its own tests run."""
        if shutil.which("git") is None:
            raise SkipTest("no git, which lists the files of the commit")
        folder = Path(makeFolder(self))
        run("tar", "--extract", f"--file={self.sdist}", cwd=folder)
        [source] = folder.iterdir()
        found = {str(each.relative_to(source)) for each in source.rglob("*") if each.is_file()}
        listed = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
        expected = {each for each in listed.stdout.splitlines() if (ROOT / each).is_file()}
        self.assertEqual(found ^ expected, {"PKG-INFO"})
        tests = ("tests/test_poetry.py", "tests/test_units.py")
        done = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=source)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:])

    def test_metadata(self) -> None:
        """The metadata names the license by its SPDX name, and has no outdated field."""
        with ZipFile(self.wheel) as wheel:
            [name] = [each for each in wheel.namelist() if each.endswith("/METADATA")]
            head, _, page = wheel.read(name).decode().partition("\n\n")
        self.assertIn("\nLicense-Expression: MIT\n", head)
        self.assertNotRegex(head, r"(?m)^(License|Home-page|Download-URL|Classifier: License)\b:")
        self.assertTrue(page.startswith("# fastpoetry\n"))


class PageTests(SynchronousTestCase):
    """Tests for the page that a package index shows."""

    def test_links(self) -> None:
        """The page needs no file beside it: every link is absolute."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        links = re.findall(r"\]\(([^)]*)\)", (ROOT / project["readme"]).read_text("utf-8"))
        self.assertTrue(links)
        for link in links:
            self.assertRegex(link, "^https?://")
