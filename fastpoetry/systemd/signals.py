"""
Signal handlers that are set while a service runs, and restored afterwards.

This module does not know what its callers' handlers do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, SIGTERM, Signals, getsignal, signal
from typing import Any

from twisted.logger import Logger


def ignoreHangup() -> None:
    """
    Ignore SIGHUP until a service handles it. By default SIGHUP kills.

    Ignoring it is safe: the program is about to read what a reload would read.
    """
    if getsignal(SIGHUP) == SIG_DFL:
        signal(SIGHUP, SIG_IGN)


def isStopping(reactor: Any) -> bool:
    """Whether the reactor was told to stop. It stops at the end of its turn."""
    return getattr(reactor, "_stopped", False) is True


class Handlers:
    """
    The signal handlers that a service has set.

    @ivar hasStopped: whether SIGTERM or SIGINT has stopped the reactor.
    """

    _log = Logger()
    hasStopped = False

    def __init__(self, setHandler: Callable[[int, Any], object]) -> None:
        """@param setHandler: sets the handler of a signal, as C{signal.signal} does."""
        self._setHandler = setHandler
        self._before: dict[int, tuple[Any, Any]] = {}  # the handler before, and the one set

    def set(self, number: int, handler: Callable[..., None]) -> None:
        """Handle a signal. In any thread but the first this only logs a record."""
        before = getsignal(number) or SIG_DFL
        try:
            self._setHandler(number, handler)
        except ValueError:
            self._log.warn(
                "{signal} is not handled: only a program's first thread can set a handler",
                signal=Signals(number).name,
                message_id="fa0a15bda0534516b5407da0a853cee9",
            )
        else:
            self._before[number] = self._before.get(number, (before,))[0], handler

    def restore(self) -> None:
        while self._before:
            number, (before, ours) = self._before.popitem()
            # Another part of the program may have set its own handler since.
            if getsignal(number) in (ours, before):
                with suppress(ValueError):  # not the first thread
                    self._setHandler(number, before)

    def stopOnce(self, reactor: Any) -> None:
        """
        Pass on the first SIGTERM or SIGINT only. A second one makes Twisted log a traceback.

        @param reactor: runs, and has set its handlers. Handlers that it did not set stay.
        """
        for number in (SIGTERM, SIGINT):
            stop = getsignal(number)
            if callable(stop) and getattr(stop, "__self__", None) is reactor:
                self.set(number, partial(self._stop, reactor, stop))

    def _stop(self, reactor: Any, stop: Callable[..., Any], *signalAndFrame: object) -> None:
        if not self.hasStopped and not isStopping(reactor):
            self.hasStopped = True
            stop(*signalAndFrame)
