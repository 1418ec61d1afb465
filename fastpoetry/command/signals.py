"""
Signals that come early or again.

Reloads and stops nothing: those who do are asked at most once.
"""

from __future__ import annotations

from functools import partial
from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal, signal
from types import FrameType
from typing import Any


def ignoreHangup() -> None:
    """
    Have SIGHUP do nothing until there is somebody to reload.

    It ends a program that has not said what it wants of it, and whoever sends it wants what is read
    now anyway.
    """
    if getsignal(SIGHUP) == SIG_DFL:
        signal(SIGHUP, SIG_IGN)


def endOnce(reactor: Any) -> None:
    """
    Once a reactor runs, have it told to end once: whoever says so again while readers are seen off
    gets a traceback for it from Twisted, in the log of a program that ends well.

    @param reactor: provides C{IReactorCore}.
    """
    _Ending(reactor)


class _Ending:
    """Whether a program is about to end."""

    def __init__(self, reactor: Any) -> None:
        self._hasBegun = False
        reactor.addSystemEventTrigger("before", "shutdown", self._begin)
        reactor.callWhenRunning(self._watch)

    def _begin(self) -> None:
        self._hasBegun = True

    def _watch(self) -> None:
        """Come before the handlers that the reactor has set by now."""
        for number in (SIGINT, SIGTERM):
            handler = getsignal(number)
            if callable(handler):
                signal(number, partial(self._pass, handler))

    def _pass(self, handler: Any, number: int, frame: FrameType | None) -> None:
        if not self._hasBegun:
            self._begin()
            handler(number, frame)
