"""
What all tests share: an environment without a supervisor, and the same hostile values each time.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# Whoever runs the tests may be a service itself; what systemd told it is not about the tests.
for name in (
    *("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
    *("JOURNAL_STREAM", "INVOCATION_ID", "SYSLOG_IDENTIFIER"),
):
    os.environ.pop(name, None)

# A shell that does not wait for a command has it ignore Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test measures time, and one that failed fails again.
settings.register_profile("fastpoetry", deadline=None, database=None, derandomize=True)
settings.load_profile("fastpoetry")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what boots machines after all that takes milliseconds."""
    items.sort(key=lambda item: "system" in item.path.parent.parts)
