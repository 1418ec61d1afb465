"""
Tests that the shipped poems are whole, and as C{poetry/README.md} describes them.

What a server does with a poem is tested elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

FOLDER = Path(__file__).resolve().parent.parent / "poetry"


class Shipped(NamedTuple):
    """The facts about one shipped poem that do not come from its file."""

    title: str
    stanzas: list[int]
    firstLine: str
    lastLine: str


POEMS = {
    "alla_sera.txt": Shipped(
        "Alla sera",
        [4, 4, 3, 3],
        "Forse perché della fatal quïete",
        "quello spirto guerrier ch'entro mi rugge.",
    ),
    "ecstasy.txt": Shipped(
        "The Ecstasy",
        [76],
        "Where, like a pillow on a bed,",
        "  Small change, when we'are to bodies gone.",
    ),
    "fascination.txt": Shipped(
        "The Fascination of What's Difficult",
        [13],
        "The fascination of what's difficult",
        "I'll find the stable and pull out the bolt.",
    ),
    "science.txt": Shipped(
        "Sonnet -- To Science",
        [14],
        "Science! true daughter of Old Time thou art!",
        "The summer dream beneath the tamarind tree?",
    ),
}


def read(name: str) -> str:
    """
    The text of a shipped poem, from bytes, so that no line end is translated on the way.

    @param name: the name of its file.
    @return: the text.
    @raise UnicodeDecodeError: if the file is not UTF-8.
    """
    return (FOLDER / name).read_bytes().decode("utf-8")


class PoemFileTests(SynchronousTestCase):
    """Tests for the four files."""

    def test_names(self) -> None:
        """The folder holds these four poems and no other."""
        self.assertEqual({path.name for path in FOLDER.glob("*.txt")}, set(POEMS))

    def test_stanzas(self) -> None:
        """
        Below its title each poem has all its stanzas and lines, with one empty line between
        stanzas.
        """
        for name, poem in POEMS.items():
            title, *stanzas = read(name).split("\n\n")
            self.assertEqual(title, poem.title, name)
            self.assertEqual([len(s.splitlines()) for s in stanzas], poem.stanzas, name)

    def test_firstAndLastLine(self) -> None:
        """Each poem has its first and its last line."""
        for name, poem in POEMS.items():
            verse = read(name).splitlines()[2:]
            self.assertEqual((verse[0], verse[-1]), (poem.firstLine, poem.lastLine), name)

    def test_oneFinalNewline(self) -> None:
        """Each file ends with exactly one newline."""
        for name in POEMS:
            self.assertRegex(read(name), r"[^\n]\n\Z", name)

    def test_noStrayWhitespace(self) -> None:
        """No file has a tab, a carriage return, a space at the end of a line or two within one."""
        for name in POEMS:
            self.assertNotRegex(read(name), r"[\t\r]| \n|\S  ", name)

    def test_composedCharacters(self) -> None:
        """An accented letter is one character, the form that terminals show best."""
        for name in POEMS:
            self.assertTrue(unicodedata.is_normalized("NFC", read(name)), name)

    def test_onlyItalianNeedsMoreThanASCII(self) -> None:
        """The English poems are plain ASCII; the Italian poem is not."""
        self.assertEqual([name for name in POEMS if not read(name).isascii()], ["alla_sera.txt"])


class ReadmeTests(SynchronousTestCase):
    """Tests for what C{poetry/README.md} says about the files."""

    def setUp(self) -> None:
        """Read the page."""
        self.page = read("README.md")

    def test_digests(self) -> None:
        """The page lists the SHA-256 digest of each poem in the form of C{sha256sum --check}."""
        listed = re.findall(r"(?m)^([0-9a-f]{64})  (\S+)$", self.page)
        found = [(hashlib.sha256((FOLDER / name).read_bytes()).hexdigest(), name) for name in POEMS]
        self.assertEqual(listed, found)

    def test_sizes(self) -> None:
        """The page has the title, lines, stanzas and bytes of each poem."""
        for name, poem in POEMS.items():
            lines, stanzas = sum(poem.stanzas), len(poem.stanzas)
            verse = f"{lines} lines, {stanzas} {'stanza' if stanzas == 1 else 'stanzas'}"
            size = (FOLDER / name).stat().st_size
            self.assertIn(f" | `{name}` | {poem.title} | {verse} | {size} |\n", self.page)

    def test_tutorial(self) -> None:
        """
        The page compares our first poem's size with that of the Twisted introduction's copy, and
        explains the difference.
        """
        ours = (FOLDER / "ecstasy.txt").stat().st_size
        self.assertIn(f"3,003 bytes and this one {ours:,}: ", " ".join(self.page.split()))
        self.assertEqual(ours + 269 + 20 - 21, 3003)
