"""Tests that the pages agree with the files that they show and link to."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
EXAMPLES = ROOT / "docs/examples"


def shownLines(text: str) -> list[tuple[str, str]]:
    """@return: each line that a page shows of a file, with the file's path on a machine."""
    blocks = re.findall(r"^```\w+\n(# /\S+\n.*?)^```", text, re.M | re.S)
    parts = re.findall(r"^# (/\S+)\n(.*?)(?=^# /|\Z)", "".join(blocks), re.M | re.S)
    return [(path, line) for path, shown in parts for line in shown.splitlines()]


class ExampleTests(SynchronousTestCase):
    """Tests for C{docs/examples}."""

    def test_lines(self) -> None:
        """Each line that a page shows of an example is in it."""
        for page in PAGES:
            for path, line in shownLines(page.read_text("utf-8")):
                (example,) = EXAMPLES.glob(f"*{path}")
                lines = [each.strip() for each in example.read_text("utf-8").splitlines()]
                self.assertIn(line.strip(), ["", *lines], path)

    def test_linked(self) -> None:
        """A page links to each folder, and a booted test therefore copies it."""
        links = "".join(page.read_text("utf-8") for page in PAGES)
        for folder in EXAMPLES.iterdir():
            self.assertIn(f"](examples/{folder.name})", links)


class LinkTests(SynchronousTestCase):
    """Tests for the links of all pages."""

    def test_exist(self) -> None:
        """Each link to a file of the clone leads to one."""
        for page in PAGES:
            for link in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
                if "://" not in link:
                    self.assertTrue((page.parent / link).exists(), f"{page}: {link}")

    def test_headings(self) -> None:
        """Each link to a heading leads to one."""
        for page in PAGES:
            for link, anchor in re.findall(r"\]\(([^):]*)#([^)]+)\)", page.read_text("utf-8")):
                target = page.parent / link if link else page
                headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.M)
                slugs = [
                    re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings
                ]
                self.assertIn(anchor, slugs, f"{page}: {link}")
