"""
The server endpoint C{adopted:}, for listening sockets that systemd passes to this process.

It makes, binds and configures no socket: path, mode, backlog and options are the C{.socket} unit's,
and stay as they are, while the program serves and after it has stopped.
"""

from __future__ import annotations

import os
import socket
from typing import Any, cast

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, execute, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.systemd.descriptors import (
    AdoptError,
    Descriptor,
    Inherited,
    inherited,
    refusal,
)

__all__ = [
    "AdoptError",
    "AdoptedEndpoint",
    "AdoptedParser",
    "AdoptedPort",
    "Descriptor",
    "Inherited",
    "inherited",
]

# Twisted's types do not reach into its ports.
_tcp: Any = tcp


class _UNIXPort(unix.Port):
    """
    A UNIX port on a socket that is somebody else's.

    Twisted's own, when it adopts, changes the mode of the socket's file, calls listen(2) with its
    own backlog and, when it stops, shuts the socket down for all who hold it and unlinks the file.
    """

    _shouldShutdown = False

    def startListening(self: Any) -> None:
        """
        Do what is left of L{unix.Port.startListening}, in its words.
        """
        _tcp._reservedFD.reserve()
        self.socket, self._preexistingSocket = self._preexistingSocket, None
        self.fileno = self.socket.fileno
        path, prefix = self.socket.getsockname(), self._getLogPrefix(self.factory)
        log.msg("%s starting on %r" % (prefix, path))  # noqa: UP031
        self.factory.doStart()
        self.connected = True
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """
        Close the socket.

        @param reason: Why.
        """
        _tcp.Port.connectionLost(self, reason)


@implementer(IListeningPort)
class AdoptedPort:
    """
    One listening port over one or more adopted sockets.

    @ivar ports: While it listens, the L{IListeningPort} on each of them.
    """

    ports: tuple[Any, ...] = ()

    def __init__(
        self, reactor: Any, descriptors: tuple[Descriptor, ...], factory: IProtocolFactory
    ) -> None:
        """
        @param reactor: Provides C{IReactorSocket} and C{IReactorFDSet}.
        @param descriptors: Listening stream sockets. They stay open when the port stops, so that
            it can start again: to close them would turn no client away where systemd holds them
            too, and lose the socket where it does not, as under systemd-socket-activate.
        @param factory: Makes a protocol for each connection.
        """
        self._reactor = reactor
        self._descriptors = descriptors
        self._factory = factory

    def startListening(self) -> None:
        """
        Listen on every socket or, if one of them fails, on none.
        """
        try:
            for descriptor in self._descriptors:
                self.ports += (self._adopt(descriptor.number, descriptor.family),)
        except Exception:
            self.stopListening()
            raise

    def _adopt(self, number: int, family: int | None) -> Any:
        """
        @param number: A listening stream socket.
        @param family: Its address family.
        @return: A port on a duplicate of it.
        """
        # Nobody else does, and an accept(2) with no client left would hang the reactor.
        os.set_blocking(number, False)
        if family != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(number, family, self._factory)
        port = cast(Any, _UNIXPort)._fromListeningDescriptor(self._reactor, number, self._factory)
        port.startListening()
        return port

    def stopListening(self) -> Deferred[None]:
        """
        @return: Fires when every port has stopped.
        """
        ports, self.ports = self.ports, ()
        stopped = [maybeDeferred(port.stopListening) for port in ports]
        return gatherResults(stopped, consumeErrors=True).addCallback(lambda _: None)

    def getHost(self) -> IAddress:
        """
        @return: The address of the first socket.
        """
        address: IAddress = self.ports[0].getHost()
        return address


@implementer(IStreamServerEndpoint)
class AdoptedEndpoint:
    """
    An endpoint that listens on adopted sockets.

    @ivar descriptors: The sockets.
    """

    def __init__(self, reactor: Any, descriptors: tuple[Descriptor, ...]) -> None:
        """
        @param reactor: Provides C{IReactorSocket} and C{IReactorFDSet}.
        @param descriptors: What L{Inherited.claim} gave out.
        """
        self._reactor = reactor
        self.descriptors = descriptors

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen on every socket; again, if the port has stopped meanwhile.

        @param protocolFactory: Makes a protocol for each connection.
        @return: Fires with the L{AdoptedPort}.
        """
        port = AdoptedPort(self._reactor, self.descriptors, protocolFactory)
        return execute(port.startListening).addCallback(lambda _: port)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class AdoptedParser:
    """
    The endpoint descriptions C{adopted:}, every socket that was passed and not yet given out, and
    C{adopted:name=NAME}, those of that C{FileDescriptorName=}.
    """

    prefix = "adopted"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> AdoptedEndpoint:
        """
        Claim the sockets at once, so that a refusal comes before twistd forks.

        @param reactor: Provides C{IReactorSocket} and C{IReactorFDSet}.
        @param args: Nothing; one empty string where the description ends in a colon.
        @param kwargs: C{name}, or nothing.
        @return: An endpoint with its sockets.
        @raise AdoptError: They cannot be adopted, or the description says more than that.
        """
        if any(args) or kwargs.keys() - {"name"}:
            given = ":".join(("adopted", *args, *map("=".join, kwargs.items())))
            raise refusal(f"{given}: takes name=NAME or nothing")
        return AdoptedEndpoint(reactor, inherited().claim(kwargs.get("name")))
