"""
Readers that come through a balancer, which sends a PROXY header first.

Twisted's wrapper reads the header; this module delays the poem until then. The administrator
decides which listener trusts such headers, and limits which clients can reach it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
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
)

_BEGINNINGS = (V1Parser.PROXYSTR, V2Parser.PREFIX)

_LEAST_BYTES = 16
"""How many bytes Twisted needs at once to recognise a header. Only C{_UNKNOWN} is shorter."""

_UNKNOWN = b"PROXY UNKNOWN\r\n"
"""A health check's header in version 1. Twisted accepts it only with a final space."""

_CHECKS = (b"PROXY UNKNOWN ", V2Parser.PREFIX + b"\x20")
"""The beginnings of headers that name no client. The second is version 2, command LOCAL."""


@implementer(IHalfCloseableProtocol)
class PatientWrapper(HAProxyProtocolWrapper, TimeoutMixin):
    """
    Connects its wrapped protocol only after the header.

    Twisted's wrapper connects it at once. A protocol that speaks first would then begin while only
    the balancer's address is known.
    """

    address: Address = None
    """C{None}, so no quota counts the balancer's connections."""

    fault = ""

    _isArriving = True
    _hasBegun = False
    _beginning = b""

    transport: Any
    callLater: Any  # of TimeoutMixin; the policy's clock replaces the reactor
    factory: Any
    wrappedProtocol: Any

    def __init__(self, factory: Any, wrappedProtocol: Any) -> None:
        # Twisted's wrapper would tell the other protocol of bytes and ends before it is connected.
        super().__init__(factory, Protocol())
        self._waiting = wrappedProtocol

    @orReset
    def makeConnection(self, transport: Any) -> None:
        """Wait for the header."""
        directlyProvides(self, providedBy(transport) + implementedBy(type(self)))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        self._socket = resetWhenLost(lowestTransport(transport))
        self.callLater = self.policy.clock.callLater
        self.setTimeout(self.policy.limits.stallSeconds)
        self.policy.addArrival(self)

    @orReset
    def dataReceived(self, data: bytes) -> None:
        """Read the header, and ignore the bytes after it."""
        if self._hasBegun or self.disconnecting:
            return
        if self._parser is None:
            data = self._beginning + data
            if data.startswith(_UNKNOWN):
                data = _UNKNOWN.replace(b"\r", b" \r")
            mayBecomeHeader = any(each.startswith(data[: len(each)]) for each in _BEGINNINGS)
            if len(data) < _LEAST_BYTES and mayBecomeHeader:
                self._beginning = data
                return
        if not self._read(data):
            self.dismiss("no valid PROXY header")
        elif self._proxyInfo is not None:
            isCheck = self._proxyInfo.header.startswith(_CHECKS)
            (self._endCheck if isCheck else self._begin)()

    def _read(self, data: bytes) -> bool:
        """Pass more of the header to Twisted's parser. Return whether it is valid so far."""
        try:
            super().dataReceived(data)
            if info := self._proxyInfo:
                ours, theirs = normalise(info.destination), normalise(info.source)
                self._proxyInfo = type(info)(info.header, theirs, ours)  # getPeer reads it
        except (ValueError, OSError):  # Twisted's parser raises ValueError
            return False
        return not self.disconnecting

    def _begin(self) -> None:
        """Connect the wrapped protocol, now that the client is known."""
        self._hasBegun = True
        self._isArriving = False
        self.setTimeout(None)
        self.wrappedProtocol = self._waiting
        self.wrappedProtocol.makeConnection(self)
        if ISSLTransport.providedBy(self):  # the header came through TLS
            self.wrappedProtocol.handshakeCompleted()
        self.policy.remove(self)  # last: the drain may end here

    def timeoutConnection(self) -> None:
        self.dismiss("no PROXY header came")

    def drain(self) -> None:
        """Wait at most a moment more. The balancer may be about to send the header."""
        self.setTimeout(min(LINGER_SECONDS, self.policy.limits.drainSeconds))

    def readConnectionLost(self) -> None:
        """Note that the client has closed its side. If it sent no byte, this was a health check."""
        if self._hasBegun:
            IHalfCloseableProtocol(self.wrappedProtocol).readConnectionLost()
        elif self._parser is None and not self._beginning:
            self._endCheck()
        else:
            self.dismiss("it left in the middle of its PROXY header")

    def writeConnectionLost(self) -> None:
        """Do nothing: our side is closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection, and count it if it got no poem."""
        if self._isArriving:
            self._countEnd(reason)
        self.setTimeout(None)
        self.policy.remove(self)
        super().connectionLost(reason)

    def _countEnd(self, reason: Failure) -> None:
        """Count a connection that ended before its header: a fault, a client, or a check."""
        if self.fault:
            self._count(self.fault)
        elif self._parser is not None or self._beginning:
            self._count("it left in the middle of its PROXY header")
        elif reason.check(ConnectionDone, ConnectionLost):
            self.policy.ledger.countCheck()
        else:
            self._count("no TLS handshake came")

    @property
    def policy(self) -> Policy:
        policy: Policy = self.factory.wrappedFactory.policy
        return policy

    def dismiss(self, cause: str) -> None:
        """Reset a connection without a valid header, and count it."""
        if self._isArriving:
            self._count(cause)
        self.disconnecting = True
        self.transport.abortConnection()

    def _endCheck(self) -> None:
        self._isArriving = False
        self.disconnecting = True
        self.policy.ledger.countCheck()
        if self._socket is not None:
            setLinger(self._socket, END_ON_CLOSE)
        lowestTransport(self.transport).loseConnection()  # TLS would wait for the peer

    def _count(self, cause: str) -> None:
        self._isArriving = False
        self.policy.ledger.countTurnedAway(addressOf(self.transport.getPeer()), cause)


class PatientFactory(HAProxyWrappingFactory):
    """A factory whose connections begin with a PROXY header."""

    protocol: Any = PatientWrapper


@implementer(IStreamServerEndpoint)
class PatientEndpoint:
    """An endpoint whose connections begin with a PROXY header."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Deferred[IListeningPort]:
        return self._endpoint.listen(PatientFactory(protocolFactory))
