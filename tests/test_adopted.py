"""
Tests for L{fastpoetry.systemd.adopted}, on real sockets.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import Any

from passing import Greeter, Passing, endpointOn, fetch, inherit
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import Factory
from twisted.internet.test import test_endpoints
from twisted.internet.testing import MemoryReactor
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from fastpoetry.systemd import adopted
from fastpoetry.systemd.adopted import AdoptedParser, AdoptError

FACTORY: Any = Factory()


class EndpointTests(Passing, test_endpoints.ServerEndpointTestCaseMixin, SynchronousTestCase):
    """
    Twisted's own tests for server endpoints, and those of the sockets it is given.
    """

    def createServerEndpoint(self, reactor: Any, serverFactory: Any, **connectArgs: Any) -> Any:
        """
        @param reactor: A fake.
        @param serverFactory: What listens.
        @param connectArgs: None.
        @return: An endpoint, what its reactor shall be asked, and the address the reactor answers.
        """
        made = self.listening()
        asked = (made.fileno(), socket.AF_INET, serverFactory)
        return endpointOn(reactor, made), asked, IPv4Address("TCP", "0.0.0.0", 1234)

    def expectedServers(self, reactor: Any) -> Any:
        """
        @param reactor: A fake.
        @return: What it was asked.
        """
        return reactor.adoptedPorts

    def listenArgs(self) -> dict[str, Any]:
        """
        @return: Nothing can be asked of an adopted socket.
        """
        return {}

    def test_portInterface(self) -> None:
        """
        What listens provides L{IListeningPort}.
        """
        endpoint = endpointOn(MemoryReactor(), self.listening())
        verifyObject(IListeningPort, self.successResultOf(endpoint.listen(FACTORY)))

    def test_endpointInterface(self) -> None:
        """
        The endpoint tells which sockets it has.
        """
        made = self.listening()
        endpoint = endpointOn(MemoryReactor(), made)
        verifyObject(IStreamServerEndpoint, endpoint)
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(
            [str(each) for each in endpoint.descriptors], [f"{made.fileno()} 'a' {where}"]
        )

    def test_families(self) -> None:
        """
        Each socket is adopted under its own family.
        """
        reactor = MemoryReactor()
        passed = [self.listening(family) for family in (socket.AF_INET6, socket.AF_INET)]
        port: Any = self.successResultOf(endpointOn(reactor, *passed).listen(FACTORY))
        self.assertEqual(
            [asked[:2] for asked in reactor.adoptedPorts],
            [(each.fileno(), each.family) for each in passed],
        )
        self.assertEqual(len(port.ports), 2)

    def test_notBlocking(self) -> None:
        """
        A socket does not block once it is listened on.
        """
        made = self.listening()
        endpointOn(MemoryReactor(), made).listen(FACTORY)
        self.assertFalse(os.get_blocking(made.fileno()))

    def test_allOrNone(self) -> None:
        """
        If one socket cannot be listened on, none is.
        """

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
    """
    Tests for L{AdoptedParser}.
    """

    def parse(self, *args: str, **kwargs: str) -> list[str]:
        """
        @param args: The values of a description.
        @param kwargs: Its named values.
        @return: The names of the sockets of the endpoint.
        """
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        self.patch(adopted, "inherited", lambda: found)
        endpoint = AdoptedParser().parseStreamServer(MemoryReactor(), *args, **kwargs)
        return [each.name for each in endpoint.descriptors]

    def test_interface(self) -> None:
        """
        The parser is a plugin for L{twisted.internet.endpoints.serverFromString}.
        """
        verifyObject(IPlugin, AdoptedParser())
        verifyObject(IStreamServerEndpointStringParser, AdoptedParser())

    def test_bare(self) -> None:
        """
        C{adopted} takes every socket.
        """
        self.assertEqual(self.parse(), ["a", "b"])

    def test_colon(self) -> None:
        """
        C{adopted:} takes every socket.
        """
        self.assertEqual(self.parse(""), ["a", "b"])

    def test_name(self) -> None:
        """
        C{adopted:name=b} takes those of that name.
        """
        self.assertEqual(self.parse(name="b"), ["b"])

    def test_emptyName(self) -> None:
        """
        C{adopted:name=} is a name, not the lack of one.
        """
        with self.assertRaises(AdoptError) as caught:
            self.parse(name="")
        self.assertIn("adopted:name=: no passed descriptor has that name", str(caught.exception))

    def test_positional(self) -> None:
        """
        A value without a name is refused.
        """
        with self.assertRaises(AdoptError) as caught:
            self.parse("b")
        self.assertEqual(str(caught.exception), "adopted:b: takes name=NAME or nothing")

    def test_otherArgument(self) -> None:
        """
        Any other named value is refused.
        """
        with self.assertRaises(AdoptError) as caught:
            self.parse(name="b", backlog="5\n")
        self.assertEqual(
            str(caught.exception), r"adopted:name=b:backlog=5\n: takes name=NAME or nothing"
        )


class PortTests(Passing, TestCase):
    """
    Tests for L{adopted.AdoptedPort} on a real reactor.
    """

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = reactor
        self.factory: Any = Factory.forProtocol(Greeter)

    async def fetch(self, made: Any) -> bytes:
        """
        @param made: A listening socket.
        @return: What it says to one who connects.
        """
        from twisted.internet.threads import deferToThread

        return await deferToThread(fetch, made.family, made.getsockname())

    async def serve(self, *passed: Any) -> list[bytes]:
        """
        Listen, connect twice to each socket, and stop.

        @param passed: Listening sockets.
        @return: What was said.
        """
        port: Any = await endpointOn(self.reactor, *passed).listen(self.factory)
        said = [await self.fetch(each) for each in (*passed, *passed)]
        await port.stopListening()
        return said

    def test_serve(self) -> Deferred[None]:
        """
        Sockets of all families are listened on together.
        """

        async def serve() -> None:
            families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
            said = await self.serve(*map(self.listening, families))
            self.assertEqual(said, [b"hello"] * 6)

        return Deferred.fromCoroutine(serve())

    def test_firstHost(self) -> Deferred[None]:
        """
        The address is that of the first socket; each port has its own.
        """

        async def listen() -> None:
            a, b = self.listening(socket.AF_UNIX), self.listening()
            port: Any = await endpointOn(self.reactor, a, b).listen(self.factory)
            hosts = [each.getHost() for each in port.ports]
            await port.stopListening()
            self.assertEqual(hosts[0], UNIXAddress(os.fsencode(a.getsockname())))
            self.assertEqual((hosts[1].host, hosts[1].port), b.getsockname())

        return Deferred.fromCoroutine(listen())

    def test_modeAndPathStay(self) -> Deferred[None]:
        """
        The file of a UNIX socket is the same afterwards, with the mode that it had.
        """

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
        """
        As many clients can wait at a UNIX socket as before, since it is still listening.
        """

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
        """
        As many clients can wait at a TCP socket as before, since it is still listening.
        """

        async def serve() -> None:
            made = self.listening(backlog=3)
            await self.serve(made)
            info = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            # tcp(7): of a listening socket, tcpi_state is TCP_LISTEN and tcpi_sacked the backlog.
            self.assertEqual((info[0], *struct.unpack_from("I", info, 28)), (10, 3))

        return Deferred.fromCoroutine(serve())

    def test_factory(self) -> Deferred[None]:
        """
        The factory starts with the first socket and stops with the last.
        """

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

    def test_again(self) -> Deferred[None]:
        """
        A service that was stopped can be started again, on all its sockets.
        """

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
        """
        A port that was stopped can be started again.
        """

        async def serve() -> None:
            passed = [self.listening(socket.AF_UNIX), self.listening()]
            port: Any = await endpointOn(self.reactor, *passed).listen(self.factory)
            await port.stopListening()
            self.assertEqual(port.ports, ())
            port.startListening()
            self.assertEqual([await self.fetch(each) for each in passed], [b"hello"] * 2)
            await port.stopListening()

        return Deferred.fromCoroutine(serve())
