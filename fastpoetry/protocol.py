"""
The poetry protocol on any of Twisted's transports.

The fast port serves the plain TCP and UNIX ports of a L{PoetryListener}. This protocol serves all
other connections: with TLS, with a PROXY header, or on a port that a program composes by hand.
Knows neither files nor the origin of poems.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
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
    ignoreInput,
    limitUnsent,
    lowestTransport,
    orReset,
    resetWhenLost,
    setLinger,
)
from fastpoetry.poem import Poem

_PIECE_BYTES = 16 * 1024
_TLS_PIECE_BYTES = 64 * 1024
"""
How much is copied into a transport at a time. A stopped reader costs at most that much. Twisted's
TLS delays smaller pieces, by a timer of the wall clock.
"""


@implementer(IPullProducer, IHalfCloseableProtocol, IHandshakeListener)
class PoetryProtocol(Protocol, TimeoutMixin):
    """
    Sends one poem and closes the connection (RFC 865).

    To change plain ports of C{twistd fastpoetry}, edit L{fastpoetry.delivery.fastport} instead.
    Whatever the client writes is ignored. A client that closes its side first still gets the poem.
    """

    factory: PoetryFactory
    transport: Any  # TCP, UNIX, or a wrapper; no interface declares all the methods used here
    callLater: Any  # of TimeoutMixin; the policy's clock replaces the reactor

    poem: Poem
    address: Address
    mayHandOver = False
    fault = ""

    _isArriving = False
    _sentBytes = 0
    _hasEnded = False
    _clientHasEnded = False
    _waiting: Deferred[Any] | None = None

    @orReset
    def connectionMade(self) -> None:
        """Send a poem after the TLS handshake, once there is a poem and room for a reader."""
        self.callLater = self._policy.clock.callLater
        self._lowest = lowestTransport(self.transport)
        self._socket = resetWhenLost(self._lowest)
        self.address = self._findAddress()
        self._isArriving = True
        self._isTLS = ISSLTransport.providedBy(self.transport)
        if self._isTLS:
            self._awaited = "no TLS handshake came"
            self.setTimeout(self._policy.limits.stallSeconds)
            self._policy.addArrival(self)
        else:
            self._queue()

    @orReset
    def handshakeCompleted(self) -> None:
        """Go on after the handshake. TLS accepts writes before it, but does not send them."""
        self.setTimeout(None)
        if self._isArriving:
            ignoreInput(self.transport, self.readConnectionLost)
            self._queue()

    def timeoutConnection(self) -> None:
        self.dismiss(self._awaited)

    @property
    def _policy(self) -> Policy:
        return self.factory.policy

    def _findAddress(self) -> Address:
        """Return the client's address, from the PROXY header or from the socket."""
        peer = self.transport.getPeer()
        address = addressOf(peer)
        if self._socket is None or peer != self._lowest.getPeer():
            return address
        return findAddress(self._socket, address)

    def _queue(self) -> None:
        self._awaited = "there is no place yet"
        self._policy.admit(self, self._enter)

    @orReset
    def _enter(self) -> None:
        """Take a place, and begin when there is a poem, unless the client's source has too many."""
        policy = self._policy
        if policy.isSourceFull(self.address):
            self._isArriving = False
            policy.countTurnedAway(self.address)
            self.transport.abortConnection()
            return
        self._awaited = "there is no poem yet"
        policy.addWaiting(self)
        poem = self.factory.source.poem
        if poem is not None:
            self._begin(poem)
        elif policy.isDraining:  # the handshake or the header came after the stop
            self.dismiss("the server stops, and there is no poem yet")
        else:
            self._waiting = self.factory.source.whenPoem()
            self._waiting.addCallbacks(self._begin, lambda _: self.dismiss(self._awaited))

    @orReset
    def _begin(self, poem: Poem) -> None:
        self.poem = poem
        self._isArriving = False
        self._policy.begin(self)
        if self._socket is not None:
            limitUnsent(self._socket)
        # The lowest transport calls resumeProducing when the kernel has all that was written. TLS
        # would call it earlier.
        self._lowest.registerProducer(self, False)

    def dismiss(self, cause: str) -> None:
        """Reset the connection if it has no poem yet, and count it."""
        if self._isArriving:
            self._isArriving = False
            self.transport.abortConnection()
            self._endArrival(cause)  # last: it may end the drain, and so close the transport

    def _endArrival(self, cause: str) -> None:
        self._isArriving = False
        self.setTimeout(None)
        self._policy.ledger.countTurnedAway(self.address, cause)
        self._policy.remove(self)

    def drain(self) -> None:
        """Prepare for the stop: wait for no poem, and only a moment for a handshake or a place."""
        if self._waiting is not None:
            self.dismiss("the server stops, and there is no poem yet")
        else:
            self.setTimeout(min(LINGER_SECONDS, self._policy.limits.drainSeconds))

    @orReset
    def resumeProducing(self) -> None:
        """Write the next piece, or finish. The kernel has the previous piece."""
        size = _TLS_PIECE_BYTES if self._isTLS else _PIECE_BYTES
        piece = self.poem.text[self._sentBytes : self._sentBytes + size]
        if not piece:
            self._finish()
            return
        self._sentBytes += len(piece)
        self.transport.write(piece)
        if self._isTLS and self._sentBytes == len(self.poem.text):
            self.transport.loseConnection()  # sends the end of TLS with the last piece

    def stopProducing(self) -> None:
        """Do nothing: a closed transport calls L{connectionLost} too."""

    def readConnectionLost(self) -> None:
        """Note that the client has closed its side."""
        self._clientHasEnded = True
        self.closeAfterClient()

    def writeConnectionLost(self) -> None:
        """Do nothing: our side is closed, and L{readConnectionLost} closes the connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection, and count it if it got no poem."""
        self.setTimeout(None)
        if self._isArriving:
            self._endArrival(self.fault or f"it left early: {self._awaited}")
        if self._waiting is not None:
            self._waiting.cancel()
        self._policy.remove(self, self.fault)

    def closeAfterClient(self) -> bool:
        """Close the connection if the client has closed its side, and has its poem."""
        isDone = self._hasEnded and self._clientHasEnded
        if isDone and self.countTaken() == len(self.poem.text):
            self.end()
            return True
        return False

    def countTaken(self) -> int:
        """
        Return how many bytes of the poem the client has acknowledged.

        TLS adds bytes on the wire, so in mid-poem the result is too low. For a whole poem it is
        exact.
        """
        unacknowledged = 0
        if self._socket is not None:
            low = self._lowest
            unwritten = len(low.dataBuffer) - low.offset + low._tempDataLen
            unacknowledged = countUnacknowledged(self._socket) + unwritten
        return max(0, self._sentBytes - unacknowledged)

    def isSent(self) -> bool:
        """Whether the kernel has all of the poem; C{False} with TLS, where this is unknown."""
        return self._hasEnded and not self._isTLS and self._socket is not None

    def end(self) -> None:
        """
        Close the socket, below TLS. TLS would wait for the client's close_notify, which RFC 8446,
        6.1 does not demand.
        """
        self._lowest.stopReading()
        # After the reactor's turn, as SocketReader.reset: the transport may close at once.
        self._lowest.reactor.callFromThread(self._lowest.loseConnection)

    def reset(self) -> None:
        if self._socket is not None:
            setLinger(self._socket, RESET_ON_CLOSE)
        self.transport.abortConnection()

    def _finish(self) -> None:
        """Close our side, and read on until the client closes its side."""
        self._hasEnded = True
        self._lowest.unregisterProducer()
        if self._socket is not None:
            setLinger(self._socket, END_ON_CLOSE)
        self._policy.finish(self)
        if not self.closeAfterClient() and not self._isTLS:  # TLS has sent its own end
            self.transport.loseWriteConnection()


class PoetryFactory(ServerFactory):
    """Makes a L{PoetryProtocol} for each connection."""

    protocol: Any = PoetryProtocol
    noisy = False

    def __init__(self, source: Source, policy: Policy | None = None) -> None:
        """
        @param source: provides the poem for each reader, as a L{PoetryService} does.
        @param policy: shared with other factories of the process; the caller drains it. By default
            the factory makes its own at the first use, with the reactor installed by then. The end
            of the program then waits for the readers of this factory.
        """
        self.source = source
        self._ownPolicy: Policy | None = None
        if policy is not None:
            self.policy = policy

    @cached_property
    def policy(self) -> Policy:
        from twisted.internet import reactor as installed

        from fastpoetry.systemd.clock import MonotonicClock

        reactor: Any = installed
        self._ownPolicy = Policy(Limits(), MonotonicClock(reactor))
        # On a port of Twisted's, only this makes the end of the program wait for readers.
        reactor.addSystemEventTrigger("before", "shutdown", self._ownPolicy.drain)
        return self._ownPolicy

    def stopFactory(self) -> None:
        """Drain the readers of this factory's own policy, and cancel its timers."""
        if self._ownPolicy is not None:
            self._ownPolicy.drain()
