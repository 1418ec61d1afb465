"""
What READY waits for: the start of all services. If the start fails, the program ends.

This module does not know systemd.
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
    """A part of the program has not started. The message is one line that says which."""


class StartingService(MultiService):
    """
    A C{MultiService} that waits for services whose C{startService} returns a Deferred or coroutine.

    @ivar started: fires when all services have started; fails when one fails to start.
    """

    started: Deferred[Any] | None = None

    def __init__(self) -> None:
        super().__init__()  # Twisted's method has no annotations

    def startService(self) -> None:
        """Start all services."""
        Service.startService(self)
        # Set first: if the reactor runs already, a service that starts may use C{started}.
        self.started = Deferred()
        # A copy: a service that starts may add another one, which addService starts. An exception
        # here ends the program, as in a MultiService.
        starting = [asDeferred(service.startService()) for service in list(self)]
        gatherResults(starting, consumeErrors=True).chainDeferred(self.started)

    def addService(self, service: Any) -> None:
        """
        Add a service. If this one runs already, the new service starts at once, and C{started} does
        not wait for it. If such a late start fails, a record says so.
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
    Watches what the services of a program return from C{startService}.

    C{MultiService} drops a returned Deferred. So from L{addProgram} to L{finish} the methods
    C{startService} and C{addService} of each service are replaced by ours, which call the original.
    """

    def __init__(self) -> None:
        self._services: dict[int, Any] = {}
        self._begun: set[int] = set()
        self._undo: list[Callable[[], None]] = []
        self._returned: dict[Deferred[Any], Deferred[Any]] = {}
        self._awaited: set[Deferred[Any]] = set()

    def addProgram(self, service: Any) -> None:
        """Watch the program of a service: all its services, also those added later."""
        self._addTree(_findRoot(service))

    def finish(self) -> None:
        """Give all services their own methods back."""
        while self._undo:
            self._undo.pop()()
        for each in (*self._returned.keys(), *self._returned.values()):
            each.addErrback(lambda _: None)  # the first failure has a record already
        for known in (self._services, self._begun, self._returned, self._awaited):
            known.clear()

    async def whenStarted(self, service: Any, ready: Any) -> None:
        """
        Wait until each service of a program has started, and each endpoint service listens.

        @param ready: what else to wait for: an awaitable, or a function that returns one and is
            called when all services have started.
        @raise Exception: the error of the service that failed.
        """
        if callable(ready):
            await self._whenServicesStarted(service)
            ready = ready()  # may add services
        await self._whenServicesStarted(service, asDeferred(ready))

    async def _whenServicesStarted(self, service: Any, *others: Deferred[Any]) -> None:
        waiting = [*others, *self._awaitNew(service)]
        while waiting:
            await gatherResults(waiting, consumeErrors=True)
            waiting = list(self._awaitNew(service))

    def _addTree(self, top: Any) -> None:
        for service in walk(top):
            if id(service) not in self._services:
                self._services[id(service)] = service
                start = partial(self._start, service, service.startService)
                self._replace(service, "startService", start)
                if IServiceCollection.providedBy(service):
                    self._replace(service, "addService", partial(self._addTo, service.addService))

    def _replace(self, service: Any, name: str, replacement: Callable[..., Any]) -> None:
        undo = partial(delattr, service, name)
        if name in getattr(service, "__dict__", {}):
            undo = partial(setattr, service, name, getattr(service, name))
        # Services whose attributes cannot be set, such as those with slots, cannot be watched.
        with suppress(AttributeError):
            setattr(service, name, replacement)
            self._undo.append(undo)

    def _start(self, service: Any, start: Callable[[], Any]) -> Any:
        if id(service) in self._begun and service.running:
            return None  # a MultiService starts a service twice if it is added during the start
        self._begun.add(id(service))
        returned = start()
        if isinstance(returned, Awaitable):
            returned = toDeferred(returned)
            self._returned[returned] = watch(returned, keepsFailure=True)
        return returned

    def _addTo(self, addService: Callable[[Any], None], child: Any) -> None:
        self._addTree(child)
        addService(child)

    def _awaitNew(self, service: Any) -> Iterator[Deferred[Any]]:
        """Return Deferreds to wait for, without those that were returned before."""
        returned = [(each, None) for each in self._returned.values()]
        root = _findRoot(service)
        for waiting, owner in [*returned, *_findWaiting(root)]:
            if waiting is not None and waiting not in self._awaited:
                self._awaited.add(waiting)
                yield watch(waiting).addCallback(_checkPort, owner, root)


def _findRoot(service: Any) -> Any:
    """Return the topmost service of the program."""
    while service.parent is not None:
        service = service.parent
    return service


def walk(service: Any) -> Iterator[Any]:
    """Return a service, then all services below it."""
    yield service
    if IServiceCollection.providedBy(service):
        for child in service:
            yield from walk(child)


def _findWaiting(root: Any) -> Iterator[tuple[Deferred[Any] | None, object]]:
    """Return the Deferreds that services wait for, each with its endpoint if it is for a port."""
    # Not imported here, which saves 0.3 MiB. Before its import no such service can exist.
    internet: Any = sys.modules.get("twisted.application.internet")
    for service in walk(root):
        if isinstance(service, StartingService):
            yield service.started, None
        elif internet and isinstance(service, internet.StreamServerEndpointService):
            yield service._waitingForPort, service


def _checkPort(port: Any, owner: Any, root: Any) -> None:
    # An endpoint service only logs a failure to listen, and stays up. A removed one has no port.
    if owner is not None and port is None and any(each is owner for each in walk(root)):
        raise NotReady(f"the program does not listen on {owner.endpoint!r}")


def failStart(failure: Failure, reactor: Any) -> None:
    """End the running program, because its start has failed, and log the cause."""
    _log.failure(
        "the start failed, so the program ends",
        findCause(failure),
        message_id="8aa43ead993c4d9b81c5d916b5ae3cef",
    )
    # Not at once: the reactor of a test never ends the process.
    reactor.addSystemEventTrigger("after", "shutdown", failAtExit)
    if not isStopping(reactor):
        reactor.stop()


def failAtExit() -> None:
    """Make this process end with status 1. twistd has no way to set an exit status."""

    def end() -> None:
        atexit.unregister(end)
        atexit._run_exitfuncs()  # the functions that would run after this one
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(AttributeError, OSError, ValueError):  # None, full, or closed
                stream.flush()  # type: ignore[union-attr]
        os._exit(1)

    atexit.register(end)
