"""P1: a client that reads gets every byte, whatever else it does."""

from __future__ import annotations

import socket

from .clients import KIBI, MEBI, fetchMany, run
from .server import FaultCase, makeText


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
