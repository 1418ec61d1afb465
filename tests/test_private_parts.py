"""
Tests of what other packages keep to themselves, and fastpoetry relies on all the same.

They run with each supported Twisted and Python: here with the newest, and with those of a Debian
when its package is built there (C{tests/system/test_package.py}).
"""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

PACKAGE = Path(fastpoetry.__file__).parent

NAMED = {
    "_accept": "delivery/fastport.py",
    "_buildAddr": "delivery/fastport.py",
    "_shouldShutdown": "delivery/sockets.py",
    "dataBuffer": "protocol.py",
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
"""What is private to others, and the one module that knows it."""

PUBLIC = {"_fields", "_exit"}  # a named tuple's and os's, and documented

_HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 10000\r\n"


def findPrivate(source: str) -> Iterator[str]:
    """
    @return: the private names of others that a module says: attributes of anything but C{self} and
        C{cls}, and what it imports.
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
    """Tests for where private parts are named."""

    def setUp(self) -> None:
        self.sources = {
            path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
            for path in PACKAGE.rglob("*.py")
        }

    def test_find(self) -> None:
        """Every way to say one is found."""
        found = findPrivate(
            "import a._b, c\n"
            "from _d.e import f\n"
            "from g import _h, i\n"
            "from .j import _k\n"
            "l = self._m._n + cls._o + p.q()._r + s.__t__\n"
        )
        self.assertEqual(sorted(found), ["_d.e", "_n", "_r", "a._b", "g._h"])

    def test_known(self) -> None:
        """No module relies on a private part that is not among those that are tested here."""
        for module, source in self.sources.items():
            for name in findPrivate(source):
                self.assertEqual(NAMED.get(name), module, f"{name} is not {module}'s to know")

    def test_used(self) -> None:
        """What is tested here is relied on."""
        for name, module in NAMED.items():
            self.assertIn(name.rpartition(".")[2], self.sources[module])


class Keeper(Protocol):
    """A protocol that remembers what was done with it."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """Remember it."""
        self.received.append(data)


class KeeperFactory(Factory):
    """A factory that remembers its protocols."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Keeper] = []

    def buildProtocol(self, addr: object) -> Keeper:
        """Make one more."""
        self.made.append(Keeper())
        return self.made[-1]


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
        """@return: a port of Twisted's on that socket."""
        number = self.listening.fileno()
        port: Any = tcp.Port._fromListeningDescriptor(
            self.reactor, number, socket.AF_INET, self.factory
        )
        port.startListening()
        self.addCleanup(port.connectionLost, Failure(ConnectionDone()))
        return port

    def transport(self) -> tuple[Any, socket.socket]:
        """@return: a transport of Twisted's, and the client at its other end."""
        port, client = self.listen(), self.connect()
        port.doRead()
        (keeper,) = self.factory.made
        transport: Any = keeper.transport
        self.addCleanup(transport.connectionLost, Failure(ConnectionDone()))
        return transport, client

    def test_accept(self) -> None:
        """
        C{socket.socket._accept} gives a descriptor that no other program inherits, and the address
        of the client; and an error where nobody waits.
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
        A port makes an address of an accepted connection's with C{_buildAddr}, and a transport with
        C{transport}, which it gives its own C{sessionno} and C{reactor}.
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
        C{dataBuffer} has all that a transport has not handed to the system, and perhaps more; it is
        empty when that is nothing.
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
        transport.write(LONG.text)
        transport.doWrite()
        self.assertGreater(len(transport.dataBuffer), 0)
        while sum(handed) < len(LONG.text):
            self.assertLessEqual(len(LONG.text) - len(transport.dataBuffer), sum(handed))
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 20)
            transport.doWrite()
        self.assertEqual(len(transport.dataBuffer), 0)


class UNIXPortTests(SynchronousTestCase):
    """Tests for what L{fastpoetry.systemd.adopted} does in the place of a UNIX port."""

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
        """
        A port from a descriptor is a port that does not listen yet, and has a socket of its own on
        it.
        """
        self.assertTrue(IListeningPort.providedBy(self.port))
        self.assertFalse(self.port.connected)
        own = self.port._preexistingSocket
        self.addCleanup(own.close)
        self.assertEqual(own.getsockname(), self.path)
        self.assertNotEqual(own.fileno(), self.listening.fileno())

    def test_logPrefix(self) -> None:
        """A port says how its factory is called in the log."""
        self.addCleanup(self.port._preexistingSocket.close)
        self.assertEqual(self.port._getLogPrefix(self.factory), "KeeperFactory")

    def test_shouldShutdown(self) -> None:
        """C{_shouldShutdown} says whether a port ends its socket for everybody else who has it."""
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
        """A connection has C{_shouldShutdown} too: without it, its socket is closed and no more."""
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
        """Twisted keeps one descriptor for the case that there is none left, once it is told to."""
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
    """Tests for what L{fastpoetry.command.preflight} looks into."""

    def endpoint(self, description: str) -> Any:
        """@return: what Twisted makes of it."""
        return serverFromString(Reactor(), description)

    def test_port(self) -> None:
        """Endpoints on TCP have their port and their interface."""
        for endpoint in (
            self.endpoint("tcp:17:interface=127.0.0.1"),
            self.endpoint("tcp6:17:interface=127.0.0.1"),
            SSL4ServerEndpoint(Reactor(), 17, None, interface="127.0.0.1"),
        ):
            self.assertEqual((endpoint._port, endpoint._interface), (17, "127.0.0.1"))

    def test_address(self) -> None:
        """Those on UNIX sockets have their path."""
        self.assertEqual(self.endpoint("unix:/run/x")._address, "/run/x")

    def test_wrapped(self) -> None:
        """Those behind a PROXY header have what they wrap."""
        endpoint = self.endpoint("haproxy:tcp:17")
        self.assertIsInstance(endpoint, _WrapperServerEndpoint)
        self.assertEqual(endpoint._wrappedEndpoint._port, 17)


class HAProxyTests(SynchronousTestCase):
    """Tests for what L{fastpoetry.delivery.haproxy} adds to."""

    def setUp(self) -> None:
        self.keepers = KeeperFactory()
        self.factory = HAProxyWrappingFactory(self.keepers)
        self.transport = FakeTransport(IPv4Address("TCP", "198.51.100.1", 1))
        wrapper = self.factory.buildProtocol(IPv4Address("TCP", "198.51.100.1", 1))
        assert isinstance(wrapper, HAProxyProtocolWrapper)
        self.wrapper: Any = wrapper
        self.wrapper.makeConnection(self.transport)

    def test_beginnings(self) -> None:
        """The parsers say how the headers of both versions begin."""
        self.assertEqual(V1Parser.PROXYSTR, b"PROXY")
        self.assertEqual(V2Parser.PREFIX, b"\r\n\r\n\0\r\nQUIT\n")

    def test_wrapping(self) -> None:
        """The factory has the one that it wraps, and says what makes its protocols."""
        self.assertIs(self.factory.wrappedFactory, self.keepers)
        self.assertIs(self.factory.protocol, HAProxyProtocolWrapper)
        self.assertEqual(list(self.factory.protocols), [self.wrapper])

    def test_header(self) -> None:
        """
        C{_parser} is there from the first piece of a header, C{_proxyInfo} from its last; then the
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
        """What is no header ends the connection."""
        self.wrapper.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
        self.assertIsNone(self.wrapper._proxyInfo)
        self.assertTrue(self.wrapper.disconnecting)
        self.assertEqual(self.transport.did, ["loseConnection"])


class StartTests(SynchronousTestCase):
    """Tests for what tells whether a program has started, and for what ends it if it has not."""

    def test_listening(self) -> None:
        """
        An endpoint service keeps what fires with its port, or with nothing when it cannot listen.
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
        """What is registered for the exit can be run before."""
        code = (
            "import atexit, os\n"
            "atexit.register(print, 'others', flush=True)\n"
            "atexit._run_exitfuncs()\n"
            "os._exit(3)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (3, "others\n"))


class Endpoint:
    """Listens as it is told."""

    def __init__(self, listening: Deferred[Any]) -> None:
        self._listening = listening

    def listen(self, factory: object) -> Deferred[Any]:
        """Do so."""
        return self._listening
