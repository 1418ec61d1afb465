"""
The server endpoint C{adopted:}, for listening sockets that systemd passes to this process.

It makes, binds and configures no socket: path, mode, backlog and options are the C{.socket} unit's,
and stay as they are, while the program serves and after it has stopped.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from typing import Any, NamedTuple, cast

from systemd import daemon
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

# Twisted's types do not reach into its ports.
_tcp: Any = tcp

_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_NOTHING = "no descriptor was passed: a .socket unit or systemd-socket-activate must pass one"

# The families that Twisted serves, and how an address of each is shown.
_FAMILIES = {
    socket.AF_UNIX: "{!r}",
    socket.AF_INET: "{0[0]}:{0[1]}",
    socket.AF_INET6: "[{0[0]}]:{0[1]}",
}


class AdoptError(SystemExit, Exception):
    """
    A refusal in one line: what was wanted, why it cannot be, and which descriptors were passed.

    A program that catches it has an L{Exception}. One that does not has a L{SystemExit}: the line
    on stderr and exit status 1, where a traceback would tell nobody more.
    """

    def __init__(self, line: str) -> None:
        """
        @param line: The refusal. It stays one line, whatever the names in it hold.
        """
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class Descriptor(NamedTuple):
    """
    A file descriptor as it was passed to this process.

    @ivar number: The descriptor itself.
    @ivar name: Its C{FileDescriptorName=}, or C{unknown}.
    @ivar family: The address family of a listening stream socket; L{None} for anything else.
    @ivar nature: What it is, for a person: C{AF_INET 127.0.0.1:17}, C{is a FIFO}.
    """

    number: int
    name: str
    family: socket.AddressFamily | None
    nature: str

    @classmethod
    def examine(cls, number: int, name: str) -> Descriptor:
        """
        @param number: An open descriptor.
        @param name: The name that it was passed under.
        @return: What the kernel says that it is, whatever anybody declared.
        """
        if not daemon.is_socket(number):
            nature = "is a FIFO" if daemon.is_fifo(number) else "is a file"
            return cls(number, name, None, nature)
        with socket.socket(fileno=os.dup(number)) as found:
            family, kind, address = found.family, found.type, found.getsockname()
        if kind == socket.SOCK_DGRAM:
            fault = " is a datagram socket"
        elif kind != socket.SOCK_STREAM:
            fault = " is not a stream socket"
        elif not daemon.is_socket(number, listening=1):
            fault = " is not listening"
        elif family not in _FAMILIES:
            fault = " is of a family that Twisted does not serve"
        else:
            fault = ""
        shown = _FAMILIES.get(family, "{!r}").format(address)
        nature = f"{getattr(family, 'name', family)} {shown}{fault}"
        return cls(number, name, None if fault else family, nature)

    def __str__(self) -> str:
        return f"{self.number} {self.name!r} {self.nature}"


class Inherited:
    """
    The descriptors passed to this process, each of which is given out once.

    @ivar descriptors: All of them, in the order in which they were passed.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str],
        initial: Mapping[str, str],
        listenFds: Callable[[], Mapping[int, str]],
    ) -> None:
        """
        Read what sd_listen_fds(3) describes, and remove it so that no child process sees it.

        @param environ: The environment that C{listenFds} reads and children inherit.
        @param initial: The environment when the process began: L{twisted.internet.endpoints} takes
            C{LISTEN_PID} and C{LISTEN_FDS} out of the other one as soon as it is imported.
        @param listenFds: L{daemon.listen_fds_with_names}, which also sets close-on-exec.
        """
        passed = {**initial, **environ}
        told = {key: passed[key] for key in _VARIABLES if key in passed}
        shown = " ".join(f"{key}={value!r}" for key, value in told.items())
        ours = str(os.getpid())
        environ.update(told)
        try:
            names = listenFds()
            other = told.get("LISTEN_PID", ours) != ours
            trouble = f"{shown} is for another process, this is {ours}" if other else _NOTHING
        except (OSError, SystemError):  # SystemError: a name that is not UTF-8
            names, trouble = {}, f"count, names and open descriptors do not agree: {shown}"
        finally:
            for key in told:
                del environ[key]
        self._trouble = trouble
        self.descriptors = tuple(Descriptor.examine(*item) for item in names.items())
        self._given: set[Descriptor] = set()

    def claim(self, name: str | None = None) -> tuple[Descriptor, ...]:
        """
        Give descriptors out, for good: which of two endpoints on one socket serves is mere chance.

        @param name: Whose; L{None} for all that are left.
        @return: One or more listening stream sockets.
        @raise AdoptError: There is none, or something else is among them: a program that is passed
            other things too asks by name.
        """
        wanted = "adopted" if name is None else f"adopted:name={name}"
        named = [each for each in self.descriptors if name in (None, each.name)]
        free = tuple(each for each in named if each not in self._given)
        passed = "; passed: " + ", ".join(map(str, self.descriptors))
        if not self.descriptors:
            reason, passed = self._trouble, ""
        elif not named:
            reason = "no passed descriptor has that name"
        elif not free:
            reason = "given out already"
        elif any(each.family is None for each in free):
            reason = "only listening stream sockets can be adopted"
        else:
            self._given.update(free)
            return free
        raise AdoptError(f"{wanted}: {reason}{passed}")


@cache
def inherited() -> Inherited:
    """
    @return: What was passed to this process. The first call reads it, and comes before any fork
        such as twistd's: descriptors survive that, but C{LISTEN_PID} goes on naming the parent.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = os.fsdecode(file.read()).split("\0")
    except OSError:
        lines = []
    initial = dict(line.split("=", 1) for line in lines if "=" in line)
    return Inherited(os.environ, initial, daemon.listen_fds_with_names)


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

    def _adopt(self, number: int, family: socket.AddressFamily | None) -> Any:
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
            raise AdoptError(f"{given}: takes name=NAME or nothing")
        return AdoptedEndpoint(reactor, inherited().claim(kwargs.get("name")))
