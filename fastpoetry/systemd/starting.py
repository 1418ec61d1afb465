"""
What the start of a program waits for, and its end if the start fails.

Knows nothing of systemd.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.application.service import IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.systemd.deferreds import asDeferred, findCause, toDeferred, watch
from fastpoetry.systemd.signals import isStopping

_log = Logger()


class NotReady(Exception):
    """Something that belongs to the program has not started: one line that says what."""


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
        # A copy: a service that one of them adds is started there. What is raised here ends the
        # program as it does in a MultiService.
        starting = [asDeferred(service.startService()) for service in list(self)]
        gatherResults(starting, consumeErrors=True).chainDeferred(self.started)

    def addService(self, service: Any) -> None:
        """
        Add a service. One that is added after the start is started, and C{started} does not wait
        for it.

        @param service: it. That its start fails later is a record.
        """
        isRunning, self.running = self.running, 0
        try:
            super().addService(service)
        finally:
            self.running = isRunning
        if isRunning:
            service.privilegedStartService()
            asDeferred(service.startService())


class StartWatch:
    """
    Sees what the services of a program return from C{startService}.

    C{MultiService} drops those Deferreds. So from L{addProgram} to L{finish} each service has a
    C{startService} and an C{addService} of ours, which call its own.
    """

    def __init__(self) -> None:
        self._services: dict[int, Any] = {}
        self._begun: dict[int, Any] = {}
        self._undo: list[Callable[[], None]] = []
        self._returned: dict[Deferred[Any], Deferred[Any]] = {}
        self._awaited: set[Deferred[Any]] = set()

    def addProgram(self, service: Any) -> None:
        """
        Watch all services of a program, those that are added later too.

        @param service: any of them.
        """
        self._add(_findRoot(service))

    def finish(self) -> None:
        """Leave all services as they were."""
        while self._undo:
            self._undo.pop()()
        for each in (*self._returned.keys(), *self._returned.values()):
            each.addErrback(lambda _: None)  # there is a record of the first failure
        for known in (self._services, self._begun, self._returned, self._awaited):
            known.clear()

    async def whenStarted(self, service: Any, ready: Any) -> None:
        """
        Wait until every service of a program has started, and every endpoint service listens.

        @param service: any of them.
        @param ready: what is waited for besides: an awaitable, or what returns one when all
            services have started.
        @raise Exception: one has failed.
        """
        if not callable(ready):
            await self._whenServicesStarted(service, asDeferred(ready))
            return
        await self._whenServicesStarted(service)
        await self._whenServicesStarted(service, asDeferred(ready()))  # it may have added some

    async def _whenServicesStarted(self, service: Any, *others: Deferred[Any]) -> None:
        waiting = [*others, *self._awaitNew(_findRoot(service))]
        while waiting:
            await gatherResults(waiting, consumeErrors=True)
            waiting = list(self._awaitNew(_findRoot(service)))

    def _add(self, service: Any) -> None:
        if id(service) in self._services:
            return
        self._services[id(service)] = service
        self._replace(service, "startService", partial(self._start, service, service.startService))
        if IServiceCollection.providedBy(service):
            self._replace(service, "addService", partial(self._addTo, service.addService))
            for child in service:
                self._add(child)

    def _replace(self, service: Any, name: str, replacement: Callable[..., Any]) -> None:
        undo = partial(delattr, service, name)
        if name in getattr(service, "__dict__", {}):
            undo = partial(setattr, service, name, getattr(service, name))
        # A class with slots, or one that declares what it stores, cannot be watched.
        with suppress(AttributeError):
            setattr(service, name, replacement)
            self._undo.append(undo)

    def _start(self, service: Any, start: Callable[[], Any]) -> Any:
        if id(service) in self._begun and service.running:
            return None  # a MultiService starts twice what is added while it starts
        self._begun[id(service)] = service
        returned = start()
        if isinstance(returned, Awaitable):
            returned = toDeferred(returned)
            self._returned[returned] = watch(returned, keepsFailure=True)
        return returned

    def _addTo(self, addService: Callable[[Any], None], child: Any) -> None:
        self._add(child)
        addService(child)

    def _awaitNew(self, root: Any) -> Iterator[Deferred[Any]]:
        """Begin to wait for what nobody waits for yet."""
        for waiting in [*self._returned.values(), *_findStarted(root)]:
            if waiting not in self._awaited:
                self._awaited.add(waiting)
                yield watch(waiting)
        for service in _findEndpointServices(root):
            waiting = service._waitingForPort
            if waiting is not None and waiting not in self._awaited:
                self._awaited.add(waiting)
                yield watch(waiting).addCallback(_checkPort, service.endpoint)


def _findRoot(service: Any) -> Any:
    """@return: the service above all others."""
    while service.parent is not None:
        service = service.parent
    return service


def _walk(service: Any) -> Iterator[Any]:
    yield service
    if IServiceCollection.providedBy(service):
        for child in service:
            yield from _walk(child)


def _findStarted(root: Any) -> Iterator[Deferred[Any]]:
    for service in _walk(root):
        if isinstance(service, StartingService) and service.started is not None:
            yield service.started


def _findEndpointServices(root: Any) -> Iterator[Any]:
    """Services that log that they cannot listen, and stay up."""
    # While nobody has imported the module, no service is one of them. That saves 0.3 MiB.
    internet: Any = sys.modules.get("twisted.application.internet")
    if internet:
        for service in _walk(root):
            if isinstance(service, internet.StreamServerEndpointService):
                yield service


def _checkPort(port: Any, endpoint: object) -> None:
    if port is None:
        raise NotReady(f"it does not listen on {endpoint!r}")


def failStart(failure: Failure, reactor: Any) -> None:
    """
    End the program because its start has failed.

    @param failure: the cause, for a record.
    @param reactor: runs.
    """
    _log.failure(
        "the start failed, so the program ends",
        findCause(failure),
        message_id="8aa43ead993c4d9b81c5d916b5ae3cef",
    )
    failAtExit()
    if not isStopping(reactor):
        reactor.stop()


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
