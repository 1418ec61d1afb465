"""P3: a restart, a reload or a stop for want of readers loses nobody."""

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

from .server import (
    HANG_SECONDS,
    MEBI,
    FaultCase,
    Nursery,
    Reply,
    Server,
    fetch,
    fetchMany,
    fetchSteadily,
    makeText,
    readAll,
    run,
    wait,
)

STOPPED = -signal.SIGTERM
"""How a twistd ends that was told to, as systemd expects: by the same signal, after all is done."""

_STOP_SECONDS = 0.6
"""What a stop may take on the average, though a busy machine takes its time for some."""

_ENDS = 40


class StopTests(FaultCase):
    """A server that is told to stop."""

    endpoint = "adopted"
    header = b""

    def test_poemsUnderWayAreFinished(self) -> None:
        """20 readers half-way through when the server is told to stop get the rest."""
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
        """With readers that take nothing the server ends at the drain timeout, and resets them."""
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

    def test_whoComesMeanwhile(self) -> None:
        """Who connects while the server drains waits, and is served by the next one."""
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
        """A second SIGTERM does not cut short what the first has begun."""
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
    Whether a server accepts on a socket: its epoll(7) watches it. twistd says that it stops a
    moment before it does.
    """
    watched = f" ino:{os.fstat(listener.fileno()).st_ino:x} "
    for information in Path(f"/proc/{server.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if watched in information.read_text():
                return True
    return False


def _saysItStops(server: Server) -> bool:
    """Whether twistd has logged that it has got a signal to stop."""
    return "SIGTERM" in server.log.read_text()


class UnderLoadTests(FaultCase):
    """A server that is replaced, or its poem, while clients come all the time."""

    @pytest.mark.alone
    def test_restarts(self) -> None:
        """20 restarts under load: no client is refused or reset, none gets less than all."""
        poems = {"small": self.write(makeText(3003), "small")}
        poems["large"] = self.write(makeText(MEBI, 1), "large")
        addresses = {name: self.listen(name) for name in poems}

        replies: list[Reply] = []

        async def load() -> None:
            stop = asyncio.Event()
            clients = asyncio.gather(
                *(
                    fetchSteadily(replies, stop, times, addresses[name], poems[name])
                    for name, times in (("small", 16), ("large", 4))
                )
            )
            stops = [await asyncio.to_thread(self._restart, number) for number in range(20)]
            self.assertLess(sum(stops) / len(stops), _STOP_SECONDS)
            stop.set()
            self.serve()  # for who still waits
            await clients

        run(load())
        self.assertAll("isExact", replies)
        self.assertGreater(len(replies), 1000)

    def _restart(self, number: int) -> float:
        """
        Let a server work for a moment, and stop it.

        @return: the seconds that the stop took.
        """
        server = self.serve()
        server.waitFor(SERVING, 2 * number + 2)
        time.sleep(random.uniform(0, 0.1))
        began = time.monotonic()
        self.assertEqual(server.end(), STOPPED)
        return time.monotonic() - began

    def test_reloads(self) -> None:
        """
        100 reloads under load, the poem alternating: one process, and each reply wholly one poem or
        wholly the other.
        """
        address, poems = self.listen(), [makeText(MEBI, seed) for seed in (1, 2)]
        self.write(poems[0])
        server = self.serve()

        replies: list[Reply] = []

        async def load() -> None:
            stop = asyncio.Event()
            clients = asyncio.create_task(fetchSteadily(replies, stop, 8, address, *poems))
            await fetch(address, *poems)
            for number in range(1, 101):
                self.write(poems[number % 2])
                server.send(signal.SIGHUP)
                await asyncio.to_thread(server.waitFor, LOADED, number + 1)
            stop.set()
            await clients

        run(load())
        self.assertAll("isExact", replies)
        self.assertIsNone(server.process.poll())
        digests = [each["digest"] for each in server.records(LOADED)]
        self.assertEqual(digests[-100:], digests[1:3] * 50)

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
    """A server that ends once nobody has been connected for a while."""

    def test_itEnds(self) -> None:
        """It ends well, and the next client is served by the next server."""
        address, poem = self.listen(), self.write(makeText(3003))
        first = self.serve("--exit-idle-time=0.2")
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.assertEqual(first.wait(), 0)
        self.assertEqual(first.tracebacks(), [])
        (late,) = self.hold(1, address)
        self.serve("--exit-idle-time=0.2")
        self.assertEqual(readAll(late), (len(poem), "end"))

    def test_notWhileSomebodyReads(self) -> None:
        """A reader that takes several times as long keeps it, for others too."""
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
        Clients that arrive at any moment of its end are all served, by that server or the next.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        nursery, replies = self.nurse("--exit-idle-time=0.03"), list[Reply]()
        statuses: list[int] = []

        async def load() -> None:
            servers = asyncio.create_task(asyncio.to_thread(self._activate, nursery, statuses))
            seconds = 0.05
            while not servers.done():
                # Close in on the time after which the server has just about had enough.
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
        """What systemd does: start a server when somebody connects, and again after its end."""
        while len(statuses) < _ENDS:
            select.select([self.listeners["poem"]], [], [], HANG_SECONDS)
            nursery.order("start")
            statuses.append(nursery.order("wait"))


class WrappedStopTests(StopTests):
    """The same through Twisted's transports, since each connection begins with a PROXY header."""

    endpoint = "haproxy:adopted"
    header = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 10000\r\n"
