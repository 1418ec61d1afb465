"""Repeated calls on a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()


def repeat(clock: Any, seconds: float, f: Callable[[], object], now: bool = False) -> LoopingCall:
    """
    Repeat a call. An error in it is logged, and the call is repeated.

    @param seconds: the time between two calls.
    @param now: whether the first call is made now.
    """

    def call() -> None:
        try:
            f()
        except Exception:
            _log.failure(
                "a repeated call failed, and will be made again",
                message_id="1bf984d3b85f4946946c8f0e93e34f32",
            )

    loop = LoopingCall(call)
    loop.clock = clock
    loop.start(seconds, now)
    return loop
