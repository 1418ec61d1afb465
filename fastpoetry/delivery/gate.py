"""The gate: ports accept while it is open, and leave connections in the backlog while closed."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from fastpoetry.delivery.readers import Pausable

_CLOSED_SECONDS = 0.25
"""When to accept again, if no reader leaves before."""


class Gate:
    """Ports that are open or closed together."""

    def __init__(self, clock: IReactorTime, tell: Callable[[str], object]) -> None:
        """@param tell: called with the cause if a port cannot accept again."""
        self._clock = clock
        self._tell = tell
        self._ports: list[Pausable] = []
        self._reopening: IDelayedCall | None = None

    @property
    def isClosed(self) -> bool:
        """Whether the ports leave new connections in their backlogs."""
        return self._reopening is not None

    @property
    def hasPorts(self) -> bool:
        """Whether a port is left."""
        return bool(self._ports)

    @property
    def willOpen(self) -> bool:
        """Whether a timer is pending that opens the gate."""
        return self._reopening is not None and self._reopening.active()

    def add(self, port: Pausable) -> None:
        """Add a port, which from now on accepts only while the gate is open."""
        self._ports.append(port)

    def remove(self, port: Pausable) -> None:
        """Remove a port, and leave it as it is."""
        self._ports.remove(port)

    def close(self) -> None:
        """Stop all ports from accepting, for a moment."""
        self._openLater()
        for port in self._ports:
            port.stopReading()

    def open(self) -> None:
        """Accept again, if the gate is closed. If a port cannot, try all again after a moment."""
        if self._reopening is not None:
            self._openLater()
            try:
                for port in self._ports:
                    port.startReading()
            except (OSError, MemoryError) as why:  # the reactor cannot watch another socket
                self._tell(str(why) or type(why).__name__)
            else:
                self._reopening.cancel()
                self._reopening = None

    def reopen(self) -> None:
        """Make all ports accept now or, if one cannot, after a moment."""
        self.close()
        self.open()

    def _openLater(self) -> None:
        before = self._reopening
        self._reopening = self._clock.callLater(_CLOSED_SECONDS, self.open)
        if before is not None and before.active():
            before.cancel()
