"""
P8: faults of the machine affect as few clients as possible: a clock that is set, a disk or resolver
that hangs, a lack of threads.

L{sitecustomize} makes the faults inside the process; everything else is real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from fcntl import ioctl
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import SkipTest, skipUnless

from fakes import receiveAll
from messages import BACK, FAILED, FETCHED, KEPT, LOADED, NO_COPY, STILL
from test_proxy_process import NEW, POEM, ProxyCase, sends, sendsAfter

from .clients import MEBI, fetch, readAll, run
from .server import ROOT, FaultCase, Server, makeText, wait

STEPS = (86_400, -86_400)
"""
How far a clock is set, in seconds: by NTP at boot, or in a virtual machine after a pause. A step
back is the last: with a clock that it stops, time would stand still for the rest of the test.
"""

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
"""As in fsfreeze(8)."""

# A process that waits for a disk, and goes on when the disk does.
_PYTHON = """#!/bin/sh
while test -e {disk}; do sleep 0.05; done
exec {python} "$@"
"""


class MachineCase(FaultCase):
    """A test case with a machine that can have faults."""

    def setUp(self) -> None:
        super().setUp()
        self.site = self.folder / "site"
        self.site.mkdir()
        self.replaceDisk("disk")

    def replaceDisk(self, name: str) -> None:
        """Give servers that start from now on a disk with the fault of that name."""
        python = self.site / f"{name}.sh"
        python.write_text(_PYTHON.format(disk=self.site / name, python=sys.executable))
        python.chmod(0o755)
        self.fault("python", python)

    def fault(self, name: str, value: object = "yes") -> None:
        """
        Turn a fault on: C{clock} by so many seconds, C{disk}, C{resolver}, C{threads},
        C{processes}.
        """
        new = self.site / "new"
        new.write_text(str(value))
        new.rename(self.site / name)

    def mend(self, name: str) -> None:
        """Turn a fault off."""
        (self.site / name).unlink()

    def serve(self, *options: str, **how: Any) -> Server:
        """Start a server on that machine."""
        here = Path(__file__).parent
        environ = {
            **how.pop("environ", {}),
            "PYTHONPATH": f"{here / 'site'}:{ROOT}:{here}",
            "SITE_FOLDER": str(self.site),
        }
        return super().serve(*options, environ=environ, **how)

    def assertEnds(self, server: Server) -> None:
        """Assert that a server ends when it is told to."""
        self.assertEqual(server.end(), -signal.SIGTERM)
        self.assertEqual(server.tracebacks(), [])


class PoemTests(MachineCase):
    """Tests for a server whose poem is being read."""

    def setUp(self) -> None:
        super().setUp()
        self.address = self.listen()
        self.old = self.write(makeText(3003))

    def assertGets(self, *poems: bytes) -> None:
        """Assert that a client gets a poem."""
        self.assertAll("isExact", [run(fetch(self.address, *poems))])

    def test_disk(self) -> None:
        """
        While the disk hangs at a reload, readers get the old poem; the new one is served when the
        disk works again.
        """
        server = self.serve()
        self.assertGets(self.old)
        new = self.write(makeText(3003, 1))
        self.fault("disk")
        server.send(signal.SIGHUP)
        for _ in range(100):
            self.assertGets(self.old)
        self.mend("disk")
        server.waitFor(LOADED, 2)
        self.assertGets(new)
        self.assertEnds(server)

    def test_stop(self) -> None:
        """A disk that hangs forever does not delay a stop."""
        server = self.serve()
        self.assertGets(self.old)
        self.fault("disk")
        for _ in range(3):
            server.send(signal.SIGHUP)
            self.assertGets(self.old)
        self.assertEnds(server)

    @skipUnless(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "only root mounts, by FUSE")
    def test_stuck(self) -> None:
        """
        On a real file system that does not answer, reloads and stops work too, though even
        SIGKILL does not end a reading process. A start that waits for it can be cancelled.
        """
        disk, shown = self.folder / "disk", self.folder / "shown.txt"
        disk.mkdir()
        (self.folder / "poem.txt").rename(shown)
        mount = [sys.executable, str(Path(__file__).with_name("stuck.py")), str(shown), str(disk)]
        system = subprocess.Popen(mount, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(system.communicate)
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(disk)])
        assert system.stdout is not None
        if system.stdout.readline() != b"mounted\n":
            raise SkipTest("no file system of our own")
        (self.folder / "poem.txt").symlink_to(disk / shown.name)
        try:
            server = self.serve()
            self.assertGets(self.old)
            system.send_signal(signal.SIGUSR1)
            server.send(signal.SIGHUP)
            self.assertEqual(system.stdout.readline(), b"asked\n")
            for _ in range(100):
                self.assertGets(self.old)
            self.assertEnds(server)
            server = self.serve()
            self.assertEqual(system.stdout.readline(), b"asked\n")
            self.assertEqual(server.end(), -signal.SIGTERM)
        finally:
            system.kill()  # ends the process that waits for the disk

    def test_processes(self) -> None:
        """If no process and no thread can start, a reload reads all the same."""
        server = self.serve()
        self.assertGets(self.old)
        new = self.write(makeText(3003, 1))
        self.fault("processes")
        self.fault("threads")
        server.send(signal.SIGHUP)
        server.waitFor(LOADED, 2)
        self.assertGets(new)
        self.assertEnds(server)

    def test_stopped(self) -> None:
        """
        A reading process that was stopped has a record after 10 s. After a minute the reload fails,
        and the next one reads anew.
        """
        self.fault("hurry")
        server = self.serve()
        self.assertGets(self.old)
        new = self.write(makeText(3003, 1))
        self.fault("disk")
        server.send(signal.SIGHUP)
        wait(lambda: children(server), "a process that reads")
        (child,) = children(server)
        os.kill(child, signal.SIGSTOP)
        self.mend("disk")
        (record,) = server.waitFor(STILL)
        self.assertIn("poem.txt", record["cause"])
        self.assertIn(str(child), record["cause"])
        self.assertGets(self.old)
        (record,) = server.waitFor(KEPT)
        self.assertIn("poem.txt", record["cause"])
        wait(lambda: not children(server), "its end")
        self.mend("hurry")
        server.send(signal.SIGHUP)
        server.waitFor(LOADED, 2)
        self.assertGets(new)
        self.assertEnds(server)

    def test_clock(self) -> None:
        """A reload takes place however the clock is set."""
        server = self.serve()
        for times, step in enumerate(STEPS, 2):
            self.assertGets(*[makeText(3003, seed) for seed in (0, times - 1)])
            self.fault("clock", step)
            new = self.write(makeText(3003, times))
            server.send(signal.SIGHUP)
            server.waitFor(LOADED, times)
            self.assertGets(new)
        self.assertEnds(server)

    def test_unchanged(self) -> None:
        """Reloads of an unchanged poem use no more memory, even with readers under way."""
        poem = self.write(makeText(32 * MEBI))
        server = self.serve()
        slow = []
        server.waitFor(LOADED)
        for number in range(2, 6):
            slow += self.hold(1, self.address)
            server.send(signal.SIGHUP)
            server.waitFor(LOADED, number)
        server.forgetPeak()
        self.assertLess(server.residentKiB() / 1024, 32 * 2 + 60)
        self.assertEqual(receiveAll(slow[0]), poem)


class ProxyTests(MachineCase, ProxyCase):
    """Tests for a proxy on a machine with faults."""

    def threads(self, server: Server) -> int:
        """The number of a server's threads."""
        return len(os.listdir(f"/proc/{server.pid}/task"))

    def test_clockInAnOutage(self) -> None:
        """
        However the clock is set in an outage, the upstream is tried again, and waiting readers are
        served.
        """
        for step in STEPS:
            name = f"poem{step}"
            upstream = self.upstream()
            address = self.proxy(upstream.endpoint, name=name)
            server = self.serve()
            clients = self.hold(2, address)
            server.waitFor(FAILED, 1)
            self.fault("clock", step)
            upstream.begin(sends(POEM))
            self.assertEqual([receiveAll(client) for client in clients], [POEM] * 2)
            (back,) = server.records(BACK)
            self.assertLess(back["seconds"], 60)
            self.mend("clock")
            self.assertEnds(server)
            self.log.unlink()
            self.listeners.clear()
            self.blocks.clear()

    def test_clockInAFetch(self) -> None:
        """However the clock is set during a fetch, the poem arrives and keeps its freshness."""
        for step in STEPS:
            answer = threading.Event()
            upstream = self.upstream(sendsAfter(answer))
            address = self.proxy(upstream.endpoint)
            server = self.serve()
            clients = self.hold(2, address)
            wait(lambda: upstream.fetches, "a fetch")  # noqa: B023
            self.fault("clock", step)
            answer.set()
            self.assertEqual([receiveAll(client) for client in clients], [POEM] * 2)
            self.fault("clock", -step)
            self.assertFetches(address, POEM)
            self.assertEqual(upstream.fetches, 1)
            self.mend("clock")
            self.assertEnds(server)

    def test_clockInAReload(self) -> None:
        """
        However the clock is set during a reload in an outage, systemd is told of the reload's end.
        """
        upstream = self.upstream(sends(POEM))
        address = self.proxy(upstream.endpoint)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
            manager.bind(str(self.folder / "notify"))
            manager.settimeout(60)

            def waitFor(*states: bytes) -> None:
                for state in states:
                    while not manager.recv(4096).startswith(state):
                        pass

            server = self.serve(environ={"NOTIFY_SOCKET": str(self.folder / "notify")})
            waitFor(b"READY=1")
            self.assertFetches(address, POEM)
            upstream.close()
            for step in STEPS:
                server.send(signal.SIGHUP)
                self.fault("clock", step)
                waitFor(b"RELOADING=1", b"READY=1")
                self.assertFetches(address, POEM)
            self.assertEnds(server)

    def test_resolver(self) -> None:
        """
        A resolver that does not answer counts as a slow upstream, uses one thread for all attempts,
        and does not delay a stop.
        """
        self.fault("resolver")
        address = self.proxy("tcp:host=silent.example:port=1")
        server = self.serve("--connect-timeout=0.2", "--total-timeout=2")
        self.assertEqual(readAll(*self.hold(1, address)), (0, "reset"))
        (record,) = server.records(FAILED)
        self.assertEqual(record["cause"], "upstream took too long")
        self.assertLessEqual(self.threads(server), 3)
        self.hold(1, address)
        self.assertEnds(server)

    def test_resolverAgain(self) -> None:
        """When the resolver answers, the upstream is reached, and waiting readers are served."""
        self.fault("resolver")
        upstream = self.upstream(sends(POEM))
        address = self.proxy(f"tcp:host=silent.example:port={upstream.port}")
        server = self.serve("--connect-timeout=0.2")
        (client,) = self.hold(1, address)
        server.waitFor(FAILED)
        self.mend("resolver")
        self.assertEqual(receiveAll(client), POEM)
        self.assertEnds(server)

    def test_IPv6(self) -> None:
        """An upstream with only IPv6 is reached by its name and by its address."""
        listener = socket.socket(socket.AF_INET6)
        self.addCleanup(listener.close)
        listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.sendall(POEM)

        threading.Thread(target=accept, daemon=True).start()
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        addresses = [
            self.proxy(f"tcp:host={host}:port={port}", name=f"poem{number}")
            for number, host in enumerate(("six.example", "::1", "[::1]"))
        ]
        self.serve()
        for address in addresses:
            self.assertFetches(address, POEM)

    def test_threads(self) -> None:
        """
        If no thread can start for a lookup, a fetch fails with one line, and a later fetch works.
        """
        port = self.upstream(sends(POEM)).port
        address = self.proxy(f"tcp:host=silent.example:port={port}")
        server = self.serve()
        self.fault("threads")
        (client,) = self.hold(1, address)
        (record,) = server.waitFor(FAILED)
        self.assertEqual(record["cause"], "no thread can be started: can't start new thread")
        self.mend("threads")
        self.assertEqual(receiveAll(client), POEM)
        self.assertEnds(server)


class CopyTests(MachineCase, ProxyCase):
    """Tests for a proxy whose copy is on a disk that hangs."""

    def setUp(self) -> None:
        super().setUp()
        self.cache = self.folder / "cache"
        self.cache.mkdir()
        self.source = self.upstream(sends(POEM))
        self.address = self.proxy(self.source.endpoint)
        self.copy = self.cache / f"{sha256(self.source.endpoint.encode()).hexdigest()[:32]}.poem"

    def start(self, *options: str, **how: Any) -> Server:
        """Start the proxy."""
        return self.serve(f"--cache={self.cache}", *options, **how)

    def reload(self, server: Server, times: int) -> bytes:
        """@return: the upstream's new poem, and the proxy's."""
        text = makeText(3003, times)
        self.source.behaviour = sends(text)
        server.send(signal.SIGHUP)
        server.waitFor(FETCHED, times)
        self.assertFetches(self.address, text)
        return text

    def test_saves(self) -> None:
        """
        All poems fetched in the meantime are served, one is being written, and the latest is on the
        disk once it works again.
        """
        self.fault("disk")
        server = self.start()
        self.assertFetches(self.address, POEM)
        for times in range(2, 15):
            latest = self.reload(server, times)
        self.assertLessEqual(len(os.listdir(f"/proc/{server.pid}/task")), 4)
        self.assertEqual([*self.cache.iterdir()], [])
        self.mend("disk")
        wait(lambda: self.copy.exists() and self.copy.read_bytes().endswith(latest), "the latest")
        self.assertEqual(server.records(NO_COPY), [])
        self.assertEnds(server)
        self.assertEqual([*self.cache.iterdir()], [self.copy])

    def test_stop(self) -> None:
        """
        A disk that hangs forever does not delay a stop; a late write does not replace what a later
        proxy has saved.
        """
        self.fault("disk")
        server = self.start()
        self.assertFetches(self.address, POEM)
        wait(lambda: children(server), "a process that saves")
        stuck = children(server)
        self.assertEnds(server)
        self.replaceDisk("other")
        self.source.behaviour = sends(NEW)
        server = self.start()
        self.assertFetches(self.address, NEW)
        wait(lambda: self.copy.exists() and self.copy.read_bytes().endswith(NEW), "a copy")
        self.mend("disk")
        self.assertEnds(server)
        wait(lambda: not any(os.path.exists(f"/proc/{each}") for each in stuck), "their end")
        self.assertTrue(self.copy.read_bytes().endswith(NEW))
        self.assertEqual([*self.cache.iterdir()], [self.copy])

    def test_start(self) -> None:
        """
        A disk that does not return the copy at the start delays no reader: the upstream is asked.
        """
        server = self.start()
        self.assertFetches(self.address, POEM)
        wait(self.copy.exists, "a copy")
        self.assertEnds(server)
        self.source.behaviour = sends(NEW)
        self.fault("disk")
        server = self.start()
        self.assertFetches(self.address, NEW)
        self.assertEnds(server)

    def test_strange(self) -> None:
        """Each invalid file in the copy's place has one record, and no reader waits for it."""

        def isSparse() -> None:
            self.copy.touch()
            os.truncate(self.copy, 8 << 30)

        def isFIFO() -> None:
            os.mkfifo(self.copy)

        def isLink() -> None:
            self.copy.symlink_to("/dev/zero")

        for times, put in enumerate((isFIFO, isLink, isSparse), 1):
            self.copy.unlink(missing_ok=True)
            put()
            server = self.start()
            self.assertFetches(self.address, POEM)
            self.assertEqual(len(server.waitFor(NO_COPY, times)), times)
            wait(lambda: self.copy.is_file() and not self.copy.is_symlink(), "a copy")
            self.assertEnds(server)

    def test_killed(self) -> None:
        """
        Proxies killed while they save leave at most one file behind, which the next save removes.
        """
        for number in range(5):
            self.source.behaviour = sends(makeText(8 * MEBI, number))
            server = self.start("--max-age=0")
            run(fetch(self.address))
            server.waitFor(FETCHED, number + 1)
            server.end(signal.SIGKILL)
        self.assertLessEqual(len([*self.cache.iterdir()]), 2)
        self.start("--max-age=0")
        run(fetch(self.address))
        wait(lambda: [*self.cache.iterdir()] == [self.copy], "the copy alone")

    @skipUnless(os.geteuid() == 0, "only root mounts and freezes")
    def test_frozen(self) -> None:
        """
        On a real frozen file system, the proxy serves and stops too, though even SIGKILL does
        not end a writing process.
        """
        image = self.folder / "image"
        with open(image, "wb") as file:
            file.truncate(16 * MEBI)
        makeFileSystem = ["mkfs.ext4", "-q", str(image)]
        mount = f'mount -o loop {image} {self.cache} && exec "$@"'
        try:
            subprocess.run(makeFileSystem, check=True, capture_output=True)
            alone = ["unshare", "--mount", "--propagation=private", "sh", "-c"]
            subprocess.run([*alone, mount, "sh", "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as why:
            raise SkipTest(f"no file system of our own: {why}") from why
        server = self.start("--max-age=1000", before=[*alone, mount, "sh"])
        self.assertFetches(self.address, POEM)
        inside = Path(f"/proc/{server.pid}/root{self.copy}")
        wait(inside.exists, "a copy")
        cache = os.open(inside.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ioctl(cache, _FIFREEZE, 0)
            try:
                for times in range(2, 15):
                    latest = self.reload(server, times)
                self.assertLessEqual(len(os.listdir(f"/proc/{server.pid}/task")), 4)
                self.assertFetches(self.address, latest)
                self.assertEnds(server)
            finally:
                ioctl(cache, _FITHAW, 0)
            self.assertTrue(self.content(cache).endswith(POEM))
        finally:
            os.close(cache)

    def content(self, folder: int) -> bytes:
        """The content of the copy, in an open folder."""
        with open(os.open(self.copy.name, os.O_RDONLY, dir_fd=folder), "rb") as file:
            return file.read()


def children(server: Server) -> list[int]:
    """
    A server's child processes that run their own program and are not reaped. Until a child runs it,
    the server stands still (vfork(2)), so a test must not stop the child before.
    """
    path = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    own = commandLine(server.pid)
    return [each for each in map(int, path.read_text().split()) if commandLine(each) != own]


def commandLine(process: int) -> str:
    """The command line of a process, see proc_pid_cmdline(5); empty if the process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""
