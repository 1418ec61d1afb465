"""Twisted's own tests for listening ports, run on the ports of L{fastpoetry.systemd.adopted}."""

from __future__ import annotations

import socket
import warnings
from importlib.util import find_spec
from typing import Any

from passing import Passing, endpointOn
from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.trial.unittest import SynchronousTestCase


class Adopting(Passing):
    """A mixin for Twisted's tests of listening ports: the port under test is an adopted one."""

    _reactors: Any = (
        "twisted.internet.epollreactor.EPollReactor",
        "twisted.internet.selectreactor.SelectReactor",
    )

    def adopt(self: Any, reactor: Any, factory: Any, made: Any) -> Any:
        """
        @param reactor: a reactor of any kind.
        @param factory: the factory that listens.
        @param made: a listening socket.
        @return: the port on it.
        """
        port = self.successResultOf(endpointOn(reactor, made).listen(factory))
        return port.ports[0]


if find_spec("hamcrest"):
    with warnings.catch_warnings():
        # Twisted 22.4 deprecates a module that its own tests import.
        warnings.simplefilter("ignore", DeprecationWarning)
        from twisted.internet.test import test_tcp, test_unix

    class TCPPortTestsBuilder(
        Adopting,
        ReactorBuilder,
        test_tcp.ConnectToTCPListenerMixin,
        test_tcp.TCPPortTestsMixin,
        test_tcp.StreamTransportTestsMixin,
    ):
        """Twisted's own tests for TCP ports."""

        # These need an interface with a link-local address, which a container may not have.
        test_portGetHostOnIPv6ScopeID: Any = None
        test_buildProtocolIPv6AddressScopeID: Any = None
        test_serverGetHostOnIPv6ScopeID: Any = None
        test_serverGetPeerOnIPv6ScopeID: Any = None

        def getListeningPort(
            self: Any, reactor: Any, factory: Any, port: int = 0, interface: str = "127.0.0.1"
        ) -> Any:
            """
            @param reactor: a reactor of any kind.
            @param factory: the factory that listens.
            @param port: the port's number.
            @param interface: the interface's address.
            @return: a listening port.
            """
            found = socket.getaddrinfo(interface or None, port, type=socket.SOCK_STREAM)[-1]
            made = socket.socket(found[0])
            self.addCleanup(made.close)
            made.bind(found[4])
            made.listen()
            return self.adopt(reactor, factory, made)

    class UNIXPortTestsBuilder(
        Adopting,
        test_unix.SocketUNIXMixin,
        test_unix.UNIXPortTestsMixin,
        ReactorBuilder,
        test_tcp.StreamTransportTestsMixin,
    ):
        """Twisted's own tests for UNIX ports."""

        def getListeningPort(self, reactor: Any, factory: Any) -> Any:
            """
            @param reactor: a reactor of any kind.
            @param factory: the factory that listens.
            @return: a listening port.
            """
            return self.adopt(reactor, factory, self.listening(socket.AF_UNIX))

    globals().update(TCPPortTestsBuilder.makeTestCaseClasses())
    globals().update(UNIXPortTestsBuilder.makeTestCaseClasses())
else:

    class TwistedPortTests(SynchronousTestCase):
        """Stands in for Twisted's own tests where they cannot be imported."""

        skip = "Twisted's tests for ports need PyHamcrest"

        def test_ports(self) -> None:
            """Ports do what Twisted expects of them."""
