"""
Calls of a function before a program ends: at its exit, at a signal, or after its reactor.

SIGKILL, C{os._exit} and a fault in C end a program without such a call.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from signal import SIG_DFL, SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, getsignal, signal
from types import FrameType
from typing import Any

_SIGNALS = (SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGTERM, SIGXCPU)
"""Signals by which people, systemd and resource limits end programs."""


def callAtEnd(end: Callable[[], None]) -> None:
    """
    Call a function when the interpreter ends, or when a signal without a handler ends the process.
    One such signal is SIGABRT of systemd's watchdog.

    A reactor sets handlers of its own, see L{callAtReactorsEnd}.

    @param end: called with no argument, perhaps more than once.
    """

    def die(number: int, frame: FrameType | None) -> None:
        end()
        signal(number, SIG_DFL)
        os.kill(os.getpid(), number)

    atexit.register(end)
    with suppress(ValueError):  # only a program's first thread can set signal handlers
        for number in _SIGNALS:
            if getsignal(number) == SIG_DFL:
                signal(number, die)


def callAtReactorsEnd(end: Callable[[], None]) -> bool:
    """
    Call a function when the program's reactor has stopped. C{twistd} and C{twist} then send
    themselves the signal that stopped the reactor, and end without running C{atexit}.

    @return: whether a reactor is installed.
    """
    reactor = findReactor()
    if not hasattr(reactor, "addSystemEventTrigger"):
        return False
    reactor.addSystemEventTrigger("after", "shutdown", end)
    return True


def callBeforeDaemon(call: Callable[[], object]) -> None:
    """
    Call a function before each fork that happens before the program's reactor runs. C{twistd}
    becomes a daemon by such a fork, and its parent process ends by C{os._exit}.
    """

    def before() -> None:
        if not getattr(findReactor(), "running", True):
            call()

    os.register_at_fork(before=before)


def findReactor() -> Any:
    """@return: the reactor, or C{None} if none is installed. An import would install one."""
    return sys.modules.get("twisted.internet.reactor")
