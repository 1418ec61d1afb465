"""
Work that a separate process does while a reactor runs.

No thread waits for the process: the reactor watches a descriptor for its end. A deadline ends the
wait and kills the process. A process that a dead disk blocks survives that.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, execute, fail
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.apart.process import LONG_SECONDS, NoProcessError, Process
from fastpoetry.apart.worker import WorkError

_T = TypeVar("_T")

MOST_SECONDS = 60.0
"""When to give up. After 90 s systemd would end a reload, without a cause."""

_MOST_STUCK = 5
"""How many blocked processes one place may have. Each takes about 8 MiB."""


@implementer(IReadDescriptor)
class Job(Generic[_T]):
    """
    One piece of work.

    @ivar done: fires with the result of the work, or fails with L{WorkError}; after L{MOST_SECONDS}
        at the latest.
    @ivar ended: fires when the process has ended, even later.
    """

    _log = Logger()
    _stuck: list[str] = []
    """The places of processes that were given up and still run."""

    def __init__(self, reactor: Any, work: partial[_T], where: str) -> None:
        """
        Start the process, see L{Process}.

        @param reactor: provides C{IReactorFDSet}, and C{IReactorTime} with a monotonic clock.
        @raise NoProcessError: if no process can be started.
        @raise WorkError: if the place has too many blocked processes.
        """
        if self._stuck.count(where) >= _MOST_STUCK:
            raise WorkError(f"{where}: {_MOST_STUCK} processes wait for it already")
        self.done: Deferred[_T] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._process = Process(work, where)
        try:
            reactor.addReader(self)
        except OSError as why:
            self._process.kill()
            execute(self._process.take).addErrback(lambda _: None)
            raise NoProcessError(f"{where}: no process can be started: {why.strerror}") from None
        self._timers = [
            reactor.callLater(LONG_SECONDS, self._tell),
            reactor.callLater(MOST_SECONDS, self._giveUp),
        ]

    def fileno(self) -> int:
        return self._process.fileno()

    def logPrefix(self) -> str:
        return "Job"

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor ends, and the process ends by itself."""

    def doRead(self) -> None:
        """Take the result. The process has ended."""
        self._reactor.removeReader(self)
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        result = execute(self._process.take)
        if self.done.called:
            result.addErrback(lambda _: None)  # the result is too late
        else:
            result.chainDeferred(self.done)
        self.ended.callback(None)

    def _tell(self) -> None:
        """Log that the work takes long."""
        self._log.warn(
            "{cause}",
            cause=self._process.describe(LONG_SECONDS),
            message_id="0de3d9f732b547fe9d8cff1dae47ef49",
        )

    def _giveUp(self) -> None:
        """Kill the process, and fail L{done}."""
        where = self._process.where
        self._stuck.append(where)
        self.ended.addCallback(lambda _: self._stuck.remove(where))
        self._process.kill()
        self.done.errback(WorkError(self._process.describe(MOST_SECONDS)))


def callApart(reactor: Any, work: partial[_T], where: str) -> Deferred[_T]:
    """Do the work of a L{Job}, or do it in this process if no other can be started."""

    def doHere(failure: Failure) -> _T:
        failure.trap(NoProcessError)
        return work()

    try:
        done = Job(reactor, work, where).done
    except WorkError:
        done = fail()
    return done.addErrback(doHere)
