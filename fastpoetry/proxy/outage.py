"""
A time in which an upstream gives no poem.

Says when to ask again, and now and then that it goes on; asks nobody itself.
"""

from __future__ import annotations

from random import uniform

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_LEAST_PAUSE_SECONDS = 1.0
"""Between a failure and the next attempt, whoever asks for it."""

_MOST_PAUSE_SECONDS = 10.0
"""So that an upstream which is back is noticed within that time."""

_REMIND_SECONDS = 600.0
"""Between two records of an outage that goes on."""


class Outage:
    """
    One outage, from the first attempt that failed.

    @ivar nextAttempt: when the upstream may be asked again, in the clock's seconds.
    """

    _log = Logger()

    def __init__(self, upstream: str, clock: IReactorTime) -> None:
        """@param upstream: what to call the upstream."""
        self._upstream = upstream
        self._clock = clock
        self._since = self._failedAt = self.nextAttempt = clock.seconds()
        self._toldAt = self._since - _REMIND_SECONDS
        self._attempts = 0
        self._cause = ""

    def add(self, cause: str) -> None:
        """
        Count a failed attempt; the next follows later, sooner at first, and never twice a second.

        @param cause: why it failed.
        """
        self._failedAt = now = self._clock.seconds()
        self._attempts += 1
        self._cause = cause
        pause = min(_MOST_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS * 2 ** min(self._attempts, 10))
        self.nextAttempt = now + uniform(pause / 2, pause)  # not all proxies at the same time
        if now - self._toldAt >= _REMIND_SECONDS:
            self._toldAt = now
            self._log.warn(
                "no poem from {upstream} for {seconds} s: {cause}",
                upstream=self._upstream,
                seconds=round(now - self._since),
                cause=cause,
                attempts=self._attempts,
                message_id="79766008b2c14493acb77a70aa9a6f3c",
            )

    def hurry(self) -> None:
        """Have the next attempt as soon as may be, and a record if it fails: a person asks."""
        self._toldAt = self._failedAt - _REMIND_SECONDS
        self.nextAttempt = self._failedAt + _LEAST_PAUSE_SECONDS

    def describe(self) -> str:
        """@return: for how long it has been, and why, for a person."""
        return f"Stale for {self._clock.seconds() - self._since:.0f} s: {self._cause}"

    def end(self) -> None:
        """Say that the upstream is back."""
        self._log.info(
            "{upstream} is back after {seconds} s and {attempts} attempts",
            upstream=self._upstream,
            seconds=round(self._clock.seconds() - self._since),
            attempts=self._attempts,
            message_id="b5a240cac91d41cba1214121e211a7eb",
        )
