"""
Tests for the private parts of other packages that fastpoetry relies on.

They run with each supported Twisted and Python: here with the newest, and with those of a Debian
when its package is built there (C{tests/system/test_package.py}).
"""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from fakes import LONG, FakeTransport, Reactor, countDescriptors, makeFolder
from twisted.application.internet import StreamServerEndpointService
from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    _WrapperServerEndpoint,
    serverFromString,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import fastpoetry
from fastpoetry.delivery.sockets import ignoreInput

PACKAGE = Path(fastpoetry.__file__).parent

NAMED = {
    "_accept": "delivery/fastport.py",
    "_buildAddr": "delivery/fastport.py",
    "_tlsConnection": "delivery/sockets.py",
    "_shouldShutdown": "delivery/sockets.py",
    "dataBuffer": "protocol.py",
    "_tempDataLen": "protocol.py",
    "twisted.protocols.haproxy._v1parser": "delivery/haproxy.py",
    "twisted.protocols.haproxy._v2parser": "delivery/haproxy.py",
    "twisted.protocols.haproxy._wrapper": "delivery/haproxy.py",
    "_parser": "delivery/haproxy.py",
    "_proxyInfo": "delivery/haproxy.py",
    "_fromListeningDescriptor": "systemd/adopted.py",
    "_getLogPrefix": "systemd/adopted.py",
    "_preexistingSocket": "systemd/adopted.py",
    "_reservedFD": "systemd/adopted.py",
    "_waitingForPort": "systemd/starting.py",
    "_stopped": "systemd/signals.py",
    "_run_exitfuncs": "systemd/starting.py",
    "twisted.internet.endpoints._WrapperServerEndpoint": "command/preflight.py",
    "_wrappedEndpoint": "command/preflight.py",
    "_port": "command/preflight.py",
    "_interface": "command/preflight.py",
    "_address": "command/preflight.py",
}
"""The private parts of others, and the one module that uses each."""

PUBLIC = {"_fields", "_exit"}  # public in spite of their underscore: a named tuple's, and os's

_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 10000\r\n"


def findPrivate(source: str) -> Iterator[str]:
    """
    @return: the private names of other packages in a module: its imports, and attributes of
        anything but C{self} and C{cls}.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            isOwn = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if _isPrivate(node.attr) and not isOwn:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if any(map(_isPrivate, node.module.split("."))):
                yield node.module
            else:
                yield from (f"{node.module}.{a.name}" for a in node.names if _isPrivate(a.name))
        elif isinstance(node, ast.Import):
            for each in node.names:
                if any(map(_isPrivate, each.name.split("."))):
                    yield each.name


def _isPrivate(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


class NamedTests(SynchronousTestCase):
    """Tests that list the private parts."""

    def setUp(self) -> None:
        self.sources = {
            path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
            for path in PACKAGE.rglob("*.py")
        }

    def test_find(self) -> None:
        """Every way to use a private name is found."""
        found = findPrivate(
            "import a._b, c\n"
            "from _d.e import f\n"
            "from g import _h, i\n"
            "from .j import _k\n"
            "l = self._m._n + cls._o + p.q()._r + s.__t__\n"
        )
        self.assertEqual(sorted(found), ["_d.e", "_n", "_r", "a._b", "g._h"])

    def test_known(self) -> None:
        """No module relies on a private part that has no test here."""
        for module, source in self.sources.items():
            for name in findPrivate(source):
                self.assertEqual(NAMED.get(name), module, f"{name} is not {module}'s to know")

    def test_used(self) -> None:
        """Each private part tested here is used."""
        for name, module in NAMED.items():
            self.assertIn(name.rpartition(".")[2], self.sources[module])


class Keeper(Protocol):
    """A protocol that remembers the bytes it received."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """Store the bytes."""
        self.received.append(data)


class KeeperFactory(Factory):
    """A factory that remembers its protocols."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Keeper] = []

    def buildProtocol(self, addr: object) -> Keeper:
        """Make and store a protocol."""
        self.made.append(Keeper())
        return self.made[-1]


class TLSTests(SynchronousTestCase):
    """Tests for Twisted's TLS."""

    def test_input(self) -> None:
        """
        If TLS is told to ignore its client, it does not answer the client's end, even if it is in
        the middle of reading.
        """
        try:
            from twisted.internet.ssl import KeyPair
            from twisted.protocols.tls import TLSMemoryBIOFactory
        except ImportError as why:
            raise SkipTest(str(why)) from why
        certificate = KeyPair.generate(size=2048).selfSignedCert(1, CN="poems")
        factory = TLSMemoryBIOFactory(certificate.options(), False, KeeperFactory())
        tls: Any = factory.buildProtocol(None)
        transport = FakeTransport()
        tls.makeConnection(transport)
        self.flushWarnings()  # Twisted uses functions that pyOpenSSL will remove
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(received, sent)

        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        tls.dataReceived(sent.read())
        received.write(transport.value())
        transport.clear()
        client.do_handshake()
        client.write(b"header")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()
        tls.wrappedProtocol.dataReceived = lambda _: ignoreInput(tls, lambda: None)
        tls.dataReceived(sent.read())
        received.write(transport.value())
        transport.clear()
        tls.write(b"poem")
        tls.loseConnection()
        self.assertEqual(transport.did, [])
        received.write(transport.value())
        self.assertEqual(client.read(), b"poem")


class SocketTests(SynchronousTestCase):
    """Tests for Python's sockets, and for Twisted's ports and transports on real ones."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.factory = KeeperFactory()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listening.close)
        self.listening.setblocking(False)

    def connect(self) -> socket.socket:
        """@return: a client."""
        client = socket.create_connection(self.listening.getsockname())
        self.addCleanup(client.close)
        return client

    def listen(self) -> Any:
        """@return: a port of Twisted on that socket."""
        number = self.listening.fileno()
        port: Any = tcp.Port._fromListeningDescriptor(
            self.reactor, number, socket.AF_INET, self.factory
        )
        port.startListening()
        self.addCleanup(port.connectionLost, Failure(ConnectionDone()))
        return port

    def transport(self) -> tuple[Any, socket.socket]:
        """@return: a transport of Twisted, and the client at its other end."""
        port, client = self.listen(), self.connect()
        port.doRead()
        (keeper,) = self.factory.made
        transport: Any = keeper.transport
        self.addCleanup(transport.connectionLost, Failure(ConnectionDone()))
        return transport, client

    def test_accept(self) -> None:
        """
        C{socket.socket._accept} returns a descriptor that child programs do not inherit, and the
        client's address; with an empty backlog it raises an error.
        """
        client = self.connect()
        raw: Any = self.listening
        number, address = raw._accept()
        self.addCleanup(os.close, number)
        self.assertEqual(address, client.getsockname())
        self.assertFalse(os.get_inheritable(number))
        self.assertRaises(BlockingIOError, raw._accept)

    def test_transport(self) -> None:
        """
        A port makes an accepted connection's address with C{_buildAddr}, and its transport with
        C{transport}, which takes the port's C{sessionno} and C{reactor}.
        """
        port, client = self.listen(), self.connect()
        connection, address = self.listening.accept()
        self.assertEqual(port._buildAddr(address), IPv4Address("TCP", *client.getsockname()))
        protocol = self.factory.buildProtocol(None)
        transport = port.transport(
            connection, protocol, address, port, port.sessionno, port.reactor
        )
        self.addCleanup(transport.connectionLost, Failure(ConnectionDone()))
        self.assertIs(transport.getHandle(), connection)
        self.assertEqual(transport.getPeer(), IPv4Address("TCP", *client.getsockname()))
        self.assertIn(transport, self.reactor.getReaders())

    def test_dataBuffer(self) -> None:
        """
        C{dataBuffer} after C{offset}, and C{_tempDataLen} bytes more, are what a transport has not
        handed to the system.
        """
        transport, client = self.transport()
        client.setblocking(False)
        handed: list[int] = []
        hand = transport.writeSomeData

        def count(data: bytes) -> Any:
            done = hand(data)
            handed.append(done)
            return done

        transport.writeSomeData = count

        def countUnwritten() -> int:
            return len(transport.dataBuffer) - int(transport.offset) + int(transport._tempDataLen)

        transport.write(LONG.text)
        self.assertEqual(countUnwritten(), len(LONG.text))
        transport.doWrite()
        self.assertGreater(countUnwritten(), 0)
        while sum(handed) < len(LONG.text):
            self.assertEqual(countUnwritten(), len(LONG.text) - sum(handed))
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 20)
            transport.doWrite()
        self.assertEqual(countUnwritten(), 0)


class UNIXPortTests(SynchronousTestCase):
    """Tests for the parts that L{fastpoetry.systemd.adopted} uses in place of a UNIX port."""

    def setUp(self) -> None:
        self.path = os.path.join(makeFolder(self), "s")
        self.listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.listening.close)
        self.listening.bind(self.path)
        self.listening.listen()
        self.factory = KeeperFactory()
        unixPort: Any = unix.Port
        self.port = unixPort._fromListeningDescriptor(
            Reactor(), self.listening.fileno(), self.factory
        )

    def test_preexistingSocket(self) -> None:
        """A port made from a descriptor does not listen yet, and has its own socket on it."""
        self.assertTrue(IListeningPort.providedBy(self.port))
        self.assertFalse(self.port.connected)
        own = self.port._preexistingSocket
        self.addCleanup(own.close)
        self.assertEqual(own.getsockname(), self.path)
        self.assertNotEqual(own.fileno(), self.listening.fileno())

    def test_logPrefix(self) -> None:
        """A port's log prefix names its factory."""
        self.addCleanup(self.port._preexistingSocket.close)
        self.assertEqual(self.port._getLogPrefix(self.factory), "KeeperFactory")

    def test_shouldShutdown(self) -> None:
        """
        C{_shouldShutdown} says whether a port shuts down its socket for all processes that share
        it.
        """
        self.assertIs(unix.Port._shouldShutdown, True)
        for shouldShutdown in (False, True):
            unixPort: Any = unix.Port
            port = unixPort._fromListeningDescriptor(
                Reactor(), self.listening.fileno(), self.factory
            )
            port._shouldShutdown = shouldShutdown
            port.socket = port._preexistingSocket
            port._closeSocket(True)
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                self.assertEqual(client.connect_ex(self.path) != 0, shouldShutdown)
        self.port._preexistingSocket.close()

    def test_shouldShutdownConnection(self) -> None:
        """A connection has C{_shouldShutdown} too: without it, its socket is only closed."""
        for shouldShutdown in (False, True):
            ours, theirs = socket.socketpair()
            with theirs, socket.socket(fileno=os.dup(ours.fileno())):
                connection: Any = tcp.Server.__new__(tcp.Server)
                connection.socket, connection._shouldShutdown = ours, shouldShutdown
                connection._closeSocket(True)
                theirs.setblocking(False)
                if shouldShutdown:
                    self.assertEqual(theirs.recv(1), b"")
                else:
                    self.assertRaises(BlockingIOError, theirs.recv, 1)

    def test_reservedFD(self) -> None:
        """Twisted reserves one descriptor for the case that all are in use, once it is told to."""
        self.addCleanup(self.port._preexistingSocket.close)
        reserved: Any = tcp._reservedFD
        reserved.reserve()
        before = countDescriptors()
        reserved.reserve()
        self.assertEqual(countDescriptors(), before)
        with reserved:
            self.assertEqual(countDescriptors(), before - 1)
        self.assertEqual(countDescriptors(), before)


class EndpointTests(SynchronousTestCase):
    """Tests for the parts that L{fastpoetry.command.preflight} reads."""

    def endpoint(self, description: str) -> Any:
        """@return: Twisted's endpoint for the description."""
        return serverFromString(Reactor(), description)

    def test_port(self) -> None:
        """TCP endpoints have their port and interface."""
        for endpoint in (
            self.endpoint("tcp:17:interface=127.0.0.1"),
            self.endpoint("tcp6:17:interface=127.0.0.1"),
            SSL4ServerEndpoint(Reactor(), 17, None, interface="127.0.0.1"),
        ):
            self.assertEqual((endpoint._port, endpoint._interface), (17, "127.0.0.1"))

    def test_address(self) -> None:
        """UNIX endpoints have their path."""
        self.assertEqual(self.endpoint("unix:/run/x")._address, "/run/x")

    def test_wrapped(self) -> None:
        """Endpoints behind a PROXY header have the endpoint that they wrap."""
        endpoint = self.endpoint("haproxy:tcp:17")
        self.assertIsInstance(endpoint, _WrapperServerEndpoint)
        self.assertEqual(endpoint._wrappedEndpoint._port, 17)


class HAProxyTests(SynchronousTestCase):
    """Tests for the parts that L{fastpoetry.delivery.haproxy} extends."""

    def setUp(self) -> None:
        self.keepers = KeeperFactory()
        self.factory = HAProxyWrappingFactory(self.keepers)
        self.transport = FakeTransport(IPv4Address("TCP", "198.51.100.1", 1))
        wrapper = self.factory.buildProtocol(IPv4Address("TCP", "198.51.100.1", 1))
        assert isinstance(wrapper, HAProxyProtocolWrapper)
        self.wrapper: Any = wrapper
        self.wrapper.makeConnection(self.transport)

    def test_beginnings(self) -> None:
        """The parsers have the beginnings of both versions' headers."""
        self.assertEqual(V1Parser.PROXYSTR, b"PROXY")
        self.assertEqual(V2Parser.PREFIX, b"\r\n\r\n\0\r\nQUIT\n")

    def test_wrapping(self) -> None:
        """The factory has the factory that it wraps, and the class of its protocols."""
        self.assertIs(self.factory.wrappedFactory, self.keepers)
        self.assertIs(self.factory.protocol, HAProxyProtocolWrapper)
        self.assertEqual(list(self.factory.protocols), [self.wrapper])

    def test_header(self) -> None:
        """
        C{_parser} is set from the first piece of a header, C{_proxyInfo} from its last; then the
        peer is the client.
        """
        self.assertEqual((self.wrapper._parser, self.wrapper._proxyInfo), (None, None))
        self.wrapper.dataReceived(_HEADER[:20])
        self.assertIsNotNone(self.wrapper._parser)
        self.assertIsNone(self.wrapper._proxyInfo)
        self.wrapper.dataReceived(_HEADER[20:])
        self.assertIsNotNone(self.wrapper._proxyInfo)
        self.assertEqual(self.wrapper.getPeer(), IPv4Address("TCP", "192.0.2.7", 40000))

    def test_noHeader(self) -> None:
        """An invalid header ends the connection."""
        self.wrapper.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
        self.assertIsNone(self.wrapper._proxyInfo)
        self.assertTrue(self.wrapper.disconnecting)
        self.assertEqual(self.transport.did, ["loseConnection"])


class StartTests(SynchronousTestCase):
    """
    Tests for the parts that tell whether a program has started, and those that end a program that
    has not.
    """

    def test_listening(self) -> None:
        """
        An endpoint service keeps a Deferred that fires with its port, or with L{None} if it cannot
        listen.
        """
        for listening, port in ((succeed(1), 1), (fail(OSError()), None)):
            endpoint: Any = Endpoint(listening)
            service: Any = StreamServerEndpointService(endpoint, Factory())
            self.assertIsNone(service._waitingForPort)
            service.privilegedStartService()
            self.assertEqual(self.successResultOf(service._waitingForPort), port)
        self.flushLoggedErrors(OSError)

    def test_stopped(self) -> None:
        """A reactor knows at once that it was told to stop."""
        reactor: Any = SelectReactor()
        seen: list[bool] = []

        def stop() -> None:
            seen.append(reactor._stopped)
            reactor.stop()
            seen.append(reactor._stopped)

        reactor.callWhenRunning(stop)
        reactor.run(installSignalHandlers=False)
        self.assertEqual(seen, [False, True])

    def test_exit(self) -> None:
        """Functions registered for the exit can be run before it."""
        code = (
            "import atexit, os\n"
            "atexit.register(print, 'others', flush=True)\n"
            "atexit._run_exitfuncs()\n"
            "os._exit(3)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (3, "others\n"))


class Endpoint:
    """An endpoint with a given outcome."""

    def __init__(self, listening: Deferred[Any]) -> None:
        self._listening = listening

    def listen(self, factory: object) -> Deferred[Any]:
        """Return that outcome."""
        return self._listening
