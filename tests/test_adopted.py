"""
Tests for L{fastpoetry.systemd.adopted}.

The rules are tested in this process, on real sockets passed by a fake libsystemd. The protocol of
sd_listen_fds(3), which is about the start of a process, is tested on processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis.strategies import characters, text
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.test import test_endpoints
from twisted.internet.test.reactormixins import ReactorBuilder
from twisted.internet.testing import MemoryReactor
from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from fastpoetry.systemd import adopted
from fastpoetry.systemd.adopted import AdoptedEndpoint, AdoptedParser, AdoptError, Inherited

_ROOT = str(Path(adopted.__file__).parents[2])


class Passing:
    """
    Mixed into a test case: sockets to pass, and a short path for what has one.
    """

    def folder(self: Any) -> Path:
        """
        @return: A folder that is gone when the test ends. Its path is short enough for a socket's.
        """
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        return Path(path)

    def bound(self: Any, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Any:
        """
        @param family: The address family.
        @param kind: The type of the socket.
        @return: A socket bound to an address of its own.
        """
        made = socket.socket(family, kind)
        self.addCleanup(made.close)
        free: dict[int, Any] = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
        try:
            made.bind(free.get(family) or str(self.folder() / "s"))
        except OSError as error:
            raise SkipTest(f"cannot bind a socket of family {family}: {error}") from error
        return made

    def listening(self: Any, family: int = socket.AF_INET, backlog: int = 7) -> Any:
        """
        @param family: The address family.
        @param backlog: What listen(2) is told.
        @return: A listening stream socket, blocking as systemd passes it.
        """
        made = self.bound(family)
        made.listen(backlog)
        return made


class Libsystemd:
    """
    C{listen_fds_with_names} over a dictionary and any descriptors.
    """

    def __init__(self, environ: dict[str, str], numbers: list[int]) -> None:
        self.environ = environ
        self.numbers = numbers

    def __call__(self) -> dict[int, str]:
        if self.environ.get("LISTEN_PID") != str(os.getpid()):
            return {}
        names = self.environ["LISTEN_FDNAMES"].split(":")
        if not int(self.environ["LISTEN_FDS"]) == len(names) == len(self.numbers):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return dict(zip(self.numbers, names, strict=True))


def inherit(*passed: tuple[Any, str]) -> Inherited:
    """
    @param passed: Files, each with a name.
    @return: What a process finds that was passed those.
    """
    return Inherited({}, {}, lambda: {file.fileno(): name for file, name in passed})


def told(count: int, names: str, pid: int | None = None) -> dict[str, str]:
    """
    @param count: How many descriptors.
    @param names: Their names.
    @param pid: Whose they are; L{None} for this process.
    @return: The variables that say so.
    """
    pid = pid or os.getpid()
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}


class EnvironmentTests(Passing, SynchronousTestCase):
    """
    Tests for what L{Inherited} reads.
    """

    def inherit(self, environ: dict[str, str], initial: dict[str, str], count: int) -> Inherited:
        """
        @param environ: The environment.
        @param initial: That of the beginning.
        @param count: How many listening sockets are really there.
        @return: What a process finds.
        """
        numbers = [self.listening().fileno() for _ in range(count)]
        return Inherited(environ, initial, Libsystemd(environ, numbers))

    def test_environment(self) -> None:
        """
        Descriptors are those that the environment tells of, in their order.
        """
        found = self.inherit(told(2, "b:a"), {}, 2)
        self.assertEqual([each.name for each in found.descriptors], ["b", "a"])

    def test_variablesRemoved(self) -> None:
        """
        The variables of the protocol are removed, and no others.
        """
        environ = {**told(1, "a"), "LISTEN_PIDFDID": "1", "LISTEN_ADDRESS": "::", "HOME": "/"}
        self.inherit(environ, {}, 1)
        self.assertEqual(environ, {"LISTEN_ADDRESS": "::", "HOME": "/"})

    def test_variablesRemovedAtRefusal(self) -> None:
        """
        The variables are removed even if they contradict each other.
        """
        environ = told(1, "a:b")
        self.inherit(environ, {}, 1)
        self.assertEqual(environ, {})

    def test_consumed(self) -> None:
        """
        What was removed from the environment is taken from that of the beginning.
        """
        environ = {"LISTEN_FDNAMES": "a"}
        found = self.inherit(environ, told(1, "a"), 1)
        self.assertEqual([each.name for each in found.descriptors], ["a"])
        self.assertEqual(environ, {})

    def test_environmentFirst(self) -> None:
        """
        What the environment says now counts for more than what it said in the beginning.
        """
        found = self.inherit(told(1, "now"), told(1, "then"), 1)
        self.assertEqual([each.name for each in found.descriptors], ["now"])

    def test_nothing(self) -> None:
        """
        Where nothing is passed, the refusal says who should.
        """
        with self.assertRaises(AdoptError) as caught:
            self.inherit({}, {}, 0).claim("a")
        self.assertEqual(
            str(caught.exception),
            "adopted:name=a: no descriptor was passed: "
            "a .socket unit or systemd-socket-activate must pass one",
        )

    def test_leftNames(self) -> None:
        """
        Names alone, as Twisted leaves them to its children, are nothing passed.
        """
        with self.assertRaises(AdoptError) as caught:
            self.inherit({"LISTEN_FDNAMES": "a"}, {}, 0).claim()
        self.assertIn("adopted: no descriptor was passed", str(caught.exception))

    def test_otherProcess(self) -> None:
        """
        What is passed to another process is refused with both process IDs.
        """
        with self.assertRaises(AdoptError) as caught:
            self.inherit(told(1, "a", pid=os.getpid() + 1), {}, 1).claim("a")
        self.assertEqual(
            str(caught.exception),
            f"adopted:name=a: LISTEN_PID='{os.getpid() + 1}' LISTEN_FDS='1' LISTEN_FDNAMES='a' "
            f"is for another process, this is {os.getpid()}",
        )

    def test_countDiffers(self) -> None:
        """
        More names than descriptors are refused with both.
        """
        with self.assertRaises(AdoptError) as caught:
            self.inherit(told(1, "a:b"), {}, 1).claim("a")
        self.assertEqual(
            str(caught.exception),
            "adopted:name=a: count, names and open descriptors do not agree: "
            f"LISTEN_PID='{os.getpid()}' LISTEN_FDS='1' LISTEN_FDNAMES='a:b'",
        )


class ClaimTests(Passing, SynchronousTestCase):
    """
    Tests for L{Inherited.claim}.
    """

    def refused(self, found: Inherited, name: str | None = None) -> str:
        """
        @param found: What was passed.
        @param name: What is claimed.
        @return: The refusal.
        """
        with self.assertRaises(AdoptError) as caught:
            found.claim(name)
        return str(caught.exception)

    def test_everything(self) -> None:
        """
        Without a name, every socket is given out.
        """
        a, b = self.listening(), self.listening()
        given = inherit((a, "a"), (b, "b")).claim()
        self.assertEqual([each.number for each in given], [a.fileno(), b.fileno()])

    def test_oneName(self) -> None:
        """
        With a name, every socket of that name is given out, of whatever family.
        """
        families = [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6]
        passed = [(self.listening(family), "a") for family in families]
        given = inherit(*passed, (self.listening(), "b")).claim("a")
        self.assertEqual([each.family for each in given], families)

    def test_severalNames(self) -> None:
        """
        Two names are two claims.
        """
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        given = [found.claim("b"), found.claim("a")]
        self.assertEqual([[each.name for each in claim] for claim in given], [["b"], ["a"]])

    def test_once(self) -> None:
        """
        A socket is given out once.
        """
        a = self.listening()
        found = inherit((a, "a"))
        found.claim("a")
        self.assertEqual(
            self.refused(found, "a"),
            "adopted:name=a: given out already; "
            f"passed: {a.fileno()} 'a' AF_INET 127.0.0.1:{a.getsockname()[1]}",
        )

    def test_rest(self) -> None:
        """
        Without a name, what is left is given out, until nothing is.
        """
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        found.claim("a")
        self.assertEqual([each.name for each in found.claim()], ["b"])
        self.assertIn("adopted: given out already; passed: ", self.refused(found))

    def test_unknownName(self) -> None:
        """
        A name that nothing has is refused with what there is.
        """
        a, b, c = self.listening(), self.listening(socket.AF_INET6), self.listening(socket.AF_UNIX)
        self.assertEqual(
            self.refused(inherit((a, "science"), (b, "science"), (c, "x")), "ecstasy"),
            "adopted:name=ecstasy: no passed descriptor has that name; passed: "
            f"{a.fileno()} 'science' AF_INET 127.0.0.1:{a.getsockname()[1]}, "
            f"{b.fileno()} 'science' AF_INET6 [::1]:{b.getsockname()[1]}, "
            f"{c.fileno()} 'x' AF_UNIX '{c.getsockname()}'",
        )

    def test_abstract(self) -> None:
        """
        A UNIX socket without a file is listening like any other.
        """
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind("")
        made.listen()
        (given,) = inherit((made, "a")).claim()
        self.assertEqual(given.nature, f"AF_UNIX {made.getsockname()!r}")

    def wrong(self, file: Any) -> str:
        """
        @param file: Something that cannot be adopted, beside a socket that can.
        @return: How the refusal describes it.
        """
        found = inherit((self.listening(), "a"), (file, "b"))
        prefix = "adopted:name=b: only listening stream sockets can be adopted; passed: "
        line = self.refused(found, "b")
        self.assertTrue(line.startswith(prefix), line)
        self.assertIn("adopted: only listening stream sockets", self.refused(found))
        self.assertEqual(len(found.claim("a")), 1)
        return line.partition(f", {file.fileno()} 'b' ")[2]

    def test_datagram(self) -> None:
        """
        A datagram socket is refused as one.
        """
        made = self.bound(kind=socket.SOCK_DGRAM)
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(self.wrong(made), f"{where} is a datagram socket")

    def test_sequentialPackets(self) -> None:
        """
        A listening socket that is no stream is refused.
        """
        made = self.bound(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.listen()
        self.assertEqual(self.wrong(made), f"AF_UNIX {made.getsockname()!r} is not a stream socket")

    def test_notListening(self) -> None:
        """
        A stream socket that does not listen is refused.
        """
        made = self.bound()
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(self.wrong(made), f"{where} is not listening")

    def test_connected(self) -> None:
        """
        A connection, as C{Accept=yes} passes it, is refused.
        """
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.assertEqual(self.wrong(ours), "AF_UNIX '' is not listening")

    def test_file(self) -> None:
        """
        A file is refused as one.
        """
        file = (self.folder() / "file").open("w")
        self.addCleanup(file.close)
        self.assertEqual(self.wrong(file), "is a file")

    def test_fifo(self) -> None:
        """
        A FIFO is refused as one.
        """
        path = self.folder() / "fifo"
        os.mkfifo(path)
        file = os.fdopen(os.open(path, os.O_RDWR))
        self.addCleanup(file.close)
        self.assertEqual(self.wrong(file), "is a FIFO")

    def test_otherFamily(self) -> None:
        """
        A listening stream socket of a family that Twisted does not know is refused.
        """
        self.patch(adopted, "_FAMILIES", {socket.AF_UNIX: "{!r}"})
        made = self.listening(socket.AF_INET)
        with self.assertRaises(AdoptError) as caught:
            inherit((made, "a")).claim()
        self.assertIn(
            f" AF_INET {made.getsockname()!r} is of a family that Twisted does not serve",
            str(caught.exception),
        )

    def test_hostilePath(self) -> None:
        """
        A socket's path cannot make a second line.
        """
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(os.fsencode(self.folder()) + b"/\n\x1b[2J\xff")
        made.listen()
        line = self.refused(inherit((made, "a")), "b")
        self.assertTrue(line.isprintable())
        self.assertIn(r"/\n\x1b[2J\udcff'", line)

    @given(text(characters()), text(characters()))
    def test_hostileNames(self, passed: str, wanted: str) -> None:
        """
        Whatever names hold, the refusal is one printable line.
        """
        with socket.create_server(("127.0.0.1", 0)) as made:
            found = inherit((made, passed))
            found.claim()
            self.assertTrue(self.refused(found, wanted).isprintable())


class Greeter(Protocol):
    """
    Says hello and goodbye.
    """

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(b"hello")
        transport.loseConnection()


def endpointOn(reactor: Any, *passed: Any) -> AdoptedEndpoint:
    """
    @param reactor: What it shall listen with.
    @param passed: Listening sockets.
    @return: An endpoint on them.
    """
    return AdoptedEndpoint(reactor, inherit(*((file, "a") for file in passed)).claim("a"))


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


def fetch(family: int, address: Any) -> bytes:
    """
    @param family: An address family.
    @param address: Where a server listens.
    @return: All that the server says.
    """
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)
        return b"".join(iter(lambda: client.recv(4096), b""))


class Adopting(Passing):
    """
    Mixed into Twisted's tests for listening ports: the port under test is an adopted one.
    """

    _reactors: Any = (
        "twisted.internet.epollreactor.EPollReactor",
        "twisted.internet.selectreactor.SelectReactor",
    )

    def adopt(self: Any, reactor: Any, factory: Any, made: Any) -> Any:
        """
        @param reactor: A reactor of any kind.
        @param factory: What listens.
        @param made: A listening socket.
        @return: The port on it.
        """
        port = self.successResultOf(endpointOn(reactor, made).listen(factory))
        return port.ports[0]


if find_spec("hamcrest"):
    with warnings.catch_warnings():
        # Twisted 22.4 deprecates what its own tests import.
        warnings.simplefilter("ignore", DeprecationWarning)
        from twisted.internet.test import test_tcp, test_unix

    class TCPPortTestsBuilder(
        Adopting,
        ReactorBuilder,
        test_tcp.ConnectToTCPListenerMixin,
        test_tcp.TCPPortTestsMixin,
        test_tcp.StreamTransportTestsMixin,
    ):
        """
        Twisted's own tests for TCP ports.
        """

        # These need an interface with a link-local address, which a container may not have.
        test_portGetHostOnIPv6ScopeID: Any = None
        test_buildProtocolIPv6AddressScopeID: Any = None
        test_serverGetHostOnIPv6ScopeID: Any = None
        test_serverGetPeerOnIPv6ScopeID: Any = None

        def getListeningPort(
            self: Any, reactor: Any, factory: Any, port: int = 0, interface: str = "127.0.0.1"
        ) -> Any:
            """
            @param reactor: A reactor of any kind.
            @param factory: What listens.
            @param port: Where to listen.
            @param interface: Where to listen.
            @return: A port.
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
        """
        Twisted's own tests for UNIX ports.
        """

        def getListeningPort(self, reactor: Any, factory: Any) -> Any:
            """
            @param reactor: A reactor of any kind.
            @param factory: What listens.
            @return: A port.
            """
            return self.adopt(reactor, factory, self.listening(socket.AF_UNIX))

    globals().update(TCPPortTestsBuilder.makeTestCaseClasses())
    globals().update(UNIXPortTestsBuilder.makeTestCaseClasses())
else:

    class TwistedPortTests(SynchronousTestCase):
        """
        Twisted's own tests for ports, where they cannot be imported.
        """

        skip = "Twisted's tests for ports need PyHamcrest"

        def test_ports(self) -> None:
            """
            Ports do what Twisted expects of them.
            """


# What systemd does: put the descriptors from 3 on, say so, and become the program.
LAUNCHER = """
import json, os, sys
numbers, variables, program = json.loads(sys.argv[1])
for index, number in enumerate(numbers):
    os.dup2(number, 100 + index, inheritable=False)
    os.close(number)
for index in range(len(numbers)):
    os.dup2(100 + index, 3 + index)
os.environ.update({"LISTEN_PID": str(os.getpid()), **variables})
os.execv(program[0], program)
"""

# A service that adopts what its arguments name, and forks then if one of them is "fork". Its first
# line says what it adopted and what a child process of its own inherits.
PROGRAM = """
import json, os, subprocess, sys
if "endpoints" in sys.argv:
    import twisted.internet.endpoints
from fastpoetry.systemd.adopted import AdoptedParser
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

class Greeter(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
        self.transport.loseConnection()

names = [{"name": argument[5:]} for argument in sys.argv if argument.startswith("name=")]
endpoints = [AdoptedParser().parseStreamServer(reactor, **name) for name in names or [{}]]
if "fork" in sys.argv:
    child = os.fork()
    if child:
        os._exit(os.waitpid(child, 0)[1])
import twisted.internet.endpoints
for endpoint in endpoints:
    endpoint.listen(Factory.forProtocol(Greeter))
look = ["sh", "-c", "ls -l /proc/self/fd; env"]
child = subprocess.run(look, stdout=subprocess.PIPE, close_fds=False).stdout.decode()
adopted = [str(each) for endpoint in endpoints for each in endpoint.descriptors]
reactor.callWhenRunning(print, json.dumps([os.getpid(), adopted, child]), flush=True)
reactor.run()
"""


class ProcessTests(Passing, SynchronousTestCase):
    """
    Tests for a process that is passed descriptors.
    """

    def start(self, command: list[str], numbers: list[int]) -> Any:
        """
        @param command: A program and its arguments.
        @param numbers: The descriptors that it inherits.
        @return: The process.
        """
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=numbers,
            env={**os.environ, "PYTHONPATH": _ROOT, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.addCleanup(process.communicate, timeout=10)
        self.addCleanup(process.kill)
        return process

    def launch(self, passed: list[Any], *arguments: str, **variables: str) -> Any:
        """
        @param passed: What L{PROGRAM} is passed.
        @param arguments: Its arguments.
        @param variables: Those of the protocol that differ from the rule.
        @return: The process.
        """
        numbers = [each.fileno() for each in passed]
        variables = {"LISTEN_FDS": str(len(passed)), **variables}
        program = [sys.executable, "-c", PROGRAM, *arguments]
        given = json.dumps([numbers, variables, program])
        return self.start([sys.executable, "-c", LAUNCHER, given], numbers)

    def serving(self, process: Any) -> tuple[list[str], str]:
        """
        @param process: A process that was launched.
        @return: The descriptors that it adopted, and what a child process of its own inherits.
        """
        line = process.stdout.readline()
        if not line:
            self.fail(process.communicate(timeout=10)[1])
        pid, descriptors, child = json.loads(line)
        self.addCleanup(self.end, pid)
        return descriptors, child

    def end(self, pid: int) -> None:
        """
        @param pid: A process that may have ended already.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def refusal(self, process: Any) -> str:
        """
        @param process: A process that was launched.
        @return: The line that it ended with.
        """
        out, err = process.communicate(timeout=10)
        self.assertEqual((process.returncode, out, err.count("\n")), (1, "", 1), err)
        return str(err)

    def test_families(self) -> None:
        """
        UNIX, INET and INET6 sockets of one name are listened on together, time and again.
        """
        families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        passed = [self.listening(family) for family in families]
        descriptors, _ = self.serving(self.launch(passed, "name=a", LISTEN_FDNAMES="a:a:a"))
        self.assertEqual(
            [each.split()[2] for each in descriptors], ["AF_UNIX", "AF_INET", "AF_INET6"]
        )
        said = [fetch(each.family, each.getsockname()) for each in passed * 3]
        self.assertEqual(said, [b"hello"] * 9)

    def test_names(self) -> None:
        """
        Each of two endpoints has the socket of its own name.
        """
        passed = [self.listening(), self.listening()]
        process = self.launch(passed, "name=b", "name=a", LISTEN_FDNAMES="a:b")
        descriptors, _ = self.serving(process)
        self.assertEqual([each[:5] for each in descriptors], ["4 'b'", "3 'a'"])

    def test_withoutNames(self) -> None:
        """
        Where no names are passed, each is C{unknown}.
        """
        descriptors, _ = self.serving(self.launch([self.listening()]))
        self.assertEqual(descriptors[0][:11], "3 'unknown'")

    def test_endpointsImported(self) -> None:
        """
        It does not matter that L{twisted.internet.endpoints} removed variables before.
        """
        made = self.listening()
        process = self.launch([made], "endpoints", "name=a", LISTEN_FDNAMES="a")
        self.serving(process)
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_fork(self) -> None:
        """
        A process may fork between the claim and listening, as twistd does.
        """
        made = self.listening()
        self.serving(self.launch([made], "fork", "name=a", LISTEN_FDNAMES="a"))
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_childInheritsNothing(self) -> None:
        """
        A child process has neither the sockets, those not claimed included, nor the variables.
        """
        passed = [self.listening(), self.listening()]
        _, child = self.serving(self.launch(passed, "name=a", LISTEN_FDNAMES="a:b"))
        self.assertNotIn("socket:", child)
        self.assertNotIn("LISTEN_", child)

    def test_end(self) -> None:
        """
        When the process has ended, the socket is as it was for who else holds it.
        """
        made = self.listening(socket.AF_UNIX)
        os.chmod(made.getsockname(), 0o600)
        process = self.launch([made])
        self.serving(process)
        process.terminate()
        process.wait(timeout=10)
        self.assertEqual(stat.S_IMODE(os.stat(made.getsockname()).st_mode), 0o600)
        self.serving(self.launch([made]))
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_nothing(self) -> None:
        """
        A refusal that nobody catches is one line and exit status 1.
        """
        self.assertEqual(
            self.refusal(self.start([sys.executable, "-c", PROGRAM, "name=a"], [])),
            "adopted:name=a: no descriptor was passed: "
            "a .socket unit or systemd-socket-activate must pass one\n",
        )

    def test_otherProcess(self) -> None:
        """
        What is passed to another process is refused.
        """
        process = self.launch([self.listening()], LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="a")
        self.assertEqual(
            self.refusal(process),
            f"adopted: LISTEN_PID='{os.getpid()}' LISTEN_FDS='1' LISTEN_FDNAMES='a' "
            f"is for another process, this is {process.pid}\n",
        )

    def test_contradictions(self) -> None:
        """
        A count that differs from the names or is none, a closed descriptor and a name that is not
        UTF-8 are refused.
        """
        for variables in (
            {"LISTEN_FDNAMES": "a:b"},
            {"LISTEN_FDS": "x"},
            {"LISTEN_FDS": "40"},
            {"LISTEN_FDNAMES": "\udcff"},
        ):
            process = self.launch([self.listening()], "endpoints", **variables)
            ((key, value),) = variables.items()
            line = self.refusal(process)
            self.assertIn("adopted: count, names and open descriptors do not agree: ", line)
            self.assertIn(f"{key}={value!r}", line)

    def test_otherThings(self) -> None:
        """
        What is no listening stream socket is refused, and described.
        """
        ours, theirs = os.pipe()
        self.addCleanup(os.close, theirs)
        pipe = os.fdopen(ours)
        self.addCleanup(pipe.close)
        datagram = self.bound(kind=socket.SOCK_DGRAM)
        process = self.launch([datagram, pipe], LISTEN_FDNAMES="a:b")
        self.assertEqual(
            self.refusal(process),
            "adopted: only listening stream sockets can be adopted; passed: 3 'a' AF_INET "
            f"127.0.0.1:{datagram.getsockname()[1]} is a datagram socket, 4 'b' is a FIFO\n",
        )

    def test_socketActivate(self) -> None:
        """
        A process that systemd-socket-activate starts serves the client that it was started for.
        """
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            raise SkipTest("systemd-socket-activate is not installed")
        path = str(self.folder() / "s")
        command = [activate, "--listen", path, "--fdname=a", "--setenv=PYTHONPATH", sys.executable]
        process = self.start([*command, "-c", PROGRAM, "name=a"], [])
        self.assertIn("Listening on", process.stderr.readline())
        self.assertEqual(fetch(socket.AF_UNIX, path), b"hello")
        self.serving(process)
