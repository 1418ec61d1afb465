"""
What a Twisted program tells systemd about itself, by sd_notify(3).

Knows nothing of what the program does, and stores no descriptors. Outside systemd it sends nothing
and runs no timer.
"""

from __future__ import annotations

import atexit
import os
import signal as signals
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, suppress
from signal import SIG_DFL, SIGHUP, SIGINT, SIGTERM, getsignal, signal
from typing import Any

from twisted.application.service import IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.manager import Manager, ManagerError
from fastpoetry.systemd.steps import Steps, drive

__all__ = ["ManagerError", "NotReady", "NotifyService", "ReloadError", "StartingService"]

_EXTEND_EVERY = 5
_EXTEND_BY = 15
"""Seconds: what takes long says so three times in the time that it asks for."""


class NotReady(Exception):
    """Something that belongs to the program has not started: one line that says what."""


class ReloadError(Exception):
    """
    A reload that failed and has said so.

    Its line is for who asked for the reload, and no record is made of it.
    """


class StartingService(MultiService):
    """
    A C{MultiService} that waits for services whose C{startService} returns a Deferred or coroutine.

    @ivar started: fires when all have started; fails when one does.
    """

    started: Deferred[Any] | None = None

    def __init__(self) -> None:
        super().__init__()  # is not annotated

    def startService(self) -> None:
        """Start all services."""
        Service.startService(self)
        # Before they start: where the reactor runs already, one of them may ask at once.
        self.started = Deferred()
        # What is raised here ends the program as it does in a MultiService.
        starting = [_asDeferred(service.startService()) for service in self]
        gatherResults(starting, consumeErrors=True).chainDeferred(self.started)

    def addService(self, service: Any) -> None:
        """
        Add a service. One that is added after the start is started, and nobody waits for it.

        @param service: it. That its start fails later is a record.
        """
        isRunning, self.running = self.running, 0
        try:
            super().addService(service)
        finally:
            self.running = isRunning
        if isRunning:
            service.privilegedStartService()
            _asDeferred(service.startService())


class NotifyService(Service):
    """
    Tells systemd that the program is ready, reloads, stops and is alive, and how it is doing.

    Add it last. Services start in the order in which they were added, so that READY means that all
    of them have started; one that fails ends twistd before. They stop in the reverse order, so that
    STOPPING is said before any of them begins to.

    What starts later is waited for: C{ready}, and every C{StreamServerEndpointService} and
    L{StartingService} of the program. If it fails, that is a record and the end of the
    program, with exit status 1. Until then, and while the program stops, systemd is asked for more
    time than the unit allows, for as long as it goes on and up to a bound.
    """

    _log = Logger()
    _manager: Manager | None = None
    _told = ""
    _asked = False
    _reloading = False
    _shuttingDown = False
    _hasTriggers = False
    _signalled = False
    _token: object = None
    _reloadPort: Any = None

    def __init__(
        self,
        reactor: Any,
        *,
        status: Callable[[], str] | None = None,
        reload: Callable[[], Awaitable[object] | None] | None = None,
        ready: Callable[[], Awaitable[object] | None] | Awaitable[object] | None = None,
        extendSeconds: float = 600.0,
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
        @param ready: what must have ended before READY, or what returns that when the reactor runs.
        @param extendSeconds: by how much a start or a stop may at most take longer than the unit
            allows.
        @param clock: provides C{IReactorTime}. Without it, a L{MonotonicClock}: no step of the wall
            clock holds up a sign of life.
        @param environ: where systemd leaves C{NOTIFY_SOCKET}, C{WATCHDOG_USEC}, C{WATCHDOG_PID}.
        @param setHandler: sets the handler of a signal, as C{signal.signal} does.
        """
        self._reactor = reactor
        self._status = status
        self._hook = reload
        self._readyHook = ready
        self._extendSeconds = extendSeconds
        self._clock = MonotonicClock(reactor) if clock is None else clock
        self._environ = environ
        self._setHandler = setHandler
        self._loops: list[LoopingCall] = []
        self._handlers: dict[int, Any] = {}
        self._waiters: list[Deferred[str]] = []
        if reload is not None:
            # As early as that: with no handler SIGHUP ends the program.
            self._handle(SIGHUP, self._hungUp)

    def startService(self) -> None:
        """Say READY once the reactor runs and all has started. From now on SIGHUP reloads."""
        super().startService()
        if self._hook is not None:
            # Outside systemd too, and to the end, when the program has clients to see off.
            self._handle(SIGHUP, self._hungUp)
        address = self._environ.get("NOTIFY_SOCKET")
        if address and self._manager is None:
            self._manager = Manager(address)
        if not self._hasTriggers:
            self._hasTriggers = True
            self._reactor.addSystemEventTrigger("before", "shutdown", self._shutDown)
            self._reactor.addSystemEventTrigger("after", "shutdown", self._close)
        self._token = object()
        self._reactor.callWhenRunning(self._begin, self._token)

    def stopService(self) -> None:
        """
        Say STOPPING. If the program ends, status and watchdog go on for as long as the reactor
        runs; if it goes on without this service, nothing of it is left.
        """
        super().stopService()
        self._token = None
        self.tell(STOPPING=1)
        if self._shuttingDown:
            self._extend()
            return
        self._close()
        for number, before in self._handlers.items():
            self._setHandler(number, before)
        self._handlers = {}

    def tell(self, **fields: object) -> None:
        """
        Tell systemd anything, after all that it was told before: C{tell(ERRNO=2)},
        C{tell(MAINPID=pid)}, C{tell(EXTEND_TIMEOUT_USEC=5_000_000)}, C{tell(WATCHDOG="trigger")}.
        Outside systemd, and while this service does not run, it is told to nobody.

        @param fields: those of sd_notify(3), in one message. Values become one line.
        """
        if self._manager is not None:
            lines = (f"{name}={_oneLine(str(value))}" for name, value in fields.items())
            self._manager.declare("\n".join(lines))

    def settle(self, seconds: float = 5.0) -> Deferred[None]:
        """
        Wait until systemd has read what it was told, C{BARRIER=1}.

        @param seconds: how long it may take.
        @return: fires then; fails with L{ManagerError} if it takes longer, or there is no systemd.
        """
        return drive(self._settling(), seconds, self._reactor, self._clock)

    def _settling(self) -> Steps:
        if self._manager is not None:
            yield from self._manager.tell()
            return
        with closing(Manager(self._environ.get("NOTIFY_SOCKET", ""))) as manager:
            yield from manager.tell()

    def _handle(self, number: int, handler: Callable[..., None]) -> None:
        before = getsignal(number) or SIG_DFL
        try:
            self._setHandler(number, handler)
        except ValueError:
            self._log.warn(
                "{signal} is not handled: only a program's first thread can do that",
                signal=signals.Signals(number).name,
                message_id="fa0a15bda0534516b5407da0a853cee9",
            )
        else:
            self._handlers.setdefault(number, before)

    def _stopOnce(self, number: int) -> None:
        """Have the reactor stop at the first of two signals: the second would make a traceback."""
        stop = getsignal(number)
        if getattr(stop, "__self__", None) is self._reactor and callable(stop):

            def handler(*signalAndFrame: Any) -> None:
                if not self._signalled:
                    self._signalled = True
                    stop(*signalAndFrame)

            self._handle(number, handler)

    def _begin(self, token: object) -> None:
        """The reactor runs."""
        if token is not self._token:
            return  # stopped before
        for number in (SIGTERM, SIGINT):
            self._stopOnce(number)
        if self._manager is not None:
            self._every(1, self._tellStatus, now=True)
            self._every(1, self._manager.catchUp, now=False)
            watchdog = _watchdogSeconds(self._environ)
            if watchdog:
                # To the very end: systemd lets the watchdog rest when the service begins to stop,
                # but a ping that it reads after that wakes it, and a drain without is aborted.
                self._every(watchdog / 3, self._manager.offer, "WATCHDOG=1", now=False)
            self._listenForReloads()
        try:
            starting = list(self._findStarting())
        except Exception:
            self._startFailed(Failure())
            return
        ready = gatherResults(starting, consumeErrors=True)
        extending = None if ready.called else self._extend()
        ready.addCallbacks(lambda _: self._ready(token, extending), self._startFailed)

    def _findStarting(self) -> Iterator[Deferred[Any]]:
        """What has to end before the program is ready."""
        hook = self._readyHook() if callable(self._readyHook) else self._readyHook
        if hook is not None:
            yield _asDeferred(hook)
        root: Any = self
        while root.parent is not None:
            root = root.parent
        yield from _findWaiting(root)

    def _ready(self, token: object, extending: LoopingCall | None) -> None:
        if token is not self._token or self._signalled:
            return  # because the program stops
        if _isStopping(self._reactor):
            # A start can fail so as well: Buildbot's logs why, stops the reactor, and has ended.
            self._startFailed(Failure(NotReady("it was stopped by itself before it was ready")))
            return
        if extending is not None:
            self._loops.remove(extending)
            extending.stop()
            self._tellStatus()
        self.tell(READY=1)

    def _startFailed(self, failure: Failure) -> None:
        if self._token is None:
            return  # because the program stops
        while isinstance(failure.value, FirstError):
            failure = failure.value.subFailure
        self._log.failure(
            "the start failed, so the program ends",
            failure,
            message_id="8aa43ead993c4d9b81c5d916b5ae3cef",
        )
        failAtExit()
        if not _isStopping(self._reactor):
            self._reactor.stop()

    def _every(
        self, seconds: float, f: Callable[..., object], *args: object, now: bool
    ) -> LoopingCall:
        loop = LoopingCall(f, *args)
        loop.clock = self._clock
        self._loops.append(loop)
        loop.start(seconds, now)
        return loop

    def _extend(self) -> LoopingCall | None:
        """Ask for time, over and over, until it is used up."""
        if self._manager is None:
            return None
        manager, until = self._manager, self._clock.seconds() + self._extendSeconds

        def extend() -> None:
            if self._clock.seconds() < until:
                manager.offer(f"EXTEND_TIMEOUT_USEC={_EXTEND_BY * 1_000_000}")

        return self._every(_EXTEND_EVERY, extend, now=False)

    def _shutDown(self) -> None:
        self._shuttingDown = True

    def _close(self) -> None:
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._loops = []
        self._told = ""
        if self._reloadPort is not None:
            self._reloadPort.close()
            self._reloadPort = None
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _hungUp(self, *_signalAndFrame: object) -> None:
        # All that a signal handler may ask of a reactor.
        self._reactor.callFromThread(self._reload)

    def _listenForReloads(self) -> None:
        # Where systemd can ask at all.
        if self._hook is not None and "INVOCATION_ID" in self._environ:
            from fastpoetry.systemd.reload import ReloadPort

            try:
                self._reloadPort = ReloadPort(self._reactor, self._reloaded, self._environ)
                self._every(1, self._reloadPort.resume, now=False)
            except OSError as why:
                self._log.warn(
                    "reloads can be asked for by SIGHUP alone: {cause}",
                    cause=why.strerror or str(why),
                    message_id="5b9a7d2f6c1e4f0c8f3d1b7a9e2c4d60",
                )

    def _reloaded(self) -> Deferred[str]:
        """
        Reload, for somebody who waits for it.

        @return: fires with why it failed, or nothing.
        """
        waiter: Deferred[str] = Deferred()
        self._waiters.append(waiter)
        self._reload()
        return waiter

    def _reload(self) -> None:
        self._asked = True
        if not self._reloading:
            Deferred.fromCoroutine(self._reloadWhileAsked())

    async def _reloadWhileAsked(self) -> None:
        self._reloading = True
        why = ""
        while self._asked and self.running:
            self._asked = False
            waiters, self._waiters = self._waiters, []
            # The time tells systemd whether this is the reload it asked for, or one before.
            self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            try:
                why = await self._reloadOnce()
            finally:
                if self.running:
                    self._tellStatus()
                    self.tell(READY=1)
            for waiter in waiters:
                waiter.callback(why)
        self._reloading = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback("the program stops")

    async def _reloadOnce(self) -> str:
        """@return: why it failed, or nothing."""
        try:
            ending: object = self._hook and self._hook()
            if isinstance(ending, Awaitable):  # somebody else's method may return anything
                await ending
        except Exception as why:
            cause: BaseException | None = why
            while isinstance(cause, FirstError):
                cause = cause.subFailure.value
            if not isinstance(cause, ReloadError):
                self._log.failure(
                    "the reload failed and the program goes on",
                    message_id="c4b198664625443390c32223558e6b37",
                )
            return _oneLine(str(cause)) or type(cause).__name__
        return ""

    def _tellStatus(self) -> None:
        if self._manager is None or self._status is None:
            return
        try:
            status = _oneLine(str(self._status()))
        except Exception:
            self._status = None
            self._log.failure(
                "the status cannot be told and is no longer asked for",
                message_id="4c6937de67404cecbd417d7e76eb1226",
            )
            return
        if status != self._told and self._manager.offer(f"STATUS={status}"):
            self._told = status


def _asDeferred(awaited: Any) -> Deferred[Any]:
    """@param awaited: a Deferred, which keeps its result, a coroutine, or anything else."""
    if isinstance(awaited, Deferred):
        return _watch(awaited)
    if isinstance(awaited, Awaitable):

        async def ending() -> object:
            return await awaited

        return Deferred.fromCoroutine(ending())
    return maybeDeferred(lambda: awaited)


def _watch(other: Deferred[Any]) -> Deferred[Any]:
    """
    @return: what ends as the other does. That keeps a result for those that it is for; a failure is
        taken care of here.
    """
    watching: Deferred[Any] = Deferred()

    def tell(result: Any) -> Any:
        if isinstance(result, Failure):
            watching.errback(result)
            return None
        watching.callback(result)
        return result

    other.addBoth(tell)
    return watching


def _findWaiting(service: Any) -> Iterator[Deferred[Any]]:
    """
    What the program's services wait for.

    Its endpoint services tell nobody: that they cannot listen is a record, and it goes on, deaf.
    """
    if isinstance(service, StartingService) and service.started is not None:
        yield _watch(service.started)
    # Where nobody has imported its module, no service is one of them, and 0.3 MiB are saved.
    internet: Any = sys.modules.get("twisted.application.internet")
    if internet and isinstance(service, internet.StreamServerEndpointService):
        waiting = service._waitingForPort
        if waiting is not None:
            yield _watch(waiting).addCallback(_checkPort, service.endpoint)
    if IServiceCollection.providedBy(service):
        for child in service:
            yield from _findWaiting(child)


def _checkPort(port: Any, endpoint: object) -> None:
    if port is None:
        raise NotReady(f"it does not listen on {endpoint!r}")


def _isStopping(reactor: Any) -> bool:
    """@return: whether a running reactor was told to stop, at which it finishes its turn."""
    return getattr(reactor, "_stopped", False) is True


def failAtExit() -> None:
    """Have this process end with status 1 when it ends: twistd has no way to say so."""

    def end() -> None:
        atexit.unregister(end)
        atexit._run_exitfuncs()  # those that were to come after this one
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(AttributeError, OSError, ValueError):  # none, full, or closed
                stream.flush()  # type: ignore[union-attr]
        os._exit(1)

    atexit.register(end)


def _oneLine(text: str) -> str:
    """
    @return: what systemd takes for one value and a terminal for text: datagrams are split at line
        breaks, and dropped with a NUL in them or above 4,096 bytes (a character has up to 4).
    """
    return "".join(c if c.isprintable() else " " for c in text[:1000])


def _watchdogSeconds(environ: Mapping[str, str]) -> float:
    """
    @return: how long systemd waits for a sign of life from this process; 0 where it does not
        (sd_watchdog_enabled(3)), and for a time that is none.
    """
    pid = str(os.getpid())
    if environ.get("WATCHDOG_PID", pid) != pid:
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except (ValueError, OverflowError):
        return 0
