"""
Listening ports on real sockets, which are served when a test says so, and their clients.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from fakes import POEM, SECONDS, FakeSource, Reactor
from twisted.internet import tcp
from twisted.internet.protocol import ServerFactory
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.fastport import FastPort, SocketReader
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem


def lingerOf(descriptor: int) -> tuple[int, ...]:
    """@return: the linger option of a descriptor: with C{(1, 0)} a close is a reset."""
    with socket.socket(fileno=os.dup(descriptor)) as same:
        option = same.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    return struct.unpack("ii", option)


class PortCase(SynchronousTestCase):
    """A test case with a listening port and its clients."""

    limits = Limits()

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.source = FakeSource()
        self.policy = Policy(self.limits, self.reactor)

    def plainPort(self) -> Any:
        """@return: a listening port of Twisted."""
        port = tcp.Port(0, ServerFactory(), 200, "127.0.0.1", self.reactor)
        port.startListening()
        return port

    def listen(self, poem: Poem | None = POEM, port: Any = None) -> FastPort:
        """@return: a port that has taken the place of a plain one."""
        self.source.poem = poem
        plain = port or self.plainPort()
        self.port = FastPort(plain, self.source, self.policy, self.reactor)
        self.policy.gate.add(self.port)
        self.port.startListening()
        self.addCleanup(self.stop)
        self.address = plain.socket.getsockname()
        return self.port

    def stop(self) -> None:
        """Stop listening, and reset the readers left."""
        if self.port in self.policy.gate._ports:
            self.policy.gate.remove(self.port)
            self.port.stopListening()
            self.reactor.advance(0)
        self.policy.drain()
        self.reactor.advance(self.limits.drainSeconds)

    def connect(self, receiveBufferBytes: int = 0) -> socket.socket:
        """@return: a connected client, which waits in the backlog."""
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        if ":" in self.address[0]:
            family = socket.AF_INET6
        client = socket.socket(family)
        self.addCleanup(client.close)
        if receiveBufferBytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receiveBufferBytes)
        client.settimeout(SECONDS)
        client.connect(self.address)
        return client

    def visit(self, times: int = 1) -> None:
        """Let time pass until every reader has been visited so many times."""
        self.reactor.pump([0.1] + [1.0] * times)

    def acknowledge(self, client: socket.socket) -> None:
        """Make the client's system acknowledge at once."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    @property
    def underWay(self) -> SocketReader:
        """The only reader whose poem is under way."""
        (reader,) = self.reactor.getWriters()
        assert isinstance(reader, SocketReader)
        return reader
