"""P4: nobody holds anything for ever."""

from __future__ import annotations

import asyncio
import socket
import time

from messages import GAVE_UP, SENT

from .server import (
    KIBI,
    MEBI,
    Address,
    FaultCase,
    Server,
    connect,
    fetchMany,
    kernelBytes,
    makeText,
    readAll,
    run,
    wait,
)


async def uploadForEver(address: Address) -> int:
    """Write and never read, until the server ends that: how much was written."""
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
    """A test of a server that somebody would hold up."""

    def serveNobody(self, address: Address, *options: str) -> tuple[Server, int]:
        """Start a server: it, and how many descriptors it has open with nobody there."""
        server = self.serve(*options)
        with connect(address) as client:
            readAll(client)
        # A client that has closed is seen to have gone at once, and at the latest after a second.
        counts: list[int] = []
        while len(counts) < 5 or len(set(counts[-5:])) > 1:
            counts.append(server.descriptors())
            time.sleep(0.1)
        return server, counts[-1]

    def waitUntilGone(self, server: Server, descriptors: int) -> None:
        """Wait until the server has no more descriptors open than it had."""
        wait(lambda: server.descriptors() <= descriptors, f"{server.descriptors()} descriptors")


class UploadTests(DeadlineCase):
    """Clients that only write."""

    def test_uploads(self) -> None:
        """
        Clients that upload for ever are ended, those that have the poem in their system and those
        that take no more of it; what they write is kept nowhere.
        """
        addresses = [self.listen("small"), self.listen("large")]
        self.write(makeText(3003), "small")
        poem = self.write(makeText(4 * MEBI), "large")
        server, descriptors = self.serveNobody(addresses[0], "--stall-timeout=1")
        self.assertAll("isExact", run(fetchMany(20, addresses[1], poem)))
        server.forgetPeak()
        before = server.residentKiB()

        async def load() -> list[int]:
            return await asyncio.gather(*map(uploadForEver, addresses * 10))

        self.assertGreater(min(run(load())), 0)
        self.assertLess(server.residentKiB("VmHWM") - before, KIBI)
        self.waitUntilGone(server, descriptors)


class SlowTests(DeadlineCase):
    """Clients that take nothing, or next to nothing."""

    def test_stoppedReaders(self) -> None:
        """
        1,000 clients that never read 1 MiB are reset at the deadline. Until then others are served,
        and neither the process nor the kernel spends much on them.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        server, descriptors = self.serveNobody(
            address, "--stall-timeout=2", "--journal-budget=2000"
        )
        self.assertAll("isExact", run(fetchMany(20, address, poem)))
        server.forgetPeak()
        resident = server.residentKiB()
        clients = self.hold(1000, address, receiveBuffer=KIBI)
        wait(lambda: server.descriptors() >= descriptors + 1000, "the readers")
        self.assertAll("isExact", run(fetchMany(20, address, poem, source="127.0.0.2")))
        kernel = kernelBytes(int(address[1]))
        server.waitFor(GAVE_UP, 1000)
        self.assertLess(server.residentKiB("VmHWM") - resident, 20 * KIBI)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
        self.waitUntilGone(server, descriptors)
        if kernel is not None:
            self.assertLess(kernel / len(clients), 400 * KIBI)

    def test_stoppedReadersOnUNIX(self) -> None:
        """On a UNIX socket they are gone at the deadline too."""
        address = self.listen(family=socket.AF_UNIX)
        self.write(makeText(MEBI))
        server, descriptors = self.serveNobody(address, "--stall-timeout=0.5")
        self.hold(50, address)
        server.waitFor(GAVE_UP, 50)
        self.waitUntilGone(server, descriptors)

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
        """
        So is one that takes a few bytes a second, whose system cannot even say so for each of them.
        """
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
        """A poem that is all with the system, but not with its reader, has the same deadline."""
        address, poem = self.listen(), self.write(makeText(16 * KIBI))
        server, descriptors = self.serveNobody(address, "--stall-timeout=0.5")
        clients = self.hold(50, address, receiveBuffer=KIBI)
        server.waitFor(SENT, 51)
        self.waitUntilGone(server, descriptors)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")

    def test_whoStays(self) -> None:
        """Clients that have the whole poem and do not close are closed soon."""
        address, poem = self.listen(), self.write(makeText(3003))
        server, descriptors = self.serveNobody(address)
        clients = self.hold(100, address)
        self.assertEqual({readAll(client) for client in clients}, {(len(poem), "end")})
        self.waitUntilGone(server, descriptors)


class ManyTests(DeadlineCase):
    """A server that has been there for long."""

    def test_anHourOfConnections(self) -> None:
        """
        After 20,000 more connections of several kinds it has no more descriptors open than before,
        and no more memory.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        server, descriptors = self.serveNobody(address)
        run(self.visit(address, poem, 5_000))
        self.waitUntilGone(server, descriptors)
        resident = server.residentKiB()
        run(self.visit(address, poem, 20_000))
        self.waitUntilGone(server, descriptors)
        self.assertLess(server.residentKiB() - resident, KIBI)

    async def visit(self, address: Address, poem: bytes, times: int) -> None:
        """Readers, some of whom write or half-close first, and some who leave at once."""
        for _ in range(times // 100):
            for client in self.connectSome(address):
                client.close()
            self.assertAll("isExact", await fetchMany(50, address, poem))
            self.assertAll("isExact", await fetchMany(15, address, poem, halfClose=True))
            self.assertAll("isExact", await fetchMany(10, address, poem, write=b"GET /\r\n"))

    def connectSome(self, address: Address) -> list[socket.socket]:
        """Connect 25 clients that do nothing."""
        return [connect(address) for _ in range(25)]
