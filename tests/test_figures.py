"""
Tests of the figures in README.md and docs/: they are those of the last whole run of C{make bench}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import report
from peers import HERE, ROOT


@pytest.mark.parametrize("name", report.TEXTS)
def test_figures(name: str) -> None:
    """The text between the marks of a page shows what was measured."""
    text = (ROOT / name).read_text()
    texts = report.TEXTS[name]
    assert text.count("<!-- figures -->") == text.count("<!-- end of figures -->") == len(texts)
    assert text == report.fill(text, texts, report.readFigures(HERE))


def test_barMissed() -> None:
    """A bar that the run missed is marked as such, and a figure without a bar is left out."""
    bars = [
        {"claim": "speed", "ratio": 0.9, "least": 1.0, "most": None},
        {"claim": "cost", "ratio": 1.1, "least": None, "most": 1.3},
        {"claim": "shown only", "ratio": 1.0, "least": None, "most": None},
    ]
    table = report.tableBars({"rate": {"bars": bars}})
    assert "| `rate` | speed | 0.90 | at least 1.0 | **not met** |" in table
    assert "| `rate` | cost | 1.10 | at most 1.3 | met |" in table
    assert "shown only" not in table
