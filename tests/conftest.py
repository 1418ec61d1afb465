"""
Settings for all tests: an environment without a supervisor, and the same random values each time.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pluggy
import pytest
from hypothesis import settings
from system.package import buildPackage, findBuildObstacle

# The tests may run in a service; its variables from systemd do not concern them.
for name in (
    *("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
    *("JOURNAL_STREAM", "INVOCATION_ID", "SYSLOG_IDENTIFIER"),
):
    os.environ.pop(name, None)

# nohup(1) and shells make a command ignore signals, and its children would inherit that. The
# children of a process that handles a signal do not.
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test measures time, and a failed test fails again.
settings.register_profile("fastpoetry", deadline=None, database=None, derandomize=True)
settings.load_profile("fastpoetry")
# For a build of the package; see debian/rules.
settings.register_profile("build", settings.get_profile("fastpoetry"), max_examples=10)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the Makefile's options for each shard."""
    parser.addoption(
        "--system", action="append", help="a release of Debian to boot; each of the supported ones"
    )
    parser.addoption("--package", type=Path, help="the folder of the package, if it is built")


def pytest_collection_finish() -> None:
    """Keep imported objects out of later garbage collections: each took up to 0.1 s."""
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Turn a skipped test into a failed one where no person would notice the skip."""
    outcome = yield
    report = outcome.get_result()
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"


@pytest.fixture(scope="session")
def package(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what C{make deb} makes."""
    built: Path | None = pytestconfig.getoption("--package")
    if built is not None and built.is_dir():
        return built.resolve()
    obstacle = findBuildObstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    return buildPackage(tmp_path_factory.mktemp("package"))
