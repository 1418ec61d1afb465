"""
P6: a broken poem never closes the port for good.

What systemd does with a server that does not start is tested elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from unittest import SkipTest

from messages import KEPT, LOADED

from .clients import MEBI, Address, connect, fetch, readAll, run
from .server import FaultCase, Server, makeText, wait

# Root can read every file, unless it drops that capability.
_AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


class ReloadTests(FaultCase):
    """Tests for a poem that is broken at a reload."""

    def assertKept(
        self, breakIt: Callable[[Path], object], cause: str, before: list[str] | None = None
    ) -> None:
        """
        Assert that the old poem stays with one record of the cause, and that a fixed poem is
        served.

        @param breakIt: called with the poem's path, where no file is left.
        @param cause: a part of the record.
        @param before: a command that runs the server.
        """
        address, old = self.listen(), self.write(makeText(3003))
        server = self.serve(before=before or [])
        self.assertAll("isExact", [run(fetch(address, old))])
        path = self.folder / "poem.txt"
        path.unlink()
        breakIt(path)
        server.send(signal.SIGHUP)
        (record,) = server.waitFor(KEPT)
        self.assertIn(str(path), record["cause"])
        self.assertIn(cause, record["cause"])
        self.assertAll("isExact", [run(fetch(address, old))])
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        new = self.write(makeText(3003, 1))
        self.assertReloads(server, address, new, 2)
        self.assertEqual(len(server.records(KEPT)), 1)
        self.assertEqual(server.tracebacks(), [])

    def assertReloads(self, server: Server, address: Address, poem: bytes, times: int) -> None:
        """
        Assert that a reload loads a poem.

        @param times: the number of loads since the start.
        """
        server.send(signal.SIGHUP)
        server.waitFor(LOADED, times)
        self.assertAll("isExact", [run(fetch(address, poem))])

    def test_deleted(self) -> None:
        """The server keeps a poem whose file was deleted."""
        self.assertKept(lambda path: None, "No such file")

    def test_unreadable(self) -> None:
        """The server keeps its poem if the file becomes unreadable."""
        if os.geteuid() == 0 and shutil.which("setpriv") is None:
            raise SkipTest("root may read everything")

        def hide(path: Path) -> None:
            path.write_bytes(b"secret")
            path.chmod(0)

        self.assertKept(hide, "Permission denied", _AS_ANYBODY if os.geteuid() == 0 else None)

    def test_empty(self) -> None:
        """The server keeps its poem if the file becomes empty."""
        self.assertKept(lambda path: path.write_bytes(b""), "is empty")

    def test_folder(self) -> None:
        """The server keeps its poem if a folder takes its place."""
        self.assertKept(lambda path: path.mkdir(), "is a folder")

    def test_fifo(self) -> None:
        """The server keeps its poem if a FIFO takes its place, and does not wait for a writer."""
        self.assertKept(os.mkfifo, "is a FIFO")

    def test_device(self) -> None:
        """The server keeps its poem if an endless device takes its place."""
        self.assertKept(lambda path: path.symlink_to("/dev/zero"), "is a device")

    def test_huge(self) -> None:
        """The server keeps its poem if the file becomes too large, and does not read the file."""

        def grow(path: Path) -> None:
            path.touch()
            os.truncate(path, 1 << 40)

        self.assertKept(grow, "64 MiB")

    def test_linkToItself(self) -> None:
        """The server keeps its poem if a link to itself takes its place."""
        self.assertKept(lambda path: path.symlink_to(path.name), "symbolic links")

    def test_writtenToWhileItIsRead(self) -> None:
        """A poem that is written to while it is read is not loaded."""
        ended = threading.Event()

        def writeOn(path: Path) -> None:
            with open(path, "wb", buffering=0) as file:
                os.truncate(path, 60 * MEBI)
                while not ended.is_set():
                    os.pwrite(file.fileno(), b"x", 0)

        def start(path: Path) -> None:
            writer = threading.Thread(target=writeOn, args=[path])
            writer.start()
            self.addCleanup(writer.join)
            self.addCleanup(ended.set)
            while not path.exists() or path.stat().st_size == 0:
                pass

        self.assertKept(start, "was written to")

    def assertLoads(self, server: Server, poem: bytes) -> None:
        """Assert that a server loads a poem that is moved into place."""
        self.write(poem)
        server.send(signal.SIGHUP)
        digest = sha256(poem).hexdigest()
        wait(lambda: server.records(LOADED)[-1]["digest"] == digest, "the poem")

    def test_replacedWhileItIsRead(self) -> None:
        """A poem that is moved into place during a reload is either whole or not yet there."""
        address, poems = self.listen(), [makeText(8 * MEBI, seed) for seed in (1, 2)]
        self.write(poems[0])
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, poems[0]))])
        for number in range(30):
            server.send(signal.SIGHUP)
            self.write(poems[number % 2])
            self.assertAll("isExact", [run(fetch(address, *poems))])
        for poem in poems:
            self.assertLoads(server, poem)
        self.assertEqual(server.records(KEPT), [])


class StartTests(FaultCase):
    """Tests for a poem that is broken at the start."""

    def test_clientsWaitUntilItIsMended(self) -> None:
        """
        The server ends at once with the cause in one line. Clients wait in its socket's backlog,
        and the server that finds a fixed poem serves them.
        """
        address = self.listen()
        clients = [connect(address) for _ in range(20)]
        for _ in range(3):
            self.assertEqual(self.serve().wait(), 1)
        self.assertRegex(self.log.read_text(), r"\A(fastpoetry: --poem \S*: \S+: No such.*\n){3}\Z")
        poem = self.write(makeText(3003))
        self.serve()
        for client in clients:
            self.assertEqual(readAll(client), (len(poem), "end"))
            client.close()
