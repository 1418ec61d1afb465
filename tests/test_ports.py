"""Tests for L{fastpoetry.systemd.ports}, on real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any
from unittest import SkipTest

from messages import UNASKED
from passing import Greeter, Passing, fetch, inherit
from processes import ROOT, Workplace, findFreePort, findTwistd, waitUntil
from test_adopted_process import LAUNCHER
from test_notify import Systemd
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fastpoetry.systemd.ports import AdoptedPorts, adoptPorts


class Echo(DatagramProtocol):
    """Sends back what it receives, in upper case, and counts its starts and stops."""

    started = stopped = 0

    def startProtocol(self) -> None:
        self.started += 1

    def stopProtocol(self) -> None:
        self.stopped += 1

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        transport: Any = self.transport
        transport.write(datagram.upper(), addr)


class Binding(Passing):
    """A mixin for test cases: sockets at chosen addresses."""

    def bind(
        self: Any, family: int, host: str, port: int = 0, kind: int = socket.SOCK_STREAM
    ) -> Any:
        """
        @param family: of the address.
        @param host: of the address; C{::} takes IPv4 too, unless another socket has that address.
        @param port: of the address.
        @param kind: the socket's type.
        @return: a socket there, which listens if it can.
        """
        made = socket.socket(family, kind)
        self.addCleanup(made.close)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, port != 0)
        made.bind((host, port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made


class PortsCase(Binding, TestCase):
    """A test case with a program in this process, and passed sockets."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.factory: Any = Factory.forProtocol(Greeter)

    def adopt(self, *passed: Any) -> AdoptedPorts:
        """
        @param passed: sockets.
        @return: the layer between the reactor and a program, until the test ends.
        """
        self.inherited = inherit(*((each, "unit.socket") for each in passed))
        ports = adoptPorts(self.reactor, self.inherited)
        self.addCleanup(ports.restore)
        return ports

    def listen(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """
        @param name: a method of the reactor.
        @param args: its arguments.
        @param kwargs: its named arguments.
        @return: the port, which stops when the test ends.
        """
        port = getattr(self.reactor, name)(*args, **kwargs)
        self.addCleanup(lambda: port.stopListening())
        return port

    def isFree(self, *passed: Any) -> bool:
        """@return: whether the program uses none of these passed sockets."""
        numbers = {each.fileno() for each in passed}
        return numbers <= {each.number for each in self.inherited.free}


class StreamTests(PortsCase):
    """Tests for programs that accept connections."""

    async def fetch(self, made: Any) -> bytes:
        """@return: the bytes that a client of a socket receives."""
        return await deferToThread(fetch, made.family, made.getsockname())

    def test_tcp(self) -> Deferred[None]:
        """A program that listens on the address of a passed socket gets that socket."""

        async def serve() -> None:
            passed, other = self.listening(), self.listening()
            self.adopt(other, passed)
            host, number = passed.getsockname()
            port = self.listen("listenTCP", number, self.factory, interface=host)
            self.assertEqual(await self.fetch(passed), b"hello")
            self.assertEqual(port.getHost().port, number)
            self.assertIs(port.factory, self.factory)
            self.assertTrue(self.isFree(other))
            self.assertFalse(self.isFree(passed))

        return Deferred.fromCoroutine(serve())

    def test_names(self) -> None:
        """An address may be written in any form."""
        for host, written in (("127.0.0.1", "localhost"), ("::1", "0:0:0:0:0:0:0:1")):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            passed = self.bind(family, host)
            self.adopt(passed)
            number = passed.getsockname()[1]
            self.listen("listenTCP", number, self.factory, interface=written)
            self.assertFalse(self.isFree(passed), written)

    def test_wildcards(self) -> None:
        """
        A dual-stack socket serves a program that listens on IPv4, on IPv6 or on all addresses.
        """
        for interface in ("", "0.0.0.0", "::"):
            passed = self.bind(socket.AF_INET6, "::")
            self.adopt(passed)
            number = passed.getsockname()[1]
            self.listen("listenTCP", number, self.factory, interface=interface)
            self.assertFalse(self.isFree(passed), interface)

    def test_onlyIPv6(self) -> None:
        """A socket for IPv6 alone does not serve a program that wants IPv4."""
        number = findFreePort()
        passed = self.bind(socket.AF_INET6, "::", number)
        self.adopt(passed)
        self.listen("listenTCP", number, self.factory, interface="0.0.0.0")
        self.assertTrue(self.isFree(passed))
        self.listen("listenTCP", number, self.factory, interface="::")
        self.assertFalse(self.isFree(passed))

    def test_protocols(self) -> None:
        """Multipath TCP serves a program that wants TCP. UDP-Lite does not serve UDP."""
        for kind, protocol, name, user, isTaken in (
            (socket.SOCK_STREAM, 262, "listenTCP", self.factory, True),
            (socket.SOCK_DGRAM, 136, "listenUDP", Echo(), False),
        ):
            try:
                passed = socket.socket(socket.AF_INET, kind, protocol)
            except OSError as why:
                raise SkipTest(f"no protocol {protocol}: {why}") from why
            self.addCleanup(passed.close)
            passed.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                passed.listen()
            self.adopt(passed)
            self.listen(name, passed.getsockname()[1], user, interface="127.0.0.1")
            self.assertNotEqual(self.isFree(passed), isTaken, name)

    def test_together(self) -> Deferred[None]:
        """The IPv4 and the IPv6 socket of one port number are one port."""

        async def serve() -> None:
            four = self.bind(socket.AF_INET, "0.0.0.0")
            number = four.getsockname()[1]
            six = self.bind(socket.AF_INET6, "::", number)
            self.adopt(four, six)
            port = self.listen("listenTCP", number, self.factory)
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                self.assertEqual(await deferToThread(fetch, family, (host, number)), b"hello")
            quiet = Factory()
            port.factory = quiet
            self.assertEqual([each.factory for each in port.ports], [quiet, quiet])
            await port.stopListening()
            self.assertTrue(self.isFree(four, six))

        return Deferred.fromCoroutine(serve())

    def test_otherAddress(self) -> None:
        """Any other address is bound as usual: a wildcard socket does not serve one interface."""
        wide, datagrams = self.bind(socket.AF_INET, "0.0.0.0"), self.bound(kind=socket.SOCK_DGRAM)
        self.adopt(wide, datagrams)
        self.listen("listenTCP", 0, self.factory, interface="127.0.0.1")
        number = datagrams.getsockname()[1]
        self.listen("listenTCP", number, self.factory, interface="127.0.0.1")
        number = wide.getsockname()[1]
        self.assertRaises(
            CannotListenError, self.reactor.listenTCP, number, self.factory, interface="127.0.0.1"
        )
        self.assertTrue(self.isFree(wide, datagrams))

    def test_again(self) -> Deferred[None]:
        """A stopped port returns its socket, and the next one gets it."""

        async def serve() -> None:
            passed = self.listening()
            self.adopt(passed)
            host, number = passed.getsockname()
            for stop in ("stopListening", "loseConnection"):  # Twisted's ports have both
                port = self.reactor.listenTCP(number, self.factory, interface=host)
                self.assertEqual(await self.fetch(passed), b"hello")
                self.assertFalse(self.isFree(passed))
                await getattr(port, stop)()
                self.assertTrue(self.isFree(passed))

        return Deferred.fromCoroutine(serve())

    def test_tls(self) -> None:
        """A program that listens with TLS gets the socket too."""
        try:
            from twisted.internet.ssl import CertificateOptions
        except ImportError as why:
            raise SkipTest(str(why)) from why
        passed = self.listening()
        self.adopt(passed)
        host, number = passed.getsockname()
        self.listen("listenSSL", number, self.factory, CertificateOptions(), interface=host)
        self.assertFalse(self.isFree(passed))

    def test_endpoint(self) -> Deferred[None]:
        """An endpoint description with a port number is served too."""

        async def serve() -> None:
            passed = self.listening()
            self.adopt(passed)
            text = "tcp:{0[1]}:interface={0[0]}".format(passed.getsockname())
            port: Any = await serverFromString(self.reactor, text).listen(self.factory)
            self.assertEqual(await self.fetch(passed), b"hello")
            await port.stopListening()

        return Deferred.fromCoroutine(serve())

    def test_unix(self) -> Deferred[None]:
        """A socket's file stays as systemd made it, whatever lock and mode the program asks for."""

        async def serve() -> None:
            passed = self.listening(socket.AF_UNIX)
            path = passed.getsockname()
            link = f"{path}.link"
            os.symlink(path, link)
            mode = os.stat(path).st_mode
            self.adopt(passed)
            port = self.reactor.listenUNIX(link, self.factory, mode=0o600, wantPID=True)
            self.assertEqual(await self.fetch(passed), b"hello")
            await port.stopListening()
            self.assertEqual(os.stat(path).st_mode, mode)
            self.assertEqual(sorted(os.listdir(os.path.dirname(path))), ["s", "s.link"])
            self.assertTrue(self.isFree(passed))

        return Deferred.fromCoroutine(serve())

    def test_abstract(self) -> None:
        """An abstract name is an address too."""
        passed = socket.socket(socket.AF_UNIX)
        self.addCleanup(passed.close)
        name = f"\0{self.id()}"
        passed.bind(name)
        passed.listen()
        self.adopt(passed)
        self.listen("listenUNIX", name, self.factory)
        self.assertFalse(self.isFree(passed))

    def test_restore(self) -> None:
        """Once restored, the reactor has its own methods again."""
        before = self.reactor.listenTCP
        passed = self.listening()
        self.adopt(passed).restore()
        self.assertEqual(self.reactor.listenTCP, before)


class DatagramTests(PortsCase):
    """Tests for programs that take datagrams."""

    async def ask(self, made: Any, address: Any) -> bytes:
        """@return: the answer that a socket sends to a question."""
        with socket.socket(made.family, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            if made.family == socket.AF_UNIX:
                client.bind(b"")
            client.sendto(b"hello", address)
            answer, _ = await deferToThread(client.recvfrom, 9000)
            return bytes(answer)

    def test_udp(self) -> Deferred[None]:
        """One protocol answers on IPv4 and IPv6, each through its own socket, until both stop."""

        async def serve() -> None:
            four = self.bind(socket.AF_INET, "0.0.0.0", kind=socket.SOCK_DGRAM)
            number = four.getsockname()[1]
            six = self.bind(socket.AF_INET6, "::", number, socket.SOCK_DGRAM)
            self.adopt(four, six)
            echo = Echo()
            for _ in range(2):
                port = self.reactor.listenUDP(number, echo, maxPacketSize=5)
                self.assertEqual(await self.ask(four, ("127.0.0.1", number)), b"HELLO")
                self.assertEqual(await self.ask(six, ("::1", number)), b"HELLO")
                self.assertEqual(port.getHost().port, number)
                self.assertEqual([each.maxPacketSize for each in port.ports], [5, 5])
                transport: Any = echo.transport
                await transport.stopListening()
                self.assertIsNone(echo.transport)
                self.assertTrue(self.isFree(four, six))
            self.assertEqual((echo.started, echo.stopped), (2, 2))

        return Deferred.fromCoroutine(serve())

    def test_lastWords(self) -> Deferred[None]:
        """A protocol can still send in the turn in which its port stops, as with Twisted's own."""

        async def serve() -> None:
            passed = self.bind(socket.AF_INET, "127.0.0.1", kind=socket.SOCK_DGRAM)
            self.adopt(passed)
            echo: Any = Echo()
            port = self.listen("listenUDP", passed.getsockname()[1], echo, interface="127.0.0.1")
            with self.bound(kind=socket.SOCK_DGRAM) as client:
                client.settimeout(60)
                port.stopListening()
                echo.transport.write(b"bye", client.getsockname())
                self.assertEqual(client.recv(9000), b"bye")

        return Deferred.fromCoroutine(serve())

    def test_cannotStart(self) -> Deferred[None]:
        """If the protocol cannot start, its sockets are free again, and it hears no datagram."""

        class Faulty(Echo):
            def startProtocol(self) -> None:
                raise ValueError

        async def serve() -> None:
            passed = self.bind(socket.AF_INET, "127.0.0.1", kind=socket.SOCK_DGRAM)
            self.adopt(passed)
            number = passed.getsockname()[1]
            listen = self.reactor.listenUDP
            self.assertRaises(ValueError, listen, number, Faulty(), interface="127.0.0.1")
            await deferLater(self.reactor, 0, lambda: None)
            self.assertTrue(self.isFree(passed))
            self.listen("listenUDP", number, Echo(), interface="127.0.0.1")
            self.assertEqual(await self.ask(passed, passed.getsockname()), b"HELLO")

        return Deferred.fromCoroutine(serve())

    def test_mapped(self) -> Deferred[None]:
        """A dual-stack socket reaches an IPv4 address that the program writes to."""

        async def serve() -> None:
            passed = self.bind(socket.AF_INET6, "::", kind=socket.SOCK_DGRAM)
            self.adopt(passed)
            echo: Any = Echo()
            self.listen("listenUDP", passed.getsockname()[1], echo)
            with self.bound(kind=socket.SOCK_DGRAM) as client:
                client.settimeout(60)
                echo.transport.write(b"hello", client.getsockname())
                self.assertEqual(client.recv(9000), b"hello")

        return Deferred.fromCoroutine(serve())

    def test_multicast(self) -> Deferred[None]:
        """A program on a passed socket can join a group."""

        async def serve() -> None:
            passed = self.bind(socket.AF_INET, "0.0.0.0", kind=socket.SOCK_DGRAM)
            self.adopt(passed)
            echo: Any = Echo()
            self.listen("listenMulticast", passed.getsockname()[1], echo, listenMultiple=True)
            self.assertFalse(self.isFree(passed))
            echo.transport.setTTL(3)
            self.assertEqual(echo.transport.getTTL(), 3)
            await echo.transport.joinGroup("224.0.0.17", "127.0.0.1")

        return Deferred.fromCoroutine(serve())

    def test_unix(self) -> Deferred[None]:
        """A datagram socket with a path can be passed."""

        async def serve() -> None:
            passed = self.bound(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.adopt(passed)
            port = self.reactor.listenUNIXDatagram(passed.getsockname(), Echo())
            self.assertEqual(await self.ask(passed, passed.getsockname()), b"HELLO")
            await port.stopListening()
            self.assertTrue(os.path.exists(passed.getsockname()))

        return Deferred.fromCoroutine(serve())

    def test_noName(self) -> None:
        """A program that only sends needs no path."""
        self.adopt()
        self.listen("listenUNIXDatagram", None, Echo())


class StartTests(PortsCase):
    """Tests for the report of a program's start."""

    def unasked(self, ports: AdoptedPorts) -> list[tuple[str, str]]:
        """@return: the text of a report."""
        with capturedLogs() as events:
            ports.report()
            ports.report()
        found = [each for each in events if each.get("message_id") == UNASKED]
        return [(each["socket"], each["asked"]) for each in found]

    def test_unasked(self) -> None:
        """
        A socket that the program did not ask for makes one record, with the addresses it asked for.
        """
        passed, taken = self.listening(), self.listening()
        ports = self.adopt(passed, taken)
        host, number = taken.getsockname()
        self.listen("listenTCP", number, self.factory, interface=host)
        self.listen("listenUDP", 0, Echo(), "::1")
        where = f"{passed.fileno()} 'unit.socket' AF_INET 127.0.0.1:{passed.getsockname()[1]}"
        asked = f"TCP 127.0.0.1:{number}, UDP [::1]:0"
        self.assertEqual(self.unasked(ports), [(where, asked)])

    def test_stopped(self) -> Deferred[None]:
        """A socket whose port has stopped before the report makes no record."""

        async def serve() -> None:
            passed = self.listening()
            ports = self.adopt(passed)
            host, number = passed.getsockname()
            await self.reactor.listenTCP(number, self.factory, interface=host).stopListening()
            self.assertEqual(self.unasked(ports), [])

        return Deferred.fromCoroutine(serve())

    def test_nothingAsked(self) -> None:
        """A program that does not listen makes a record of its socket, and of no stored file."""
        with open(os.devnull) as file:
            ports = self.adopt(self.listening(), file)
            self.assertEqual([asked for _, asked in self.unasked(ports)], ["nothing"])

    def test_failed(self) -> None:
        """
        The check fails for a factory that could not listen, unless it then listened on another
        port.
        """
        ports = self.adopt()
        taken = self.listening()
        host, number = taken.getsockname()
        listen = self.reactor.listenTCP
        ports.check()
        self.assertRaises(CannotListenError, listen, number, self.factory, interface=host)
        self.assertRaises(CannotListenError, ports.check)
        self.listen("listenTCP", 0, self.factory, interface=host)
        ports.check()
        self.assertRaises(CannotListenError, listen, number, Factory(), interface=host)
        self.assertRaises(CannotListenError, ports.check)

    def test_bothKinds(self) -> None:
        """
        A program that listens on all IPv6 addresses and then on all IPv4 addresses has not failed.
        """
        passed = self.bind(socket.AF_INET6, "::")
        ports = self.adopt(passed)
        number = passed.getsockname()[1]
        self.listen("listenTCP", number, self.factory, interface="::")
        self.assertRaises(
            CannotListenError, self.reactor.listenTCP, number, self.factory, interface="0.0.0.0"
        )
        ports.check()
        self.assertEqual(self.unasked(ports), [])


# As many programs do, it opens its ports itself, and only logs a failure.
OWN_NOTIFIER = """
from fastpoetry.systemd.notify import NotifyService
NotifyService(reactor).setServiceParent(application)
"""
"""The end of an application that notifies systemd itself."""

APPLICATION = """
from twisted.application.internet import TCPServer
from twisted.application.service import Application, Service
from twisted.internet import endpoints, reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python import log

class Greeter(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
        self.transport.loseConnection()

class Deaf(Service):
    def startService(self):
        return deferLater(reactor, 0.01, self.listen)

    def listen(self):
        text = "tcp:{number}:interface=127.0.0.2"
        endpoints.serverFromString(reactor, text).listen(Factory()).addErrback(log.err)

    def reload(self):
        log.msg("read again")

application = Application("greeter")
factory = Factory.forProtocol(Greeter)
TCPServer({number}, factory, interface="127.0.0.1").setServiceParent(application)
Deaf().setServiceParent(application)
"""

# A program with its own start code and its own choice of reactor.
SCRIPT = """
import asyncio, sys
from twisted.internet import asyncioreactor
asyncioreactor.install(asyncio.new_event_loop())
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

class Greeter(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
        self.transport.loseConnection()

reactor.listenTCP(int(sys.argv[1]), Factory.forProtocol(Greeter), interface="127.0.0.1")
reactor.run()
"""

LOGGING = """
import sys
from twisted.python import log
log.startLogging(sys.stderr)
"""


class ProcessTests(Binding, SynchronousTestCase):
    """Tests for processes whose programs know only port numbers."""

    def setUp(self) -> None:
        self.place = Workplace(self)
        self.systemd = Systemd(str(self.place.folder / "notify"))
        self.addCleanup(self.systemd.close)
        self.passed = self.listening()
        self.number = self.passed.getsockname()[1]

    def write(self, name: str, text: str) -> None:
        """
        @param name: of a file for the program.
        @param text: its content, without the port.
        """
        (self.place.folder / name).write_text(text.replace("{number}", str(self.number)))

    def launch(self, *program: str, **environ: str) -> Any:
        """
        @param program: a command.
        @param environ: more variables for it.
        @return: its process, which inherits the socket.
        """
        variables = {"LISTEN_FDS": "1", **self.systemd.environ, **environ}
        given = json.dumps([[self.passed.fileno()], variables, program])
        os.set_inheritable(self.passed.fileno(), True)
        return self.place.begin(sys.executable, "-c", LAUNCHER, given, closeFiles=False)

    def twistd(self, *arguments: str, reactor: str = "epoll") -> Any:
        """
        @param arguments: twistd's arguments.
        @param reactor: the reactor's name.
        @return: its process.
        """
        return self.launch(
            *findTwistd(), f"--reactor={reactor}", "--nodaemon", "--pidfile=", *arguments
        )

    def greeting(self) -> bytes:
        """@return: the bytes that a client receives, once the program accepts the client."""
        return fetch(socket.AF_INET, self.passed.getsockname())

    def finish(self, process: Any) -> str:
        """
        @param process: a launched process.
        @return: its log.
        """
        process.terminate()
        output, errors = process.communicate(timeout=60)
        return str(output + errors)

    def test_reactors(self) -> None:
        """An unchanged application file gets the passed socket under each reactor."""
        self.write("x.tac", APPLICATION.replace("127.0.0.2", "127.0.0.3"))
        for reactor in ("epoll", "poll", "select", "asyncio"):
            process = self.twistd("systemd", "--adopt", "--python=x.tac", reactor=reactor)
            self.assertEqual(self.greeting(), b"hello")
            self.assertNotIn("Traceback", self.finish(process))

    def test_file(self) -> None:
        """An unchanged application file sends READY, has its name as status, and reloads."""
        self.write("x.tac", APPLICATION)
        process = self.twistd("systemd", "--adopt", "-y", "x.tac")
        heard: list[str] = []

        def hears(what: str) -> bool:
            heard.extend(self.systemd.heard())
            return what in heard

        waitUntil(lambda: hears("READY=1"), "READY")
        self.assertIn("STATUS=greeter", heard)
        heard.clear()
        process.send_signal(signal.SIGHUP)
        waitUntil(lambda: hears("READY=1"), "READY after the reload")
        self.assertIn("read again", self.finish(process))

    def test_failedListen(self) -> None:
        """A program that only logs that it cannot listen is not ready, and ends with status 1."""
        taken = self.bound()
        taken.listen()
        text = APPLICATION.replace(":{number}:interface=127.0.0.2", f":{taken.getsockname()[1]}")
        for own in ("", OWN_NOTIFIER):
            self.write("x.tac", text + own)
            process = self.twistd("systemd", "--adopt", "--python=x.tac")
            output, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 1)
            self.assertIn("the start failed, so the program ends", output)
            self.assertNotIn("READY=1", self.systemd.heard())

    def test_otherInterface(self) -> None:
        """A program that ends because systemd has its port on all interfaces prints the reason."""
        self.passed = self.bind(socket.AF_INET, "0.0.0.0")
        self.number = self.passed.getsockname()[1]
        self.write("x.tac", APPLICATION)
        process = self.twistd("systemd", "--adopt", "--python=x.tac")
        output, errors = process.communicate(timeout=60)
        where = f"AF_INET 0.0.0.0:{self.number}"
        self.assertIn(f"{where}; it asked for: TCP 127.0.0.1:", output + errors)
        self.write("script.py", LOGGING + SCRIPT)
        command = (sys.executable, "-m", "fastpoetry.systemd.ports", "script.py")
        _, errors = self.launch(*command, str(self.number)).communicate(timeout=60)
        self.assertIn(f"{where}; it asked for: TCP 127.0.0.1:", errors)

    def test_starter(self) -> None:
        """A program with its own start code gets the passed socket under its own reactor."""
        self.write("script.py", SCRIPT)
        command = (sys.executable, "-m", "fastpoetry.systemd.ports")
        for program in (("script.py",), ("-m", "script")):
            process = self.launch(*command, *program, str(self.number))
            self.assertEqual(self.greeting(), b"hello")
            self.assertNotIn("Traceback", self.finish(process))

    def test_safePath(self) -> None:
        """With C{PYTHONSAFEPATH} a program is found where C{PYTHONPATH} says."""
        (self.place.folder / "app").mkdir()
        self.write("app/script.py", SCRIPT)
        command = (sys.executable, "-m", "fastpoetry.systemd.ports", "-m", "script")
        process = self.launch(
            *command,
            str(self.number),
            PYTHONSAFEPATH="1",
            PYTHONPATH=f"{self.place.folder}/app:{ROOT}",
        )
        self.assertEqual(self.greeting(), b"hello")
        self.assertNotIn("Traceback", self.finish(process))

    def test_noProgram(self) -> None:
        """Without a program the command prints one line of usage."""
        process = self.launch(sys.executable, "-m", "fastpoetry.systemd.ports")
        output, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, output, errors.count("\n")), (1, "", 1))
