"""
P2: on TCP short and whole can be told apart, whatever ends the server.

A UNIX socket has no reset, so it is not promised there.
"""

from __future__ import annotations

import asyncio
import random
import signal

import pytest
from messages import SENT, SERVING

from .server import (
    KIBI,
    MEBI,
    FaultCase,
    Reply,
    connect,
    fetch,
    fetchSteadily,
    makeText,
    readAll,
    run,
    wait,
)

_KILLS = 250


class KillTests(FaultCase):
    """A server that gets no chance to say good-bye."""

    def test_killedHalfWay(self) -> None:
        """Readers half-way through their poem when the server is killed get a reset."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        clients = self.hold(20, address)
        self.assertKillResets(server, clients, poem)

    def test_killedHalfWayFromTheBacklog(self) -> None:
        """So do those who connected while no server ran, to a socket that nobody had prepared."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        clients = self.hold(20, address)
        server = self.serve()
        self.assertKillResets(server, clients, poem)

    def test_killedHalfWayFromTheBacklogOfARestart(self) -> None:
        """So do those who connected between two servers."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        first = self.serve()
        run(fetch(address, poem))
        first.end()
        clients = self.hold(20, address)
        server = self.serve()
        self.assertKillResets(server, clients, poem)

    def test_killedBesideAnother(self) -> None:
        """So do those of one of two servers on a socket, though the other has stopped before."""
        address, poem = self.listen(), self.write(makeText(16 * MEBI))
        first = self.serve()
        run(fetch(address, poem))
        second = self.serve()
        second.waitFor(SERVING)
        first.end()
        run(fetch(address, poem))  # nobody is left in the backlog
        self.assertKillResets(second, self.hold(20, address), poem)

    def test_killedAfterTheLastByte(self) -> None:
        """
        A poem that is with the system, and whose reader the server has looked after, arrives and
        ends well, though the server is dead by then.
        """
        address, poem = self.listen(), self.write(makeText(16 * KIBI))
        server = self.serve()
        clients = self.hold(20, address, receiveBuffer=KIBI)
        server.waitFor(SENT, 20)
        before = server.descriptors()
        # Who comes later is looked after later.
        self.assertAll("isExact", [run(fetch(address, poem))])
        wait(lambda: server.descriptors() <= before, "the last reader is looked after")
        server.end(signal.SIGKILL)
        self.assertEqual([readAll(each) for each in clients], [(len(poem), "end")] * 20)

    def test_killedBeforeTheEnd(self) -> None:
        """
        A client that has a whole poem, and does not close before the server is dead, reads all of
        it and then a reset, or an end.
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
        Of 250 servers killed at work, one after the other, none leaves a reply that is short and
        looks whole; nobody is refused, and who waits is served by the next.
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
        # Otherwise the servers had nothing to do when they were killed.
        self.assertGreater(sum(each.end == "reset" for each in replies), _KILLS)


class ServedAgainTests(FaultCase):
    """The server after the one that was killed."""

    def test_backlogIsServed(self) -> None:
        """Clients who connect while no server runs are served by the next, each exactly."""
        address, poem = self.listen(), self.write(makeText(3003))
        first = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        first.end(signal.SIGKILL)
        clients = [connect(address) for _ in range(500)]
        self.serve()
        self.assertEqual({readAll(each) for each in clients}, {(len(poem), "end")})
        for client in clients:
            client.close()
