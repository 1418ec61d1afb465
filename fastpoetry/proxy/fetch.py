"""
One poem, fetched from another poetry server.

Knows what a whole poem is and what went wrong with one that is not; neither keeps one nor tries
again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NoReturn

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from fastpoetry.apart.threads import ThreadError
from fastpoetry.poem import PoemError
from fastpoetry.proxy.freshness import Freshness


class UpstreamError(PoemError):
    """An upstream that gave no whole poem: why, in a few words."""


async def fetch(
    endpoint: IStreamClientEndpoint, freshness: Freshness, clock: IReactorTime
) -> tuple[bytes, str]:
    """
    Get the poem that is at an endpoint.

    @param freshness: has the limits.
    @return: the poem, and its SHA-256 in hexadecimal.
    @raise UpstreamError: for one, if it is not whole; L{explain} knows the others.
    """
    upstream = _Upstream(freshness, clock)
    factory = Factory.forProtocol(lambda: upstream)
    factory.noisy = False
    connected = endpoint.connect(factory)
    await connected.addTimeout(freshness.connectSeconds, clock, tookTooLong)
    return await upstream.whole


def tookTooLong(_result: object, _seconds: float) -> NoReturn:
    """
    What a Deferred that was waited for in vain fails with, whatever its canceller says: Twisted's
    endpoints have words of their own for that, with addresses in them.
    """
    raise UpstreamError("upstream took too long")


def explain(failure: Failure) -> str:
    """What is wrong with an upstream, in a few words."""
    why = failure.value
    if isinstance(why, (UpstreamError, ThreadError)):
        return str(why)
    if isinstance(why, error.ConnectionRefusedError):
        return "upstream refused"
    if isinstance(why, error.DNSLookupError):
        return "upstream has no address"
    if isinstance(why, error.TimeoutError):
        return "upstream took too long"
    if isinstance(why, error.ConnectError) and why.osError:
        return f"upstream cannot be reached: {os.strerror(why.osError)}"
    return f"upstream failed: {failure.getErrorMessage()}"


class _Upstream(Protocol, TimeoutMixin):
    """
    One connection to an upstream: what it sends until it closes is the poem.

    @ivar whole: fires with the poem and its SHA-256, or fails with L{UpstreamError}.
    """

    transport: Any

    def __init__(self, freshness: Freshness, clock: IReactorTime) -> None:
        """@param freshness: has the limits."""
        self.whole: Deferred[tuple[bytes, str]] = Deferred(lambda _: self._abort())
        self._freshness = freshness
        self._clock = clock
        self._pieces: list[bytes] = []
        self._digest = sha256()
        self._size = 0

    def callLater(self, period: float, func: Callable[[], object]) -> IDelayedCall:
        """What the timeout is made with."""
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        """Wait for the first piece."""
        self.setTimeout(self._freshness.idleSeconds)

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece, unless there are too many."""
        self.resetTimeout()
        self._pieces.append(data)
        self._digest.update(data)  # of a large poem at once it would hold up the reactor
        self._size += len(data)
        if self._size > self._freshness.mostBytes:
            self._end(f"upstream sends more than {self._freshness.mostBytes} bytes")

    def timeoutConnection(self) -> None:
        """Nothing came for too long."""
        self._end(f"upstream sent nothing for {self._freshness.idleSeconds:g} s")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """A clean end is the end of the poem; all others are failures."""
        self.setTimeout(None)
        if not reason.check(error.ConnectionDone):
            # Of TLS it may be a certificate that is not trusted, or another's.
            why = "" if reason.check(error.ConnectionLost) else f": {reason.getErrorMessage()}"
            self._end(f"upstream broke off after {self._size} bytes{why}")
        elif not self._size:
            self._end("upstream sent nothing and closed")
        elif not self.whole.called:
            self.whole.callback((b"".join(self._pieces), self._digest.hexdigest()))

    def _end(self, why: str) -> None:
        """Fail, once, and let go of the connection."""
        if not self.whole.called:
            self.whole.errback(UpstreamError(why))
        self._abort()

    def _abort(self) -> None:
        """Close the connection, whatever is under way."""
        self._pieces.clear()
        self.setTimeout(None)
        if self.transport is not None:
            self.transport.abortConnection()
