"""Whether new connections are accepted, or wait in the backlogs of their ports."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from fastpoetry.delivery.readers import Pausable

_CLOSED_SECONDS = 0.25
"""How soon to accept again, if nobody leaves meanwhile."""


class Gate:
    """Ports that are open or closed together."""

    def __init__(self, clock: IReactorTime, tell: Callable[[str], object]) -> None:
        """
        @param clock: has it open again after a moment.
        @param tell: called with the cause if a port cannot accept again.
        """
        self._clock = clock
        self._tell = tell
        self._ports: list[Pausable] = []
        self._reopening: IDelayedCall | None = None

    @property
    def isClosed(self) -> bool:
        """Whether the ports leave who comes in their backlogs."""
        return self._reopening is not None

    @property
    def willOpen(self) -> bool:
        """Whether a timer is pending that opens this."""
        return self._reopening is not None and self._reopening.active()

    def add(self, port: Pausable) -> None:
        """Have a port accept only while this is open."""
        self._ports.append(port)

    def remove(self, port: Pausable) -> None:
        """Leave a port alone from now on."""
        self._ports.remove(port)

    def close(self) -> None:
        """Accept nobody for a moment."""
        self._openLater()
        for port in self._ports:
            port.stopReading()

    def open(self) -> None:
        """Accept again, if this was closed; if a port cannot, try all again after a moment."""
        if self._reopening is not None:
            self._openLater()
            try:
                for port in self._ports:
                    port.startReading()
            except (OSError, MemoryError) as why:  # the reactor cannot watch one more
                self._tell(str(why) or type(why).__name__)
            else:
                self._reopening.cancel()
                self._reopening = None

    def reopen(self) -> None:
        """Have all ports accept: at once or, if one cannot, after a moment."""
        self.close()
        self.open()

    def _openLater(self) -> None:
        """Open this after a moment, and not sooner."""
        before = self._reopening
        self._reopening = self._clock.callLater(_CLOSED_SECONDS, self.open)
        if before is not None and before.active():
            before.cancel()
