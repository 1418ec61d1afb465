"""
Fetches one poem from another poetry server.

Detects whether the poem is whole, and explains failures. Does not cache and does not retry.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any, NoReturn

from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from fastpoetry.apart.worker import WorkError
from fastpoetry.poem import PoemError
from fastpoetry.proxy.freshness import Freshness

_OURS = (b"/run/fastpoetry/", b"/run/fastpoetry-proxy/")
"""Where the sockets of our units are."""


class UpstreamError(PoemError):
    """An upstream that did not send the whole, expected poem: the cause, in a few words."""


async def fetch(
    endpoint: IStreamClientEndpoint, freshness: Freshness, clock: IReactorTime
) -> tuple[bytes, str]:
    """
    Fetch the poem at an endpoint.

    @return: the poem, and its SHA-256 in hexadecimal.
    @raise UpstreamError: if the poem is not whole. Other errors come from the endpoint; L{explain}
        explains them all.
    """
    upstream = _Upstream(freshness, clock)
    factory = Factory.forProtocol(lambda: upstream)
    factory.noisy = False
    connected = endpoint.connect(factory)
    await connected.addTimeout(freshness.connectSeconds, clock, tookTooLong)
    return await upstream.whole


def tookTooLong(_result: object, _seconds: float) -> NoReturn:
    """
    Raise the error of a Deferred that timed out, in place of the canceller's.

    Twisted's endpoints would put addresses into the text.
    """
    raise UpstreamError("upstream took too long")


def explain(failure: Failure) -> str:
    """Return what is wrong with an upstream, in a few words."""
    why = failure.value
    if isinstance(why, WorkError):
        return str(why)
    if isinstance(why, error.ConnectionRefusedError):
        return "upstream refused"
    if isinstance(why, error.DNSLookupError):
        return "upstream has no address"
    if isinstance(why, error.TimeoutError):
        return "upstream took too long"
    if isinstance(why, error.ConnectError):  # without a number, its text has a traceback
        cause = f": {os.strerror(why.osError)}" if why.osError else ""
        return f"upstream cannot be reached{cause}"
    return f"upstream failed: {failure.getErrorMessage()}"


class _Upstream(Protocol, TimeoutMixin):
    """
    One connection to an upstream, which sends the poem and closes.

    @ivar whole: fires with the poem and its SHA-256, or fails with L{UpstreamError}.
    """

    transport: Any
    callLater: Any  # of TimeoutMixin; the clock replaces the reactor

    def __init__(self, freshness: Freshness, clock: IReactorTime) -> None:
        self.whole: Deferred[tuple[bytes, str]] = Deferred(lambda _: self._abort())
        self.callLater = clock.callLater
        self._freshness = freshness
        self._pieces: list[bytes] = []
        self._digest = sha256()
        self._size = 0

    def connectionMade(self) -> None:
        """
        Send a byte to a server of ours on a UNIX socket, which reads it only after the poem. If the
        server closes before, the unread byte makes that a reset (unix_release_sock in
        net/unix/af_unix.c). Another server might not read it, and so reset a whole poem.
        """
        self.setTimeout(self._freshness.idleSeconds)
        peer = self.transport.getPeer()
        if isinstance(peer, UNIXAddress) and (peer.name or b"").startswith(_OURS):
            self.transport.write(b"\n")

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece, unless the poem becomes too long."""
        self.resetTimeout()
        self._pieces.append(data)
        self._digest.update(data)  # hashing a large poem at once would block the reactor
        self._size += len(data)
        if self._size > self._freshness.mostBytes:
            self._end(f"upstream sends more than {self._freshness.mostBytes} bytes")

    def timeoutConnection(self) -> None:
        self._end(f"upstream sent nothing for {self._freshness.idleSeconds:g} s")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire with the poem after a clean close. Any other end is a failure."""
        self.setTimeout(None)
        if not reason.check(error.ConnectionDone):
            # With TLS, the certificate may be untrusted or of another host.
            why = "" if reason.check(error.ConnectionLost) else f": {reason.getErrorMessage()}"
            self._end(f"upstream broke off after {self._size} bytes{why}")
        elif not self._size:
            self._end("upstream sent nothing and closed")
        elif not self.whole.called:
            self.whole.callback((b"".join(self._pieces), self._digest.hexdigest()))

    def _end(self, why: str) -> None:
        """Fail once, and close the connection."""
        if not self.whole.called:
            self.whole.errback(UpstreamError(why))
        self._abort()

    def _abort(self) -> None:
        self._pieces.clear()
        self.setTimeout(None)
        if self.transport is not None:
            self.transport.abortConnection()
