"""
Passed sockets for programs that know port numbers only.

L{adoptPorts} wraps the listen methods of a program's reactor. If the program binds the address of a
passed socket, it gets that socket. It binds every other address as usual.

C{python3 -m fastpoetry.systemd.ports PROGRAM} does this for a program that starts its own reactor.
"""

from __future__ import annotations

import atexit
import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any, cast

from twisted.internet import main as reactors
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.systemd.adopted import AdoptedDatagrams, AdoptedEndpoint
from fastpoetry.systemd.descriptors import Descriptor, Inherited, inherited, logUnused, refusal

__all__ = ["AdoptedPorts", "adoptPorts", "main"]

_METHODS = {
    "listenTCP": socket.SOCK_STREAM,  # listenSSL calls it
    "listenUDP": socket.SOCK_DGRAM,
    "listenMulticast": socket.SOCK_DGRAM,
    "listenUNIX": socket.SOCK_STREAM,
    "listenUNIXDatagram": socket.SOCK_DGRAM,
}

_PROTOCOLS = {
    socket.SOCK_STREAM: (socket.IPPROTO_TCP, getattr(socket, "IPPROTO_MPTCP", 262)),
    socket.SOCK_DGRAM: (socket.IPPROTO_UDP,),
}
"""What Twisted speaks. SCTP also has stream sockets; UDP-Lite also has datagram sockets."""

_START_SECONDS = 30.0
"""How long a program may take until it listens, for instance if it opens a database first."""

_Address = tuple[object, ...]


class Attempts:
    """The addresses where a program tried to listen during its start, and with what result."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listening: list[tuple[Any, object]] = []
        self._failures: list[tuple[Any, Failure]] = []

    @contextmanager
    def noting(self, name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
        """
        Note where the program tries to listen, and whether it succeeds. A success cancels earlier
        failures of the same factory or protocol at other addresses.
        """
        (address, user), interface = [*arguments.values()][:2], arguments.get("interface")
        host = f"[{interface}]" if interface and ":" in interface else interface
        self.asked.append(f"{name.removeprefix('listen')} {f'{host}:' if host else ''}{address!r}")
        user = getattr(user, "wrappedFactory", user)  # TLS makes a new wrapper each time
        try:
            yield
        except Exception:
            # A failure at 0.0.0.0 does not count if the program listens on the same port of "::".
            if not any(each is user and where == address for each, where in self._listening):
                self._failures.append((user, Failure()))
            raise
        self._listening.append((user, address))
        self._failures = [each for each in self._failures if each[0] is not user]

    def check(self) -> None:
        """@raise Exception: the error of a factory or protocol that listens nowhere."""
        for _, failure in self._failures:
            failure.raiseException()


class AdoptedPorts:
    """The passed sockets of a program, by address."""

    _log = Logger()

    def __init__(self, reactor: Any, passed: Inherited) -> None:
        """Replace the reactor's listen methods, see L{adoptPorts}."""
        self._reactor = reactor
        self._passed = passed
        self._attempts: Attempts | None = Attempts()
        self._used: set[Descriptor] = set()
        for name in _METHODS:
            if hasattr(reactor, name):
                setattr(reactor, name, self._wrap(name, getattr(reactor, name)))

    def restore(self) -> None:
        """Give the reactor its own methods back. Ports that listen go on."""
        for name in _METHODS:
            vars(self._reactor).pop(name, None)

    def check(self) -> None:
        """@raise Exception: the error of a factory or protocol that listens nowhere."""
        if self._attempts is not None:
            self._attempts.check()

    def report(self) -> None:
        """
        Log a record of each passed socket that the program has not listened on.

        Call this once the program has started: later attempts to listen are not noted.
        """
        attempts, self._attempts = self._attempts, None
        if attempts is None:
            return
        logUnused(self._passed, attempts.asked, self._used)

    def _wrap(self, name: str, listen: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(listen)
        def listenOrAdopt(*args: Any, **kwargs: Any) -> Any:
            bound = signature(listen).bind(*args, **kwargs)
            bound.apply_defaults()
            asked = bound.arguments
            with self._attempts.noting(name, asked) if self._attempts else nullcontext():
                found = self._find(_METHODS[name], asked)
                return self._adopt(found, asked) if found else listen(*args, **kwargs)

        return listenOrAdopt

    def _find(self, kind: int, asked: Mapping[str, Any]) -> tuple[Descriptor, ...]:
        address, interface = next(iter(asked.values())), asked.get("interface")
        wanted = _askedAddresses(address, interface)
        return tuple(
            each
            for each in self._passed.free
            if each.serves(kind) and not wanted.isdisjoint(_boundAddresses(each))
        )

    def _adopt(self, found: tuple[Descriptor, ...], asked: Mapping[str, Any]) -> Any:
        """Return a port on passed sockets. It returns the sockets when it stops."""
        self._passed.reclaim(found)
        self._used.update(found)
        if "protocol" in asked:
            datagrams = AdoptedDatagrams(self._reactor, found, self._passed)
            return _Transport(datagrams, asked["protocol"], asked["maxPacketSize"])
        ports: list[Any] = []
        endpoint = AdoptedEndpoint(self._reactor, found, self._passed)
        endpoint.listen(asked["factory"]).addBoth(ports.append)
        if isinstance(ports[0], Failure):
            ports[0].raiseException()
        return ports[0]


class _Transport:
    """
    Stands between one protocol and its sockets. It is the transport of that protocol, and the
    protocol of each socket's own port.
    """

    _port: Any = None  # until all sockets listen
    _ports: tuple[Any, ...] = ()

    def __init__(self, datagrams: AdoptedDatagrams, protocol: Any, maxPacketSize: int) -> None:
        """Have the protocol receive the datagrams of all sockets."""
        self._protocol = protocol
        self._openSockets = 0
        self._port = datagrams.listen(lambda: cast(DatagramProtocol, self), maxPacketSize)
        self._connect()

    def makeConnection(self, port: object) -> None:
        """Called by the port of a socket when it opens."""
        self._openSockets += 1

    def doStop(self) -> None:
        """Called by the port of a socket when it closes. After the last port the protocol stops."""
        self._openSockets -= 1
        if not self._openSockets and self._protocol.transport is not None:
            self._protocol.doStop()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._protocol.datagramReceived(datagram, addr)

    def connectionRefused(self) -> None:
        self._protocol.connectionRefused()

    def write(self, datagram: bytes, addr: Any = None) -> Any:
        """
        Send a datagram from the socket of the address's family.

        @param addr: a host and a port, or a path; C{None} if the socket is connected.
        """
        # Those of the last start: until they are closed, at the end of the turn, they still send.
        ports = {each.addressFamily: each for each in self._ports}
        first = self._ports[0]
        if addr is None or first.addressFamily == socket.AF_UNIX:
            return first.write(datagram, addr)
        family = socket.AF_INET6 if ":" in addr[0] else socket.AF_INET
        if family not in ports:  # one socket serves IPv4 and IPv6, see ipv6(7)
            addr = (f"::ffff:{addr[0]}", *addr[1:])
        return ports.get(family, first).write(datagram, addr)

    def startListening(self) -> None:
        self._port.startListening()
        self._connect()

    def _connect(self) -> None:
        """Start the protocol. If it cannot start, stop all sockets."""
        self._ports = self._port.ports
        try:
            self._protocol.makeConnection(self)
        except BaseException:
            self._protocol.transport = None  # it has not started, so do not stop it
            self._port.stopListening()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


def _askedAddresses(address: Any, interface: str | None) -> set[_Address]:
    """
    @param interface: C{None} with a path in place of a port.
    @return: the bound addresses that serve the request; empty if the interface is not found.
    """
    if interface is None:
        return {(_realPath(address),)}
    if not interface:
        return {("0.0.0.0", address, 0), ("::", address, 0)}
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET  # as in Twisted
    try:
        (*_, found), *_ = socket.getaddrinfo(interface, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {(found[0], address, _scope(found))}


def _boundAddresses(descriptor: Descriptor) -> Iterator[_Address]:
    """Return the bound addresses of a socket; empty if Twisted does not speak its protocol."""
    with socket.socket(fileno=os.dup(descriptor.number)) as found:
        address: Any = found.getsockname()
        if found.family == socket.AF_UNIX:
            yield (_realPath(address),)
            return
        if found.proto not in _PROTOCOLS[socket.SocketKind(found.type)]:
            return
        yield (*address[:2], _scope(address))
        if address[0] == "::" and not found.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            yield "0.0.0.0", address[1], 0


def _scope(sockaddr: Any) -> int:
    """Return the interface number of a link-local address; 0 for other addresses."""
    return sockaddr[3] if len(sockaddr) > 2 else 0


def _realPath(path: str | bytes | None) -> bytes:
    """Return the path of a socket without links; an abstract or empty name unchanged."""
    name = os.fsencode(path or b"")
    return name if name[:1] in (b"", b"\0") else os.path.realpath(name)


def adoptPorts(reactor: Any, passed: Inherited | None = None) -> AdoptedPorts:
    """
    Give a program the passed sockets when it listens on their addresses.

    @param reactor: the program's reactor. Its C{listenTCP}, C{listenSSL}, C{listenUDP},
        C{listenMulticast}, C{listenUNIX} and C{listenUNIXDatagram} look for a passed socket first.
        So do endpoints that call these methods. Mode, lock and backlog stay as the unit sets them.
    @param passed: the sockets; without it, L{inherited}.
    @return: checks and reports the use of the sockets, and can restore the reactor's methods.
    @raise AdoptError: if the passed descriptors cannot be read.
    """
    return AdoptedPorts(reactor, inherited() if passed is None else passed)


def main(arguments: Sequence[str]) -> None:
    """
    Run a program that starts a reactor itself, and call L{adoptPorts} on that reactor.

    @param arguments: C{-m MODULE} or the path of a script, then the arguments of that program.
    @raise SystemExit: if no program was named.
    """
    isModule = arguments[:1] == ["-m"]
    program = arguments[isModule:][:1]
    if not program:
        raise refusal("ports: which program? python3 -m fastpoetry.systemd.ports -m MODULE | PATH")
    passed, install = inherited(), reactors.installReactor

    def installAndAdopt(reactor: Any) -> None:
        install(reactor)
        ports = adoptPorts(reactor, passed)
        atexit.register(ports.report)  # the program may end before
        reactor.callWhenRunning(reactor.callLater, _START_SECONDS, ports.report)

    reactors.installReactor = installAndAdopt
    sys.argv = [*program, *arguments[isModule + 1 :]]
    if isModule:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        if not sys.flags.safe_path:
            sys.path[0] = os.path.dirname(os.path.realpath(program[0]))
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
