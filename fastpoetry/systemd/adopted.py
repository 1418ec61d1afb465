"""
Twisted's side of the sockets that systemd passes: the server endpoint C{adopted:} for those that
listen, and the like of it for datagram sockets and connections.

It makes, binds and configures no socket: path, mode, backlog and options are the C{.socket} unit's,
and stay as they are, while the program serves and after it has stopped.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import tcp, udp, unix
from twisted.internet.defer import Deferred, DeferredList, execute, maybeDeferred
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

from fastpoetry.systemd.descriptors import (
    AdoptError,
    Descriptor,
    Inherited,
    inherited,
    refusal,
)

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

# Twisted's types do not reach into its ports.
_tcp: Any = tcp
_udp: Any = udp
_unix: Any = unix


class _UNIXPort(unix.Port):
    """
    A UNIX port on a socket that is somebody else's.

    Twisted's own, when it adopts, changes the mode of the socket's file, calls listen(2) with its
    own backlog and, when it stops, shuts the socket down for all who hold it and unlinks the file.
    """

    _shouldShutdown = False

    def startListening(self: Any) -> None:
        """Do what is left of C{unix.Port.startListening}, in its words."""
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

        @param reason: why.
        """
        _tcp.Port.connectionLost(self, reason)


class _UNIXDatagramPort(_unix.DatagramPort):  # type: ignore[misc]
    """A UNIX datagram port on somebody else's socket, which Twisted does not know (#6594)."""

    def __init__(self, reactor: Any, number: int, protocol: Any, maxPacketSize: int) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        @param number: the socket, of which this is a duplicate.
        @param protocol: takes the datagrams.
        @param maxPacketSize: bytes that one can have.
        """
        self._adopted = socket.socket(fileno=os.dup(number))
        path = self._adopted.getsockname()
        super().__init__(path, protocol, maxPacketSize=maxPacketSize, reactor=reactor)

    def _bindSocket(self) -> None:
        """Do what is left of it, in its words."""
        log.msg(f"{self.protocol.__class__} starting on {self.port!r}")
        self.socket, self.connected = self._adopted, 1
        self.fileno = self.socket.fileno


class _Claim:
    """Some sockets that were given out, until the last port on them has stopped."""

    def __init__(self, descriptors: tuple[Descriptor, ...], owner: Inherited | None) -> None:
        self.descriptors = descriptors
        self._owner = inherited() if owner is None else owner
        self._isHeld = True
        self._ports = 0

    def addPort(self) -> None:
        """@raise AdoptError: they were given back, and somebody else has one of them now."""
        if not self._isHeld:
            self._owner.reclaim(self.descriptors)
            self._isHeld = True
        self._ports += 1

    def removePort(self) -> None:
        """Give them back, if nobody uses them any more."""
        self._ports -= 1
        if self._ports == 0:
            self._owner.release(self.descriptors)
            self._isHeld = False


@implementer(IListeningPort)
class AdoptedPort:
    """
    One listening port over one or more adopted sockets.

    What else a program asks of a port, the port of the first socket answers.

    @ivar ports: while it listens, the C{IListeningPort} on each of them.
    """

    ports: tuple[Any, ...] = ()
    _isStarted = False

    def __init__(self, claim: _Claim, adopt: Callable[[Descriptor], Any]) -> None:
        """
        @param claim: the sockets. They stay open when the port stops, so that it can start again:
            to close them would turn no client away where systemd holds them too, and lose the
            socket where it does not, as under systemd-socket-activate.
        @param adopt: makes a port on a duplicate of each.
        """
        self._claim = claim
        self._adopt = adopt

    def startListening(self) -> None:
        """
        Listen on every socket or, if one of them fails, on none; go on, if it listens already.

        @raise AdoptError: it had stopped, and somebody else listens there now.
        """
        if self._isStarted:
            return
        self._claim.addPort()
        self._isStarted = True
        try:
            for descriptor in self._claim.descriptors:
                # Nobody else does, and an accept(2) with no client left would hang the reactor.
                os.set_blocking(descriptor.number, False)
                self.ports += (self._adopt(descriptor),)
        except Exception:
            self.stopListening()
            raise

    def stopListening(self) -> Deferred[None]:
        """
        Stop, and let others have the sockets then.

        @return: fires when every port has stopped.
        """
        ports, self.ports = self.ports, ()
        isStarted, self._isStarted = self._isStarted, False
        stopped = DeferredList(
            [maybeDeferred(port.stopListening) for port in ports],
            fireOnOneErrback=True,
            consumeErrors=True,
        )

        def giveBack(result: Any) -> Any:
            if isStarted:
                self._claim.removePort()
            return result if isinstance(result, Failure) else None

        return stopped.addBoth(giveBack)

    def getHost(self) -> IAddress:
        """
        @return: the address of the first socket.
        @raise RuntimeError: it does not listen.
        """
        if not self.ports:
            raise RuntimeError(
                "a port that does not listen has no address: "
                + ", ".join(map(str, self._claim.descriptors))
            )
        address: IAddress = self.ports[0].getHost()
        return address

    @property
    def factory(self) -> Any:
        """What makes protocols. A program may set another, such as one with a new certificate."""
        return self.__getattr__("factory")

    @factory.setter
    def factory(self, factory: IProtocolFactory) -> None:
        for port in self.ports:
            port.factory = factory

    def __getattr__(self, name: str) -> Any:
        if not self.ports:
            raise AttributeError(f"a port that does not listen has no {name}")
        return getattr(self.ports[0], name)


class _Claimant:
    """
    Who listens on sockets that were given out.

    @ivar descriptors: the sockets.
    """

    def __init__(
        self,
        reactor: Any,
        descriptors: tuple[Descriptor, ...],
        owner: Inherited | None = None,
    ) -> None:
        """
        @param reactor: provides C{IReactorSocket} and C{IReactorFDSet}.
        @param descriptors: what L{Inherited.claim} gave out, of the kind that we are for.
        @param owner: who gave it out, and has it back when the last port has stopped; without it,
            L{inherited}.
        """
        self._reactor = reactor
        self._claim = _Claim(descriptors, owner)
        self.descriptors = descriptors


@implementer(IStreamServerEndpoint)
class AdoptedEndpoint(_Claimant):
    """An endpoint that listens on adopted sockets."""

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen on every socket; again, if the port has stopped meanwhile.

        @param protocolFactory: makes a protocol for each connection.
        @return: fires with the L{AdoptedPort}; fails with an L{AdoptError} if somebody else was
            given one of the sockets meanwhile.
        """

        def adopt(descriptor: Descriptor) -> Any:
            number, family = descriptor.number, descriptor.family
            if family != socket.AF_UNIX:
                return self._reactor.adoptStreamPort(number, family, protocolFactory)
            port = cast(Any, _UNIXPort)._fromListeningDescriptor(
                self._reactor, number, protocolFactory
            )
            port.startListening()
            return port

        port = AdoptedPort(self._claim, adopt)
        return execute(port.startListening).addCallback(lambda _: port)


class AdoptedDatagrams(_Claimant):
    """What an endpoint is for connections, for datagram sockets: INET, INET6 and UNIX."""

    def listen(
        self, makeProtocol: Callable[[], DatagramProtocol], maxPacketSize: int = 8192
    ) -> AdoptedPort:
        """
        Take datagrams from every socket.

        @param makeProtocol: makes a protocol for each socket, which answers through it.
        @param maxPacketSize: bytes that a datagram can have.
        @return: a port that can be stopped, and then started again.
        @raise AdoptError: somebody else was given one of the sockets meanwhile.
        """

        def adopt(descriptor: Descriptor) -> Any:
            number, family, protocol = descriptor.number, descriptor.family, makeProtocol()
            if family == socket.AF_UNIX:
                port = _UNIXDatagramPort(self._reactor, number, protocol, maxPacketSize)
            else:  # what adoptDatagramPort makes cannot join a group
                port = _udp.MulticastPort._fromListeningDescriptor(
                    self._reactor, number, family, protocol, maxPacketSize
                )
            port.startListening()
            return port

        port = AdoptedPort(self._claim, adopt)
        port.startListening()
        return port


def adoptConnection(reactor: Any, number: int, factory: IProtocolFactory) -> Any:
    """
    Serve a client whose connection was passed: by C{Accept=yes}, or by the store.

    @param reactor: provides C{IReactorSocket}.
    @param number: the connection. It is closed: its end is the transport's to decide.
    @param factory: makes the protocol.
    @return: the transport, or C{None} if the factory wants none.
    @raise OSError: it is no connection any more, or never was one.
    """
    with socket.socket(fileno=number) as passed:
        passed.getpeername()
        passed.setblocking(False)
        return reactor.adoptStreamConnection(passed.fileno(), passed.family, factory)


def detachConnection(transport: Any) -> int:
    """
    Take a connection out of Twisted's hands, which when it closes one ends it for all who hold it.

    What the transport has not sent by now stays behind. Its protocol hears of no more data, and
    that the connection is lost when somebody closes the transport, at last when the reactor stops.

    @param transport: a TCP or UNIX connection, without TLS.
    @return: a descriptor of the connection, to be stored and then closed.
    """
    transport.stopReading()
    transport.stopWriting()
    number = os.dup(transport.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), transport.fileno(), inheritable=False)
    return number


@implementer(IPlugin, IStreamServerEndpointStringParser)
class AdoptedParser:
    """
    The endpoint descriptions C{adopted:} and C{adopted:name=NAME}.

    The first is every listening socket that was passed and not yet given out, the second those of
    that C{FileDescriptorName=}. With C{else=ENDPOINT} it is another endpoint where nobody passes
    anything.
    """

    prefix = "adopted"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Claim the sockets at once, so that a refusal comes before twistd forks.

        @param reactor: provides C{IReactorSocket} and C{IReactorFDSet}.
        @param args: nothing; one empty string where the description ends in a colon.
        @param kwargs: C{name}, C{else}, or nothing.
        @return: an endpoint with its sockets, or the other one.
        @raise AdoptError: they cannot be adopted, or the description says more than that.
        """
        if any(args) or kwargs.keys() - {"name", "else"}:
            given = ":".join(("adopted", *args, *map("=".join, kwargs.items())))
            raise refusal(rf"{given}: takes name=NAME, else=ENDPOINT (a colon as \:), or nothing")
        found = inherited()
        if found.isNothing and "else" in kwargs:
            # Here, for it takes variables out of the environment when it is imported.
            from twisted.internet.endpoints import serverFromString

            return serverFromString(reactor, kwargs["else"])
        return AdoptedEndpoint(reactor, found.claim(kwargs.get("name")), found)
