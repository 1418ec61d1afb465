"""P5: at a limit new clients wait or are turned away by rule; other clients are not affected."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections import Counter

import pytest
from messages import FULL, GAVE_UP, LEFT, SENT, SERVING, SUMMARY, TURNED_AWAY

from fastpoetry.delivery.lingering import LINGER_SECONDS

from .clients import (
    HANG_SECONDS,
    KIBI,
    MEBI,
    connect,
    fetch,
    fetchMany,
    readAll,
    readAllAtOnce,
    resetNow,
    run,
)
from .server import FaultCase, Server, makeText, wait


class DescriptorTests(FaultCase):
    """Tests for more clients than the server has descriptors."""

    @pytest.mark.alone
    def test_fewDescriptors(self) -> None:
        """
        With 64 descriptors, 200 clients all get exact poems, a few at a time. While all present
        readers stand still, the server uses almost no processor time, and makes one record.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve(descriptors=64)
        clients = self.hold(200, address)
        server.waitFor(FULL)
        before = server.cpuSeconds()
        time.sleep(1.5)
        self.assertLess(server.cpuSeconds() - before, 0.3)
        self.assertEqual(len(server.records(FULL)), 1)
        self.assertEqual(len(server.records(SENT)), 0)
        self.assertEqual(run(readAllAtOnce(clients)), [(len(poem), "end")] * 200)
        self.assertEqual(server.tracebacks(), [])

    @pytest.mark.alone
    def test_noDescriptorAtAll(self) -> None:
        """
        When accept(2) itself finds no free descriptor, clients wait in the backlog until there is
        one.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, hard))
        clients = self.hold(100, address)
        server.waitFor(FULL)
        before = server.cpuSeconds()
        time.sleep(1)
        self.assertLess(server.cpuSeconds() - before, 0.3)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        self.assertEqual({readAll(client) for client in clients}, {(len(poem), "end")})
        self.assertEqual((len(server.records(FULL)), server.tracebacks()), (1, []))

    def test_mostReaders(self) -> None:
        """With --max-readers, clients wait in the backlog, also on a UNIX socket."""
        addresses = [self.listen("poem"), self.listen("local", socket.AF_UNIX)]
        self.write(makeText(MEBI), "local")
        poem = self.write(makeText(MEBI))
        server = self.serve("--max-readers=10")
        began = time.monotonic()
        clients = self.hold(50, addresses[0]) + self.hold(50, addresses[1])
        server.waitFor(FULL)
        self.assertEqual(run(readAllAtOnce(clients)), [(len(poem), "end")] * 100)
        seconds = time.monotonic() - began
        self.assertLessEqual(len(server.records(FULL)), 1 + seconds / 10)

    def test_lingeringReadersMakeRoom(self) -> None:
        """Clients that have everything and do not close delay no other client."""
        address, poem = self.listen(), self.write(makeText(3003))
        self.serve("--max-readers=1")
        clients = self.hold(100, address)
        # If each client stayed for two seconds, the last would wait for longer than it may.
        self.assertGreater(len(clients) * LINGER_SECONDS, HANG_SECONDS)
        self.assertEqual({readAll(each) for each in reversed(clients)}, {(len(poem), "end")})


class SourceTests(FaultCase):
    """Tests for one source with too many connections."""

    def test_poemUnderWay(self) -> None:
        """
        Of 2,000 idle connections from one source 20 are held and the others are reset, while
        another source is served.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve("--max-readers=100", "--max-readers-per-source=20")
        greedy = self.hold(2000, address)
        self.assertAll("isExact", run(fetchMany(20, address, poem, source="127.0.0.2")))
        server.waitFor(TURNED_AWAY, 200)
        self.assertEqual(server.records(FULL), [])
        replies = run(readAllAtOnce(greedy))
        self.assertEqual(replies.count((len(poem), "end")), 20)
        self.assertTrue(all(end == "reset" for count, end in replies if count < len(poem)))
        self.assertAll("isExact", run(fetchMany(20, address, poem)))

    def test_smallPoemNotTaken(self) -> None:
        """
        The limit of one source also applies to a small poem, which is soon in the system's buffer
        but not taken.
        """
        address, poem = self.listen(), self.write(makeText(16 * KIBI))
        self.serve("--max-readers=100", "--max-readers-per-source=20")
        greedy = self.hold(500, address, receiveBuffer=KIBI)
        replies = run(fetchMany(20, address, poem, source="127.0.0.2"), seconds=25)
        self.assertAll("isExact", replies)
        rest = run(readAllAtOnce(greedy))
        self.assertTrue(all(end == "reset" for count, end in rest if count < len(poem)))

    def test_user(self) -> None:
        """On a UNIX socket the limit applies to one user; connections turned away get no byte."""
        address, poem = self.listen(family=socket.AF_UNIX), self.write(makeText(4 * MEBI))
        server = self.serve("--max-readers=100", "--max-readers-per-source=20")
        greedy = self.hold(50, address)
        server.waitFor(TURNED_AWAY, 30)
        replies = run(readAllAtOnce(greedy))
        self.assertEqual(Counter(replies), {(len(poem), "end"): 20, (0, "end"): 30})


class SilentTests(FaultCase):
    """Tests for connections that have not named their client."""

    def test_header(self) -> None:
        """
        Behind a PROXY header, more silent connections than the limit of readers delay no client, on
        their port or another.
        """
        behind, plain = self.listen("behind"), self.listen("plain")
        poem = self.write(makeText(3003))
        arguments = [f"--poem={self.folder}/poem.txt", "--listen=haproxy:adopted:name=behind"]
        arguments += ["--listen=adopted:name=plain", "--max-readers=100", "--journal-budget=5000"]
        server = Server(["fastpoetry", *arguments], self.listeners, self.log, {})
        self.addCleanup(server.close)
        server.waitFor(SERVING, 2)
        silent = self.hold(1200, behind)
        header = b"PROXY TCP4 192.0.2.7 192.0.2.2 40000 10000\r\n"
        self.assertAll("isExact", run(fetchMany(20, plain, poem)))
        self.assertAll("isExact", run(fetchMany(20, behind, poem, write=header)))
        self.assertGreaterEqual(len(server.records(TURNED_AWAY)), 200)
        self.assertEqual(server.records(FULL), [])
        for client in silent:
            client.close()


class BacklogTests(FaultCase):
    """Tests for clients that leave before they are accepted."""

    def test_resetBeforeTheServerStarts(self) -> None:
        """1,000 connections that were reset in the backlog do not affect the next client."""
        address, poem = self.listen(), self.write(makeText(3003))
        for _ in range(1000):
            resetNow(connect(address))
        server = self.serve()
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.assertEqual(server.tracebacks(), [])

    def test_resetWhileItIsBusy(self) -> None:
        """
        Resets in the backlog of a running but busy server do not affect the next client either,
        even with a large poem.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        server = self.serve()
        server.waitFor(SERVING)
        sockets = server.sockets()
        self.assertAll("isExact", [run(fetch(address, poem))])
        server.send(signal.SIGSTOP)
        for _ in range(1000):
            resetNow(connect(address))
        server.send(signal.SIGCONT)
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.assertEqual(server.tracebacks(), [])
        wait(lambda: server.sockets() == sockets, "the close")


class CountTests(FaultCase):
    """Tests for the records of connections."""

    def test_everyPoemIsCounted(self) -> None:
        """
        3,000 poems have as many records as the budget allows, and the summaries count the others.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serve("--journal-budget=5")
        began = time.monotonic()
        for _ in range(30):
            self.assertAll("isExact", run(fetchMany(100, address, poem)))
            time.sleep(0.05)
        server.end()
        seconds = time.monotonic() - began
        sent, sums = server.records(SENT), server.records(SUMMARY)
        self.assertEqual(len(sent) + sum(each["poems"] for each in sums), 3000)
        total = sum(each["bytes"] for each in sent + sums)
        self.assertEqual(total, 3000 * len(poem))
        self.assertTrue(5 <= len(sent) <= 5 * (seconds + 2))
        self.assertTrue(1 <= len(sums) <= seconds + 2)

    def test_everyConnectionIsCounted(self) -> None:
        """
        Each reader that leaves, is given up or is turned away has a record, or is in a summary.
        """
        address, poem = self.listen(), self.write(makeText(MEBI))
        options = ["--journal-budget=3", "--max-readers-per-source=10", "--drain-timeout=0.5"]
        server = self.serve(*options)
        for number in range(2, 12):
            for client in self.hold(5, address, source=f"127.0.0.{number}"):
                self.assertTrue(client.recv(1))
                client.close()
            self.hold(25, address, source=f"127.0.0.{number}")
        self.assertAll("isExact", run(fetchMany(8, address, poem)))
        server.end()
        kinds = {"poems": SENT, "left": LEFT, "gave_up": GAVE_UP, "turned_away": TURNED_AWAY}
        sums = server.records(SUMMARY)
        counts = {
            key: len(server.records(messageID)) + sum(each[key] for each in sums)
            for key, messageID in kinds.items()
        }
        # The server may notice earlier leavers only after later clients have come.
        away = counts.pop("turned_away")
        self.assertTrue(150 <= away <= 200, away)
        self.assertEqual(counts, {"poems": 8, "left": 50, "gave_up": 250 - away})
