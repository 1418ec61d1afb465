"""
Readers that come through a balancer and say so by a PROXY header.

Twisted's own wrapper reads the header; this has the poem wait for it. Which listener may be trusted
with one is the administrator's to say, and so is who can reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IListeningPort,
    ISSLTransport,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementedBy, implementer, providedBy

from fastpoetry.delivery.addresses import Address, addressOf, normalise
from fastpoetry.delivery.lingering import LINGER_SECONDS
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.sockets import (
    END_ON_CLOSE,
    lowestTransport,
    orReset,
    resetWhenLost,
    setLinger,
    socketOf,
)

_BEGINNINGS = (V1Parser.PROXYSTR, V2Parser.PREFIX)

_LEAST_BYTES = 16
"""What Twisted needs of a header at once to tell what it is; all but C{_UNKNOWN} are longer."""

_UNKNOWN = b"PROXY UNKNOWN\r\n"
"""What a balancer's own check says in version 1; Twisted knows it only with a space at the end."""

_CHECKS = (b"PROXY UNKNOWN ", V2Parser.PREFIX + b"\x20")
"""How the headers begin that name no client: the latter is version 2, command LOCAL."""


@implementer(IHalfCloseableProtocol)
class PatientWrapper(HAProxyProtocolWrapper, TimeoutMixin):
    """
    Connects the protocol that it wraps when the header has been read, and not before.

    Twisted's does so at once. A protocol that speaks first would then have answered whoever it is,
    under the balancer's address.
    """

    address: Address = None
    """No source: the balancer is none."""

    _isArriving = True
    _hasBegun = False
    _beginning = b""
    _client: Any = None

    transport: Any
    factory: Any
    wrappedProtocol: Any

    @orReset
    def makeConnection(self, transport: Any) -> None:
        """Wait for the header."""
        directlyProvides(self, providedBy(transport) + implementedBy(type(self)))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        resetWhenLost(lowestTransport(transport))
        self.setTimeout(self.policy.limits.stallSeconds)
        self.policy.addArrival(self)

    def callLater(self, period: float, func: Callable[[], object]) -> IDelayedCall:
        """What the timeout is made with."""
        return self.policy.clock.callLater(period, func)

    @orReset
    def dataReceived(self, data: bytes) -> None:
        """Read the header; what comes after it is of no interest to poetry."""
        if self._hasBegun or self.disconnecting:
            return
        if self._parser is None:
            data = self._beginning + data
            if data.startswith(_UNKNOWN):
                data = _UNKNOWN.replace(b"\r", b" \r")
            if len(data) < _LEAST_BYTES and _mayBecomeHeader(data):
                self._beginning = data
                return
        if not self._read(data):
            self.dismiss("no valid PROXY header")
        elif self._proxyInfo is not None:
            isCheck = self._proxyInfo.header.startswith(_CHECKS)
            (self._endCheck if isCheck else self._begin)()

    def getPeer(self) -> Any:
        """The client, as soon as it is known."""
        return super().getPeer() if self._client is None else self._client

    def _read(self, data: bytes) -> bool:
        """Have Twisted read more of the header; whether it is one so far."""
        try:
            super().dataReceived(data)
            if self._proxyInfo is not None:
                normalise(self._proxyInfo.destination)
                self._client = normalise(self.getPeer())
        except (ValueError, OSError):  # the former from Twisted's parser too
            return False
        return not self.disconnecting

    def _begin(self) -> None:
        """Send the poem, now that it is known to whom."""
        self._hasBegun = True
        self._isArriving = False
        self.setTimeout(None)
        self.wrappedProtocol.makeConnection(self)
        if ISSLTransport.providedBy(self):  # or there would have been no header
            self.wrappedProtocol.handshakeCompleted()
        self.policy.remove(self)  # at last: a stop may wait for nobody else

    def timeoutConnection(self) -> None:
        """No header came for too long."""
        self.dismiss("no PROXY header came")

    def drain(self) -> None:
        """Wait a moment at most: a balancer sends its header at once, but we may be quicker."""
        self.setTimeout(min(LINGER_SECONDS, self.policy.limits.drainSeconds))

    def readConnectionLost(self) -> None:
        """
        The client has closed its side, through the balancer.

        With no header at all, this was the balancer's own check.
        """
        if self._hasBegun:
            IHalfCloseableProtocol(self.wrappedProtocol).readConnectionLost()
        elif self._parser is None and not self._beginning:
            self._endCheck()
        else:
            self.dismiss("it left in the middle of its PROXY header")

    def writeConnectionLost(self) -> None:
        """Our side is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Nothing is left of the connection."""
        if self._isArriving and (self._parser is not None or self._beginning):
            self._count("it left in the middle of its PROXY header")
        elif self._isArriving:
            self.policy.ledger.checked()
        self.setTimeout(None)
        self.policy.remove(self)
        super().connectionLost(reason)

    @property
    def policy(self) -> Policy:
        """The rules, from the factory that is wrapped."""
        policy: Policy = self.factory.wrappedFactory.policy
        return policy

    def dismiss(self, cause: str) -> None:
        """Reset a connection that does not say where it comes from, and count it."""
        if self._isArriving:
            self._count(cause)
        self.disconnecting = True
        self.transport.abortConnection()

    def _endCheck(self) -> None:
        """End a connection by which the balancer only sees whether the server is there."""
        self._isArriving = False
        self.disconnecting = True
        self.policy.ledger.checked()
        self._setLinger(END_ON_CLOSE)
        lowestTransport(self.transport).loseConnection()  # below TLS, which would wait

    def _count(self, cause: str) -> None:
        """Count a connection for which no poem is begun."""
        self._isArriving = False
        self.policy.ledger.turnedAway(addressOf(self.transport.getPeer()), cause)

    def _setLinger(self, linger: bytes) -> None:
        """Set what a close means, where there is a socket below."""
        handle = socketOf(lowestTransport(self.transport))
        if handle is not None:
            setLinger(handle, linger)


class PatientFactory(HAProxyWrappingFactory):
    """A factory whose connections begin with a PROXY header."""

    protocol: Any = PatientWrapper


@implementer(IStreamServerEndpoint)
class PatientEndpoint:
    """An endpoint whose connections begin with a PROXY header."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        """@param endpoint: where to listen."""
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        """Listen there."""
        return self._endpoint.listen(PatientFactory(protocolFactory))


def _mayBecomeHeader(data: bytes) -> bool:
    """Whether a header may begin like that."""
    return any(each.startswith(data[: len(each)]) for each in _BEGINNINGS)
