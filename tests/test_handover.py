"""Tests for L{fastpoetry.delivery.handover}: a reader is restored exactly, or reset."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from fakes import LONG, POEM, Reactor, countDescriptors, receiveAll
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart.poems import MAX_POEM_BYTES
from fastpoetry.delivery.fastport import Home, SocketReader
from fastpoetry.delivery.handover import describe, restore
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits, Progress
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.sockets import RESET_ON_CLOSE, setLinger
from fastpoetry.poem import Poem

ADDRESS = ("127.0.0.1", 40000)


class HandOverCase(SynchronousTestCase):
    """A test case with a reader in mid-poem, left by one process and found by the next."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.reactor.advance(10)
        reactor: Any = self.reactor
        self.home = Home(Policy(Limits(), self.reactor), reactor)
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        self.client = socket.create_connection(listening.getsockname())
        self.addCleanup(self.client.close)
        connection, _ = listening.accept()
        setLinger(connection, RESET_ON_CLOSE)
        self.reader = self.makeReader(connection.detach(), LONG)
        self.reader.sentBytes = self.reader.send(LONG.text, socket.MSG_DONTWAIT)
        self.file = self.memory(LONG.text)

    def makeReader(self, number: int, poem: Poem) -> SocketReader:
        """@return: a reader of a connection."""
        reader = SocketReader(socket.AF_INET, socket.SOCK_STREAM, 0, number)
        self.addCleanup(reader.close)
        reader.poem, reader.address, reader.home = poem, ADDRESS, self.home
        return reader

    def memory(self, text: bytes) -> int:
        """@return: a descriptor of a memory file with a text."""
        number = os.memfd_create("poem")
        self.addCleanup(os.close, number)
        os.write(number, text)
        return number

    def dup(self, data: bytes) -> int:
        """@return: a descriptor of a file with some bytes; the receiver closes it."""
        return os.dup(self.memory(data))

    def describe(self) -> Any:
        """@return: the handed-over state, for a test to spoil."""
        return json.loads(describe({self.reader: Progress(1.0, 2.0, 3)}, {LONG: self.file}))

    def restore(self, state: object, files: list[int] | None = None) -> tuple[Any, list[str]]:
        """@return: what the next process restores."""
        data = state if isinstance(state, bytes) else json.dumps(state).encode()
        # Like systemd: the connection is another descriptor of the same socket.
        number = os.dup(self.reader.fileno())
        self.reader.close()
        others = [os.dup(each) for each in ([self.file] if files is None else files)]
        readers, _, faults = restore([self.dup(data), *others, number], *self.home)
        for reader in readers:
            self.addCleanup(reader.close)
        return readers, faults

    def assertReset(self, state: object, fault: str, files: list[int] | None = None) -> None:
        """Assert that a connection with that state is reset."""
        readers, faults = self.restore(state, files)
        self.assertEqual((readers, len(faults) > 0), ({}, True))
        self.assertIn(fault, faults[0])
        with self.assertRaises(ConnectionResetError):
            receiveAll(self.client)


class HandOverTests(HandOverCase):
    """Tests for readers that are handed over."""

    def test_same(self) -> None:
        """All state of a reader is restored."""
        sentBytes = self.reader.sentBytes
        readers, faults = self.restore(self.describe())
        self.assertEqual(faults, [])
        ((reader, progress),) = readers.items()
        self.assertEqual(
            (reader.poem, reader.address, reader.sentBytes, reader.home),
            (LONG, ADDRESS, sentBytes, self.home),
        )
        self.assertEqual(progress, Progress(1.0, 2.0, 3))

    def test_goesOn(self) -> None:
        """The client gets the rest of the poem, without a repeated byte."""
        readers, _ = self.restore(self.describe())
        ((reader, progress),) = readers.items()
        self.home.policy.begin(reader, progress)
        self.home.reactor.addWriter(reader)
        self.assertEqual(self.reactor.fetch(self.client), LONG.text)

    def test_closes(self) -> None:
        """The descriptors of the poems and the state are closed afterwards."""
        before = countDescriptors()
        self.restore(self.describe())
        self.assertEqual(countDescriptors(), before + 1)  # of the test, which made the state

    def test_missing(self) -> None:
        """Readers that did not arrive are counted as lost, with a cause."""
        state = self.describe()
        for number in range(2):
            state["readers"].append([-number, 0, 1, [*ADDRESS], [1.0, 2.0, 3]])
        readers, lost, faults = restore(
            [self.dup(json.dumps(state).encode()), os.dup(self.file), os.dup(self.reader.fileno())],
            *self.home,
        )
        self.assertEqual((len(readers), lost), (1, 2))
        self.assertIn("LimitNOFILE=", faults[0])
        for reader in readers:
            reader.close()

    def test_twice(self) -> None:
        """A connection that arrives twice is one reader."""
        numbers = [os.dup(each) for each in (self.file, self.reader.fileno(), self.reader.fileno())]
        state = self.dup(json.dumps(self.describe()).encode())
        readers, lost, _ = restore([state, *numbers], *self.home)
        self.assertEqual((len(readers), lost), (1, 1))
        for reader in readers:
            reader.close()

    def test_IPv6(self) -> None:
        """The address of an IPv6 client is restored."""
        self.reader.address = ("2001:db8::7", 40000, 0, 0)
        readers, _ = self.restore(self.describe())
        self.assertEqual([each.address for each in readers], [("2001:db8::7", 40000, 0, 0)])

    def test_user(self) -> None:
        """The user of a UNIX socket is restored too, even root."""
        self.reader.address = 0
        readers, _ = self.restore(self.describe())
        self.assertEqual([each.address for each in readers], [0])


class DistrustTests(HandOverCase):
    """Tests for untrusted state: a process can be passed anything."""

    def test_noState(self) -> None:
        """A connection without state is reset."""
        self.assertReset(b"", "damaged")

    def test_otherFamily(self) -> None:
        """A socket of a family that nobody serves, such as netlink, counts as lost."""
        state = json.dumps({**self.describe(), "readers": []}).encode()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as foreign:
            readers, lost, _ = restore([self.dup(state), os.dup(foreign.fileno())], *self.home)
        self.assertEqual((len(readers), lost), (0, 1))

    def test_otherVersion(self) -> None:
        """A connection from another version, older or newer, is reset."""
        self.assertReset({**self.describe(), "version": 2}, "of version 2, not 1")

    def test_unknown(self) -> None:
        """A connection that the state does not mention is reset."""
        self.assertReset({**self.describe(), "readers": []}, "lacks a connection")

    def test_otherText(self) -> None:
        """A connection whose poem's text has changed is reset."""
        state = self.describe()
        os.pwrite(self.file, b"another", 0)
        self.assertReset(state, "text of a poem")

    def test_noText(self) -> None:
        """A connection whose poem's text is missing is reset."""
        self.assertReset(self.describe(), "text of a poem", files=[])

    def test_otherCount(self) -> None:
        """
        A connection that was sent more or less than the state says is reset: another process has
        continued it.
        """
        state = self.describe()
        state["readers"][0][2] -= 1
        self.assertReset(state, "bytes were sent")

    def test_future(self) -> None:
        """
        A connection whose start lies in the future is reset: the time is from another boot's clock.
        """
        state = self.describe()
        state["readers"][0][4] = [20.0, 20.0, 0]
        self.assertReset(state, "impossible")

    def test_large(self) -> None:
        """A poem that is longer than a file may be, as from a proxy, is restored too."""
        self.reader.poem = large = Poem("large", LONG.text.ljust(MAX_POEM_BYTES + 1), "")
        file = self.memory(large.text)
        state = describe({self.reader: Progress(1.0, 2.0, 3)}, {large: file})
        readers, faults = self.restore(state, files=[file])
        self.assertEqual((len(readers), faults), (1, []))

    def test_endless(self) -> None:
        """A connection with an infinite count of bytes or time is reset."""
        for progress in ([0.0, 0.0, float("inf")], [10**400, 10**400, 0]):
            self.setUp()
            state = self.describe()
            state["readers"][0][4] = progress
            self.assertReset(state, "damaged")

    def test_notConnected(self) -> None:
        """A UNIX socket that is not connected is closed, even if the state describes it."""
        self.reader = self.makeReader(socket.socket(socket.AF_UNIX).detach(), LONG)
        self.reader.sentBytes = 10
        readers, faults = self.restore(self.describe())
        self.assertEqual((readers, len(faults)), ({}, 1))

    def test_noConnection(self) -> None:
        """A descriptor that is not a connection is closed."""
        with socket.socket() as number:
            readers, lost, _ = restore([self.dup(b"{}"), number.detach()], *self.home)
        self.assertEqual((readers, lost), ({}, 1))

    def test_left(self) -> None:
        """A client that leaves during the restart is counted as one that left, without a fault."""
        state = self.describe()
        self.client.close()
        readers, faults = self.restore(state)
        self.assertEqual(faults, [])
        ((reader, progress),) = readers.items()
        self.home.policy.begin(reader, progress)
        reader.sendRest()
        self.reactor.turn()
        self.assertEqual(self.home.policy.ledger.counts, Counts(left=1))

    def test_nothing(self) -> None:
        """Empty state restores no reader, and is a fault."""
        self.assertEqual(restore([], *self.home), ({}, 0, ["the state is damaged"]))

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), st.data())
    def test_anything(self, junk: Any, data: st.DataObject) -> None:
        """Whatever a field contains, no reader is restored, and a loss has a cause."""
        state = self.describe()
        place = data.draw(st.sampled_from([*state, "reader", "poem", "all"]))
        if place == "all":
            state = junk
        elif place in ("reader", "poem"):
            item = state[f"{place}s"][0]
            item[data.draw(st.integers(0, len(item) - 1))] = junk
        else:
            state[place] = junk
        encoded = json.dumps(state).encode()
        readers, lost, faults = restore([self.dup(encoded), os.dup(self.file)], *self.home)
        self.assertEqual(readers, {})
        self.assertTrue(faults or not lost)


class SmallTests(HandOverCase):
    """Tests for readers that have not begun to take a short poem."""

    def test_whole(self) -> None:
        """A reader that was sent everything is not handed over."""
        state = self.describe()
        state["poems"][0] = [os.fstat(self.file).st_ino, POEM.name, POEM.origin, POEM.digest]
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, POEM.text, 0)
        self.assertReset(state, "impossible")
