"""
Tests of the tests: that they pass with each release's own Python and Twisted.
"""

from __future__ import annotations

import subprocess


def test_unitTests(unitTests: subprocess.Popen[str]) -> None:
    """
    All tests of single modules pass with this release's Python, Twisted and systemd-python.
    """
    seen, _ = unitTests.communicate(timeout=300)
    assert unitTests.returncode == 0, seen[-5000:]
