"""
Passed sockets for programs that know port numbers only.

L{adoptPorts} stands between a program and its reactor. Where the program binds an address to which
a passed socket is bound, the program gets that socket. Every other address is bound as usual.

C{python3 -m fastpoetry.systemd.ports PROGRAM} runs a program so that has a starter of its own.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any

from twisted.internet import main as reactors
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastpoetry.systemd.adopted import AdoptedDatagrams, AdoptedEndpoint
from fastpoetry.systemd.descriptors import Descriptor, Inherited, inherited, refusal

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
"""What Twisted speaks: SCTP has stream sockets too, and UDP-Lite datagram sockets."""

_START_SECONDS = 30.0
"""For how long a program may take to listen, such as after it has opened a database."""

_Address = tuple[object, ...]


class Attempts:
    """
    What a program listened for during its start.

    @ivar asked: the addresses, for a person.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listening: list[tuple[Any, object]] = []
        self._failures: list[tuple[Any, Failure]] = []

    def begin(self, name: str, arguments: Mapping[str, Any]) -> tuple[Any, object]:
        """
        @param name: the reactor's method.
        @param arguments: what it is called with.
        @return: the factory or protocol, and the port or path.
        """
        (address, user), interface = [*arguments.values()][:2], arguments.get("interface")
        host = f"[{interface}]" if interface and ":" in interface else interface
        self.asked.append(f"{name.removeprefix('listen')} {f'{host}:' if host else ''}{address!r}")
        return getattr(user, "wrappedFactory", user), address  # TLS wraps anew each time

    def succeed(self, user: Any, address: object) -> None:
        """
        The program listens. It may have tried another address before.

        @param user: the factory or protocol.
        @param address: the port or path.
        """
        self._listening.append((user, address))
        self._failures = [each for each in self._failures if each[0] is not user]

    def fail(self, user: Any, address: object) -> None:
        """
        The program cannot listen. On C{0.0.0.0} that is no failure beside the same port of C{::}.

        @param user: the factory or protocol.
        @param address: the port or path.
        """
        if not any(each is user and where == address for each, where in self._listening):
            self._failures.append((user, Failure()))

    def check(self) -> None:
        """@raise Exception: a factory or protocol listens nowhere, for the reason raised."""
        for _, failure in self._failures:
            failure.raiseException()


class AdoptedPorts:
    """The passed sockets of a program, by address."""

    _log = Logger()

    def __init__(self, reactor: Any, passed: Inherited) -> None:
        """
        Take the place of the reactor's methods.

        @param reactor: provides C{IReactorTCP} or any of its like.
        @param passed: the sockets.
        """
        self._reactor = reactor
        self._passed = passed
        self._attempts: Attempts | None = Attempts()
        for name in _METHODS:
            if hasattr(reactor, name):
                setattr(reactor, name, self._wrap(name, getattr(reactor, name)))

    def restore(self) -> None:
        """Give the reactor its own methods back. What listens goes on."""
        for name in _METHODS:
            vars(self._reactor).pop(name, None)

    def check(self) -> None:
        """@raise Exception: the program tried to listen, and does not, for the reason raised."""
        if self._attempts is not None:
            self._attempts.check()

    def report(self) -> None:
        """
        Make a record of each passed socket that the program has not asked for.

        The program has started: what it listens for after this is not kept.
        """
        attempts, self._attempts = self._attempts, None
        for each in self._passed.free:
            if attempts is not None and (each.listens or each.kind == socket.SOCK_DGRAM):
                self._log.warn(
                    "nothing listens on {socket}, which was passed; asked for: {asked}",
                    socket=str(each),
                    asked=", ".join(attempts.asked) or "nothing",
                    message_id="486623b19bbe4920afd6e05835d12910",
                )

    def _wrap(self, name: str, listen: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(listen)
        def listenOrAdopt(*args: Any, **kwargs: Any) -> Any:
            bound = signature(listen).bind(*args, **kwargs)
            bound.apply_defaults()

            def attempt() -> Any:
                found = self._find(_METHODS[name], bound.arguments)
                return self._adopt(found, bound.arguments) if found else listen(*args, **kwargs)

            attempts = self._attempts
            if attempts is None:
                return attempt()
            asked = attempts.begin(name, bound.arguments)
            try:
                port = attempt()
            except Exception:
                attempts.fail(*asked)
                raise
            attempts.succeed(*asked)
            return port

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
        """@return: a port on passed sockets, which returns them when it stops."""
        self._passed.reclaim(found)
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
    """The transport of one protocol, over one or more sockets."""

    def __init__(self, datagrams: AdoptedDatagrams, protocol: Any, maxPacketSize: int) -> None:
        """
        Take datagrams.

        @param datagrams: the sockets.
        @param protocol: takes the datagrams of all of them.
        @param maxPacketSize: bytes that a datagram can have.
        """
        self._protocol = protocol
        self._branches: list[_Branch] = []
        self._port = datagrams.listen(self._makeBranch, maxPacketSize)
        protocol.makeConnection(self)

    def _makeBranch(self) -> _Branch:
        return _Branch(self._protocol, self._branches)

    def write(self, datagram: bytes, addr: Any = None) -> Any:
        """
        Send a datagram from the socket of the address's family.

        @param datagram: what to send.
        @param addr: where to: a host and a port, or a path; nothing, if it is connected.
        @return: what the socket's own port says.
        """
        ports = {each.addressFamily: each for each in self._port.ports}
        first = self._port.ports[0]
        if addr is None or first.addressFamily == socket.AF_UNIX:
            return first.write(datagram, addr)
        family = socket.AF_INET6 if ":" in addr[0] else socket.AF_INET
        if family not in ports:  # a socket of both kinds of IP, by ipv6(7)
            addr = (f"::ffff:{addr[0]}", *addr[1:])
        return ports.get(family, first).write(datagram, addr)

    def startListening(self) -> None:
        """Listen again."""
        self._port.startListening()
        self._protocol.makeConnection(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class _Branch(DatagramProtocol):
    """Hands on what comes to one of a protocol's sockets."""

    noisy = False

    def __init__(self, protocol: Any, branches: list[_Branch]) -> None:
        """
        @param protocol: takes it.
        @param branches: those that are connected, for us to join.
        """
        self._protocol = protocol
        self._branches = branches

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """
        Hand it on.

        @param datagram: what came.
        @param addr: where it came from.
        """
        self._protocol.datagramReceived(datagram, addr)

    def connectionRefused(self) -> None:
        """Hand it on."""
        self._protocol.connectionRefused()

    def startProtocol(self) -> None:
        """Our socket is open."""
        self._branches.append(self)

    def stopProtocol(self) -> None:
        """Our socket is closed. The last one ends the protocol."""
        self._branches.remove(self)
        if not self._branches and self._protocol.transport is not None:
            self._protocol.doStop()


def _askedAddresses(address: Any, interface: str | None) -> set[_Address]:
    """
    @param address: a path, or a port.
    @param interface: where the port is; C{None} with a path.
    @return: what a socket must be bound to that serves it; nothing for a name without an address.
    """
    if interface is None:
        return {(_realPath(address),)}
    if not interface:
        return {("0.0.0.0", address, 0), ("::", address, 0)}
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET  # as Twisted decides
    try:
        (*_, found), *_ = socket.getaddrinfo(interface, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {(found[0], address, _scope(found))}


def _boundAddresses(descriptor: Descriptor) -> Iterator[_Address]:
    """@return: what the kernel says that a socket is bound to, if Twisted speaks its protocol."""
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
    """@return: the interface's number of a link-local address; 0 without one."""
    return sockaddr[3] if len(sockaddr) > 2 else 0


def _realPath(path: str | bytes | None) -> bytes:
    """@return: a socket's path without links; an abstract name, or none at all, as it is."""
    name = os.fsencode(path or b"")
    return name if name[:1] in (b"", b"\0") else os.path.realpath(name)


def adoptPorts(reactor: Any, passed: Inherited | None = None) -> AdoptedPorts:
    """
    Give a program the passed sockets when it listens on their addresses.

    @param reactor: the program's. Its C{listenTCP}, C{listenSSL}, C{listenUDP}, C{listenMulticast},
        C{listenUNIX} and C{listenUNIXDatagram} ask us first, and so do the endpoints that call
        them. A file's mode and lock, and the backlog, stay the C{.socket} unit's.
    @param passed: the sockets; without it, L{inherited}.
    @return: what has come of it, and a way back.
    @raise AdoptError: the passed descriptors cannot be read.
    """
    return AdoptedPorts(reactor, inherited() if passed is None else passed)


def main(arguments: Sequence[str]) -> None:
    """
    Run a program that starts a reactor itself, with L{adoptPorts} on whichever it installs.

    @param arguments: C{-m MODULE}, or a script's path, and what follows is the program's.
    @raise SystemExit: there is no program.
    """
    isModule = arguments[:1] == ["-m"]
    program = arguments[isModule:][:1]
    if not program:
        raise refusal("ports: which program? python3 -m fastpoetry.systemd.ports -m MODULE | PATH")
    passed, install = inherited(), reactors.installReactor

    def installAndAdopt(reactor: Any) -> None:
        install(reactor)
        ports = adoptPorts(reactor, passed)
        reactor.callWhenRunning(reactor.callLater, _START_SECONDS, ports.report)

    reactors.installReactor = installAndAdopt
    sys.argv = [*program, *arguments[isModule + 1 :]]
    if isModule:
        sys.path[0] = os.getcwd()
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(program[0]))
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
