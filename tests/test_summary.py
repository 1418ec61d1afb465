"""Tests for the summary at the end of C{make test}."""

from __future__ import annotations

from pathlib import Path

import pytest
from summary import main

GOOD = "===== 12 passed, 2 skipped, 30 deselected, 1 warning in 3.21s ====\n"
BAD = """\
FAILED tests/system/test_serving.py::test_start[trixie] - AssertionError: a - b
ERROR tests/test_tap.py::TapTests::test_help
SKIPPED [2] tests/test_tap.py:3: there is no libfaketime
==== 1 failed, 3 passed, 2 skipped, 1 error in 75.10s (0:01:15) ====
"""


@pytest.fixture(autouse=True)
def noCI(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as for a person."""
    monkeypatch.delenv("CI", raising=False)


def summarize(folder: Path, **logs: str) -> int:
    """@return: the exit status for logs of shards."""
    paths = [folder / f"{name}.log" for name in logs]
    for path in paths:
        path.write_text(logs[path.stem])
    return main(paths, 9.5)


def test_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards without a failure look like one run of pytest, with the sum of all counts."""
    assert summarize(tmp_path, modules=GOOD, faults=GOOD) == 0
    assert capsys.readouterr().out.strip("= \n") == "24 passed, 4 skipped in 9.50s"


def test_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is shown with its reason, its shard, and the command that repeats it."""
    assert summarize(tmp_path, modules=GOOD, trixie=BAD) == 1
    *told, end = capsys.readouterr().out.splitlines()
    test = "tests/system/test_serving.py::test_start[trixie]"
    assert told == [
        f"FAILED {test} - AssertionError: a - b; in trixie; alone: make test TESTS='{test}'",
        "FAILED tests/test_tap.py::TapTests::test_help; in trixie; "
        "alone: make test TESTS='tests/test_tap.py::TapTests::test_help'",
        "SKIPPED tests/test_tap.py:3: there is no libfaketime",
    ]
    assert end.strip("= ") == "2 failed, 15 passed, 4 skipped in 9.50s"


def test_cutShort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard that did not finish has failed, and its last lines are shown."""
    assert summarize(tmp_path, faults="Fatal Python error: Aborted\n") == 1
    assert "faults did not get to its end:\nFatal Python error" in capsys.readouterr().out


def test_CI(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In CI all three counts are shown, whatever they are."""
    monkeypatch.setenv("CI", "true")
    assert summarize(tmp_path, modules=GOOD) == 0
    assert "\n12 passed, 0 failed, 2 skipped\n" in "\n" + capsys.readouterr().out
