"""
Readers that come through a balancer and say so by a PROXY header.

Twisted's own wrapper reads the header; this has the poem wait for it. Which listener may be trusted
with one is the administrator's to say, and so is who can reach it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementedBy, implementer, providedBy

from fastpoetry.ledger import addressOf, formatPeer
from fastpoetry.policy import Policy


@implementer(IHalfCloseableProtocol)
class PatientWrapper(HAProxyProtocolWrapper, TimeoutMixin):
    """
    Connects the protocol that it wraps when the header has been read, and not before.

    Twisted's does so at once. A protocol that speaks first would then have answered whoever it is,
    under the balancer's address.
    """

    _log = Logger()
    _hasBegun = False

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
        try:
            super().dataReceived(data)
            cause = "no PROXY header" if self.disconnecting else ""
        except (ValueError, UnicodeError) as why:  # which Twisted's parser lets through
            cause = str(why)
        if cause:
            self._refuse(cause)
        elif self._proxyInfo is not None:
            self._hasBegun = True
            self.setTimeout(None)
            self.policy.depart(self)
            self.wrappedProtocol.makeConnection(self)

    def timeoutConnection(self) -> None:
        """
        No header came for too long.
        """
        self._refuse("no PROXY header came")

    def forgo(self) -> None:
        """
        End a connection that has had nothing yet.
        """
        self.transport.abortConnection()

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
        self._log.warn(
            "refused a connection through {peer}: {cause}",
            peer=formatPeer(addressOf(self.transport.getPeer())),
            cause=cause,
            message_id="21b38f06323b484e9bba36d1238f40c8",
        )
        self.forgo()


def makePatient(factory: Any) -> None:
    """
    Have the protocols of a factory wait for the header, if it is one that reads a header.
    """
    if isinstance(factory, HAProxyWrappingFactory):
        factory.protocol = PatientWrapper  # type: ignore[assignment]
