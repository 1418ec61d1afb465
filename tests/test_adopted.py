"""Tests for L{fastpoetry.systemd.adopted}, on real sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import Any
from unittest import mock

from fakes import receiveAll
from passing import Greeter, Passing, endpointOn, fetch, inherit
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.test import test_endpoints
from twisted.internet.testing import MemoryReactor
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from fastpoetry.systemd import adopted
from fastpoetry.systemd.adopted import (
    AdoptedDatagrams,
    AdoptedEndpoint,
    AdoptedParser,
    AdoptError,
    Inherited,
    adoptConnection,
    detachConnection,
)

FACTORY: Any = Factory()


class EndpointTests(Passing, test_endpoints.ServerEndpointTestCaseMixin, SynchronousTestCase):
    """
    Twisted's own tests for server endpoints, and tests for the sockets that this endpoint gets.
    """

    def createServerEndpoint(self, reactor: Any, serverFactory: Any, **connectArgs: Any) -> Any:
        """
        @param reactor: a fake.
        @param serverFactory: the factory that listens.
        @param connectArgs: empty.
        @return: an endpoint, the expected calls of its reactor, and the address that the reactor
            returns.
        """
        made = self.listening()
        asked = (made.fileno(), socket.AF_INET, serverFactory)
        return endpointOn(reactor, made), asked, IPv4Address("TCP", "0.0.0.0", 1234)

    def expectedServers(self, reactor: Any) -> Any:
        """
        @param reactor: a fake.
        @return: the calls it received.
        """
        return reactor.adoptedPorts

    def listenArgs(self) -> dict[str, Any]:
        """@return: empty: an adopted socket takes no arguments."""
        return {}

    def test_portInterface(self) -> None:
        """The listening object provides L{IListeningPort}."""
        endpoint = endpointOn(MemoryReactor(), self.listening())
        verifyObject(IListeningPort, self.successResultOf(endpoint.listen(FACTORY)))

    def test_endpointInterface(self) -> None:
        """The endpoint's text names its sockets."""
        made = self.listening()
        endpoint = endpointOn(MemoryReactor(), made)
        verifyObject(IStreamServerEndpoint, endpoint)
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(
            [str(each) for each in endpoint.descriptors], [f"{made.fileno()} 'a' {where}"]
        )

    def test_families(self) -> None:
        """Each socket is adopted with its own address family."""
        reactor = MemoryReactor()
        passed = [self.listening(family) for family in (socket.AF_INET6, socket.AF_INET)]
        port: Any = self.successResultOf(endpointOn(reactor, *passed).listen(FACTORY))
        self.assertEqual(
            [asked[:2] for asked in reactor.adoptedPorts],
            [(each.fileno(), each.family) for each in passed],
        )
        self.assertEqual(len(port.ports), 2)

    def test_notBlocking(self) -> None:
        """A socket is non-blocking once it listens."""
        made = self.listening()
        endpointOn(MemoryReactor(), made).listen(FACTORY)
        self.assertFalse(os.get_blocking(made.fileno()))

    def test_allOrNone(self) -> None:
        """If one socket cannot listen, no socket does."""

        class Reactor(MemoryReactor):
            def adoptStreamPort(self, number: int, family: Any, factory: Any) -> Any:
                if self.adoptedPorts:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self.adoptedPorts.append((number, family, factory))
                return self

            def stopListening(self) -> None:
                self.hasStopped = True

        reactor = Reactor()
        endpoint = endpointOn(reactor, self.listening(), self.listening())
        self.failureResultOf(endpoint.listen(FACTORY), OSError)
        self.assertTrue(reactor.hasStopped)


class ParserTests(Passing, SynchronousTestCase):
    """Tests for L{AdoptedParser}."""

    def parse(self, *args: str, **kwargs: str) -> list[str]:
        """
        @param args: the positional values of a description.
        @param kwargs: its named values.
        @return: the names of the endpoint's sockets.
        """
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        self.patch(adopted, "inherited", lambda: found)
        endpoint = AdoptedParser().parseStreamServer(MemoryReactor(), *args, **kwargs)
        return [each.name for each in endpoint.descriptors]

    def test_interface(self) -> None:
        """The parser is a plugin for L{twisted.internet.endpoints.serverFromString}."""
        verifyObject(IPlugin, AdoptedParser())
        verifyObject(IStreamServerEndpointStringParser, AdoptedParser())

    def test_bare(self) -> None:
        """C{adopted} takes every socket."""
        self.assertEqual(self.parse(), ["a", "b"])

    def test_colon(self) -> None:
        """C{adopted:} takes every socket."""
        self.assertEqual(self.parse(""), ["a", "b"])

    def test_name(self) -> None:
        """C{adopted:name=b} takes the sockets of that name."""
        self.assertEqual(self.parse(name="b"), ["b"])

    def test_emptyName(self) -> None:
        """C{adopted:name=} takes sockets whose name is empty."""
        with self.assertRaises(AdoptError) as caught:
            self.parse(name="")
        self.assertIn("adopted:name=: no passed descriptor has that name", str(caught.exception))

    def test_else(self) -> None:
        """C{else=} names another endpoint, used only where no socket was passed."""
        reactor = MemoryReactor()
        nothing = Inherited({}, {}, dict)
        self.patch(adopted, "inherited", lambda: nothing)
        endpoint = serverFromString(reactor, r"adopted:name=www:else=tcp\:8080")
        self.successResultOf(endpoint.listen(FACTORY))
        self.assertEqual(reactor.tcpServers[0][0], 8080)
        self.assertEqual(self.parse(**{"name": "b", "else": "tcp:8080"}), ["b"])

    def test_elseNotForUs(self) -> None:
        """
        Sockets passed to another process or under another name are refused even with C{else=}.
        """
        environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a"}
        others = Inherited(environ, {}, dict)
        self.patch(adopted, "inherited", lambda: others)
        parse = AdoptedParser().parseStreamServer
        with self.assertRaises(AdoptError):
            parse(MemoryReactor(), **{"else": "tcp:8080"})
        with self.assertRaises(AdoptError):
            self.parse(**{"name": "c", "else": "tcp:8080"})

    def test_positional(self) -> None:
        """A value without a name is refused."""
        with self.assertRaises(AdoptError) as caught:
            self.parse("b")
        self.assertEqual(
            str(caught.exception),
            r"adopted:b: takes name=NAME, else=ENDPOINT (\: for a colon), or nothing",
        )

    def test_otherArgument(self) -> None:
        """Any other named value is refused."""
        with self.assertRaises(AdoptError) as caught:
            self.parse(name="b", backlog="5\n")
        self.assertEqual(
            str(caught.exception),
            r"adopted:name=b:backlog=5\n: "
            r"takes name=NAME, else=ENDPOINT (\: for a colon), or nothing",
        )


class PortTests(Passing, TestCase):
    """Tests for L{adopted.AdoptedPort} on a real reactor."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        self.factory: Any = Factory.forProtocol(Greeter)

    async def fetch(self, made: Any) -> bytes:
        """
        @param made: a listening socket.
        @return: the text that a client receives from it.
        """
        from twisted.internet.threads import deferToThread

        return await deferToThread(fetch, made.family, made.getsockname())

    async def serve(self, *passed: Any) -> list[bytes]:
        """
        Listen, connect twice to each socket, and stop.

        @param passed: listening sockets.
        @return: the texts received.
        """
        port: Any = await endpointOn(self.reactor, *passed).listen(self.factory)
        said = [await self.fetch(each) for each in (*passed, *passed)]
        await port.stopListening()
        return said

    def test_serve(self) -> Deferred[None]:
        """Sockets of all families are listened on together."""

        async def serve() -> None:
            families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
            said = await self.serve(*map(self.listening, families))
            self.assertEqual(said, [b"hello"] * 6)

        return Deferred.fromCoroutine(serve())

    def test_firstHost(self) -> Deferred[None]:
        """The address is the first socket's; each port has its own."""

        async def listen() -> None:
            a, b = self.listening(socket.AF_UNIX), self.listening()
            port: Any = await endpointOn(self.reactor, a, b).listen(self.factory)
            hosts = [each.getHost() for each in port.ports]
            await port.stopListening()
            self.assertEqual(hosts[0], UNIXAddress(os.fsencode(a.getsockname())))
            self.assertEqual((hosts[1].host, hosts[1].port), b.getsockname())

        return Deferred.fromCoroutine(listen())

    def test_modeAndPathStay(self) -> Deferred[None]:
        """The file of a UNIX socket stays, with its mode."""

        async def serve() -> None:
            made = self.listening(socket.AF_UNIX)
            os.chmod(made.getsockname(), 0o640)
            before = os.stat(made.getsockname())
            await self.serve(made)
            after = os.stat(made.getsockname())
            self.assertEqual((before.st_ino, before.st_mode), (after.st_ino, after.st_mode))
            self.assertEqual(stat.S_IMODE(after.st_mode), 0o640)

        return Deferred.fromCoroutine(serve())

    def test_unixBacklogStays(self) -> Deferred[None]:
        """A UNIX socket that keeps listening keeps its backlog."""

        async def serve() -> None:
            made = self.listening(socket.AF_UNIX, backlog=3)
            await self.serve(made)
            waiting = 0
            with self.assertRaises(BlockingIOError):
                while True:
                    client = socket.socket(socket.AF_UNIX)
                    self.addCleanup(client.close)
                    client.setblocking(False)
                    client.connect(made.getsockname())
                    waiting += 1
            self.assertEqual(waiting, 3 + 1)

        return Deferred.fromCoroutine(serve())

    def test_tcpBacklogStays(self) -> Deferred[None]:
        """A TCP socket that keeps listening keeps its backlog."""

        async def serve() -> None:
            made = self.listening(backlog=3)
            await self.serve(made)
            info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            # tcp(7): for a listening socket, tcpi_state is TCP_LISTEN and tcpi_sacked is the
            # backlog.
            self.assertEqual((info[0], *struct.unpack_from("I", info, 28)), (10, 3))

        return Deferred.fromCoroutine(serve())

    def test_factory(self) -> Deferred[None]:
        """The factory starts with the first socket and stops with the last."""

        async def serve() -> None:
            events = []
            self.factory.startFactory = lambda: events.append("start")
            self.factory.stopFactory = lambda: events.append("stop")
            passed = self.listening(socket.AF_UNIX), self.listening(socket.AF_UNIX)
            port: Any = await endpointOn(self.reactor, *passed).listen(self.factory)
            self.assertEqual((events, self.factory.numPorts), (["start"], 2))
            await port.stopListening()
            self.assertEqual(events, ["start", "stop"])

        return Deferred.fromCoroutine(serve())

    def test_otherFactory(self) -> Deferred[None]:
        """A factory that replaces another one stays when the port starts again."""

        async def serve() -> None:
            port: Any = await endpointOn(self.reactor, self.listening()).listen(self.factory)
            others = [Factory.forProtocol(Protocol) for _ in range(2)]
            port.factory = others[0]
            await port.stopListening()
            port.startListening()
            self.assertIs(port.ports[0].factory, others[0])
            await port.stopListening()
            port.factory = others[1]
            port.startListening()
            self.assertIs(port.ports[0].factory, others[1])
            await port.stopListening()

        return Deferred.fromCoroutine(serve())

    def test_again(self) -> Deferred[None]:
        """A stopped service can be started again, on all its sockets."""

        async def serve() -> None:
            passed = [self.listening(socket.AF_UNIX), self.listening()]
            service = StreamServerEndpointService(endpointOn(self.reactor, *passed), self.factory)
            for _ in range(2):
                service.privilegedStartService()
                service.startService()
                for each in passed:
                    self.assertEqual(await self.fetch(each), b"hello")
                await service.stopService()

        return Deferred.fromCoroutine(serve())

    def test_portAgain(self) -> Deferred[None]:
        """A stopped port can be started again."""

        async def serve() -> None:
            passed = [self.listening(socket.AF_UNIX), self.listening()]
            port: Any = await endpointOn(self.reactor, *passed).listen(self.factory)
            await port.stopListening()
            self.assertEqual(port.ports, ())
            port.startListening()
            self.assertEqual([await self.fetch(each) for each in passed], [b"hello"] * 2)
            await port.stopListening()

        return Deferred.fromCoroutine(serve())

    def test_startedTwice(self) -> Deferred[None]:
        """
        Starting a listening port again changes nothing; it gives its socket back when it stops.
        """

        async def serve() -> None:
            found = inherit((self.listening(), "a"))
            endpoint = AdoptedEndpoint(self.reactor, found.claim("a"), found)
            port: Any = await endpoint.listen(self.factory)
            before = port.ports
            port.startListening()
            self.assertEqual(port.ports, before)
            await port.stopListening()
            self.assertEqual(len(found.claim("a")), 1)

        return Deferred.fromCoroutine(serve())

    def test_givenBack(self) -> Deferred[None]:
        """
        A stopped port's socket is free for another endpoint, and the first endpoint no longer has
        it.
        """

        async def serve() -> None:
            made = self.listening()
            found = inherit((made, "a"))
            first = AdoptedEndpoint(self.reactor, found.claim("a"), found)
            port: Any = await first.listen(self.factory)
            self.assertRaises(AdoptError, found.claim, "a")
            await port.stopListening()
            second = AdoptedEndpoint(self.reactor, found.claim("a"), found)
            other: Any = await second.listen(self.factory)
            self.assertEqual(await self.fetch(made), b"hello")
            self.assertRaises(AdoptError, port.startListening)
            with self.assertRaises(AdoptError):
                await first.listen(self.factory)
            await other.stopListening()
            await port.stopListening()
            self.assertEqual(len(found.claim("a")), 1)

        return Deferred.fromCoroutine(serve())

    def test_lastPort(self) -> Deferred[None]:
        """Two ports of one endpoint hold its socket until both have stopped."""

        async def serve() -> None:
            found = inherit((self.listening(), "a"))
            endpoint = AdoptedEndpoint(self.reactor, found.claim("a"), found)
            ports: Any = [await endpoint.listen(self.factory) for _ in range(2)]
            await ports[0].stopListening()
            self.assertRaises(AdoptError, found.claim, "a")
            await ports[1].stopListening()
            self.assertEqual(len(found.claim("a")), 1)

        return Deferred.fromCoroutine(serve())

    def test_stoppedHost(self) -> Deferred[None]:
        """A stopped port that is asked for its address says that it has stopped."""

        async def serve() -> None:
            port: Any = await endpointOn(self.reactor, self.listening()).listen(self.factory)
            port.getHost()
            await port.stopListening()
            why = self.assertRaises(RuntimeError, port.getHost)
            self.assertIn("does not listen", str(why))

        return Deferred.fromCoroutine(serve())


class Echo(DatagramProtocol):
    """Sends back what it receives, in upper case."""

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        transport: Any = self.transport
        transport.write(datagram.upper(), addr)


class DatagramTests(Passing, TestCase):
    """Tests for L{AdoptedDatagrams} on a real reactor."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor

    async def ask(self, made: Any) -> bytes:
        """@return: the answer that a socket sends to a question."""
        from twisted.internet.threads import deferToThread

        with self.bound(made.family, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.sendto(b"hello", made.getsockname())
            answer, _ = await deferToThread(client.recvfrom, 100)
            return bytes(answer)

    def test_families(self) -> Deferred[None]:
        """
        Sockets of all families are served together and repeatedly; systemd passes them in blocking
        mode.
        """

        async def serve() -> None:
            passed = [
                self.bound(family, socket.SOCK_DGRAM)
                for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
            ]
            found = inherit(*((each, "dns") for each in passed))
            claim = found.claim("dns", socket.SOCK_DGRAM)
            port = AdoptedDatagrams(self.reactor, claim, found).listen(Echo)
            verifyObject(IListeningPort, port)
            for _ in range(2):
                for each in passed:
                    self.assertEqual(await self.ask(each), b"HELLO")
                self.assertEqual(port.getHost(), UNIXAddress(os.fsencode(passed[0].getsockname())))
                await port.stopListening()
                port.startListening()
            await port.stopListening()
            self.assertEqual(len(found.claim("dns", socket.SOCK_DGRAM)), 3)
            self.assertTrue(os.path.exists(passed[0].getsockname()))

        return Deferred.fromCoroutine(serve())


class ConnectionTests(Passing, TestCase):
    """Tests for connections that are passed."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        self.factory: Any = Factory.forProtocol(Greeter)

    def connection(self, family: int = socket.AF_INET) -> tuple[Any, Any]:
        """@return: a client and the connection that it made."""
        listening = self.listening(family)
        client = socket.socket(family)
        self.addCleanup(client.close)
        client.settimeout(60)
        client.connect(listening.getsockname())
        return client, listening.accept()[0]

    def test_adopt(self) -> Deferred[None]:
        """A passed connection is served to its end like an accepted one."""
        from twisted.internet.threads import deferToThread

        async def serve() -> None:
            for family in (socket.AF_INET, socket.AF_UNIX):
                client, passed = self.connection(family)
                adoptConnection(self.reactor, passed.detach(), self.factory)
                self.assertEqual(await deferToThread(receiveAll, client), b"hello")

        return Deferred.fromCoroutine(serve())

    def test_noConnection(self) -> None:
        """A descriptor that is not a connection is an error, and is closed."""
        for number in (self.bound().detach(), os.memfd_create("state")):
            self.assertRaises(OSError, adoptConnection, self.reactor, number, self.factory)
            self.assertRaises(OSError, os.fstat, number)

    def test_cannotDetach(self) -> Deferred[None]:
        """A connection that cannot be detached goes on as before."""

        async def serve() -> None:
            client, passed = self.connection()
            received: Deferred[bytes] = Deferred()
            protocol: Any = Protocol()
            protocol.dataReceived = received.callback
            factory: Any = Factory.forProtocol(lambda: protocol)
            transport = adoptConnection(self.reactor, passed.detach(), factory)
            with mock.patch("os.dup", side_effect=OSError(errno.EMFILE, "")):
                self.assertRaises(OSError, detachConnection, transport)
            client.send(b"x")
            self.assertEqual(await received, b"x")
            transport.abortConnection()

        return Deferred.fromCoroutine(serve())

    def test_detach(self) -> Deferred[None]:
        """A detached connection outlives its transport and can be adopted again."""
        from twisted.internet.threads import deferToThread

        async def serve() -> None:
            client, passed = self.connection()
            lost: Deferred[None] = Deferred()
            quiet: Any = Protocol()
            quiet.connectionLost = lambda reason: lost.callback(None)
            factory: Any = Factory()
            factory.buildProtocol = lambda _: quiet
            transport = adoptConnection(self.reactor, passed.detach(), factory)
            number = detachConnection(transport)
            transport.abortConnection()
            await lost
            adoptConnection(self.reactor, number, self.factory)
            self.assertEqual(await deferToThread(receiveAll, client), b"hello")

        return Deferred.fromCoroutine(serve())
