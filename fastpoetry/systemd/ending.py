"""
The end of a program, however it comes: what has to be done before it.

Nothing can be done before SIGKILL, C{os._exit}, or a fault in C.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from signal import (
    SIG_DFL,
    SIGABRT,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGXCPU,
    getsignal,
    signal,
)
from types import FrameType
from typing import Any

_SIGNALS = (SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGTERM, SIGXCPU)
"""Signals by which people, systemd and its limits end programs."""


def callAtEnd(end: Callable[[], None]) -> None:
    """
    Have something called when the interpreter ends, and when a signal ends the process that nobody
    handles. That includes the signal of systemd's watchdog.

    A reactor sets handlers of its own, see L{callAtReactorsEnd}.

    @param end: called with no argument, perhaps more than once.
    """

    def die(number: int, frame: FrameType | None) -> None:
        end()
        signal(number, SIG_DFL)
        os.kill(os.getpid(), number)

    atexit.register(end)
    with suppress(ValueError):  # only a program's first thread can handle signals
        for number in _SIGNALS:
            if getsignal(number) == SIG_DFL:
                signal(number, die)


def callAtReactorsEnd(end: Callable[[], None]) -> bool:
    """
    Have something called when the program's reactor has stopped. The signal that stopped it then
    ends C{twistd} and C{twist}, and C{atexit} is never reached: they send it to themselves.

    @param end: called with no argument.
    @return: whether there is a reactor by now.
    """
    reactor = findReactor()
    if not hasattr(reactor, "addSystemEventTrigger"):
        return False
    reactor.addSystemEventTrigger("after", "shutdown", end)
    return True


def callBeforeDaemon(call: Callable[[], object]) -> None:
    """
    Have something called before a fork while the program's reactor does not run yet: C{twistd}
    becomes a daemon so, and the process that forked ends by C{os._exit}.

    @param call: called with no argument.
    """

    def before() -> None:
        if not getattr(findReactor(), "running", True):
            call()

    os.register_at_fork(before=before)


def findReactor() -> Any:
    """@return: the reactor, or C{None} before one is installed: an import would install one."""
    return sys.modules.get("twisted.internet.reactor")
