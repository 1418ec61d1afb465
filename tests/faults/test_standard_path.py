"""
The same promises on Twisted's own transports, where the fast port leaves the socket to them.

Through a PROXY header there is a plain socket below; through TLS there is not.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
from typing import Any
from unittest import SkipTest

from messages import FULL, GAVE_UP, SERVING, TURNED_AWAY

from .server import (
    KIBI,
    MEBI,
    Address,
    FaultCase,
    Server,
    fetchMany,
    kernelBytes,
    makeText,
    readAll,
    readAllAtOnce,
    run,
    wait,
)

_HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 10000\r\n"


class ProxiedTests(FaultCase):
    """Clients that come through a proxy, which says who they are."""

    def begin(self, size: int, *options: str, **how: Any) -> tuple[Server, Address, bytes]:
        """Start a server of a poem of so many bytes."""
        address, poem = self.listen(), self.write(makeText(size))
        return self.serve(*options, endpoint="haproxy:adopted", **how), address, poem

    def arrive(self, times: int, address: Address, **how: Any) -> list[socket.socket]:
        """Connect so many clients, and say who they are."""
        clients = self.hold(times, address, **how)
        for client in clients:
            client.sendall(_HEADER)
        return clients

    def test_writingBeforeReading(self) -> None:
        """200 clients that each write 64 KiB first get a poem of 1 MiB exactly."""
        _, address, poem = self.begin(MEBI)
        write = _HEADER + bytes(64 * KIBI)
        self.assertAll("isExact", run(fetchMany(200, address, poem, write=write)))

    def test_smallBufferAndLateRead(self) -> None:
        """The smallest receive buffer and a late first read cost no byte."""
        _, address, poem = self.begin(64 * KIBI)
        how = {"write": _HEADER + b"\n", "receiveBuffer": KIBI, "pauseSeconds": 0.5}
        self.assertAll("isExact", run(fetchMany(100, address, poem, **how)))

    def test_halfClosingFirst(self) -> None:
        """Clients that close their side first get a poem of 16 MiB exactly."""
        _, address, poem = self.begin(16 * MEBI)
        replies = run(fetchMany(20, address, poem, write=_HEADER, halfClose=True))
        self.assertAll("isExact", replies)

    def test_killedHalfWay(self) -> None:
        """Readers half-way through when the server is killed get a reset."""
        server, address, poem = self.begin(16 * MEBI)
        clients = self.arrive(20, address)
        self.assertKillResets(server, clients, poem)

    def test_stoppedReaders(self) -> None:
        """500 clients that take nothing are reset at the deadline, and cost little until then."""
        server, address, poem = self.begin(MEBI, "--stall-timeout=2", "--journal-budget=2000")
        self.assertAll("isExact", run(fetchMany(20, address, poem, write=_HEADER)))
        descriptors = server.descriptors()
        server.forgetPeak()
        resident = server.residentKiB()
        clients = self.arrive(500, address, receiveBuffer=KIBI)
        wait(lambda: server.descriptors() >= descriptors + 500, "the readers")
        kernel = kernelBytes(int(address[1]))
        wait(lambda: server.descriptors() <= descriptors, "the close")
        self.assertLess(server.residentKiB("VmHWM") - resident, 20 * KIBI)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
        if kernel is not None:
            self.assertLess(kernel / len(clients), 400 * KIBI)

    def test_fewDescriptors(self) -> None:
        """With 64 descriptors 200 clients are all served exactly."""
        server, address, poem = self.begin(MEBI, descriptors=64)
        clients = self.arrive(200, address)
        server.waitFor(FULL)
        self.assertEqual(run(readAllAtOnce(clients)), [(len(poem), "end")] * 200)
        self.assertEqual(server.tracebacks(), [])

    def test_whoNeverSaysWhoItIs(self) -> None:
        """Connections that send no header are ended by the stall timeout."""
        server, address, poem = self.begin(3003, "--stall-timeout=0.5")
        self.assertAll("isExact", run(fetchMany(5, address, poem, write=_HEADER)))
        descriptors = server.descriptors()
        clients = self.hold(100, address)
        self.assertEqual({readAll(client) for client in clients}, {(0, "reset")})
        wait(lambda: server.descriptors() <= descriptors, "the close")


class TLSTests(FaultCase):
    """Clients that come through TLS, which has an end of its own."""

    def setUp(self) -> None:
        """Make a certificate that nobody trusts."""
        super().setUp()
        if importlib.util.find_spec("OpenSSL") is None or shutil.which("openssl") is None:
            raise SkipTest("there is no OpenSSL")
        self.certificate = self.folder / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=poems"),
                *("-keyout", self.certificate, "-out", self.folder / "part"),
            ],
            check=True,
            capture_output=True,
        )
        with open(self.certificate, "ab") as file:
            file.write((self.folder / "part").read_bytes())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def begin(self, size: int, *options: str) -> tuple[Server, Address, bytes]:
        """Start a server of a poem of so many bytes, on a port that nobody else has for now."""
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            address: Address = trial.getsockname()
        poem = self.write(makeText(size))
        keys = f"privateKey={self.certificate}:certKey={self.certificate}"
        listen = f"ssl:{address[1]}:interface=127.0.0.1:{keys}"
        path = str(self.folder / "poem.txt")
        arguments = ["fastpoetry", *options, f"--poem={path}", f"--listen={listen}"]
        server = Server(arguments, {}, self.log, {})
        self.addCleanup(server.close)
        server.waitFor(SERVING)
        return server, address, poem

    def open(self, address: Address, **how: Any) -> ssl.SSLSocket:
        """Connect, and shake hands."""
        (client,) = self.hold(1, address, **how)
        # An end without TLS's own is none.
        wrapped = self.context.wrap_socket(client, suppress_ragged_eofs=False)
        self.addCleanup(wrapped.close)
        return wrapped

    def test_exact(self) -> None:
        """Readers get every byte, and then TLS's end."""
        for number, size in enumerate((3003, 4 * MEBI), 1):
            server, address, poem = self.begin(size)
            server.waitFor(SERVING, number)
            for _ in range(20):
                with self.open(address) as client:
                    self.assertEqual(readAll(client), (len(poem), "end"))
            server.end()

    def test_killedHalfWay(self) -> None:
        """A reader half-way through when the server is killed gets no end of TLS's."""
        server, address, poem = self.begin(16 * MEBI)
        clients = [self.open(address) for _ in range(5)]
        for client in clients:
            self.assertTrue(client.recv(1000))
        server.end(signal.SIGKILL)
        for client in clients:
            count, end = readAll(client)
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")

    def test_stopped(self) -> None:
        """
        Readers half-way through when the server is told to stop get the rest; those that take
        nothing are cut off at the drain timeout, and can tell.
        """
        server, address, poem = self.begin(8 * MEBI, "--drain-timeout=1")
        reader, stopped = self.open(address), self.open(address, receiveBuffer=KIBI)
        count = len(reader.recv(1000))
        self.assertTrue(stopped.recv(1))
        server.send(signal.SIGTERM)
        more, end = readAll(reader)
        self.assertEqual((count + more, end), (len(poem), "end"))
        server.wait()
        count, end = readAll(stopped)
        self.assertLess(count, len(poem))
        self.assertEqual(end, "reset")

    def test_whoNeverShakesHands(self) -> None:
        """Clients that say nothing, or take nothing, are ended by the stall timeout."""
        server, address, poem = self.begin(MEBI, "--stall-timeout=0.5")
        with self.open(address) as client:
            self.assertEqual(readAll(client), (len(poem), "end"))
        descriptors = server.descriptors()
        self.hold(20, address)
        for _ in range(5):
            self.assertTrue(self.open(address, receiveBuffer=KIBI).recv(1))
        server.waitFor(TURNED_AWAY, 20)
        server.waitFor(GAVE_UP, 5)
        wait(lambda: server.descriptors() <= descriptors, "the close")
