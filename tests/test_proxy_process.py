"""
Tests for the real C{twistd fastpoetry-proxy}, with faulty upstreams on real sockets.

The modules' own tests cover timeouts and states; these show what readers get.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from unittest import skipUnless

from fakes import receiveAll
from faults.clients import KIBI, Address, Reply, fetch, fetchMany, readAll, resetNow, run
from faults.server import FaultCase, Server, makeText, readRecords, wait
from messages import BACK, FAILED, FETCHED, NO_COPY, SENT, SERVING

POEM = makeText(3003)
NEW = makeText(3003, 1)

# The Twisted introduction's client with a factory (part 5), without its options and timings.
_TUTORIAL_CLIENT = """
import sys
from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Protocol

class PoetryProtocol(Protocol):
    poem = b""

    def dataReceived(self, data):
        self.poem += data

    def connectionLost(self, reason):
        self.factory.poem_finished(self.poem)

class PoetryClientFactory(ClientFactory):
    protocol = PoetryProtocol

    def poem_finished(self, poem):
        sys.stdout.buffer.write(poem)
        reactor.stop()

reactor.connectTCP("127.0.0.1", int(sys.argv[1]), PoetryClientFactory())
reactor.run()
"""

Behaviour = Callable[[socket.socket], object]
"""The behaviour of an upstream with a connection, before it closes it."""


def sends(*pieces: bytes, betweenSeconds: float = 0.0) -> Behaviour:
    """Send a poem in some pieces."""

    def behave(connection: socket.socket) -> None:
        for number, piece in enumerate(pieces):
            time.sleep(betweenSeconds if number else 0.0)
            connection.sendall(piece)

    return behave


def sendsAfter(event: threading.Event) -> Behaviour:
    """Send a poem when the test says so."""

    def behave(connection: socket.socket) -> None:
        event.wait()
        connection.sendall(POEM)

    return behave


def endpointOf(address: Address) -> str:
    """A description of the endpoint of a server."""
    return f"tcp:host=127.0.0.1:port={portOf(address)}"


def portOf(address: Address) -> str:
    """A TCP port, as an argument."""
    return str(address[1])


def isSilent(connection: socket.socket) -> None:
    """Send no byte until the other end closes."""
    connection.recv(1)


def trickles(connection: socket.socket) -> None:
    """Send a byte at a time, too slowly to be useful and too fast to be idle."""
    while True:
        connection.sendall(b"a")
        time.sleep(0.2)


def isEndless(connection: socket.socket) -> None:
    """Send as long as the other end reads."""
    while True:
        connection.sendall(POEM)


def breaksOff(connection: socket.socket) -> None:
    """Reset the connection half-way, when the other end has read more than the buffers hold."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KIBI)
    connection.sendall(POEM * 300)
    resetNow(connection)


def closesAtOnce(connection: socket.socket) -> None:
    """Close without a byte."""


class Upstream:
    """
    An upstream on its own port.

    @ivar behaviour: what it does with the next connection.
    @ivar fetches: the number of connections so far.
    @ivar port: its port.
    @ivar endpoint: the description of its endpoint.
    """

    def __init__(self, behaviour: Behaviour | None, port: int) -> None:
        """
        @param behaviour: L{None} to refuse connections for now.
        @param port: its port; 0 for any.
        """
        self.behaviour = behaviour
        self.fetches = 0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.endpoint = f"tcp:host=127.0.0.1:port={self.port}"
        if behaviour is not None:
            self.begin(behaviour)

    def begin(self, behaviour: Behaviour) -> None:
        """Accept connections."""
        self.behaviour = behaviour
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.fetches += 1
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        assert self.behaviour is not None
        with contextlib.suppress(OSError), connection:
            self.behaviour(connection)


class ProxyCase(FaultCase):
    """
    A test case with proxies and their upstreams.

    @ivar blocks: the options of each proxy's block, besides the address.
    """

    def setUp(self) -> None:
        super().setUp()
        self.blocks: dict[str, list[str]] = {}

    def upstream(self, behaviour: Behaviour | None = None, port: int = 0) -> Upstream:
        """@return: an upstream that ends with the test."""
        upstream = Upstream(behaviour, port)
        self.addCleanup(upstream.close)
        return upstream

    def proxy(self, endpoint: str, *options: str, name: str = "poem") -> Address:
        """
        Add a block.

        @return: its address.
        """
        self.blocks[name] = [f"--upstream={endpoint}", *options]
        return self.listen(name)

    def arguments(self, *options: str, endpoint: str = "adopted") -> list[str]:
        """A command line with all blocks."""
        blocks = (
            [*block, f"--listen={endpoint}:name={name}"] for name, block in self.blocks.items()
        )
        return ["fastpoetry-proxy", *options, *chain.from_iterable(blocks)]

    def origin(self, poems: dict[str, bytes]) -> dict[str, Address]:
        """
        Start a real server, and wait until it serves.

        @param poems: the poems it serves, by name.
        @return: its addresses, by name.
        """
        listeners, self.listeners = self.listeners, {}
        addresses = {name: self.listen(name) for name in poems}
        for name, text in poems.items():
            self.write(text, name)
        server = Server(super().arguments(), self.listeners, self.folder / "origin", {})
        self.addCleanup(server.close)
        server.waitFor(SERVING, len(poems))
        self.listeners = listeners
        return addresses

    def assertFetches(self, address: Address, poem: bytes) -> None:
        """Assert that a client gets the whole poem."""
        self.assertAll("isExact", [run(fetch(address, poem))])

    def causes(self, server: Server) -> dict[str, str]:
        """The cause of each upstream's failure, from its one record."""
        failures = server.records(FAILED)
        causes = {each["upstream"]: each["cause"] for each in failures}
        self.assertEqual(len(causes), len(failures))
        return causes


class ColdTests(ProxyCase):
    """Tests for a proxy without a poem yet."""

    def test_thousandClients(self) -> None:
        """A thousand clients cost one fetch, and each gets every byte."""
        answer = threading.Event()
        upstream = self.upstream(sendsAfter(answer))
        address = self.proxy(upstream.endpoint)
        server = self.serve()
        clients = self.hold(1000, address)
        answer.set()
        self.assertEqual({receiveAll(client) for client in clients}, {POEM})
        self.assertEqual(upstream.fetches, 1)
        self.assertEqual(len(server.records(FETCHED)), 1)

    def test_firstLeaves(self) -> None:
        """
        When the first client leaves with a reset, the other clients get the poem of the same fetch.
        """
        answer = threading.Event()
        upstream = self.upstream(sendsAfter(answer))
        address = self.proxy(upstream.endpoint)
        self.serve()
        first, *others = self.hold(3, address)
        wait(lambda: upstream.fetches, "a fetch")
        resetNow(first)
        answer.set()
        self.assertEqual([receiveAll(client) for client in others], [POEM] * 2)
        self.assertEqual(upstream.fetches, 1)

    def test_backAgain(self) -> None:
        """
        Clients that wait are served when the upstream comes up, and its outage has two records.
        """
        upstream = self.upstream()
        address = self.proxy(upstream.endpoint)
        server = self.serve()
        clients = self.hold(3, address)
        server.waitFor(FAILED)
        upstream.begin(sends(POEM))
        self.assertEqual([receiveAll(client) for client in clients], [POEM] * 3)
        (failed,), (back,) = server.records(FAILED), server.records(BACK)
        self.assertEqual(failed["cause"], "upstream refused")
        self.assertEqual(back["upstream"], upstream.endpoint)

    def test_slow(self) -> None:
        """A slow upstream within the timeouts is waited for."""
        pieces = [POEM[at : at + 300] for at in range(0, len(POEM), 300)]
        upstream = self.upstream(sends(*pieces, betweenSeconds=0.12))
        address = self.proxy(upstream.endpoint)
        self.serve("--idle-timeout=1")
        self.assertFetches(address, POEM)

    def test_notIdle(self) -> None:
        """A proxy with waiting clients is not idle: it resets them before it exits."""
        address = self.proxy(self.upstream(isSilent).endpoint)
        server = self.serve("--exit-idle-time=0.3", "--total-timeout=0.5")
        self.assertEqual(readAll(*self.hold(1, address)), (0, "reset"))
        self.assertEqual(server.wait(), 0)

    def test_restart(self) -> None:
        """Clients that wait when the proxy stops are served by the next one."""
        upstream = self.upstream(isSilent)
        address = self.proxy(upstream.endpoint)
        server = self.serve()
        (client,) = self.hold(1, address)
        wait(lambda: upstream.fetches, "a fetch")
        server.end()
        upstream.behaviour = sends(POEM)
        self.serve()
        self.assertEqual(receiveAll(client), POEM)


class MisbehaviourTests(ProxyCase):
    """Tests for upstreams that send no whole poem, each in its own way, all at the same time."""

    limits = ("--connect-timeout=2", "--idle-timeout=2", "--total-timeout=3", "--max-size=1000000")
    digest = sha256(POEM).hexdigest()
    behaviours: dict[str, tuple[Behaviour | None, str]] = {
        "refuses": (None, "upstream refused"),
        "silent": (isSilent, "upstream sent nothing for 2 s"),
        "trickles": (trickles, "upstream took too long"),
        "endless": (isEndless, "upstream sends more than 1000000 bytes"),
        "breaksOff": (breaksOff, r"upstream broke off after \d+ bytes"),
        "closes": (closesAtOnce, "upstream sent nothing and closed"),
        "half": (sends(POEM[:1500]), "upstream sent another poem, SHA-256 [0-9a-f]{64}"),
        "double": (sends(POEM, POEM), "upstream sent another poem, SHA-256 [0-9a-f]{64}"),
    }

    def assertCauses(self, server: Server, upstreams: dict[str, Upstream]) -> None:
        """Assert that each upstream has one record with its cause."""
        server.waitFor(FAILED, len(upstreams))
        causes = self.causes(server)
        for name, (_, cause) in self.behaviours.items():
            self.assertRegex(causes[upstreams[name].endpoint], rf"\A{cause}\Z")
        self.assertEqual(server.tracebacks(), [])

    def test_cold(self) -> None:
        """
        Clients of a proxy without a poem wait until the timeout and are then reset, with one record
        of the cause. Meanwhile their upstream is tried at most once a second.
        """
        upstreams, addresses = {}, []
        for name, (behaviour, _) in self.behaviours.items():
            upstreams[name] = self.upstream(behaviour)
            addresses.append(
                self.proxy(upstreams[name].endpoint, f"--expect-sha256={self.digest}", name=name)
            )
        server = self.serve(*self.limits)
        clients = [self.hold(1, address)[0] for address in addresses]
        self.assertEqual({readAll(client) for client in clients}, {(0, "reset")})
        self.assertCauses(server, upstreams)
        self.assertLessEqual(max(upstream.fetches for upstream in upstreams.values()), 4)

    def test_warm(self) -> None:
        """A proxy with a poem keeps it and goes on serving it."""
        upstreams, addresses = {}, []
        for name in self.behaviours:
            upstreams[name] = self.upstream(sends(POEM))
            addresses.append(
                self.proxy(upstreams[name].endpoint, f"--expect-sha256={self.digest}", name=name)
            )
        server = self.serve(*self.limits)
        for address in addresses:
            self.assertFetches(address, POEM)
        for name, (behaviour, _) in self.behaviours.items():
            if behaviour is None:
                upstreams[name].close()
            else:
                upstreams[name].behaviour = behaviour
        server.send(signal.SIGHUP)
        for address in addresses:
            self.assertFetches(address, POEM)
        self.assertCauses(server, upstreams)
        for address in addresses:
            self.assertFetches(address, POEM)


class WarmTests(ProxyCase):
    """Tests for a proxy with a poem."""

    def test_onlyOnce(self) -> None:
        """A fresh poem is not fetched again."""
        upstream = self.upstream(sends(POEM))
        address = self.proxy(upstream.endpoint)
        self.serve()
        self.assertFetches(address, POEM)
        self.assertAll("isExact", run(fetchMany(500, address, POEM)))
        self.assertEqual(upstream.fetches, 1)

    def test_reload(self) -> None:
        """SIGHUP makes the proxy fetch even a fresh poem anew."""
        upstream = self.upstream(sends(POEM))
        address = self.proxy(upstream.endpoint)
        server = self.serve()
        self.assertFetches(address, POEM)
        upstream.behaviour = sends(NEW)
        server.send(signal.SIGHUP)
        server.waitFor(FETCHED, 2)
        self.assertFetches(address, NEW)

    def test_backAgain(self) -> None:
        """
        While the upstream is down the old poem is served; when it is up again, the new one follows.
        """
        upstream = self.upstream(sends(POEM))
        address = self.proxy(upstream.endpoint)
        server = self.serve("--max-age=0")
        self.assertFetches(address, POEM)
        upstream.close()

        def isAway() -> bool:
            self.assertFetches(address, POEM)  # and therefore is fetched again
            return bool(server.records(FAILED))

        wait(isAway, "a fetch that fails")
        self.assertFetches(address, POEM)
        self.upstream(sends(NEW), upstream.port)
        wait(lambda: run(fetch(address, NEW)).isExact, "the new poem")
        server.waitFor(BACK)

    def test_large(self) -> None:
        """A poem of some megabytes arrives unchanged."""
        poem = makeText(5_000_001)
        upstream = self.upstream(sends(poem))
        address = self.proxy(upstream.endpoint)
        self.serve()
        self.assertAll("isExact", run(fetchMany(5, address, poem)))


class CacheTests(ProxyCase):
    """Tests for a proxy that keeps a copy on disk."""

    def setUp(self) -> None:
        super().setUp()
        self.cache = self.folder / "cache"
        self.cache.mkdir()
        self.source = self.upstream(sends(POEM))
        self.address = self.proxy(self.source.endpoint)

    def start(self, *options: str) -> Server:
        """Start the proxy with systemd's variable for the folder."""
        return self.serve(*options, environ={"CACHE_DIRECTORY": str(self.cache)})

    def waitForCopy(self) -> None:
        """Wait until a copy is written."""
        wait(lambda: list(self.cache.glob("*.poem")), "the copy")

    def fill(self) -> Path:
        """
        Let a poem be fetched and copied, and stop the upstream.

        @return: the copy.
        """
        server = self.start()
        self.assertFetches(self.address, POEM)
        self.waitForCopy()
        server.end()
        self.source.close()
        (copy,) = self.cache.iterdir()
        return copy

    def test_restart(self) -> None:
        """A proxy that is restarted while the upstream is down serves its copy, fresh or stale."""
        self.fill()
        for options in ((), ("--max-age=0", "--stale-while-revalidate=0")):
            server = self.start(*options)
            self.assertFetches(self.address, POEM)
            server.end()

    def test_damaged(self) -> None:
        """
        A damaged or truncated copy is not served, and is replaced when the upstream is up again.
        """
        copy = self.fill()
        whole = copy.read_bytes()
        damaged = bytes([whole[2000] ^ 1])
        for count, content in enumerate((whole[:-1], whole[:2000] + damaged + whole[2001:]), 1):
            copy.write_bytes(content)
            server = self.start("--total-timeout=0.5")
            self.assertEqual(readAll(*self.hold(1, self.address)), (0, "reset"))
            (record,) = server.waitFor(NO_COPY, count)[count - 1 :]
            self.assertEqual(record["cause"], f"{copy}: is damaged, and will be replaced")
            server.end()
        self.upstream(sends(NEW), self.source.port)
        server = self.start()
        self.assertFetches(self.address, NEW)
        wait(lambda: copy.read_bytes().endswith(NEW), "a new copy")

    def test_gone(self) -> None:
        """If the folder disappears, readers are served all the same, and one record says so."""
        server = self.start()
        wait(lambda: "serving" in server.log.read_text(), "the start")
        self.cache.rmdir()
        self.assertFetches(self.address, POEM)
        (record,) = server.waitFor(NO_COPY)
        self.assertIn(str(self.cache), record["cause"])

    def test_idle(self) -> None:
        """An idle proxy exits, and the next one has its poem without another fetch."""
        server = self.start("--exit-idle-time=0.2")
        self.assertFetches(self.address, POEM)
        self.assertEqual(server.wait(), 0)
        self.waitForCopy()
        self.source.close()
        self.start("--exit-idle-time=30")
        self.assertFetches(self.address, POEM)


class ChainTests(ProxyCase):
    """Tests for proxies whose upstreams are our own programs."""

    def test_chain(self) -> None:
        """Through two proxies a real server's poem arrives whole, and each is fetched from once."""
        origin = self.origin({"origin": POEM})["origin"]
        middle = self.proxy(endpointOf(origin), name="middle")
        address = self.proxy(endpointOf(middle), name="edge")
        for name in ("middle", "edge"):
            arguments = [
                *("fastpoetry-proxy", *self.blocks[name], f"--listen=adopted:name={name}"),
            ]
            server = Server(arguments, {name: self.listeners[name]}, self.folder / name, {})
            self.addCleanup(server.close)
            server.waitFor(SERVING)
        self.assertAll("isExact", run(fetchMany(50, address, POEM)))
        for name in ("origin", "middle"):
            # A program logs a poem after it has sent it.
            find = partial(readRecords, self.folder / name, SENT)
            wait(find, "a fetch")
            self.assertEqual(len(find()), 1)

    def test_loop(self) -> None:
        """
        A proxy that is its own upstream resets its clients after the timeout, keeps no connection,
        and ends on SIGTERM.
        """
        address = self.listen()
        self.blocks["poem"] = [f"--upstream={endpointOf(address)}"]
        server = self.serve("--idle-timeout=0.3", "--total-timeout=0.5")
        for _ in range(2):
            clients = self.hold(20, address)
            self.assertEqual({readAll(client) for client in clients}, {(0, "reset")})
        self.assertLess(server.descriptors(), 30)
        self.assertEqual(len(server.records(FAILED)), 1)
        self.assertEqual(server.end(), -signal.SIGTERM)

    def test_fifty(self) -> None:
        """
        Fifty poems come through fifty blocks of one process, each through its own.
        """
        poems = {f"poem{number}": makeText(2000, number) for number in range(50)}
        where = self.origin(poems)
        addresses = {
            name: self.proxy(endpointOf(address), name=f"proxy-{name}")
            for name, address in where.items()
        }
        self.serve()

        async def fetchAll() -> list[Reply]:
            return await asyncio.gather(
                *(fetch(address, poems[name]) for name, address in addresses.items())
            )

        self.assertAll("isExact", run(fetchAll()))


@skipUnless(importlib.util.find_spec("OpenSSL") and shutil.which("openssl"), "no OpenSSL")
class TLSTests(ProxyCase):
    """Tests for an upstream behind TLS, which has an end of its own."""

    def setUp(self) -> None:
        super().setUp()
        key, certificate = self.folder / "key", self.folder / "certificates" / "poems.pem"
        certificate.parent.mkdir()
        command: list[str | Path] = [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=poems"),
            *("-addext", "subjectAltName=DNS:poems", "-keyout", key, "-out", certificate),
        ]
        subprocess.run(command, check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.trusted = certificate.parent

    def sends(self, text: bytes, end: Callable[[ssl.SSLSocket], object]) -> Behaviour:
        """
        Send bytes through TLS.

        @param end: how to end the connection.
        """

        def behave(connection: socket.socket) -> None:
            with self.context.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.sendall(text)
                end(wrapped)

        return behave

    def proxyOf(self, upstream: Upstream) -> Address:
        """
        Start a proxy that trusts an upstream.

        @return: its address.
        """
        inner = upstream.endpoint.replace(":", r"\:")
        address = self.proxy(f"tls:poems:trustRoots={self.trusted}:endpoint={inner}:port=1")
        self.server = self.serve("--total-timeout=1")
        return address

    def test_whole(self) -> None:
        """A poem with the end of TLS after it is whole."""
        upstream = self.upstream(self.sends(POEM, lambda wrapped: wrapped.unwrap()))
        self.assertFetches(self.proxyOf(upstream), POEM)

    def test_cut(self) -> None:
        """A poem without the end of TLS, as a third party may cut it off, is not whole."""
        upstream = self.upstream(self.sends(POEM[:1500], lambda wrapped: None))
        self.assertEqual(readAll(*self.hold(1, self.proxyOf(upstream))), (0, "reset"))
        (record,) = self.server.waitFor(FAILED)
        self.assertEqual(record["cause"], "upstream broke off after 1500 bytes")


class ClientTests(ProxyCase):
    """Tests with common clients."""

    def setUp(self) -> None:
        super().setUp()
        self.source = self.upstream(sends(POEM))
        self.address = self.proxy(self.source.endpoint)
        self.serve()

    @skipUnless(shutil.which("nc"), "no nc")
    def test_nc(self) -> None:
        """nc prints the poem."""
        command = ["nc", "127.0.0.1", portOf(self.address)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        self.assertEqual(done.stdout, POEM)

    def test_tutorialBlocking(self) -> None:
        """The tutorial's blocking client gets the poem, piece by piece."""
        poem = b""
        with socket.socket() as client:
            client.connect(self.address)
            while piece := client.recv(10):
                poem += piece
        self.assertEqual(poem, POEM)

    def test_tutorialTwisted(self) -> None:
        """The tutorial's Twisted client gets the poem when its connection is lost."""
        client = [sys.executable, "-c", _TUTORIAL_CLIENT, portOf(self.address)]
        done = subprocess.run(client, capture_output=True, timeout=30)
        self.assertEqual(done.stdout, POEM, done.stderr)
