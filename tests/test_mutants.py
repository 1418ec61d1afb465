"""Tests for C{mutants}, which measures the other tests."""

from __future__ import annotations

from pathlib import Path

from fakes import makeFolder
from lines import Runs
from mutants import findMutants, findTests
from twisted.trial.unittest import SynchronousTestCase

SOURCE = """
SECONDS = 30

def wait(ö, when):
    if when <= 0 and ö:
        log(when)
    while not ö:
        yield f"{when > 3}"
"""

FAULTS = [
    ("30", "60"),
    ("when <= 0 and ö", "when <= 0 or ö"),
    ("when <= 0", "when > 0"),
    ("<= 0", "<= 1"),
    ("log(when)", "pass"),
    ("not ö", "ö"),
]


class MutantTests(SynchronousTestCase):
    """Tests for the faults in a small module."""

    def setUp(self) -> None:
        self.path = Path(makeFolder(self), "module.py")
        self.path.write_text(SOURCE)
        self.mutants = list(findMutants(self.path))

    def test_find(self) -> None:
        """Each comparison, condition, call and number can get a fault if its position is known."""
        whole = SOURCE.encode()
        found = [
            (whole[: each.begin] + each.text.encode() + whole[each.end :]).decode()
            for each in self.mutants
        ]
        self.assertEqual(found, [SOURCE.replace(*fault, 1) for fault in FAULTS])

    def test_tests(self) -> None:
        """A fault meets the tests that run its statement, quick ones first, and then the lives."""
        lives = "tests/lives/test_lives.py::TestLives::runTest"
        runs: Runs = {
            lives: (0.1, {}),
            "slow": (2.0, {str(self.path): [5, 6]}),
            "quick": (1.0, {str(self.path): [5, 6, 7]}),
            "other": (1.0, {str(self.path): [7]}),
        }
        (call,) = (each for each in self.mutants if each.text == "pass")
        self.assertEqual(findTests(call, runs), ["quick", "slow", lives])
        constant = self.mutants[0]
        self.assertEqual(set(findTests(constant, runs)), {*runs})
