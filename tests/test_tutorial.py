"""
Tests for who comes from the Twisted introduction: what its part 15 tests of its own server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import LONG, awaited, makeFolder, write
from processes import (
    findFreePort,
)
from twisted.application.internet import TCPServer
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from fastpoetry.listen import PoetryListener
from fastpoetry.protocol import PoetryFactory
from fastpoetry.service import PoetryService


class Client(Protocol):
    """
    A client as the text's own: it has the poem when the connection ends.

    @ivar ended: fires with what came, or fails if that was no clean end.
    """

    def __init__(self) -> None:
        self._poem = b""
        self.ended: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """
        Keep a piece of the poem.
        """
        self._poem += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """
        That was all.
        """
        if reason.check(ConnectionDone):
            self.ended.callback(self._poem)
        else:
            self.ended.errback(reason)


class RealReactorTests(TestCase):
    """
    What the text tests of its own server, and what else is to be had of ours on the reactor that
    runs. Trial sees to it that no timer is left in there; that no socket is, each test's end does.
    """

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.folder = makeFolder(self)
        self.poem = Path(write(self.folder, "x.txt", b"Our hands were firmly cemented\n"))
        self.service = PoetryService(self.poem)
        self.top = MultiService()
        self.service.setServiceParent(self.top)
        self.factory = PoetryFactory(self.service)

    def listen(self, endpoint: Any) -> PoetryListener:
        """
        Start a listener of ours.
        """
        listener = PoetryListener(endpoint, self.factory, self.reactor)
        listener.setServiceParent(self.top)
        self.start()
        return listener

    def addressesOf(self, listener: PoetryListener) -> tuple[Any, ...]:
        """
        @return: where a listener listens, be it TCP or UNIX.
        """
        return listener.addresses

    def start(self) -> None:
        """
        Start as twistd does.
        """
        self.top.privilegedStartService()
        self.top.startService()

    async def stop(self) -> None:
        """
        Stop, and see that nothing is left.
        """
        await self.top.stopService()
        self.assertNothingLeft()

    def assertNothingLeft(self) -> None:
        """
        See that the reactor has nothing but what it needs itself.
        """
        self.assertEqual(self.reactor.removeAll(), [])

    async def fetch(self, endpoint: IStreamClientEndpoint) -> bytes:
        """
        @return: what a client gets.
        """
        client: Client = await connectProtocol(endpoint, Client())
        return await client.ended

    def tcp(self, port: int) -> IStreamClientEndpoint:
        """
        @return: where to connect.
        """
        return TCP4ClientEndpoint(self.reactor, "127.0.0.1", port)

    @awaited
    async def test_poem(self) -> None:
        """
        A client of a port with our factory gets the poem.
        """
        self.start()
        port = self.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.assertEqual(await self.fetch(self.tcp(port.getHost().port)), self.poem.read_bytes())
        await port.stopListening()
        self.assertNothingLeft()

    @awaited
    async def test_nobodyThere(self) -> None:
        """
        Where the port is closed again, a client is refused.
        """
        self.start()
        port = self.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        with self.assertRaises(ConnectError):
            await self.fetch(self.tcp(number))
        self.assertNothingLeft()

    @awaited
    async def test_TCPServer(self) -> None:
        """
        So it is with the text's services.
        """
        number = findFreePort()
        TCPServer(number, self.factory, interface="127.0.0.1").setServiceParent(self.top)
        self.start()
        self.assertEqual(await self.fetch(self.tcp(number)), self.poem.read_bytes())
        self.assertEqual(self.factory.policy.ledger.counts.poems, 1)
        await self.stop()

    @awaited
    async def test_listener(self) -> None:
        """
        A listener of ours says where it listens, and lets go of it when it stops.
        """
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        (address,) = self.addressesOf(listener)
        self.assertEqual(await self.fetch(self.tcp(address.port)), self.poem.read_bytes())
        await self.stop()
        self.assertEqual(listener.addresses, ())
        with self.assertRaises(ConnectError):
            await self.fetch(self.tcp(address.port))

    @awaited
    async def test_UNIX(self) -> None:
        """
        So it does on a UNIX socket.
        """
        path = f"{self.folder}/s"
        self.listen(UNIXServerEndpoint(self.reactor, path))
        poem = await self.fetch(UNIXClientEndpoint(self.reactor, path))
        self.assertEqual(poem, self.poem.read_bytes())
        await self.stop()
        self.assertFalse(Path(path).exists())

    @awaited
    async def test_underWay(self) -> None:
        """
        A stop of it waits for who is in the middle of a poem.
        """
        self.poem.write_bytes(LONG.text)
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        (address,) = self.addressesOf(listener)
        reader = await connectProtocol(self.tcp(address.port), Client())
        stopped = self.top.stopService()
        self.assertNoResult(stopped)
        self.assertEqual(await reader.ended, LONG.text)
        await stopped
        self.assertNothingLeft()

    @awaited
    async def test_again(self) -> None:
        """
        What was stopped can be started again.
        """
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        for _ in range(2):
            (address,) = self.addressesOf(listener)
            self.assertEqual(await self.fetch(self.tcp(address.port)), self.poem.read_bytes())
            await self.stop()
            self.start()
        await self.stop()
