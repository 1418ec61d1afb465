"""
What systemd hears again and again: the status, signs of life, requests for more time.

When that begins and ends is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from fastpoetry.systemd.loops import Loops
from fastpoetry.systemd.manager import Manager, oneLine

_EXTEND_EVERY = 5
_EXTEND_BY = 15
"""Seconds: what takes long says so three times in the time that it asks for."""


class Heartbeat:
    """Tells systemd how the program is doing, for as long as the reactor turns."""

    _log = Logger()
    _manager: Manager | None = None
    _told = ""
    _wasAlive = True

    def __init__(
        self,
        status: Callable[[], str] | None,
        alive: Callable[[], bool] | None,
        extendSeconds: float,
        loops: Loops,
        clock: Any,
    ) -> None:
        """
        @param status: how the program is doing, in a person's words; asked once a second.
        @param alive: asked before each sign of life. Unless it returns true there is none.
        @param extendSeconds: how long to ask for more time.
        @param loops: repeat all this.
        @param clock: provides C{IReactorTime}.
        """
        self._status = status
        self._alive = alive
        self._extendSeconds = extendSeconds
        self._loops = loops
        self._clock = clock

    def start(self, manager: Manager, watchdogSeconds: float) -> None:
        """
        Begin.

        @param manager: is told.
        @param watchdogSeconds: how long systemd waits for a sign of life; 0 if it does not.
        """
        self._manager = manager
        self._loops.start(1, self.tellStatus, now=True)
        self._loops.start(1, manager.catchUp)
        if watchdogSeconds:
            # Until the exit: systemd disarms the watchdog when a stop begins, and a ping that it
            # reads after that arms it again.
            self._loops.start(watchdogSeconds / 3, self._ping)

    def stop(self) -> None:
        """End. The next start is as the first."""
        self._loops.stopAll()
        self._manager = None
        self._told = ""
        self._wasAlive = True

    def tellStatus(self) -> None:
        """Tell the status, if it has changed."""
        if self._status is None or self._manager is None:
            return
        try:
            status = oneLine(str(self._status()))
        except Exception:
            self._status = None
            self._log.failure(
                "the status cannot be told and is no longer asked for",
                message_id="4c6937de67404cecbd417d7e76eb1226",
            )
            return
        if status != self._told and self._offer(f"STATUS={status}"):
            self._told = status

    def extend(self) -> LoopingCall | None:
        """
        Ask for more time, again and again, up to the bound.

        @return: the loop that asks; outside systemd there is none.
        """
        if self._manager is None:
            return None
        until = self._clock.seconds() + self._extendSeconds

        def ask() -> None:
            if self._clock.seconds() < until:
                self._offer(f"EXTEND_TIMEOUT_USEC={_EXTEND_BY * 1_000_000}")

        return self._loops.start(_EXTEND_EVERY, ask)

    def _ping(self) -> None:
        isAlive = self._isAlive()
        if isAlive:
            self._offer("WATCHDOG=1")
        self._wasAlive = isAlive

    def _offer(self, message: str) -> bool:
        return self._manager is not None and self._manager.offer(message)

    def _isAlive(self) -> bool:
        """@return: what the program says of itself. The first of several denials is a record."""
        cause = "it says so"
        try:
            if self._alive is None or self._alive():
                return True
        except Exception as why:
            cause = f"{type(why).__name__}: {why}"
        if self._wasAlive:
            self._log.error(
                "the program is not alive, so systemd gets no sign of life: {cause}",
                cause=cause,
                message_id="a64af6f616164d89aec679d3226803f5",
            )
        return False


def watchdogSeconds(environ: Mapping[str, str]) -> float:
    """
    @param environ: where systemd leaves C{WATCHDOG_USEC} and C{WATCHDOG_PID}.
    @return: how long systemd waits for a sign of life from this process, sd_watchdog_enabled(3); 0
        if the watchdog is off or the value is invalid.
    """
    pid = str(os.getpid())
    if environ.get("WATCHDOG_PID", pid) != pid:
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except (ValueError, OverflowError):
        return 0
