"""
What a Twisted program tells systemd about itself, by sd_notify(3).

Knows nothing of what the program does, and stores no descriptors. Outside systemd it sends nothing
and runs no timer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from signal import signal
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.heartbeat import Heartbeat, watchdogSeconds
from fastpoetry.systemd.loops import Loops
from fastpoetry.systemd.manager import (
    Manager,
    ManagerError,
    hideFromChildren,
    oneLine,
    withHidden,
)
from fastpoetry.systemd.reloading import Hook, ReloadError, Reloads
from fastpoetry.systemd.signals import Handlers, isStopping
from fastpoetry.systemd.starting import NotReady, StartingService, StartWatch, failStart
from fastpoetry.systemd.steps import drive

__all__ = [
    "ManagerError",
    "NotReady",
    "NotifyService",
    "ReloadError",
    "StartingService",
    "startNotifying",
]


class NotifyService(Service):
    """
    Tells systemd that the program is ready, reloads, stops and is alive, and how it is doing.

    Add it last. Services stop in the reverse order, so that STOPPING is said before any of them
    begins to.

    READY waits for C{ready}, for every C{StreamServerEndpointService} and L{StartingService} of the
    program, and for what C{startService} of any service returns. If one of them fails, that is a
    record and the end of the program, with exit status 1.
    """

    _log = Logger()
    _manager: Manager | None = None
    _start: object = None
    _isReady = False
    _isEnding = False
    _hasTriggers = False

    def __init__(
        self,
        reactor: Any,
        *,
        status: Callable[[], str] | None = None,
        reload: Hook | None = None,
        ready: Callable[[], Awaitable[object] | None] | Awaitable[object] | None = None,
        alive: Callable[[], bool] | None = None,
        extendSeconds: float = 600.0,
        reloadSeconds: float = 60.0,
        clock: Any = None,
        environ: Mapping[str, str] = os.environ,
        setHandler: Callable[[int, Any], object] = signal,
    ) -> None:
        """
        @param reactor: provides C{IReactorCore}, C{IReactorFDSet}, C{IReactorUNIX} and
            C{IReactorFromThreads}.
        @param status: how the program is doing, in a person's words; asked once a second.
        @param reload: what SIGHUP does; the reload ends when what this returns does. Without it
            SIGHUP is left as it was.
        @param ready: what must have ended before READY, or what returns that when all services
            have started. If it raises, the start has failed.
        @param alive: asked before each sign of life. Unless it returns true, systemd gets no sign
            of life, and restarts the program after C{WatchdogSec=}; a record says so.
        @param extendSeconds: how much longer than the unit allows a start or a stop may take.
        @param reloadSeconds: after this time a reload is cancelled and has failed.
        @param clock: provides C{IReactorTime}. Without it, a L{MonotonicClock}: no step of the wall
            clock holds up a sign of life.
        @param environ: where systemd leaves C{NOTIFY_SOCKET}, C{WATCHDOG_USEC}, C{WATCHDOG_PID}.
            They are taken out of C{os.environ} at the start, so that no child inherits them.
        @param setHandler: sets the handler of a signal, as C{signal.signal} does.
        """
        self._reactor = reactor
        self._readyHook = ready
        self._clock = MonotonicClock(reactor) if clock is None else clock
        self._environ = environ
        self._loops = Loops(self._clock)
        self._heartbeat = Heartbeat(status, alive, extendSeconds, self._loops, self._clock)
        self._handlers = Handlers(setHandler)
        self._starts = StartWatch()
        self._reloads = Reloads(reload, reloadSeconds, self._announce, reactor, self._clock)
        self._reloads.handleHangup(self._handlers)  # so early, because SIGHUP kills by default

    def setServiceParent(self, parent: Any) -> None:
        """
        Join a program, and watch how its services start.

        @param parent: is started by the program.
        """
        super().setServiceParent(parent)
        self._starts.addProgram(self)

    def privilegedStartService(self) -> None:
        """Watch the services too that the program has got since."""
        super().privilegedStartService()
        self._starts.addProgram(self)

    def startService(self) -> None:
        """Say READY once the reactor runs and all has started. From now on SIGHUP reloads."""
        super().startService()
        self._reloads.handleHangup(self._handlers)  # outside systemd too, and to the end
        self._reloads.isOpen = True
        hideFromChildren(self._environ)
        address = withHidden(self._environ).get("NOTIFY_SOCKET")
        if address and self._manager is None:
            self._manager = Manager(address)
        if not self._hasTriggers:
            self._hasTriggers = True
            self._reactor.addSystemEventTrigger("before", "shutdown", self._shutDown)
            self._reactor.addSystemEventTrigger("after", "shutdown", self._close)
        self._start = object()
        self._reactor.callWhenRunning(self._begin, self._start)

    def stopService(self) -> None:
        """
        Say STOPPING. If the program ends, status and watchdog go on for as long as the reactor
        runs; if it goes on without this service, nothing of it is left.
        """
        super().stopService()
        self._start = None
        self._isReady = self._reloads.isOpen = False
        self._starts.finish()
        self.tell(STOPPING=1)
        if self._isEnding:
            self._heartbeat.extend()
        else:
            self._close()
            self._handlers.restore()

    def tell(self, state: str = "", /, **fields: object) -> None:
        """
        Tell systemd anything, after all messages before: C{tell("READY=1\\nSTATUS=Serving")} or
        C{tell(ERRNO=2)}. Outside systemd, and while this service does not run, nothing is sent.

        @param state: fields as sd_notify(3) takes them, one on a line.
        @param fields: more of them, in the same message. Values become one line.
        """
        lines = [*state.split("\n"), *(f"{name}={value}" for name, value in fields.items())]
        message = "\n".join(filter(None, map(oneLine, lines)))
        if self._manager is not None and message:
            self._manager.declare(message)

    def tellTrouble(self, cause: str) -> None:
        """
        Have systemd treat the program as one whose watchdog was missed, C{WATCHDOG=trigger}: it
        ends with SIGABRT, and C{Restart=} decides about the rest.

        @param cause: what is wrong, in a person's words. A record has it.
        """
        self._log.error(
            "the program is in trouble: {cause}",
            cause=cause,
            message_id="b201ca1351d04a7f90cb6c071042523a",
        )
        self.tell(STATUS=cause, WATCHDOG="trigger")

    def settle(self, seconds: float = 5.0) -> Deferred[None]:
        """
        Wait until systemd has read what it was told, C{BARRIER=1}.

        @param seconds: how long it may take.
        @return: fires then; fails with L{ManagerError} if it takes longer, or nothing is told.
        """
        if self._manager is None:
            return fail(ManagerError("systemd is told nothing, outside of it or after the stop"))
        return drive(self._manager.tell(), seconds, self._reactor, self._clock)

    def _begin(self, start: object) -> None:
        """The reactor runs."""
        if start is not self._start:  # stopped before
            return
        self._handlers.stopOnce(self._reactor)
        if self._manager is not None:
            self._heartbeat.start(self._manager, watchdogSeconds(withHidden(self._environ)))
            self._reloads.listen(self._loops, self._environ)
        started = Deferred.fromCoroutine(self._starts.whenStarted(self, self._readyHook))
        extending = None if started.called else self._heartbeat.extend()
        started.addCallback(lambda _: self._becomeReady(start, extending))
        started.addErrback(self._failStart, start)

    def _becomeReady(self, start: object, extending: LoopingCall | None) -> None:
        if start is not self._start or self._handlers.hasStopped:
            return  # because the program stops
        if isStopping(self._reactor):
            # Buildbot's start fails so: it logs why, stops the reactor, and has ended.
            raise NotReady("it was stopped by itself before it was ready")
        self._starts.finish()
        if extending is not None:
            self._loops.stop(extending)
            self._heartbeat.tellStatus()
        self._isReady = True
        self.tell(READY=1)

    def _failStart(self, failure: Failure, start: object) -> None:
        if start is self._start:  # otherwise the program stops
            self._starts.finish()
            failStart(failure, self._reactor)

    @contextmanager
    def _announce(self) -> Iterator[None]:
        """Tell of a reload. Before READY systemd would take its end for the end of the start."""
        if self._isReady:
            # The time tells systemd whether this is the reload it asked for, or one before.
            self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            yield
        finally:
            if self._isReady:
                self._heartbeat.tellStatus()
                self.tell(READY=1)

    def _shutDown(self) -> None:
        self._isEnding = True

    def _close(self) -> None:
        self._heartbeat.stop()
        self._reloads.close()
        if self._manager is not None:
            self._manager.close()
            self._manager = None


def startNotifying(reactor: Any, **settings: Any) -> NotifyService:
    """
    Start a L{NotifyService} in a program without services, and stop it when the reactor stops:
    C{startNotifying(reactor)} in C{task.react} or before C{reactor.run}.

    @param reactor: as L{NotifyService} takes it.
    @param settings: the same.
    @return: the service.
    """
    service = NotifyService(reactor, **settings)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    return service
