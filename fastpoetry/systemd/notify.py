"""
Messages from a Twisted program to systemd, by sd_notify(3).

This module does not know what the program does, and stores no descriptors. Outside systemd it sends
no message and runs no timer.
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
from fastpoetry.systemd.heartbeat import Heartbeat
from fastpoetry.systemd.manager import (
    MOST_MESSAGE_BYTES,
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
    Tells systemd when the program is ready, reloads or stops, that it is alive, and its status.

    Add it last. Services stop in reverse order, so STOPPING is sent before any of them stops.

    READY waits for C{ready}, for each C{StreamServerEndpointService} and L{StartingService} of the
    program, and for the results of all C{startService} methods. If one of these fails, the program
    logs a record and ends with exit status 1.

    @ivar ready: what the argument C{ready} was; used when all services have started.
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
        @param reactor: provides C{IReactorCore}, C{IReactorFDSet} and C{IReactorFromThreads}.
        @param status: returns the status in words for people; called once a second.
        @param reload: called at SIGHUP. The reload ends when the returned awaitable does. Without
            C{reload} the handler of SIGHUP stays as it is.
        @param ready: an awaitable that must end before READY, or a function that returns one and is
            called when all services have started. If it raises, the start has failed. A service
            that starts again needs the function.
        @param alive: called before each watchdog ping. Unless it returns true, no ping is sent, and
            a record says so. systemd then ends the program after C{WatchdogSec=}.
        @param extendSeconds: for how many seconds a start or a stop asks for more time than the
            unit allows.
        @param reloadSeconds: after this time a reload is cancelled and has failed.
        @param clock: provides C{IReactorTime}. Without it, a L{MonotonicClock}: then no step of the
            wall clock delays a watchdog ping.
        @param environ: where systemd leaves C{NOTIFY_SOCKET}, C{WATCHDOG_USEC}, C{WATCHDOG_PID}.
            The start removes them from C{os.environ}, so that no child process inherits them.
        @param setHandler: sets the handler of a signal, as C{signal.signal} does.
        """
        self._reactor = reactor
        self.ready = ready
        self._clock = MonotonicClock(reactor) if clock is None else clock
        self._environ = environ
        self._heartbeat = Heartbeat(status, alive, extendSeconds, self._clock)
        self._handlers = Handlers(setHandler)
        self._starts = StartWatch()
        self._reloads = Reloads(reload, reloadSeconds, self._announce, reactor, self._clock)
        self._reloads.handleHangup(self._handlers)  # early, because SIGHUP kills by default

    def setServiceParent(self, parent: Any) -> None:
        """Join a program, and watch how its services start."""
        super().setServiceParent(parent)
        if not self._isReady:  # READY may come at once if the program runs already
            self._starts.addProgram(self)

    def privilegedStartService(self) -> None:
        """Also watch services that were added to the program meanwhile."""
        super().privilegedStartService()
        self._starts.addProgram(self)

    def startService(self) -> None:
        """Send READY once the reactor runs and all services have started. Let SIGHUP reload."""
        super().startService()
        self._reloads.handleHangup(self._handlers)  # also outside systemd, until the program ends
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
        If the program ends, send STOPPING. Status and watchdog pings go on until the reactor stops.
        Otherwise close everything that this service opened. After STOPPING, systemd would kill a
        program that goes on.
        """
        super().stopService()
        self._start = None
        self._isReady = self._reloads.isOpen = False
        self._starts.finish()
        # A service that joins a running program stops before its own trigger is called.
        isEnding = getattr(self._reactor, "running", False) and isStopping(self._reactor)
        if self._isEnding or isEnding:
            self.tell(STOPPING=1)
            self._heartbeat.extend()
        else:
            self._close()
            self._handlers.restore()

    def tell(self, state: str = "", /, **fields: object) -> None:
        """
        Send systemd any fields, after all earlier messages: C{tell("READY=1\\nSTATUS=Serving")} or
        C{tell(ERRNO=2)}. Outside systemd, and while this service does not run, no message is sent.
        Call it in the reactor's thread.

        @param state: fields as sd_notify(3) takes them, one on a line.
        @param fields: more fields for the same message. Each value becomes one line.
        @raise ValueError: if the message is longer than systemd reads, 4,096 bytes.
        """
        lines = [*state.split("\n"), *(f"{name}={value}" for name, value in fields.items())]
        message = "\n".join(filter(None, map(oneLine, lines)))
        if len(message.encode()) > MOST_MESSAGE_BYTES:
            raise ValueError(f"more than {MOST_MESSAGE_BYTES} bytes: {message[:100]}")
        if self._manager is not None and message:
            self._manager.declare(message)

    def tellTrouble(self, cause: str) -> None:
        """
        Have systemd act as if a watchdog ping was missed, C{WATCHDOG=trigger}: it ends the program
        with SIGABRT, and C{Restart=} decides whether the program starts again.

        @param cause: the fault, in words for people. A record has it.
        """
        self._log.error(
            "the program is in trouble: {cause}",
            cause=cause,
            message_id="b201ca1351d04a7f90cb6c071042523a",
        )
        self.tell(STATUS=cause, WATCHDOG="trigger")

    def settle(self, seconds: float = 5.0) -> Deferred[None]:
        """
        Wait until systemd has read all messages, C{BARRIER=1}.

        @param seconds: how long systemd may take.
        @return: fires then; fails with L{ManagerError} if systemd takes longer, or is not there.
        """
        if self._manager is None:
            return fail(
                ManagerError("no systemd to notify: the program runs outside it, or has stopped")
            )
        return drive(self._manager.tell(), seconds, self._reactor, self._clock)

    def _begin(self, start: object) -> None:
        """Begin the pings, and wait for all services. The reactor runs now."""
        if start is not self._start:  # the service has stopped meanwhile
            return
        self._handlers.stopOnce(self._reactor)
        if self._manager is not None:
            self._heartbeat.start(self._manager, withHidden(self._environ))
            self._reloads.listen(self._environ)
        started = Deferred.fromCoroutine(self._starts.whenStarted(self, self.ready))
        extending = None if started.called else self._heartbeat.extend()
        started.addCallback(lambda _: self._becomeReady(start, extending))
        started.addErrback(self._failStart, start)

    def _becomeReady(self, start: object, extending: LoopingCall | None) -> None:
        if start is not self._start or self._handlers.hasStopped:
            return  # the program stops
        if isStopping(self._reactor):
            # A failed start of Buildbot: it logs the cause, stops the reactor, and then returns.
            raise NotReady("the program stopped its reactor before it was ready")
        self._starts.finish()
        if extending is not None:
            extending.stop()
            self._heartbeat.tellStatus()
        self._isReady = True
        self.tell(READY=1)

    def _failStart(self, failure: Failure, start: object) -> None:
        if start is self._start:  # otherwise the program stops already
            self._starts.finish()
            failStart(failure, self._reactor)

    @contextmanager
    def _announce(self, isKnown: bool) -> Iterator[None]:
        """
        Tell systemd of a reload that it did not ask for, after READY. Before READY, the reload's
        end would end the start. If systemd 257 were told of its own reload, and the program
        crashed, systemd would wait for READY.
        """
        isTold = self._isReady and not isKnown
        if isTold:
            # The time tells systemd whether this is the reload that it asked for.
            self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            yield
        finally:
            if self._isReady:
                self._heartbeat.tellStatus()
            if self._isReady and isTold:
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

    @param settings: arguments of L{NotifyService}.
    """
    service = NotifyService(reactor, **settings)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    return service
