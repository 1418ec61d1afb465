"""
Twisted ports on the sockets that systemd passes: the server endpoint C{adopted:} for listening
sockets, and functions for datagram sockets and connections.

This module makes, binds and configures no socket. Path, mode, backlog and options are set by the
C{.socket} unit. They stay as they are while the program serves, and after it has stopped.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp, udp, unix
from twisted.internet.defer import Deferred, execute, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.plugin import IPlugin
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.systemd.descriptors import AdoptError, Descriptor, Inherited, inherited, refusal

__all__ = [
    "AdoptError",
    "AdoptedDatagrams",
    "AdoptedEndpoint",
    "AdoptedParser",
    "AdoptedPort",
    "Descriptor",
    "Inherited",
    "adoptConnection",
    "detachConnection",
    "inherited",
]

# Twisted's ports are not annotated.
_tcp: Any = tcp
_udp: Any = udp
_unix: Any = unix


class _UNIXPort(_unix.Port):  # type: ignore[misc]
    """
    A UNIX port on a passed socket.

    When Twisted's own port adopts a socket, it changes the mode of the socket's file and calls
    listen(2) with a backlog of its own. When it stops, it shuts the socket down for all processes
    that hold it, and unlinks the file.
    """

    _shouldShutdown = False

    def startListening(self: Any) -> None:
        """Do and log what C{unix.Port.startListening} does, but keep the mode and the backlog."""
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
        _tcp.Port.connectionLost(self, reason)


class _UNIXDatagramPort(_unix.DatagramPort):  # type: ignore[misc]
    """A UNIX datagram port on a duplicate of a passed socket, which Twisted lacks (#6594)."""

    def __init__(self, reactor: Any, number: int, protocol: Any, maxPacketSize: int) -> None:
        self._adopted = socket.socket(fileno=os.dup(number))
        path = self._adopted.getsockname()
        super().__init__(path, protocol, maxPacketSize=maxPacketSize, reactor=reactor)

    def _bindSocket(self) -> None:
        """Use the adopted socket, with the log message of Twisted's C{_bindSocket}."""
        log.msg(f"{self.protocol.__class__} starting on {self.port!r}")
        self.socket, self.connected = self._adopted, 1
        self.fileno = self.socket.fileno


class _Claim:
    """Sockets that ports share. They are returned when the last of these ports has stopped."""

    _isHeld = True
    _ports = 0

    def __init__(
        self, reactor: Any, descriptors: tuple[Descriptor, ...], owner: Inherited | None = None
    ) -> None:
        """
        @param reactor: provides C{IReactorSocket} and C{IReactorFDSet}.
        @param descriptors: sockets from L{Inherited.claim}, of the kind that the subclass serves.
        @param owner: gave the sockets out, and gets them back; without it, L{inherited}.
        """
        self._reactor = reactor
        self._owner = inherited() if owner is None else owner
        self.descriptors = descriptors

    def addPort(self) -> None:
        """@raise AdoptError: if the sockets were returned, and one has another user now."""
        if not self._isHeld:
            self._owner.reclaim(self.descriptors)
            self._isHeld = True
        self._ports += 1

    def removePort(self) -> None:
        self._ports -= 1
        if self._ports == 0:
            self._owner.release(self.descriptors)
            self._isHeld = False


@implementer(IListeningPort)
class AdoptedPort:
    """
    One listening port over one or more adopted sockets.

    Attributes that this class lacks are those of the first socket's port.

    @ivar ports: while it listens, the C{IListeningPort} of each socket.
    """

    ports: tuple[Any, ...] = ()
    _isStarted = False

    def __init__(
        self,
        claim: _Claim,
        adopt: Callable[[AdoptedPort, Descriptor], Any],
        factory: IProtocolFactory | None = None,
    ) -> None:
        """
        @param adopt: makes a port on a duplicate of a socket. The socket stays open when the port
            stops, so that it can start again. If systemd holds it too, closing it would not turn
            clients away. Otherwise, as under systemd-socket-activate, closing would lose it.
        @param factory: makes the protocols; C{None} for datagrams.
        """
        self._factory = factory
        self._claim = claim
        self._adopt = adopt

    def startListening(self) -> None:
        """
        Listen on every socket, or on none if one fails. If the port already listens, do nothing.

        @raise AdoptError: if the port had stopped, and one of its sockets has another user now.
        """
        if self._isStarted:
            return
        self._claim.addPort()
        self._isStarted = True
        try:
            for descriptor in self._claim.descriptors:
                # Neither systemd nor Twisted makes the socket non-blocking. If a client has left,
                # accept(2) on a blocking socket hangs the reactor.
                os.set_blocking(descriptor.number, False)
                self.ports += (self._adopt(self, descriptor),)
        except Exception:
            self.stopListening()
            raise

    def stopListening(self) -> Deferred[None]:
        """
        Stop, then return the sockets so that others can use them.

        @return: fires when every port has stopped.
        """
        ports, self.ports = self.ports, ()
        isStarted, self._isStarted = self._isStarted, False
        stopping = [maybeDeferred(port.stopListening) for port in ports]

        def giveBack(result: Any) -> Any:
            if isStarted:
                self._claim.removePort()
            return result if isinstance(result, Failure) else None

        return gatherResults(stopping, consumeErrors=True).addBoth(giveBack)

    loseConnection = stopListening  # as in Twisted's ports

    def getHost(self) -> IAddress:
        """
        Return the address of the first socket.

        @raise RuntimeError: if the port does not listen.
        """
        if not self.ports:
            sockets = ", ".join(map(str, self._claim.descriptors))
            raise RuntimeError(f"a port that does not listen has no address: {sockets}")
        address: IAddress = self.ports[0].getHost()
        return address

    @property
    def factory(self) -> Any:
        """The factory. A program may replace it, for instance to change a certificate."""
        return self._factory if self._factory is not None else self.__getattr__("factory")

    @factory.setter
    def factory(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        for port in self.ports:
            port.factory = factory

    def __getattr__(self, name: str) -> Any:
        if not self.ports:
            raise AttributeError(f"a port that does not listen has no {name}")
        return getattr(self.ports[0], name)


@implementer(IStreamServerEndpoint)
class AdoptedEndpoint(_Claim):
    """An endpoint that listens on adopted sockets."""

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen on every socket. This works again after the port has stopped.

        @return: fires with the L{AdoptedPort}; fails with L{AdoptError} if a socket has a new user.
        """

        def adopt(whole: AdoptedPort, descriptor: Descriptor) -> Any:
            number, family = descriptor.number, descriptor.family
            if family != socket.AF_UNIX:
                return self._reactor.adoptStreamPort(number, family, whole.factory)
            port = _UNIXPort._fromListeningDescriptor(self._reactor, number, whole.factory)
            port.startListening()
            return port

        port = AdoptedPort(self, adopt, protocolFactory)
        return execute(port.startListening).addCallback(lambda _: port)


class AdoptedDatagrams(_Claim):
    """The counterpart of an endpoint for datagram sockets: INET, INET6 and UNIX."""

    def listen(
        self, makeProtocol: Callable[[], DatagramProtocol], maxPacketSize: int = 8192
    ) -> AdoptedPort:
        """
        Receive datagrams from every socket.

        @param makeProtocol: makes a protocol for each socket, which answers through that socket.
        @param maxPacketSize: the most bytes in a datagram.
        @return: a port that can be stopped, and then started again.
        @raise AdoptError: if one of the sockets has another user now.
        """

        def adopt(_: AdoptedPort, descriptor: Descriptor) -> Any:
            number, family, protocol = descriptor.number, descriptor.family, makeProtocol()
            if family == socket.AF_UNIX:
                port = _UNIXDatagramPort(self._reactor, number, protocol, maxPacketSize)
            else:  # a port of adoptDatagramPort cannot join a multicast group
                port = _udp.MulticastPort._fromListeningDescriptor(
                    self._reactor, number, family, protocol, maxPacketSize
                )
            port.startListening()
            return port

        port = AdoptedPort(self, adopt)
        port.startListening()
        return port


def adoptConnection(reactor: Any, number: int, factory: IProtocolFactory) -> Any:
    """
    Serve a client whose connection was passed by C{Accept=yes} or by the store.

    @param reactor: provides C{IReactorSocket}.
    @param number: the connection. This descriptor is closed; the transport has a duplicate.
    @return: the transport, or C{None} if the factory makes no protocol.
    @raise OSError: if the descriptor is not a connection, or its client is gone.
    """
    try:
        passed = socket.socket(fileno=number)
    except OSError:  # not a socket
        os.close(number)
        raise
    with passed:
        passed.getpeername()
        passed.setblocking(False)
        return reactor.adoptStreamConnection(passed.fileno(), passed.family, factory)


def detachConnection(transport: Any) -> int:
    """
    Take a connection away from Twisted, to keep it open. When Twisted closes a connection, it shuts
    the connection down for all processes that hold it.

    Data that the transport has not sent yet is lost. Its protocol receives no more data. The
    protocol's C{connectionLost} is called only if the program closes the transport, for instance
    with C{abortConnection}. Until then, the transport needs a second descriptor.

    @param transport: a TCP or UNIX connection, without TLS.
    @return: a descriptor of the connection. Store it, then close it.
    """
    with open(os.devnull) as nothing:  # what may fail comes first
        number = os.dup(transport.fileno())
        transport.stopReading()
        transport.stopWriting()
        os.dup2(nothing.fileno(), transport.fileno(), inheritable=False)
    return number


@implementer(IPlugin, IStreamServerEndpointStringParser)
class AdoptedParser:
    """
    The endpoint descriptions C{adopted:} and C{adopted:name=NAME}.

    C{adopted:} means all listening sockets that were passed and not yet given out. C{name=NAME}
    means those with that C{FileDescriptorName=}. C{else=ENDPOINT} names another endpoint to use if
    no descriptor was passed.
    """

    prefix = "adopted"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Claim the sockets now, so that a refusal comes before twistd forks.

        @param reactor: provides C{IReactorSocket} and C{IReactorFDSet}.
        @param args: empty, or one empty string if the description ends in a colon.
        @param kwargs: C{name} and C{else}, both optional.
        @return: an endpoint with its sockets, or the other endpoint.
        @raise AdoptError: if the sockets cannot be adopted, or the description has other arguments.
        """
        if any(args) or kwargs.keys() - {"name", "else"}:
            given = ":".join(("adopted", *args, *map("=".join, kwargs.items())))
            raise refusal(rf"{given}: takes name=NAME, else=ENDPOINT (\: for a colon), or nothing")
        found = inherited()
        if found.isNothing and "else" in kwargs:
            # Imported late: the import removes variables from the environment.
            from twisted.internet.endpoints import serverFromString

            return serverFromString(reactor, kwargs["else"])
        return AdoptedEndpoint(reactor, found.claim(kwargs.get("name")), found)
