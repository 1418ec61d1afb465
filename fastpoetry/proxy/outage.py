"""
A time in which an upstream sends no poem.

Decides when to retry, and logs the outage now and then. Does not fetch.
"""

from __future__ import annotations

from random import uniform

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_LEAST_PAUSE_SECONDS = 1.0
"""The least pause between a failure and the next attempt, even for a reload."""

_MOST_PAUSE_SECONDS = 10.0
"""The longest pause: an upstream that is back is noticed within this time."""

_REMIND_SECONDS = 600.0
"""How often an outage that goes on is logged."""


class Outage:
    """
    One outage, from its first failed attempt.

    @ivar nextAttempt: the time of the next attempt, in the clock's seconds.
    """

    _log = Logger()

    def __init__(self, upstream: str, clock: IReactorTime) -> None:
        self._upstream = upstream
        self._clock = clock
        self._since = self._failedAt = self.nextAttempt = clock.seconds()
        self._toldAt = self._since - _REMIND_SECONDS
        self._attempts = 0
        self._cause = ""

    def add(self, cause: str) -> None:
        """Count a failed attempt, and schedule the next. The pauses grow from at least a second."""
        self._failedAt = now = self._clock.seconds()
        self._attempts += 1
        self._cause = cause
        pause = min(_MOST_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS * 2 ** min(self._attempts, 10))
        self.nextAttempt = now + uniform(pause / 2, pause)  # so proxies do not retry together
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
        """Retry as soon as allowed, and log a failure at once: a person has asked for a reload."""
        self._toldAt = self._failedAt - _REMIND_SECONDS
        self.nextAttempt = self._failedAt + _LEAST_PAUSE_SECONDS

    def describe(self) -> str:
        """Return the length and the cause of the outage, for a person."""
        return f"Stale for {self._clock.seconds() - self._since:.0f} s: {self._cause}"

    def end(self) -> None:
        self._log.info(
            "{upstream} is back after {seconds} s and {attempts} attempts",
            upstream=self._upstream,
            seconds=round(self._clock.seconds() - self._since),
            attempts=self._attempts,
            message_id="b5a240cac91d41cba1214121e211a7eb",
        )
