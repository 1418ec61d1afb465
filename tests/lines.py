"""A plugin of pytest: writes the time of each test, and the lines it runs, to C{lines.json}."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pluggy
import pytest

Runs = dict[str, tuple[float, dict[str, list[int]]]]
"""The seconds that each test takes, and the lines of each file of the package that it runs."""

_runs: Runs = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, pluggy.Result[None], None]:
    """
    Record a test that passes. The random lives are not traced, since tracing them would take too
    long.
    """
    root = f"{item.config.rootpath}/"
    lines: dict[str, set[int]] = {}

    def traceCall(frame: Any, event: str, argument: object) -> Any:
        return traceLine if frame.f_code.co_filename.startswith(f"{root}fastpoetry/") else None

    def traceLine(frame: Any, event: str, argument: object) -> Any:
        lines.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return traceLine

    begun = time.monotonic()
    if not item.nodeid.startswith("tests/lives/"):
        threading.settrace(traceCall)
        sys.settrace(traceCall)
    outcome = yield
    sys.settrace(None)
    if outcome.excinfo is None:
        found = {path.removeprefix(root): sorted(lines[path]) for path in lines}
        _runs[item.nodeid] = (time.monotonic() - begun, found)


def pytest_sessionfinish() -> None:
    """Write the records."""
    Path("lines.json").write_text(json.dumps(_runs))
