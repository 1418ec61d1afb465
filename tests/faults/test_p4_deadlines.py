"""P4: no client holds resources forever."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from typing import Any

from messages import GAVE_UP, SENT, SERVING

from .clients import KIBI, MEBI, Address, connect, fetchMany, readAll, run
from .server import FaultCase, Server, kernelBytes, makeText, wait


async def uploadForEver(address: Address) -> int:
    """
    Write without reading until the server ends the connection, and return the number of bytes
    written.
    """
    loop, count = asyncio.get_running_loop(), 0
    with connect(address) as client:
        client.setblocking(False)
        try:
            while True:
                await loop.sock_sendall(client, bytes(64 * KIBI))
                count += 64 * KIBI
        except OSError:
            return count


class DeadlineCase(FaultCase):
    """A test case with a server and clients that would hold it up."""

    def serve(self, *options: str, **how: Any) -> Server:
        """Start a server, wait until it serves, and count its sockets without clients."""
        server = super().serve(*options, **how)
        server.waitFor(SERVING, len(self.listeners))
        self.sockets = server.sockets()
        return server

    def waitUntilGone(self, server: Server) -> None:
        """Wait until the server has no more sockets than at the start."""
        wait(lambda: server.sockets() == self.sockets, "the close")


class UploadTests(DeadlineCase):
    """Tests for clients that only write."""

    def test_uploads(self) -> None:
        """
        Clients that upload without end are ended, whether their system has the whole poem or not.
        Their bytes are discarded.
        """
        addresses = [self.listen("small"), self.listen("large")]
        self.write(makeText(3003), "small")
        poem = self.write(makeText(4 * MEBI), "large")
        server = self.serve("--stall-timeout=2")
        self.assertAll("isExact", run(fetchMany(20, addresses[1], poem)))
        server.forgetPeak()
        before = server.residentKiB()

        async def load() -> list[int]:
            return await asyncio.gather(*map(uploadForEver, addresses * 10))

        self.assertGreater(min(run(load())), 0)
        self.assertLess(server.residentKiB("VmHWM") - before, KIBI)
        self.waitUntilGone(server)


class SlowTests(DeadlineCase):
    """Tests for clients that take few bytes or none."""

    def test_stoppedReaders(self) -> None:
        """
        1,000 clients that never read 1 MiB are reset at the deadline. Until then others are served,
        and the process and the kernel spend little on them.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve("--stall-timeout=3", "--journal-budget=2000")
        self.assertAll("isExact", run(fetchMany(20, address, poem)))
        self.waitUntilGone(server)
        server.forgetPeak()
        resident = server.residentKiB()
        server.send(signal.SIGSTOP)  # so that all come within the stall timeout
        clients = self.hold(1000, address, receiveBuffer=KIBI)
        server.send(signal.SIGCONT)
        wait(lambda: server.sockets() == self.sockets + 1000, "the readers")
        self.assertAll("isExact", run(fetchMany(20, address, poem, source="127.0.0.2")))
        kernel = kernelBytes(int(address[1]))
        server.waitFor(GAVE_UP, 1000)
        self.assertLess(server.residentKiB("VmHWM") - resident, 20 * KIBI)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
        self.waitUntilGone(server)
        if kernel is not None:
            self.assertLess(kernel / len(clients), 400 * KIBI)

    def test_stoppedAfterTheirEnd(self) -> None:
        """Clients that close their side, and take nothing, are reset like all others."""
        address = self.listen()
        self.write(makeText(100_000))
        server = self.serve("--stall-timeout=2", "--max-readers-per-source=10")
        clients = self.hold(50, address, receiveBuffer=2 * KIBI)
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        server.waitFor(SENT, 50)
        self.waitUntilGone(server)
        self.assertEqual({end for _, end in map(readAll, clients)}, {"reset"})

    def test_writingWhileStopped(self) -> None:
        """Readers that take nothing, and send small packets, take no more memory than others."""
        address = self.listen()
        self.write(makeText(MEBI))
        self.serve()
        clients = self.hold(3, address, receiveBuffer=2 * KIBI)
        self.waitUntilAccepted()
        for client in clients:
            client.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
            client.setblocking(False)
        for _ in range(60_000):
            for client in clients:
                with contextlib.suppress(BlockingIOError):
                    client.send(b"x")
        kernel = kernelBytes(int(address[1]))
        if kernel is not None:
            self.assertLess(kernel / len(clients), 400 * KIBI)

    def test_stoppedReadersOnUNIX(self) -> None:
        """Clients of a UNIX socket that never read are ended at the deadline."""
        address = self.listen(family=socket.AF_UNIX)
        self.write(makeText(MEBI))
        server = self.serve("--stall-timeout=0.5")
        self.hold(50, address)
        server.waitFor(GAVE_UP, 50)
        self.waitUntilGone(server)

    def test_trickle(self) -> None:
        """A reader that never stops, but is slower than the least rate, is reset."""
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve("--stall-timeout=1", "--min-rate=20000")
        how = {"receiveBuffer": KIBI, "pieceBytes": KIBI, "betweenSeconds": 0.1}
        replies = run(fetchMany(10, address, poem, **how))
        self.assertEqual([(each.isPart, each.end) for each in replies], [(True, "reset")] * 10)
        for record in server.waitFor(GAVE_UP, 10):
            self.assertRegex(record["cause"], r"^it took \d+ bytes/s$")

    def test_fewBytesASecond(self) -> None:
        """A reader of a few bytes a second, too few for an acknowledgement each, is reset."""
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve("--stall-timeout=1")
        clients = self.hold(10, address, receiveBuffer=KIBI)

        def isGivenUpOn() -> bool:
            time.sleep(0.25)
            for client in clients:
                client.recv(4)
            return len(server.records(GAVE_UP)) == 10

        wait(isGivenUpOn, "the deadline")
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")

    def test_smallPoemNotTaken(self) -> None:
        """
        The stall timeout also applies to a poem in the system's buffer that its reader does not
        take.
        """
        address, poem = self.listen(), self.write(makeText(16 * KIBI))
        server = self.serve("--stall-timeout=0.5")
        clients = self.hold(50, address, receiveBuffer=KIBI)
        server.waitFor(SENT, 50)
        self.waitUntilGone(server)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")

    def test_lingeringReader(self) -> None:
        """Clients that have the whole poem and do not close are closed soon."""
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serve()
        clients = self.hold(100, address)
        self.assertEqual({readAll(client) for client in clients}, {(len(poem), "end")})
        self.waitUntilGone(server)


class ManyTests(DeadlineCase):
    """Tests for a server that has run for a long time."""

    def test_anHourOfConnections(self) -> None:
        """
        After 8,000 connections of several kinds the server has no more open descriptors and no
        more memory than before.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serve()
        run(self.visit(address, poem, 2_000))
        self.waitUntilGone(server)
        descriptors, resident = server.descriptors(), server.residentKiB()
        run(self.visit(address, poem, 8_000))
        self.waitUntilGone(server)
        self.assertLessEqual(server.descriptors(), descriptors + 1)  # a timer comes and goes
        self.assertLess(server.residentKiB() - resident, KIBI)

    async def visit(self, address: Address, poem: bytes, times: int) -> None:
        """
        Fetch with readers that partly write or half-close first, and clients that leave at once.
        """
        for _ in range(times // 100):
            for client in self.connectSome(address):
                client.close()
            self.assertAll("isExact", await fetchMany(50, address, poem))
            self.assertAll("isExact", await fetchMany(15, address, poem, halfClose=True))
            self.assertAll("isExact", await fetchMany(10, address, poem, write=b"GET /\r\n"))

    def connectSome(self, address: Address) -> list[socket.socket]:
        """Connect 25 idle clients."""
        return [connect(address) for _ in range(25)]
