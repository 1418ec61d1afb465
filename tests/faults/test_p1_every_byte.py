"""P1: a client that reads gets every byte, whatever else it does."""

from __future__ import annotations

import signal
import socket
import time

from messages import SENT

from .clients import KIBI, MEBI, connect, fetchMany, readAll, resetNow, run
from .server import FaultCase, Server, makeText, wait


class EveryByteTests(FaultCase):
    """Tests with clients that are odd, slow or rude, and read to the end."""

    def test_writingBeforeReading(self) -> None:
        """1,000 clients that each write 64 KiB first get every byte of a 3 kB poem."""
        address, poem = self.listen(), self.write(makeText(3003))
        self.serve()
        self.assertAll("isExact", run(fetchMany(1000, address, poem, write=bytes(64 * KIBI))))

    def test_writingBeforeReadingMuch(self) -> None:
        """200 clients that each write 64 KiB first get every byte of a 1 MiB poem."""
        address, poem = self.listen(), self.write(makeText(MEBI))
        self.serve()
        self.assertAll("isExact", run(fetchMany(200, address, poem, write=bytes(64 * KIBI))))

    def test_writingBeforeReadingOnUNIX(self) -> None:
        """
        200 clients of a UNIX socket that each write 64 KiB first get every byte of a 1 MiB poem.
        """
        address, poem = self.listen(family=socket.AF_UNIX), self.write(makeText(MEBI))
        self.serve()
        self.assertAll("isExact", run(fetchMany(200, address, poem, write=bytes(64 * KIBI))))

    def test_smallBufferAndLateRead(self) -> None:
        """A byte sent first, the smallest receive buffer and a late first read cost no byte."""
        address, poem = self.listen(), self.write(makeText(64 * KIBI))
        self.serve()
        how = {"write": b"\n", "receiveBuffer": KIBI, "pauseSeconds": 0.5}
        self.assertAll("isExact", run(fetchMany(100, address, poem, **how)))

    def test_halfClosingFirst(self) -> None:
        """20 clients that close their side first get every byte of a 16 MiB poem."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        self.serve()
        self.assertAll("isExact", run(fetchMany(20, address, poem, halfClose=True)))

    def test_halfClosingFirstOnUNIX(self) -> None:
        """
        20 clients of a UNIX socket that close their side first get every byte of a 16 MiB poem.
        """
        address, poem = self.listen(family=socket.AF_UNIX), self.write(makeText(16 * MEBI))
        self.serve()
        self.assertAll("isExact", run(fetchMany(20, address, poem, halfClose=True)))

    def test_slowButFastEnough(self) -> None:
        """
        A reader that takes several times longer than the stall timeout, and never stops, gets every
        byte.
        """
        address, poem = self.listen(), self.write(makeText(24 * KIBI))
        self.serve("--stall-timeout=1", "--min-rate=1000")
        how = {"receiveBuffer": KIBI, "pieceBytes": KIBI, "betweenSeconds": 0.06}
        self.assertAll("isExact", run(fetchMany(20, address, poem, **how)))


class NumberTests(FaultCase):
    """Tests for a descriptor's number that is given again while an event waits for the old one."""

    def test_readers(self) -> None:
        """Readers that the server accepts in the turn in which it resets others get every byte."""
        address, poem = self.listen(), self.write(makeText(2 * MEBI))
        server = self.serve("--stall-timeout=2")
        stalled = self.hold(5, address, receiveBuffer=2 * KIBI)
        self.waitUntilAccepted()
        time.sleep(1.3)  # until a visit has seen that they take nothing
        server.send(signal.SIGSTOP)
        time.sleep(2)
        readers = self.hold(5, address, receiveBuffer=2 * KIBI)
        for client in stalled:
            resetNow(client)
        server.send(signal.SIGCONT)
        self.assertEqual({readAll(client) for client in readers}, {(len(poem), "end")})
        self.assertEqual(server.tracebacks(), [])

    def test_balancer(self) -> None:
        """
        A reader that the server accepts in the turn in which it closes another, behind a balancer,
        gets every byte.
        """
        address, poem = self.listen(), self.write(makeText(2 * MEBI))
        behind = self.listen("behind")
        block = [f"--poem={self.folder}/poem.txt", "--listen=adopted:name=poem"]
        options = ["--max-readers=1", *block, "--listen=haproxy:adopted:name=behind"]
        server = Server(["fastpoetry", *options], self.listeners, self.log, {})
        self.addCleanup(server.close)
        first = connect(behind)
        self.addCleanup(first.close)
        first.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        count = 0
        while count < len(poem):
            count += len(first.recv(MEBI))
        wait(lambda: server.records(SENT), "the end of the poem")
        server.send(signal.SIGSTOP)
        reader = connect(address, receiveBuffer=2 * KIBI)
        self.addCleanup(reader.close)
        first.close()
        server.send(signal.SIGCONT)
        self.assertEqual(readAll(reader), (len(poem), "end"))
        self.assertEqual(server.tracebacks(), [])
