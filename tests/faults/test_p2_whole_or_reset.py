"""
P2: on TCP a client can tell a short poem from a whole one, whatever ends the server.

A UNIX socket has no reset, so this is not promised there.
"""

from __future__ import annotations

import asyncio
import random
import signal

import pytest
from messages import SENT, SERVING

from .clients import KIBI, MEBI, Reply, connect, fetch, fetchSteadily, readAll, run
from .server import FaultCase, makeText, wait

_KILLS = 200


class KillTests(FaultCase):
    """Tests for a server that is killed."""

    def test_killedHalfWay(self) -> None:
        """Readers half-way through their poem when the server is killed get a reset."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        clients = self.hold(20, address)
        self.assertKillResets(server, clients, poem)

    def test_killedHalfWayFromTheBacklog(self) -> None:
        """
        Readers that connected while no server ran, to a new socket, get a reset if the server is
        killed half-way.
        """
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        clients = self.hold(20, address)
        server = self.serve()
        self.assertKillResets(server, clients, poem)

    def test_killedHalfWayFromTheBacklogOfARestart(self) -> None:
        """
        Readers that connected between two servers get a reset if the second is killed half-way.
        """
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        first = self.serve()
        run(fetch(address, poem))
        first.end()
        clients = self.hold(20, address)
        server = self.serve()
        self.assertKillResets(server, clients, poem)

    def test_killedBesideAnother(self) -> None:
        """
        If one of two servers on a socket is killed, its readers get a reset, even after the other
        server has stopped.
        """
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        first = self.serve()
        run(fetch(address, poem))
        second = self.serve()
        second.waitFor(SERVING)
        first.end()
        run(fetch(address, poem))  # the backlog is empty
        self.assertKillResets(second, self.hold(20, address), poem)

    def test_killedAfterTheLastByte(self) -> None:
        """
        A poem in the system's buffer, whose reader the server has handled, arrives with a clean end
        even if the server is killed.
        """
        address, poem = self.listen(), self.write(makeText(16 * KIBI))
        server = self.serve()
        clients = self.hold(20, address, receiveBuffer=KIBI)
        server.waitFor(SENT, 20)
        before = server.sockets()
        # Later readers are handled later.
        self.assertAll("isExact", [run(fetch(address, poem))])
        wait(lambda: server.sockets() <= before, "the last reader is looked after")
        server.end(signal.SIGKILL)
        self.assertEqual([readAll(each) for each in clients], [(len(poem), "end")] * 20)

    def test_killedBeforeTheEnd(self) -> None:
        """
        A client that holds a whole poem when the server is killed reads all of it, and then a reset
        or an end.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serve()
        clients = self.hold(20, address)
        server.waitFor(SENT, 20)
        server.end(signal.SIGKILL)
        for count, end in map(readAll, clients):
            self.assertEqual(count, len(poem))
            self.assertIn(end, ("reset", "end"))

    @pytest.mark.alone
    def test_hundredsOfKillsUnderLoad(self) -> None:
        """
        Of 200 servers killed at work, one after the other, none leaves a short reply that looks
        whole. No client is refused, and waiting clients are served by the next server.
        """
        poems = {"small": self.write(makeText(3003), "small")}
        poems["large"] = self.write(makeText(MEBI, 1), "large")
        addresses = {name: self.listen(name) for name in poems}
        nursery = self.nurse("--journal-budget=0")

        replies: list[Reply] = []

        async def load() -> None:
            stop = asyncio.Event()
            clients = asyncio.gather(
                *(
                    fetchSteadily(replies, stop, times, addresses[name], poems[name])
                    for name, times in (("small", 24), ("large", 4))
                )
            )
            for _ in range(_KILLS):
                nursery.order("start")
                enough = len(replies) + random.randrange(1, 60)
                while len(replies) < enough:
                    await asyncio.sleep(random.uniform(0, 0.005))
                self.assertEqual(nursery.order("kill"), -signal.SIGKILL)
            nursery.order("start")
            stop.set()
            await clients

        run(load())
        self.assertAll("isHonest", replies)
        self.assertNotIn("refused", [each.end for each in replies])
        # Otherwise the servers were idle when they were killed.
        self.assertGreater(sum(each.end == "reset" for each in replies), _KILLS)


class ServedAgainTests(FaultCase):
    """Tests for the server after a killed one."""

    def test_backlogIsServed(self) -> None:
        """Clients that connect while no server runs get exact poems from the next server."""
        address, poem = self.listen(), self.write(makeText(3003))
        first = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        first.end(signal.SIGKILL)
        clients = [connect(address) for _ in range(500)]
        self.serve()
        self.assertEqual({readAll(each) for each in clients}, {(len(poem), "end")})
        for client in clients:
            client.close()
