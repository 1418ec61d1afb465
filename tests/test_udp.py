"""Tests for C{packaging/tac/poetry-udp.tac}, under a real twistd and with real clients."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from runpy import run_path
from unittest import skipUnless

from processes import (
    ROOT,
    SECONDS,
    Address,
    Workplace,
    fetchFrom,
    findTwistd,
    finish,
    ownNetwork,
)
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.service import PoetryService

TAC = ROOT / "packaging/tac/poetry-udp.tac"
CLIENT = ("127.0.0.1", 40000)
ADDRESS = ("127.0.0.1", 10000)
POEM = (ROOT / "poetry/ecstasy.txt").read_bytes()


class TacTests(SynchronousTestCase):
    """Tests for one poem over TCP and UDP."""

    def setUp(self) -> None:
        """Make a clone with the poems."""
        self.place = Workplace(self)
        self.poem = self.place.folder / "poetry/ecstasy.txt"
        self.tac = self.place.folder / "packaging/tac/poetry-udp.tac"
        self.tac.parent.mkdir(parents=True)
        self.tac.write_text(TAC.read_text())

    @contextmanager
    def serve(self) -> Iterator[socket.socket]:
        """Run twistd, and connect to its UDP port."""
        with ownNetwork():
            command = ("--nodaemon", "--pidfile=", "--python", str(self.tac))
            twistd = self.place.begin(*findTwistd(), *command)
            self.assertEqual(fetchFrom(twistd, ADDRESS), self.poem.read_bytes())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(SECONDS)
                client.connect(ADDRESS)
                yield client
            twistd.terminate()
            _, self.log, errors = finish(twistd)
        self.assertEqual(errors, "")
        self.assertNotIn("Traceback", self.log)

    def ask(self, poem: bytes) -> bytes:
        """@return: the answer to a datagram, from a server of this poem."""
        self.poem.write_bytes(poem)
        with self.serve() as client:
            client.send(b"whatever\n")
            return client.recv(65536)

    def test_firstLines(self) -> None:
        """The answer to a datagram is as many of the poem's lines as fit into 512 bytes."""
        answer = self.ask(POEM)
        self.assertTrue(POEM.startswith(answer) and answer.endswith(b"\n"))
        following = POEM[len(answer) :].split(b"\n")[0] + b"\n"
        self.assertLessEqual(len(answer), 512)
        self.assertGreater(len(answer + following), 512)

    def test_short(self) -> None:
        """A poem that fits is sent whole."""
        poem = b"x" * 63 + b"\n"
        self.assertEqual(self.ask(poem * 8), poem * 8)

    def test_longLine(self) -> None:
        """If a line does not fit, its beginning is sent."""
        self.assertEqual(self.ask(b"x" * 1000), b"x" * 512)

    @skipUnless(shutil.which("nc"), "no nc")
    def test_netcat(self) -> None:
        """netcat can read the answer."""
        with self.serve():
            status, output, _ = self.place.run("sh", "-c", "echo | nc -u -w 1 127.0.0.1 10000")
        self.assertEqual(status, 0)
        self.assertTrue(POEM.startswith(output.encode()) and len(output) > 400)

    def test_taken(self) -> None:
        """A port in use is refused in one line."""
        with ownNetwork(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(ADDRESS)
            ended = self.place.run(*findTwistd(), "--python", str(self.tac))
        line = "fastpoetry: ('127.0.0.1', 10000): Address already in use\n"
        self.assertEqual(ended, (1, "", line))


class Transport:
    """A transport for the answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Address]] = []
        self.fault: OSError | None = None

    def write(self, datagram: bytes, address: Address) -> None:
        """Store the answer, or fail."""
        if self.fault is not None:
            raise self.fault
        self.sent.append((datagram, address))


class DatagramTests(SynchronousTestCase):
    """Tests for how the deployment handles datagrams, on a fake clock."""

    def setUp(self) -> None:
        service = PoetryService(ROOT / "poetry/ecstasy.txt")
        service.startService()
        # Under this name the file only defines its functions and classes.
        found = run_path(str(TAC), run_name="__main__")
        self.now = 0.5
        found["PoetryDatagrams"].datagramReceived.__globals__["monotonic"] = lambda: self.now
        self.transport = Transport()
        self.protocol = found["PoetryDatagrams"](service)
        self.protocol.transport = self.transport

    def flood(self) -> int:
        """@return: the number of answers to many datagrams."""
        before = len(self.transport.sent)
        for _ in range(1000):
            self.protocol.datagramReceived(b"", CLIENT)
        return len(self.transport.sent) - before

    def test_noAmplifier(self) -> None:
        """In a flood few datagrams are answered, until the next second."""
        self.assertEqual(self.flood(), 20)
        self.now = 0.9
        self.assertEqual(self.flood(), 0)
        self.now = 1.0
        self.assertEqual(self.flood(), 20)

    def test_sender(self) -> None:
        """The answer goes only to the sender of the datagram."""
        self.protocol.datagramReceived(b"", CLIENT)
        self.assertEqual([address for _, address in self.transport.sent], [CLIENT])

    def test_lost(self) -> None:
        """An answer that cannot be sent is lost, without a further effect."""
        self.transport.fault = PermissionError(1, "Operation not permitted")
        self.protocol.datagramReceived(b"", CLIENT)
        self.transport.fault = None
        self.protocol.datagramReceived(b"", CLIENT)
        self.assertEqual(len(self.transport.sent), 1)
