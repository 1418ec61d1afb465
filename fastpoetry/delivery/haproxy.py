"""
Readers that come through a balancer and say so by a PROXY header.

Twisted's own wrapper reads the header; this has the poem wait for it. Which listener may be trusted
with one is the administrator's to say, and so is who can reach it.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementedBy, implementer, providedBy

from fastpoetry.delivery.ledger import addressOf
from fastpoetry.delivery.policy import LINGER_SECONDS, Policy

_BEGINNINGS = (V1Parser.PROXYSTR, V2Parser.PREFIX)

_LEAST_BYTES = 16
"""What Twisted needs of a header at once to tell what it is; all but C{_UNKNOWN} are longer."""

_UNKNOWN = b"PROXY UNKNOWN\r\n"
"""What a balancer's own check says in version 1; Twisted knows it only with a space at the end."""


@implementer(IHalfCloseableProtocol)
class PatientWrapper(HAProxyProtocolWrapper, TimeoutMixin):
    """
    Connects the protocol that it wraps when the header has been read, and not before.

    Twisted's does so at once. A protocol that speaks first would then have answered whoever it is,
    under the balancer's address.
    """

    _hasBegun = False
    _beginning = b""
    _client: Any = None

    transport: Any
    factory: Any
    wrappedProtocol: Any

    def makeConnection(self, transport: Any) -> None:
        """
        Wait for the header.
        """
        directlyProvides(self, providedBy(transport) + implementedBy(type(self)))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        self.policy.arrive(self)
        self.setTimeout(self.policy.limits.stallSeconds)

    def dataReceived(self, data: bytes) -> None:
        """
        Read the header; what comes after it is of no interest to poetry.
        """
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
            self._refuse("no valid PROXY header")
        elif self._proxyInfo is not None:
            self._begin()

    def getPeer(self) -> Any:
        """
        The client, as soon as it is known.
        """
        return super().getPeer() if self._client is None else self._client

    def _read(self, data: bytes) -> bool:
        """
        Have Twisted read more of the header; whether it is one so far.
        """
        try:
            super().dataReceived(data)
            if self._proxyInfo is not None:
                self._client = _normalise(self.getPeer())
        except (ValueError, OSError):  # the former from Twisted's parser too
            return False
        return not self.disconnecting

    def _begin(self) -> None:
        """
        Send the poem, now that it is known to whom.
        """
        self._hasBegun = True
        self.setTimeout(None)
        self.wrappedProtocol.makeConnection(self)
        self.policy.depart(self)  # at last: a stop may wait for nobody else

    def timeoutConnection(self) -> None:
        """
        No header came for too long.
        """
        self._refuse("no PROXY header came")

    def forgo(self) -> None:
        """
        Wait no longer than a moment: a balancer sends its header at once, but we may be quicker.
        """
        self.setTimeout(min(LINGER_SECONDS, self.policy.limits.drainSeconds))

    def readConnectionLost(self) -> None:
        """
        The client has closed its side, through the balancer; with no header, this was a check.
        """
        if self._hasBegun:
            IHalfCloseableProtocol(self.wrappedProtocol).readConnectionLost()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """
        Our side is closed.
        """

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        Nothing is left of the connection.
        """
        self.setTimeout(None)
        self.policy.depart(self)
        super().connectionLost(reason)

    @property
    def policy(self) -> Policy:
        """
        The rules, from the factory that is wrapped.
        """
        policy: Policy = self.factory.wrappedFactory.policy
        return policy

    def _refuse(self, cause: str) -> None:
        """
        Send nothing to a connection that does not say where it comes from.
        """
        self.policy.ledger.turnedAway(addressOf(self.transport.getPeer()), cause)
        self.disconnecting = True
        self.transport.abortConnection()


def makePatient(factory: Any) -> None:
    """
    Have the protocols of a factory wait for the header, if it is one that reads a header.
    """
    if isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = PatientWrapper  # type: ignore[assignment]


def _mayBecomeHeader(data: bytes) -> bool:
    """
    Whether a header may begin like that.
    """
    return any(each.startswith(data[: len(each)]) for each in _BEGINNINGS)


def _normalise(peer: Any) -> Any:
    """
    The same address as the kernel would write it.

    @raise OSError: if it is none, but what somebody would like to see in a record.
    @raise ValueError: likewise.
    """
    if isinstance(peer, IPv4Address | IPv6Address):
        family = AF_INET6 if isinstance(peer, IPv6Address) else AF_INET
        host = inet_ntop(family, inet_pton(family, peer.host))
        return type(peer)(peer.type, host, peer.port)
    return peer
