"""
The service that listens: an endpoint, and the poetry that comes out of it.

Decides for each port whether it goes the fast way; knows neither options nor where the endpoint
came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application import service
from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.delivery.addresses import formatHost
from fastpoetry.delivery.fastport import BorrowedPort, FastPort
from fastpoetry.protocol import PoetryFactory, PoetryProtocol


class PoetryListener(service.Service):
    """
    Serves poetry on one endpoint for as long as it runs, and then until its readers have it all.

    In the place of C{TCPServer}, whose stop is over while readers are still there, which accepts
    and closes where no descriptor is left, and never goes the fast way.
    """

    _log = Logger()
    _listening: Deferred[IListeningPort] | None = None
    _ports: tuple[Any, ...] = ()

    def __init__(
        self, endpoint: IStreamServerEndpoint, factory: PoetryFactory, reactor: Any
    ) -> None:
        """
        @param endpoint: where to listen.
        @param factory: has the source of the poems and the rules for their readers.
        @param reactor: provides C{IReactorFDSet} and C{IReactorCore}.
        """
        self._endpoint = endpoint
        self._factory = factory
        self._reactor = reactor

    @property
    def addresses(self) -> tuple[IAddress, ...]:
        """Where it listens, as the kernel has it: the port for port 0, the sockets of systemd."""
        return tuple(port.getHost() for port in self._ports)

    @property
    def isAlive(self) -> bool:
        """Whether each port of ours accepts, or will by itself."""
        return all(port.isAlive for port in self._ports if isinstance(port, BorrowedPort))

    def privilegedStartService(self) -> None:
        """
        Listen, while the process may still bind a low port.

        @raise CannotListenError: for one, if the endpoint says at once that it cannot.
        """
        super().privilegedStartService()
        failures: list[Failure] = []
        self._fail: Callable[[Failure], object] = failures.append
        self._listening = self._endpoint.listen(self._factory)
        self._listening.addCallback(self._begin)
        self._listening.addErrback(lambda failure: self._fail(failure))
        if failures:
            failures[0].raiseException()
        self._fail = self._giveUp

    def startService(self) -> None:
        """Listen, unless that has been done."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """
        Accept nobody any more, and see off who is here.

        @return: fires when that is done, see L{Policy.drain}.
        """
        super().stopService()
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        ports, self._ports = self._ports, ()
        for port in ports:
            self._factory.policy.gate.remove(port)
        stopped = DeferredList([maybeDeferred(port.stopListening) for port in ports])
        return stopped.addCallback(lambda _: self._factory.policy.drain())

    def _begin(self, port: Any) -> None:
        """Serve on every socket of a port, the fast way where there is nothing in between."""
        self._ports = tuple(self._borrow(each) for each in getattr(port, "ports", (port,)))
        for each in self._ports:
            self._factory.policy.gate.add(each)
        self._log.info(
            "serving poetry on {addresses}",
            addresses=", ".join(map(formatHost, self.addresses)),
            message_id="0217db627ce8470bb0671ca6e3266dc1",
        )

    def _borrow(self, port: Any) -> Any:
        """
        A port of ours in the place of Twisted's: a fast one, where nothing is in between. TLS and
        PROXY headers have a factory of their own; somebody's own protocol is one to be used.
        """
        if not isinstance(port, tcp.Port):
            return port
        policy = self._factory.policy
        factory = port.factory
        if factory is self._factory and factory.protocol is PoetryProtocol:
            ours: BorrowedPort = FastPort(port, self._factory.source, policy, self._reactor)
        else:
            ours = BorrowedPort(port, policy, self._reactor)
        ours.startListening()
        return ours

    def _giveUp(self, failure: Failure) -> None:
        """A server that cannot listen is none: end, with a record that says why."""
        if not failure.check(CancelledError):  # by our own stop
            self._log.failure(
                "cannot listen, so there is nothing to do",
                failure,
                message_id="08e1b6dd16394f819c02a8adcd4326af",
            )
            self._reactor.stop()
