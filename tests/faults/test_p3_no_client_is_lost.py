"""P3: a restart, a reload or an idle stop loses no client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
import time
from pathlib import Path

import pytest
from messages import LOADED, SERVING

from .clients import HANG_SECONDS, MEBI, Reply, fetch, fetchMany, fetchSteadily, readAll, run
from .server import FaultCase, Nursery, Server, makeText, wait

STOPPED = -signal.SIGTERM
"""
The status of a twistd that was told to end: death by the same signal after a clean end, as systemd
expects.
"""

_STOP_SECONDS = 0.6
"""The average time that a stop may take; on a busy machine single stops take longer."""

_ENDS = 12


class StopTests(FaultCase):
    """Tests for a server that is told to stop."""

    endpoint = "adopted"
    header = b""

    def test_poemsUnderWayAreFinished(self) -> None:
        """20 readers that are half-way through when the server is told to stop get the rest."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve(endpoint=self.endpoint)
        clients = self.hold(20, address)
        for client in clients:
            client.sendall(self.header)
        counts = [len(client.recv(1000)) for client in clients]
        server.send(signal.SIGTERM)
        wait(lambda: not _accepts(server, self.listeners["poem"]), "the stop")
        rests = map(readAll, clients)
        ends = [(count + more, end) for count, (more, end) in zip(counts, rests, strict=True)]
        self.assertEqual(ends, [(len(poem), "end")] * 20)
        self.assertEqual(server.wait(), STOPPED)

    def test_readersThatStopAreReset(self) -> None:
        """The server ends at the drain timeout and resets readers that take no bytes."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve("--drain-timeout=0.5", endpoint=self.endpoint)
        clients = self.hold(20, address)
        for client in clients:
            client.sendall(self.header)
            self.assertTrue(client.recv(1000))
        self.assertEqual(server.end(), STOPPED)
        for count, end in map(readAll, clients):
            self.assertLess(count, len(poem))
            self.assertEqual(end, "reset")
        self.assertEqual(server.tracebacks(), [])

    def test_newcomer(self) -> None:
        """A client that connects while the server drains waits, and the next server serves it."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve(endpoint=self.endpoint)
        (slow,) = self.hold(1, address)
        slow.sendall(self.header)
        self.assertTrue(slow.recv(1000))
        server.send(signal.SIGTERM)
        wait(lambda: not _accepts(server, self.listeners["poem"]), "the stop")
        late = self.hold(20, address)
        for client in late:
            client.sendall(self.header)
        self.assertEqual(readAll(slow)[1], "end")
        self.assertEqual(server.wait(), STOPPED)
        self.serve(endpoint=self.endpoint)
        self.assertEqual({readAll(client) for client in late}, {(len(poem), "end")})

    def test_stoppedTwice(self) -> None:
        """A second SIGTERM does not shorten the drain that the first one began."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve(endpoint=self.endpoint)
        (client,) = self.hold(1, address)
        client.sendall(self.header)
        count = len(client.recv(1000))
        server.send(signal.SIGTERM)
        wait(lambda: _saysItStops(server), "the stop")
        server.send(signal.SIGTERM)
        time.sleep(0.1)
        more, end = readAll(client)
        self.assertEqual((count + more, end), (len(poem), "end"))
        self.assertEqual(server.wait(), STOPPED)


def _accepts(server: Server, listener: socket.socket) -> bool:
    """
    Whether a server accepts on a socket, that is, its epoll(7) watches the socket. twistd logs its
    stop a moment before it stops accepting.
    """
    watched = f" ino:{os.fstat(listener.fileno()).st_ino:x} "
    for information in Path(f"/proc/{server.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            if watched in information.read_text():
                return True
    return False


def _saysItStops(server: Server) -> bool:
    """Whether twistd has logged the signal to stop."""
    return "SIGTERM" in server.log.read_text()


class UnderLoadTests(FaultCase):
    """Tests for a server under steady load that is restarted or reloaded."""

    @pytest.mark.alone
    def test_restarts(self) -> None:
        """In 20 restarts under load no client is refused or reset, and each gets the whole poem."""
        poems = {"small": self.write(makeText(3003), "small")}
        poems["large"] = self.write(makeText(MEBI, 1), "large")
        addresses = {name: self.listen(name) for name in poems}
        nursery = self.nurse()

        replies: list[Reply] = []

        async def load() -> None:
            stop = asyncio.Event()
            clients = asyncio.gather(
                *(
                    fetchSteadily(replies, stop, times, addresses[name], poems[name])
                    for name, times in (("small", 16), ("large", 4))
                )
            )
            stops = [await asyncio.to_thread(self._restart, nursery) for _ in range(20)]
            self.assertLess(sum(stops) / len(stops), _STOP_SECONDS)
            stop.set()
            nursery.order("start")  # for clients that still wait
            await clients

        run(load())
        self.assertAll("isExact", replies)
        self.assertGreater(len(replies), 1000)

    def _restart(self, nursery: Nursery) -> float:
        """
        Let a server work for a moment, and stop it.

        @return: the seconds that the stop took.
        """
        before = self.log.read_text().count(SERVING)
        server = nursery.order("start")
        wait(lambda: self.log.read_text().count(SERVING) == before + 2, "the server")
        time.sleep(random.uniform(0, 0.1))
        began = time.monotonic()
        os.kill(server, signal.SIGTERM)
        self.assertEqual(nursery.order("wait"), STOPPED)
        return time.monotonic() - began

    def test_reloads(self) -> None:
        """
        In 20 reloads under load with two alternating poems, one process serves all, and each reply
        is wholly one poem or the other.
        """
        address, poems = self.listen(), [makeText(MEBI, seed) for seed in (1, 2)]
        self.write(poems[0])
        server = self.serve()

        replies: list[Reply] = []

        async def load() -> None:
            stop = asyncio.Event()
            clients = asyncio.create_task(fetchSteadily(replies, stop, 8, address, *poems))
            await fetch(address, *poems)
            for number in range(1, 21):
                self.write(poems[number % 2])
                server.send(signal.SIGHUP)
                await asyncio.to_thread(server.waitFor, LOADED, number + 1)
            stop.set()
            await clients

        run(load())
        self.assertAll("isExact", replies)
        self.assertIsNone(server.process.poll())
        digests = [each["digest"] for each in server.records(LOADED)]
        self.assertEqual(digests[-20:], digests[1:3] * 10)

    def test_reloadsAllAtOnce(self) -> None:
        """SIGHUPs faster than poems can be read end with the newest poem served."""
        address, old, new = self.listen(), makeText(MEBI, 1), makeText(MEBI, 2)
        self.write(old)
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, old))])
        self.write(new)
        for _ in range(200):
            server.send(signal.SIGHUP)
        wait(lambda: run(fetch(address, new)).isExact, "the new poem")
        self.assertEqual(server.end(), STOPPED)
        self.assertEqual(server.tracebacks(), [])


class IdleTests(FaultCase):
    """Tests for a server that exits when idle."""

    def test_itEnds(self) -> None:
        """The server exits with 0, and the next server serves the next client."""
        address, poem = self.listen(), self.write(makeText(3003))
        first = self.serve("--exit-idle-time=0.2")
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.assertEqual(first.wait(), 0)
        self.assertEqual(first.tracebacks(), [])
        (late,) = self.hold(1, address)
        self.serve("--exit-idle-time=0.2")
        self.assertEqual(readAll(late), (len(poem), "end"))

    def test_notWhileSomebodyReads(self) -> None:
        """
        A reader that takes several times the idle time keeps the server running, for other clients
        too.
        """
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve("--exit-idle-time=0.2")
        (client,) = self.hold(1, address)
        count = len(client.recv(1000))
        time.sleep(1)
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.assertIsNone(server.process.poll())
        more, end = readAll(client)
        self.assertEqual((count + more, end), (len(poem), "end"))
        client.close()
        self.assertEqual(server.wait(), 0)

    def test_connectionsAsItEnds(self) -> None:
        """
        Clients that arrive at any moment of the exit are all served, by that server or the next.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        nursery, replies = self.nurse("--exit-idle-time=0.03"), list[Reply]()
        statuses: list[int] = []

        async def load() -> None:
            servers = asyncio.create_task(asyncio.to_thread(self._activate, nursery, statuses))
            seconds = 0.05
            while not servers.done():
                # Converge on the moment at which the server decides to exit.
                ended = len(statuses)
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
                seconds *= 1.15 if len(statuses) == ended else 0.87
                clients = asyncio.create_task(fetchMany(3, address, poem))
                await asyncio.wait([clients, servers], return_when=asyncio.FIRST_COMPLETED)
                if not clients.done():
                    self.serve()
                replies.extend(await clients)

        run(load())
        self.assertEqual(statuses, [0] * _ENDS)
        self.assertAll("isExact", replies)

    def _activate(self, nursery: Nursery, statuses: list[int]) -> None:
        """Like systemd: start a server when a client connects, and again after its end."""
        while len(statuses) < _ENDS:
            select.select([self.listeners["poem"]], [], [], HANG_SECONDS)
            nursery.order("start")
            statuses.append(nursery.order("wait"))


class WrappedStopTests(StopTests):
    """The same tests through Twisted's transports: each connection begins with a PROXY header."""

    endpoint = "haproxy:adopted"
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 10000\r\n"
