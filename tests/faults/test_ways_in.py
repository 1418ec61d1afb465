"""
The promises for each kind of connection: TCP and UNIX through the fast port, TLS and PROXY headers
through Twisted's.

Faults of time, memory and descriptors are made inside the process, see L{sitecustomize} and
prlimit(2).
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import resource
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest

from messages import FULL, GAVE_UP, IDLE, LOADED, REFUSED_OPTION, SERVING, TURNED_AWAY
from processes import findFreePort

from .clients import KIBI, MEBI, Address, connect, fetchMany, readAll, readAllAtOnce, resetNow, run
from .server import FaultCase, Server, kernelBytes, makeText, wait
from .test_p8_still import STEPS, MachineCase

HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 10000\r\n"


class WayCase(MachineCase):
    """
    A test case for one kind of connection.

    @ivar endpoint: its kind, on the test's socket.
    @ivar family: of that socket.
    @ivar short: how a connection that was given up ends.
    """

    endpoint = "adopted"
    family = socket.AF_INET
    short = "reset"

    def start(self, size: int, *options: str, **how: Any) -> tuple[Server, Address, bytes]:
        """Start a server of a poem of so many bytes, and wait until it serves."""
        self.address = self.listen(family=self.family)
        poem = self.write(makeText(size))
        server = self.serve(*options, endpoint=self.endpoint, **how)
        server.waitFor(SERVING)
        return server, self.address, poem

    def startCold(self, *options: str) -> Server:
        """Start a proxy that never gets a poem."""
        upstream = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(upstream.close)
        self.address = self.listen(family=self.family)
        arguments = [
            *("fastpoetry-proxy", *options),
            f"--upstream=tcp:host=127.0.0.1:port={upstream.getsockname()[1]}",
            f"--listen={self.endpoint}:name=poem",
        ]
        return self.begin(arguments, self.listeners)

    def begin(self, arguments: list[str], listeners: dict[str, socket.socket]) -> Server:
        """Start a server, and wait until it serves."""
        server = Server(arguments, listeners, self.log, {})
        self.addCleanup(server.close)
        server.waitFor(SERVING)
        return server

    def enter(self, client: socket.socket) -> socket.socket:
        """Send what must precede a poem."""
        return client

    def open(self, **how: Any) -> socket.socket:
        """Connect, and send what must precede a poem."""
        client = connect(self.address, **how)
        self.addCleanup(client.close)
        return self.enter(client)


class EveryWay:
    """Tests for every kind of connection."""

    def test_clock(self: Any) -> None:
        """
        However the clock is set, readers are reset, served and closed as usual, a reader in
        mid-poem gets the rest, and systemd gets its pings.
        """
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
            manager.bind(str(self.folder / "notify"))
            manager.settimeout(60)
            environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "600000"}
            options = ("--stall-timeout=2", "--max-readers=5", "--drain-timeout=0.5")
            server, _, poem = self.start(MEBI, *options, environ=environ)
            while manager.recv(4096) != b"READY=1":
                pass
            sockets = server.sockets()
            stalled: list[socket.socket] = []
            for step in STEPS:
                for _ in range(2):
                    stalled.append(self.open(receiveBuffer=KIBI))
                    self.assertTrue(stalled[-1].recv(1))
                keen = self.open()
                count = len(keen.recv(1000))
                self.step(step)
                more, end = readAll(keen)
                self.assertEqual((count + more, end), (len(poem), "end"))
                keen.close()
                newcomers = [connect(self.address) for _ in range(3)]
                for each in newcomers:
                    with self.enter(each) as reader:
                        self.assertEqual(readAll(reader), (len(poem), "end"))
                self.forget(manager)
                for _ in range(3):
                    while manager.recv(4096) != b"WATCHDOG=1":
                        pass
            for record in server.waitFor(GAVE_UP, len(stalled)):
                self.assertRegex(record["cause"], "^it took nothing for [0-9]{1,2} s$")
            for each in stalled:
                count, end = readAll(each)
                self.assertEqual((count < len(poem) - 1, end), (True, self.short))
            wait(lambda: server.sockets() <= sockets, "everybody to be gone")
            stopped = self.open(receiveBuffer=KIBI)
            self.assertTrue(stopped.recv(1))
            server.send(signal.SIGTERM)
            self.step(0)
            # The readers that a message hands over close only when the message is dropped.
            wait(lambda: self.forget(manager) or server.process.poll() is not None, "the end")
            self.assertEqual(server.wait(), -signal.SIGTERM)
            self.assertEqual(readAll(stopped)[1], self.short)
            self.assertEqual(server.tracebacks(), [])

    def step(self: Any, seconds: int) -> None:
        """Set the process's clock."""
        self.fault("clock", seconds)

    def forget(self: Any, manager: socket.socket) -> None:
        """Read and drop the messages to systemd."""
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                manager.recv(4096)
        manager.settimeout(60)

    def test_noPoem(self: Any) -> None:
        """If there is no poem, waiting clients are reset, and counted with a record."""
        server = self.startCold("--total-timeout=1")
        clients = [self.open() for _ in range(5)]
        self.assertEqual([readAll(client) for client in clients], [(0, self.short)] * 5)
        self.assertEqual(len(server.waitFor(TURNED_AWAY, 5)), 5)
        self.assertEqual(server.end(), -signal.SIGTERM)
        self.assertEqual(server.tracebacks(), [])

    def test_noDescriptor(self: Any) -> None:
        """With no descriptor left, clients wait in the backlog, and are served when one is free."""
        server, _, poem = self.start(3003)
        self.assertEqual(readAll(self.open()), (len(poem), "end"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, hard))
        clients = [connect(self.address) for _ in range(5)]
        server.waitFor(FULL)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        for client in clients:
            with self.enter(client) as reader:
                self.assertEqual(readAll(reader), (len(poem), "end"))
        self.assertEqual(server.tracebacks(), [])

    def test_noMemory(self: Any) -> None:
        """After unexpected errors of accept, once or for a while, all clients are served."""
        server, _, poem = self.start(3003)
        for value, times in (("once", 1), ("yes", 3)):
            before = len(server.tracebacks())
            self.fault("accept", value)
            clients = [connect(self.address) for _ in range(5)]
            wait(lambda: len(server.tracebacks()) - before >= times, "failures")  # noqa: B023
            if value != "once":
                self.mend("accept")
            for client in clients:
                with self.enter(client) as reader:
                    self.assertEqual(readAll(reader), (len(poem), "end"))
        self.assertEqual(server.end(), -signal.SIGTERM)

    def test_cannotWatch(self: Any) -> None:
        """
        While the reactor can watch no more descriptors, no client is served. Afterwards all are
        served, and deadlines hold.
        """
        server, _, poem = self.start(8 * MEBI, "--stall-timeout=2")
        stalled = self.open(receiveBuffer=KIBI)
        self.assertTrue(stalled.recv(1))
        self.fault("epoll")
        self.hold(5, self.address)
        wait(server.tracebacks, "failures")
        server.waitFor(GAVE_UP)
        self.mend("epoll")
        self.assertEqual(readAll(self.open()), (len(poem), "end"))
        self.assertLess(readAll(stalled)[0], len(poem))
        self.assertEqual(server.end(), -signal.SIGTERM)

    def test_noLimitOfWhatWaits(self: Any) -> None:
        """
        If the kernel cannot limit unsent bytes, large poems are served all the same, with one
        record.
        """
        self.fault("lowat")
        server, _, poem = self.start(MEBI)
        for _ in range(3):
            self.assertEqual(readAll(self.open()), (len(poem), "end"))
        self.assertEqual(server.end(), -signal.SIGTERM)
        causes = [record["cause"] for record in server.records(REFUSED_OPTION)]
        option = "TCP_NOTSENT_LOWAT: Protocol not available"
        self.assertEqual(causes, [] if self.family == socket.AF_UNIX else [option])

    def test_toldToEndAgain(self: Any) -> None:
        """
        A server that is told to end repeatedly finishes the poems under way, without a traceback.
        """
        server, _, poem = self.start(8 * MEBI)
        reader = self.open(receiveBuffer=64 * KIBI)
        count = len(reader.recv(1000))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            server.send(number)
        more, end = readAll(reader)
        self.assertEqual((count + more, end), (len(poem), "end"))
        self.assertIn(server.wait(), (-signal.SIGTERM, -signal.SIGINT))
        self.assertEqual(server.tracebacks(), [])


class TCPTests(EveryWay, WayCase):
    """The tests for plain TCP."""

    def test_idle(self: Any) -> None:
        """However the clock is set, an idle server exits in time."""
        for step in STEPS:
            server, _, _ = self.start(3003, "--exit-idle-time=0.5")
            self.step(step)
            self.assertEqual(server.wait(), 0)
            self.assertEqual(len(server.records(IDLE)), 1)
            self.mend("clock")
            self.log.unlink()
            self.listeners.clear()

    def test_dualStack(self) -> None:
        """An IPv4 client of an IPv6 socket is recorded with its IPv4 address."""
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.addCleanup(listener.close)
        self.listeners["poem"] = listener
        self.address = ("127.0.0.1", listener.getsockname()[1])
        self.write(makeText(3003))
        for endpoint in ("adopted", "haproxy:adopted"):
            server = self.serve(endpoint=endpoint)
            client = self.open()
            if endpoint != "adopted":
                client.sendall(b"no header, but something else\r\n")
            readAll(client)
            host, port = client.getsockname()
            wait(lambda: f'"{host}:{port}"' in self.log.read_text(), "its record")  # noqa: B023
            server.end()


class FaketimeTests(WayCase):
    """
    The tests for plain TCP, with a clock that is set for the whole process, not only for Python.
    """

    test_clock = EveryWay.test_clock
    test_idle = TCPTests.test_idle
    forget = EveryWay.forget

    def setUp(self) -> None:
        super().setUp()
        found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
        if not found:
            raise SkipTest("there is no libfaketime")
        self.preload = found[0]

    def serve(self, *options: str, **how: Any) -> Server:
        """Start a server with such a clock."""
        self.step(0)
        how["environ"] = {
            **how.get("environ", {}),
            "LD_PRELOAD": self.preload,
            "FAKETIME_TIMESTAMP_FILE": str(self.site / "faketime"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return super().serve(*options, **how)

    def step(self, seconds: int) -> None:
        """Set that clock."""
        self.fault("faketime", f"{seconds:+d}")

    def mend(self, name: str) -> None:
        """Turn that fault off."""
        super().mend("faketime" if name == "clock" else name)


class UNIXTests(EveryWay, WayCase):
    """The tests for UNIX sockets, which have no reset."""

    family = socket.AF_UNIX
    short = "end"


class HeaderTests(EveryWay, WayCase):
    """The tests for PROXY headers."""

    endpoint = "haproxy:adopted"

    def enter(self, client: socket.socket) -> socket.socket:
        """Send a header."""
        client.sendall(HEADER)
        return client

    def test_killedBefore(self) -> None:
        """
        A client that has not begun to read when the server is killed gets a reset: with a header, a
        partial one or none.
        """
        server = self.startCold()
        clients = self.hold(3, self.address)
        clients[0].sendall(HEADER)
        clients[1].sendall(HEADER[:9])
        self.waitUntilAccepted()
        server.end(signal.SIGKILL)
        self.assertEqual([readAll(client) for client in clients], [(0, "reset")] * 3)

    def test_leftInTheHeader(self) -> None:
        """A client that leaves in the middle of a header has a record, however it leaves."""
        server, _, _ = self.start(3003)
        for number in range(10):
            client = connect(self.address)
            client.sendall(HEADER[: 8 + number])
            resetNow(client)
        for client in self.hold(10, self.address):
            client.sendall(HEADER[:9])
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(readAll(client), (0, "reset"))
        causes = {record["cause"] for record in server.waitFor(TURNED_AWAY, 20)}
        self.assertEqual(causes, {"it left in the middle of its PROXY header"})

    def arrive(self, times: int, address: Address, **how: Any) -> list[socket.socket]:
        """Connect so many clients, and send their headers."""
        clients = self.hold(times, address, **how)
        for client in clients:
            client.sendall(HEADER)
        return clients

    def test_writingBeforeReading(self) -> None:
        """200 clients that each write 64 KiB first get every byte of a 1 MiB poem."""
        _, address, poem = self.start(MEBI)
        write = HEADER + bytes(64 * KIBI)
        self.assertAll("isExact", run(fetchMany(200, address, poem, write=write)))

    def test_smallBufferAndLateRead(self) -> None:
        """The smallest receive buffer and a late first read cost no byte."""
        _, address, poem = self.start(64 * KIBI)
        how = {"write": HEADER + b"\n", "receiveBuffer": KIBI, "pauseSeconds": 0.5}
        self.assertAll("isExact", run(fetchMany(100, address, poem, **how)))

    def test_halfClosingFirst(self) -> None:
        """Clients that close their side first get every byte of a 16 MiB poem."""
        _, address, poem = self.start(16 * MEBI)
        replies = run(fetchMany(20, address, poem, write=HEADER, halfClose=True))
        self.assertAll("isExact", replies)

    def test_killedHalfWay(self) -> None:
        """Readers that are half-way through when the server is killed get a reset."""
        server, address, poem = self.start(16 * MEBI)
        clients = self.arrive(20, address)
        self.assertKillResets(server, clients, poem)

    def test_stoppedReaders(self) -> None:
        """500 clients that take no bytes are reset at the deadline, and cost little until then."""
        server, address, poem = self.start(MEBI, "--stall-timeout=3", "--journal-budget=2000")
        sockets = server.sockets()
        self.assertAll("isExact", run(fetchMany(20, address, poem, write=HEADER)))
        wait(lambda: server.sockets() == sockets, "the close of the first clients")
        server.forgetPeak()
        resident = server.residentKiB()
        server.send(signal.SIGSTOP)  # so that all come within the stall timeout
        clients = self.arrive(500, address, receiveBuffer=KIBI)
        server.send(signal.SIGCONT)
        wait(lambda: server.sockets() == sockets + 500, "the readers")
        kernel = kernelBytes(int(address[1]))
        wait(lambda: server.sockets() == sockets, "the close")
        self.assertLess(server.residentKiB("VmHWM") - resident, 20 * KIBI)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
        if kernel is not None:
            self.assertLess(kernel / len(clients), 400 * KIBI)

    def test_fewDescriptors(self) -> None:
        """With 64 descriptors, 200 clients all get exact poems."""
        server, address, poem = self.start(MEBI, descriptors=64)
        clients = self.arrive(200, address)
        server.waitFor(FULL)
        self.assertEqual(run(readAllAtOnce(clients)), [(len(poem), "end")] * 200)
        self.assertEqual(server.tracebacks(), [])

    def test_silentClient(self) -> None:
        """Connections that send no header are ended by the stall timeout."""
        server, address, _ = self.start(3003, "--stall-timeout=0.5")
        sockets = server.sockets()
        clients = self.hold(100, address)
        self.assertEqual({readAll(client) for client in clients}, {(0, "reset")})
        wait(lambda: server.sockets() == sockets, "the close")


class TLSTests(EveryWay, WayCase):
    """The tests for TLS."""

    def setUp(self) -> None:
        super().setUp()
        if importlib.util.find_spec("OpenSSL") is None or shutil.which("openssl") is None:
            raise SkipTest("there is no OpenSSL")
        self.key, self.certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=poems"),
                *("-keyout", self.key, "-out", self.certificate),
            ],
            check=True,
            capture_output=True,
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE

    def listen(self, name: str = "poem", family: int = socket.AF_INET) -> Address:
        """Find a free port: TLS makes its own socket."""
        port = findFreePort()
        keys = f"privateKey={self.key}:certKey={self.certificate}"
        self.where = f"--listen=ssl:{port}:interface=127.0.0.1:{keys}"
        return ("127.0.0.1", port)

    def arguments(self, *options: str, endpoint: str = "adopted") -> list[str]:
        """A command line that serves the poem on that port."""
        return ["fastpoetry", *options, f"--poem={self.folder}/poem.txt", self.where]

    def begin(self, arguments: list[str], listeners: dict[str, socket.socket]) -> Server:
        """Start a server on that port."""
        return super().begin([*arguments[:-1], self.where], listeners)

    def enter(self, client: socket.socket) -> socket.socket:
        """Shake hands. Only TLS's own end counts as a clean end."""
        wrapped = self.context.wrap_socket(client, suppress_ragged_eofs=False)
        self.addCleanup(wrapped.close)
        return wrapped

    def test_killedBefore(self) -> None:
        """
        A client that has not begun to read when the server is killed gets a reset, before its
        handshake and after.
        """
        server = self.startCold()
        clients = [self.open(), *self.hold(1, self.address)]
        server.end(signal.SIGKILL)
        self.assertEqual([readAll(client) for client in clients], [(0, "reset")] * 2)

    def test_exact(self) -> None:
        """Readers get every byte, and then TLS's end."""
        for size in (3003, 4 * MEBI):
            server, _, poem = self.start(size)
            for _ in range(20):
                with self.open() as client:
                    self.assertEqual(readAll(client), (len(poem), "end"))
            server.end()
            self.log.unlink()

    def test_killedHalfWay(self) -> None:
        """A reader that is half-way through when the server is killed gets no TLS end."""
        server, _, poem = self.start(16 * MEBI)
        clients = [self.open() for _ in range(5)]
        for client in clients:
            self.assertTrue(client.recv(1000))
        server.end(signal.SIGKILL)
        for client in clients:
            count, end = readAll(client)
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")

    def test_killedAtTheEnd(self) -> None:
        """A reader that lacks only bytes in the server's own buffer gets a reset below TLS."""
        server, address, _ = self.start(150 * KIBI)
        client = self.open(receiveBuffer=4 * KIBI)
        self.assertTrue(client.recv(1))
        port = int(address[1])
        wait(lambda: (kernelBytes(port) or MEBI) > 100 * KIBI, "the kernel's part")
        server.end(signal.SIGKILL)
        with socket.socket(fileno=client.detach()) as below:
            self.assertEqual(readAll(below)[1], "reset")

    def test_clientEndsFirst(self) -> None:
        """A reader that ends its side first, in TLS or below, gets every byte and TLS's end."""
        _, _, poem = self.start(4 * MEBI)
        for isBelow in (False, True):
            self.assertEqual(self.readAfterEnd(isBelow), len(poem))

    def readAfterEnd(self, isBelow: bool) -> int:
        """
        End our side of a connection before reading.

        @param isBelow: whether TCP ends, in place of TLS.
        @return: how many bytes came before TLS's end.
        """
        client = connect(self.address)
        self.addCleanup(client.close)
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(received, sent)

        def complete(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    if sent.pending:
                        client.sendall(sent.read())
                    data = client.recv(64 * KIBI)
                    received.write(data)
                    if not data:
                        received.write_eof()

        complete(tls.do_handshake)
        if not isBelow:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
        client.sendall(sent.read())
        if isBelow:
            client.shutdown(socket.SHUT_WR)
        count = 0
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while data := complete(lambda: tls.read(64 * KIBI)):
                count += len(data)
        return count

    def test_stopped(self) -> None:
        """
        Readers that are half-way through when the server is told to stop get the rest; readers that
        take no bytes are cut off at the drain timeout, and can tell.
        """
        server, _, poem = self.start(4 * MEBI, "--drain-timeout=3")
        reader, stopped = self.open(), self.open(receiveBuffer=KIBI)
        count = len(reader.recv(1000))
        self.assertTrue(stopped.recv(1))
        server.send(signal.SIGTERM)
        more, end = readAll(reader)
        self.assertEqual((count + more, end), (len(poem), "end"))
        server.wait()
        count, end = readAll(stopped)
        self.assertLess(count, len(poem))
        self.assertEqual(end, "reset")

    def test_noHandshake(self) -> None:
        """Connections whose clients send or take no bytes are ended by the stall timeout."""
        server, address, poem = self.start(MEBI, "--stall-timeout=2")
        sockets = server.sockets()
        with self.open() as client:
            self.assertEqual(readAll(client), (len(poem), "end"))
        self.hold(20, address)
        for _ in range(5):
            self.assertTrue(self.open(receiveBuffer=KIBI).recv(1))
        server.waitFor(TURNED_AWAY, 20)
        server.waitFor(GAVE_UP, 5)
        wait(lambda: server.sockets() == sockets, "the close")


class ReserveTests(FaultCase):
    """Tests for servers with many sockets and few descriptors."""

    def test_reload(self) -> None:
        """
        With 40 sockets and 256 descriptors 300 readers are all served, with PROXY headers or
        without, while every poem is reloaded.
        """
        plain, behind = (
            [self.listen(f"{kind}{number}") for number in range(20)] for kind in ("plain", "behind")
        )
        poem = makeText(MEBI)
        arguments = ["fastpoetry"]
        for name in self.listeners:
            self.write(poem, name)
            endpoint = "adopted" if name.startswith("plain") else "haproxy:adopted"
            arguments += [f"--poem={self.folder}/{name}.txt", f"--listen={endpoint}:name={name}"]
        server = Server(arguments, self.listeners, self.log, {}, descriptors=256)
        self.addCleanup(server.close)
        server.waitFor(LOADED, 40)
        held = self.hold(120, plain[1]) + self.hold(120, behind[1])
        server.waitFor(FULL)
        server.send(signal.SIGHUP)
        server.waitFor(LOADED, 80)
        for client in held:
            client.close()
        self.assertAll("isExact", run(fetchMany(150, plain[0], poem)))
        self.assertAll("isExact", run(fetchMany(150, behind[0], poem, write=HEADER)))
        self.assertEqual(server.end(), -signal.SIGTERM)
        self.assertEqual(server.tracebacks(), [])


class LeftoverTests(FaultCase):
    """Tests for what a killed server leaves behind."""

    def test_unixPath(self) -> None:
        """
        A UNIX path is taken over even if the old owner's process ID now belongs to another process:
        process 1 always exists, and in a container it is ours.
        """
        path = self.folder / "poem.sock"
        poem = self.write(makeText(3003))
        for number in (1, 2):
            arguments = ["fastpoetry", f"--poem={self.folder}/poem.txt", f"--listen=unix:{path}"]
            server = Server(arguments, {}, self.log, {})
            self.addCleanup(server.close)
            server.waitFor(SERVING, number)
            with connect(str(path)) as client:
                self.assertEqual(readAll(client), (len(poem), "end"))
            server.end(signal.SIGKILL)
            lock = Path(f"{path}.lock")
            lock.unlink()
            lock.symlink_to("1")
