"""
The poetry protocol on any of Twisted's transports.

For connections that the fast port does not serve: through TLS, behind a PROXY header, on any other
endpoint. Knows neither files nor where poems come from.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPullProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.delivery.fastport import (
    END_ON_CLOSE,
    RESET_ON_CLOSE,
    Source,
    countUnacknowledged,
    limitUnsent,
    setLinger,
)
from fastpoetry.delivery.ledger import addressOf
from fastpoetry.delivery.policy import Policy, Reader
from fastpoetry.poem import Poem

_PIECE_BYTES = 16 * 1024
"""What is copied into a transport at a time: a stopped reader costs no more than that."""


@implementer(IPullProducer, IHalfCloseableProtocol)
class PoetryProtocol(Protocol, Reader):
    """
    Sends one poem and closes, as RFC 865 has it.

    What the client writes is of no interest, and that it closes its side first is no reason to end.
    """

    factory: PoetryFactory
    transport: Any  # a TCP or UNIX transport, or what wraps one: no interface has all of it

    _sentBytes = 0
    _hasEnded = False
    _clientHasEnded = False
    _waiting: Deferred[Any] | None = None

    def __init__(self) -> None:
        """
        All there is to know comes with the connection.
        """

    def connectionMade(self) -> None:
        """
        Begin to send, as soon as there is a poem.
        """
        poem = self.factory.source.poem
        if poem is not None:
            self._begin(poem)
        else:
            self.factory.policy.arrive(self)
            waiting = self.factory.source.whenPoem()
            self._waiting = waiting.addCallbacks(self._begin, lambda _: self.forgo())

    def _begin(self, poem: Poem) -> None:
        """
        Begin to send, unless others of the same source are enough.
        """
        policy = self.factory.policy
        policy.depart(self)
        address = addressOf(self.transport.getPeer())
        self.poem, self.address = poem, address
        if policy.isTooMany(address):
            policy.turnAway(address)
            self.transport.abortConnection()
            return
        policy.begin(self, policy.seconds())
        self._lowest = _lowestOf(self.transport)
        self._socket = _socketOf(self._lowest)
        if self._socket is not None:
            setLinger(self._socket, RESET_ON_CLOSE)
            limitUnsent(self._socket)
        self.transport.registerProducer(self, False)

    def forgo(self) -> None:
        """
        There is no poem for who waits.
        """
        self.transport.abortConnection()

    def resumeProducing(self) -> None:
        """
        The transport has passed on what it had: write the next piece, or end.
        """
        piece = self.poem.text[self._sentBytes : self._sentBytes + _PIECE_BYTES]
        if piece:
            self._sentBytes += len(piece)
            self.transport.write(piece)
        else:
            self._finish()

    def stopProducing(self) -> None:
        """
        The transport is closed; it says so to L{connectionLost} too.
        """

    def readConnectionLost(self) -> None:
        """
        The client has closed its side: after ours, nothing is left to wait for.
        """
        self._clientHasEnded = True
        if self._hasEnded:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        Our side is closed.
        """

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Nothing is left of the connection.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        self.factory.policy.depart(self)
        self.factory.policy.leave(self)

    def closeAfterClient(self) -> bool:
        """
        Never: the transport tells us when that happens.
        """
        return False

    def measure(self) -> int:
        """
        How many bytes of the poem the client has acknowledged, as far as that can be told.

        TLS makes them more on their way, so it is less than it is; all of it is exact.
        """
        unacknowledged = 0
        if self._socket is not None:
            unacknowledged = countUnacknowledged(self._socket) + len(self._lowest.dataBuffer)
        return self._sentBytes - min(self._sentBytes, unacknowledged)

    def end(self) -> None:
        """
        Close a connection whose client has everything, and does not close it.

        Below TLS, which would wait for the client's word (RFC 8446, 6.1 does not ask us to).
        """
        self._lowest.loseConnection()

    def reset(self) -> None:
        """
        Close a connection short of its end, with a reset.
        """
        self.transport.abortConnection()

    def _finish(self) -> None:
        """
        Say that this was all, and read on until the client closes too.
        """
        self._hasEnded = True
        self.transport.unregisterProducer()
        if self._socket is not None:
            setLinger(self._socket, END_ON_CLOSE)
        self.factory.policy.finish(self)
        if self._clientHasEnded or ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()  # TLS has an end of its own, and no half-close
        else:
            self.transport.loseWriteConnection()


class PoetryFactory(ServerFactory):
    """
    Makes a L{PoetryProtocol} a connection.

    @ivar source: has the poem for each reader.
    @ivar policy: has the rules for all of them.
    """

    protocol: Any = PoetryProtocol
    noisy = False

    def __init__(self, source: Source, policy: Policy) -> None:
        """
        @param source: a L{PoetryService}, for one.
        """
        self.source = source
        self.policy = policy


def _lowestOf(transport: Any) -> Any:
    """
    The TCP or UNIX transport below TLS and all other layers.
    """
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def _socketOf(transport: Any) -> socket.socket | None:
    """
    The socket of a transport; C{stdio:}, for one, has none.
    """
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    return handle if isinstance(handle, socket.socket) else None
