"""
The service that listens on an endpoint and serves poetry there.

Decides for each port whether the fast port serves it. Knows neither options nor the origin of the
endpoint.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.application import service
from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IAddress, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.apart.poems import encodable
from fastpoetry.delivery.addresses import formatHost
from fastpoetry.delivery.fastport import BorrowedPort, FastPort
from fastpoetry.protocol import PoetryFactory, PoetryProtocol


class PoetryListener(service.Service):
    """
    Serves poetry on one endpoint while it runs. A stop waits until the readers have their poems. If
    listeners share a policy, the last one that stops waits.

    It replaces Twisted's C{TCPServer}, which has no fast port. A stop of C{TCPServer} does not wait
    for readers. Without a free descriptor, C{TCPServer} accepts connections and closes them.
    """

    _log = Logger()
    _listening: Deferred[None] | None = None
    _port: Any = None
    _ports: tuple[Any, ...] = ()

    def __init__(
        self, endpoint: IStreamServerEndpoint, factory: PoetryFactory, reactor: Any
    ) -> None:
        """@param reactor: provides C{IReactorCore}, and what L{Home} needs."""
        self._endpoint = endpoint
        self._factory = factory
        self._reactor = reactor

    @property
    def addresses(self) -> tuple[IAddress, ...]:
        """
        The addresses where it listens, as the kernel reports them. They include the sockets that
        systemd passed, and the real port in place of port 0.
        """
        return tuple(port.getHost() for port in self._ports)

    @property
    def isAlive(self) -> bool:
        """Whether each borrowed port accepts, or a timer will make it accept."""
        return all(port.isAlive for port in self._ports if isinstance(port, BorrowedPort))

    def privilegedStartService(self) -> None:
        """
        Listen while the process may still bind a port below 1024.

        @raise Exception: if the endpoint fails at once, for example with C{CannotListenError}.
        """
        super().privilegedStartService()
        listening = self._endpoint.listen(self._factory).addCallback(self._serve)
        failure = getattr(listening, "result", None)
        if isinstance(failure, Failure):
            listening.addErrback(lambda _: None)  # the exception reports it
            failure.raiseException()
        self._listening = listening.addErrback(self._endProgram)

    def startService(self) -> Deferred[Any] | None:
        """
        Listen, unless L{privilegedStartService} has begun to.

        @return: fires when the endpoint listens, or when a failure has stopped the reactor. READY
            waits for it.
        """
        super().startService()
        if self._listening is None:
            self.privilegedStartService()
        return self._listening

    def stopService(self) -> Deferred[None]:
        """
        Stop accepting, and drain the readers.

        @return: fires when the drain has ended, see L{Policy.drain}.
        """
        super().stopService()
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        policy = self._factory.policy
        port, self._port = self._port, None
        ports, self._ports = self._ports, ()
        for each in ports:
            policy.gate.remove(each)
        stopped = DeferredList([maybeDeferred(each.stopListening) for each in ports])
        if hasattr(port, "ports"):  # an AdoptedPort: others may use its sockets from now on
            stopped.addCallback(lambda _: port.stopListening())
        return stopped.addCallback(lambda _: None if policy.gate.hasPorts else policy.drain())

    def _serve(self, port: Any) -> None:
        """Serve on every socket of a port."""
        self._port = port
        for each in getattr(port, "ports", (port,)):
            self._ports += (self._borrow(each),)  # one by one, so a stop knows what has begun
            self._factory.policy.gate.add(self._ports[-1])
        self._log.info(
            "serving poetry on {addresses}",
            addresses=encodable(", ".join(map(formatHost, self.addresses))),
            message_id="0217db627ce8470bb0671ca6e3266dc1",
        )

    def _borrow(self, port: Any) -> Any:
        """
        Replace a port of Twisted's by a fast one, or by a borrowed one that makes transports.

        Connections need transports if TLS or PROXY headers wrap our factory in another one, or if
        the factory makes another protocol than L{PoetryProtocol}.
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

    def _endProgram(self, failure: Failure) -> None:
        """End the program, with a record that says why it cannot listen."""
        if not failure.check(CancelledError):  # stopService cancelled it
            self._log.failure(
                "cannot listen, so the program ends",
                failure,
                message_id="08e1b6dd16394f819c02a8adcd4326af",
            )
            with suppress(ReactorNotRunning):  # it stops already
                self._reactor.stop()
