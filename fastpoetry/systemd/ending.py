"""
Calls of a function before a program ends: at its exit, at a signal, or after its reactor.

SIGKILL, SIGUSR1, C{os._exit} and a fault in C end a program without such a call.
"""

from __future__ import annotations

import atexit
import os
import signal as signals
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from signal import SIG_DFL, getsignal, signal
from types import FrameType
from typing import Any

_HARMLESS = "SIGCHLD SIGCONT SIGTSTP SIGTTIN SIGTTOU SIGURG SIGWINCH"
_FAULTS = "SIGBUS SIGFPE SIGILL SIGSEGV SIGSYS SIGTRAP"
_OTHERS = "SIGKILL SIGSTOP SIGUSR1"
_SIGNALS = signals.valid_signals() - {
    getattr(signals, name) for name in f"{_HARMLESS} {_FAULTS} {_OTHERS}".split()
}
"""
Signals by which people, systemd (C{KillSignal=}), timers and resource limits end programs. SIGUSR1
is left out: twistd rotates its log file at SIGUSR1, but only if no handler is set before.
"""


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
    _callInWorker(end)
    os.register_at_fork(after_in_child=partial(_callInWorker, end))
    with suppress(ValueError):  # only a program's first thread can set signal handlers
        caught = _findCaught()
        for number in _SIGNALS:
            if getsignal(number) == SIG_DFL and not caught >> (number - 1) & 1:
                signal(number, die)


def _findCaught() -> int:
    """
    Return C{SigCgt} of proc(5), a bit for each signal with a handler. C{getsignal} does not know
    handlers of C code, such as those of C{faulthandler}.
    """
    with suppress(OSError), open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt:"))
    return 0


def _callInWorker(end: Callable[[], None]) -> None:
    """Call a function when a process of C{multiprocessing} ends: it uses C{os._exit}."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:

        def callLast(end: Callable[[], None]) -> None:
            util.Finalize(None, end, exitpriority=-100)

        callLast(end)
        util.register_after_fork(end, callLast)  # a new process forgets what was registered


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
    """Return the reactor, or C{None} if none is installed. An import would install one."""
    return sys.modules.get("twisted.internet.reactor")
