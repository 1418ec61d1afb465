"""Descriptors for tests to pass, and an L{Inherited} that finds them."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.protocol import Protocol

from fastpoetry.systemd.adopted import AdoptedEndpoint, Inherited


class Passing:
    """A mixin for test cases: sockets to pass, and a short path for UNIX sockets."""

    def folder(self: Any) -> Path:
        """
        @return: a folder that is removed when the test ends. Its path is short enough for a
            socket's.
        """
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        return Path(path)

    def bound(self: Any, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Any:
        """
        @param family: the address family.
        @param kind: the type of the socket.
        @return: a socket bound to an address of its own.
        """
        made = socket.socket(family, kind)
        self.addCleanup(made.close)
        free: dict[int, Any] = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
        try:
            made.bind(free.get(family) or str(self.folder() / "s"))
        except OSError as error:
            raise SkipTest(f"cannot bind a socket of family {family}: {error}") from error
        return made

    def listening(self: Any, family: int = socket.AF_INET, backlog: int = 7) -> Any:
        """
        @param family: the address family.
        @param backlog: the argument of listen(2).
        @return: a listening stream socket, in blocking mode as systemd passes it.
        """
        made = self.bound(family)
        made.listen(backlog)
        return made


def inherit(*passed: tuple[Any, str]) -> Inherited:
    """
    @param passed: files, each with a name.
    @return: the inherited descriptors of a process that was passed those.
    """
    return Inherited({}, {}, lambda: {file.fileno(): name for file, name in passed})


class Greeter(Protocol):
    """Says hello and goodbye."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(b"hello")
        transport.loseConnection()


def endpointOn(reactor: Any, *passed: Any) -> AdoptedEndpoint:
    """
    @param reactor: the reactor that listens.
    @param passed: listening sockets.
    @return: an endpoint on them.
    """
    return AdoptedEndpoint(reactor, inherit(*((file, "a") for file in passed)).claim("a"))


def fetch(family: int, address: Any) -> bytes:
    """
    @param family: an address family.
    @param address: a server's address.
    @return: all bytes that the server sends.
    """
    with socket.socket(family) as client:
        client.settimeout(60)
        client.connect(address)
        return b"".join(iter(lambda: client.recv(4096), b""))
