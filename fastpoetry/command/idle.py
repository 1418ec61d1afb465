"""
The service that ends a program nobody uses.

Only looks at how long that has been; what ending means is up to who adds it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.application import service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class IdleService(service.Service):
    """
    Ends the program once nobody has been connected for a while.

    The listening socket is systemd's: who connects while we end waits there, and has us started
    again.
    """

    _log = Logger()
    _look: IDelayedCall | None = None

    def __init__(
        self,
        clock: IReactorTime,
        mostSeconds: float,
        countSeconds: Callable[[], float],
        end: Callable[[], object],
    ) -> None:
        """
        @param mostSeconds: how long nobody may be connected.
        @param countSeconds: for how many seconds nobody has been connected.
        @param end: what to do then, once.
        """
        self._clock = clock
        self._mostSeconds = mostSeconds
        self._countSeconds = countSeconds
        self._end = end

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._look = self._clock.callLater(self._mostSeconds, self._lookNow)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._look is not None and self._look.active():
            self._look.cancel()

    def _lookNow(self) -> None:
        left = self._mostSeconds - self._countSeconds()
        if left > 0:
            self._look = self._clock.callLater(left, self._lookNow)
        else:
            self._log.info(
                "nobody was connected for {seconds:g} s: stopping until somebody is",
                seconds=self._mostSeconds,
                message_id="f3106b932cbd44a3b83eaabd30c7ba05",
            )
            self._end()
