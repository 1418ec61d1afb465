"""
Repeated calls: the status for systemd, watchdog pings, requests for more time.

Other modules decide when they begin and end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.reflect import safe_str

from fastpoetry.systemd.manager import Manager, oneLine

_EXTEND_EVERY_SECONDS = 1
_EXTEND_BY_SECONDS = 15
"""Seconds. A first request has to come before the unit's own limit."""

_log = Logger()


class Heartbeat:
    """Sends status and watchdog pings to systemd while the reactor turns."""

    _log = Logger()
    _manager: Manager | None = None
    _sentStatus = ""
    _wasAlive = True

    def __init__(
        self,
        status: Callable[[], str] | None,
        alive: Callable[[], bool] | None,
        extendSeconds: float,
        clock: Any,
    ) -> None:
        """Take arguments as L{fastpoetry.systemd.notify.NotifyService} does."""
        self._status = status
        self._alive = alive
        self._extendSeconds = extendSeconds
        self._clock = clock
        self._loops: list[LoopingCall] = []

    def start(self, manager: Manager, environ: Mapping[str, str]) -> None:
        """Begin to send, with watchdog pings if the environment asks for them."""
        self._manager = manager
        self._loops = [
            repeat(self._clock, 1, self.tellStatus, now=True),
            repeat(self._clock, 1, manager.catchUp),
        ]
        if seconds := _watchdogSeconds(environ):
            # systemd disarms the watchdog when a stop begins. A late ping arms it again, so ping
            # until the exit.
            self._loops.append(repeat(self._clock, seconds / 3, self._ping))

    def stop(self) -> None:
        """Stop sending, and reset. L{start} can be called again."""
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._loops = []
        self._manager = None
        self._sentStatus = ""
        self._wasAlive = True

    def tellStatus(self) -> None:
        """Send the status if it has changed."""
        if self._status is None or self._manager is None:
            return
        try:
            status = oneLine(str(self._status()))
        except BaseException:
            self._status = None
            self._log.failure(
                "the status function failed and is not called again",
                message_id="4c6937de67404cecbd417d7e76eb1226",
            )
            return
        if status != self._sentStatus and self._offer(f"STATUS={status}"):
            self._sentStatus = status

    def extend(self) -> LoopingCall | None:
        """Return a loop that asks for more time for C{extendSeconds}; C{None} without systemd."""
        if self._manager is None:
            return None
        until = self._clock.seconds() + self._extendSeconds

        def ask() -> None:
            if self._clock.seconds() < until:
                self._offer(f"EXTEND_TIMEOUT_USEC={_EXTEND_BY_SECONDS * 1_000_000}")

        asking = repeat(self._clock, _EXTEND_EVERY_SECONDS, ask)
        self._loops.append(asking)
        return asking

    def _ping(self) -> None:
        """Send a ping if the program is alive. Log the first negative answer of a series."""
        cause = "its check returned false"
        try:
            isAlive = self._alive is None or bool(self._alive())
        except BaseException as why:  # CancelledError of asyncio, or SystemExit
            isAlive, cause = False, f"{type(why).__name__}: {safe_str(why)}"
        if isAlive:
            self._offer("WATCHDOG=1")
        elif self._wasAlive:
            self._log.error(
                "the program is not alive, so systemd gets no watchdog ping: {cause}",
                cause=cause,
                message_id="a64af6f616164d89aec679d3226803f5",
            )
        self._wasAlive = isAlive

    def _offer(self, message: str) -> bool:
        return self._manager is not None and self._manager.offer(message)


def repeat(clock: Any, seconds: float, f: Callable[[], object], now: bool = False) -> LoopingCall:
    """
    Repeat a call. An error in it is logged, and the call is repeated.

    @param seconds: the time between two calls.
    @param now: whether the first call is made now.
    """

    def call() -> None:
        try:
            f()
        except BaseException:
            _log.failure(
                "a repeated call failed, and will be made again",
                message_id="1bf984d3b85f4946946c8f0e93e34f32",
            )

    loop = LoopingCall(call)
    loop.clock = clock
    loop.start(seconds, now)
    return loop


def _watchdogSeconds(environ: Mapping[str, str]) -> float:
    """
    @param environ: where systemd leaves C{WATCHDOG_USEC} and C{WATCHDOG_PID}.
    @return: how long systemd waits for a ping of this process, sd_watchdog_enabled(3); 0 if the
        watchdog is off or the value is invalid.
    """
    pid = str(os.getpid())
    if environ.get("WATCHDOG_PID", pid) != pid:
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except (ValueError, OverflowError):
        return 0
