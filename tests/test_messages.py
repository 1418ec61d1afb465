"""Tests for L{messages}, the module with the message ids that tests use."""

from __future__ import annotations

import re
from pathlib import Path

import messages
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent


class MessageTests(SynchronousTestCase):
    """Tests for the names of message ids."""

    catalog = set(
        re.findall(
            "(?m)^-- ([0-9a-f]{32})$", (ROOT / "packaging/systemd/fastpoetry.catalog").read_text()
        )
    )

    def test_known(self) -> None:
        """Each name stands for a kind of record in the catalog."""
        names = {name: value for name, value in vars(messages).items() if name.isupper()}
        del names["UNIT_STARTING"]  # defined by systemd
        self.assertEqual({k: v for k, v in names.items() if v not in self.catalog}, {})

    def test_once(self) -> None:
        """No other file of the tests or benchmarks has a message id as a literal."""
        for path in (*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")):
            if path.name != "messages.py":
                found = set(re.findall("[0-9a-f]{32}", path.read_text("utf-8")))
                self.assertEqual(found & self.catalog, set(), path)
