"""
The service that ends an idle program.

It only compares the idle time with a limit. A callable that it gets ends the program.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.application import service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class IdleService(service.Service):
    """
    Ends the program when no client has been connected for a while.

    systemd holds the listening socket. A client that connects while the program ends waits in the
    backlog, and systemd starts the program again.
    """

    _log = Logger()
    _nextCheck: IDelayedCall | None = None

    def __init__(
        self,
        clock: IReactorTime,
        mostSeconds: float,
        findIdleSeconds: Callable[[], float],
        end: Callable[[], object],
    ) -> None:
        """
        @param findIdleSeconds: returns for how many seconds the program has been idle.
        @param end: ends the program; called once.
        """
        self._clock = clock
        self._mostSeconds = mostSeconds
        self._findIdleSeconds = findIdleSeconds
        self._end = end

    def startService(self) -> None:
        super().startService()
        self._nextCheck = self._clock.callLater(self._mostSeconds, self._check)

    def stopService(self) -> None:
        super().stopService()
        if self._nextCheck is not None and self._nextCheck.active():
            self._nextCheck.cancel()

    def _check(self) -> None:
        left = self._mostSeconds - self._findIdleSeconds()
        if left > 0:
            self._nextCheck = self._clock.callLater(left, self._check)
        else:
            self._log.info(
                "no client was connected for {seconds:g} s: stopping until one connects",
                seconds=self._mostSeconds,
                message_id="f3106b932cbd44a3b83eaabd30c7ba05",
            )
            self._end()
