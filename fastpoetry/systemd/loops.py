"""Repeated calls on a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger


class Loops:
    """Repeated calls. An error in a call is logged, and the call is repeated."""

    _log = Logger()

    def __init__(self, clock: Any) -> None:
        """@param clock: provides C{IReactorTime}."""
        self._clock = clock
        self._loops: list[LoopingCall] = []

    def start(self, seconds: float, f: Callable[[], object], now: bool = False) -> LoopingCall:
        """
        Repeat a call.

        @param seconds: the time between two calls.
        @param f: the function to call.
        @param now: whether the first call is made now.
        @return: the loop, for L{stop}.
        """
        loop = LoopingCall(self._call, f)
        loop.clock = self._clock
        self._loops.append(loop)
        loop.start(seconds, now)
        return loop

    def stop(self, loop: LoopingCall) -> None:
        """Stop a loop that L{start} returned."""
        self._loops.remove(loop)
        loop.stop()

    def stopAll(self) -> None:
        """Stop repeating all calls."""
        for loop in list(self._loops):
            self.stop(loop)

    def _call(self, f: Callable[[], object]) -> None:
        try:
            f()
        except Exception:
            self._log.failure(
                "a repeated call failed, and will be made again",
                message_id="1bf984d3b85f4946946c8f0e93e34f32",
            )
