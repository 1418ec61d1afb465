"""
The poetry protocol on any of Twisted's transports.

A plain TCP or UNIX port of a L{PoetryListener} is served by the fast port, and never comes here;
this is for every other way in: through TLS, behind a PROXY header, on a port that is composed by
hand. Knows neither files nor where poems come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPullProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.delivery.addresses import Address, addressOf
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.lingering import LINGER_SECONDS
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Source
from fastpoetry.delivery.sockets import (
    END_ON_CLOSE,
    RESET_ON_CLOSE,
    countUnacknowledged,
    findAddress,
    limitUnsent,
    lowestTransport,
    orReset,
    resetWhenLost,
    setLinger,
)
from fastpoetry.poem import Poem

_PIECE_BYTES = 16 * 1024
"""What is copied into a transport at a time: a stopped reader costs no more than that."""


@implementer(IPullProducer, IHalfCloseableProtocol, IHandshakeListener)
class PoetryProtocol(Protocol, TimeoutMixin):
    """
    Sends one poem and closes, as RFC 865 has it.

    Who edits this sees nothing happen on a plain port of C{twistd fastpoetry}: those are served by
    L{fastpoetry.delivery.fastport}. What the client writes is of no interest, and that it closes
    its side first is no reason to end.

    @ivar poem: what the client is sent, from when that begins.
    @ivar address: whose connection it is.
    """

    factory: PoetryFactory
    transport: Any  # a TCP or UNIX transport, or what wraps one: no interface has all of it

    poem: Poem
    address: Address
    mayHandOver = False

    _isArriving = False
    _sentBytes = 0
    _hasEnded = False
    _clientHasEnded = False
    _waiting: Deferred[Any] | None = None

    @orReset
    def connectionMade(self) -> None:
        """Begin to send, as soon as the client has shaken hands and there is a place and a poem."""
        self._lowest = lowestTransport(self.transport)
        self._socket = resetWhenLost(self._lowest)
        self.address = self._findAddress()
        self._isArriving = True
        if ISSLTransport.providedBy(self.transport):
            self._awaited = "no TLS handshake came"
            self.setTimeout(self._policy.limits.stallSeconds)
            self._policy.addArrival(self)
        else:
            self._queue()

    @orReset
    def handshakeCompleted(self) -> None:
        """TLS is there; what is written before that passes for sent, and is not."""
        self.setTimeout(None)
        if self._isArriving:
            self._queue()

    def timeoutConnection(self) -> None:
        """The client did not shake hands for too long."""
        self.dismiss(self._awaited)

    def callLater(self, period: float, func: Callable[[], object]) -> IDelayedCall:
        """What the timeout is made with."""
        return self._policy.clock.callLater(period, func)

    @property
    def _policy(self) -> Policy:
        return self.factory.policy

    def _findAddress(self) -> Address:
        """Whose connection it is: what a PROXY header says, or the socket."""
        peer = self.transport.getPeer()
        address = addressOf(peer)
        if self._socket is None or peer != self._lowest.getPeer():
            return address
        return findAddress(self._socket, address)

    def _queue(self) -> None:
        """Begin when there is a place."""
        self._awaited = "there is no place yet"
        self._policy.admit(self, self._enter)

    @orReset
    def _enter(self) -> None:
        """Begin now, or when there is a poem, unless others of the same source are enough."""
        policy = self._policy
        if policy.isTooMany(self.address):
            self._isArriving = False
            policy.turnAway(self.address)
            self.transport.abortConnection()
            return
        self._awaited = "there is no poem yet"
        policy.wait(self)
        poem = self.factory.source.poem
        if poem is not None:
            self._begin(poem)
        else:
            self._waiting = self.factory.source.whenPoem()
            self._waiting.addCallbacks(self._begin, lambda _: self.dismiss(self._awaited))

    def _begin(self, poem: Poem) -> None:
        """Begin to send."""
        self.poem = poem
        self._isArriving = False
        self._policy.begin(self, self._policy.clock.seconds())
        if self._socket is not None:
            limitUnsent(self._socket)
        self.transport.registerProducer(self, False)

    def dismiss(self, cause: str) -> None:
        """Reset the connection if it has no poem yet, and count it."""
        if self._isArriving:
            self._isArriving = False
            self.transport.abortConnection()
            self._endArrival(cause)  # at last: it may end a stop, and with it the transport

    def _endArrival(self, cause: str) -> None:
        """Count a connection that gets no poem."""
        self._isArriving = False
        self.setTimeout(None)
        self._policy.ledger.turnedAway(self.address, cause)
        self._policy.remove(self)

    def drain(self) -> None:
        """The server stops: there will be no poem, but a handshake may be about to end."""
        if self._waiting is not None:
            self.dismiss("the server stops, and there is no poem yet")
        else:
            self.setTimeout(min(LINGER_SECONDS, self._policy.limits.drainSeconds))

    @orReset
    def resumeProducing(self) -> None:
        """The transport has passed on what it had: write the next piece, or end."""
        piece = self.poem.text[self._sentBytes : self._sentBytes + _PIECE_BYTES]
        if piece:
            self._sentBytes += len(piece)
            self.transport.write(piece)
        else:
            self._finish()

    def stopProducing(self) -> None:
        """The transport is closed; it says so to L{connectionLost} too."""

    def readConnectionLost(self) -> None:
        """The client has closed its side: after ours, nothing is left to wait for."""
        self._clientHasEnded = True
        if self._hasEnded:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our side is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Nothing is left of the connection."""
        if self._isArriving:
            self._endArrival(f"it left, and {self._awaited}")
        if self._waiting is not None:
            self._waiting.cancel()
        self._policy.remove(self)

    def closeAfterClient(self) -> bool:
        """Never: the transport tells us when that happens."""
        return False

    def countTaken(self) -> int:
        """
        How many bytes of the poem the client has acknowledged, as far as that can be told.

        TLS makes them more on their way, so it is less than it is; all of it is exact.
        """
        unacknowledged = 0
        if self._socket is not None:
            unacknowledged = countUnacknowledged(self._socket) + len(self._lowest.dataBuffer)
        return self._sentBytes - min(self._sentBytes, unacknowledged)

    def isSent(self) -> bool:
        """Whether the system has all of the poem; of TLS that cannot be told."""
        isTLS = ISSLTransport.providedBy(self.transport)
        return self._hasEnded and not isTLS and self._socket is not None

    def end(self) -> None:
        """
        Close a connection whose client has everything, or will have it from the system.

        Below TLS, which would wait for the client's word (RFC 8446, 6.1 does not ask us to).
        """
        self._lowest.loseConnection()

    def reset(self) -> None:
        """Close a connection short of its end, with a reset."""
        if self._socket is not None:
            setLinger(self._socket, RESET_ON_CLOSE)
        self.transport.abortConnection()

    def _finish(self) -> None:
        """Say that this was all, and read on until the client closes too."""
        self._hasEnded = True
        self.transport.unregisterProducer()
        if self._socket is not None:
            setLinger(self._socket, END_ON_CLOSE)
        self._policy.finish(self)
        if self._clientHasEnded or ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()  # TLS has an end of its own, and no half-close
        else:
            self.transport.loseWriteConnection()


class PoetryFactory(ServerFactory):
    """
    Makes a L{PoetryProtocol} a connection.

    @ivar source: has the poem for each reader.
    """

    protocol: Any = PoetryProtocol
    noisy = False

    def __init__(self, source: Source, policy: Policy | None = None) -> None:
        """
        @param source: a L{PoetryService}, for one.
        @param policy: shared with other factories of the process, and drained by whoever made it.
            Without one it has its own, made when first needed, for the reactor that is installed by
            then; the end of the program waits for its readers.
        """
        self.source = source
        self._policy = policy
        self._hasOwn = policy is None

    @property
    def policy(self) -> Policy:
        """The rules for all its readers."""
        if self._policy is None:
            from twisted.internet import reactor as installed

            from fastpoetry.systemd.clock import MonotonicClock

            reactor: Any = installed
            self._policy = Policy(Limits(), MonotonicClock(reactor))
            # On a port of Twisted's nobody else has the end of the program wait for readers.
            reactor.addSystemEventTrigger("before", "shutdown", self._policy.drain)
        return self._policy

    def stopFactory(self) -> None:
        """See off who is here, where no listener does, and leave no timer behind."""
        if self._hasOwn and self._policy is not None:
            self._policy.drain()
