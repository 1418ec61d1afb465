"""Tests for L{fastpoetry.command.handover}, with a store in memory."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from fakes import LONG, FakeReader, Reactor, receiveAll, records
from messages import TOOK_OVER
from twisted.application.service import IService
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.command.handover import HandOverService
from fastpoetry.delivery.fastport import Home, SocketReader
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.systemd.descriptors import Descriptor
from fastpoetry.systemd.store import StoreError, pack

UNDER_SYSTEMD = {"NOTIFY_SOCKET": "/run/systemd/notify"}


class FakeStore:
    """
    A store that keeps descriptors for the next process, or is full.

    @ivar held: duplicated descriptors, by name.
    @ivar isFull: whether it is full.
    """

    def __init__(self) -> None:
        self.held: dict[str, list[int]] = {}
        self.isFull = False

    def take(self, name: str) -> tuple[Descriptor, ...]:
        """Return its content, each time."""
        return tuple(Descriptor.examine(os.dup(number), name) for number in self.held.get(name, ()))

    def putNow(
        self, descriptors: Mapping[str, Iterable[Any]], *, poll: bool, seconds: float
    ) -> None:
        """Keep the descriptors if the store is not full."""
        for name, each in descriptors.items():
            numbers = [one if isinstance(one, int) else one.fileno() for one in each]
            self.held[name] = [os.dup(number) for number in numbers]
        if self.isFull:
            raise StoreError("no room")

    def removeNow(self, *names: str, seconds: float) -> None:
        """Remove a descriptor."""
        for name in names:
            for number in self.held.pop(name, ()):
                os.close(number)


class HandOverCase(SynchronousTestCase):
    """
    A test case with a process that stops, one that starts, and a client in the middle of a poem.
    """

    def setUp(self) -> None:
        self.store = FakeStore()
        self.addCleanup(self.store.removeNow, ".handover", seconds=0)
        self.begin()

    def begin(self, environ: Mapping[str, str] = UNDER_SYSTEMD) -> None:
        """Start a process."""
        self.reactor = Reactor()
        self.policy = Policy(Limits(), self.reactor)
        store: Any = self.store
        self.service = HandOverService(store, self.policy, self.reactor, environ)
        self.service.startService()

    def connect(self) -> socket.socket:
        """@return: a client that has begun to read."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        client = socket.create_connection(listening.getsockname())
        self.addCleanup(client.close)
        connection, address = listening.accept()
        reader = SocketReader(connection.family, socket.SOCK_STREAM, 0, connection.detach())
        reader.poem, reader.address, reader.sentBytes = LONG, address, 0
        reader.home = Home(self.policy, self.reactor)
        self.reader = reader
        self.assertFalse(reader.start())
        return client

    def stop(self) -> Any:
        """
        Stop the process.

        @return: fires when it has stopped.
        """
        drained = self.policy.drain()
        self.reactor.advance(0)
        for _ in range(5):
            self.reactor.advance(0.05)
        return drained


class HandOverTests(HandOverCase):
    """Tests for the handover of readers."""

    def test_interface(self) -> None:
        """The handover is a service."""
        verifyObject(IService, self.service)

    def test_handedOver(self) -> None:
        """One process begins a poem and the next one ends it, with one record and one count."""
        client = self.connect()
        stopped = self.stop()
        self.successResultOf(stopped)
        self.assertEqual(self.policy.ledger.counts, Counts())
        self.reader.close()
        with capturedLogs() as events:
            self.begin()
        self.assertEqual(
            records(events),
            [
                {
                    "text": "readers taken over: 1",
                    "level": "info",
                    "readers": 1,
                    "message_id": TOOK_OVER,
                }
            ],
        )
        self.assertEqual(self.service.description, "; took over 1 reader")
        self.assertEqual(self.reactor.fetch(client), LONG.text)
        self.assertEqual(self.policy.ledger.counts, Counts(1, len(LONG.text)))

    def test_takenOut(self) -> None:
        """Readers that were taken over are removed from the store."""
        self.connect()
        self.stop()
        self.reader.close()
        self.begin()
        self.assertEqual(self.store.held, {})

    def test_notYet(self) -> None:
        """
        Until the reactor runs, readers stay in the store: SIGTERM would still end the program at
        once.
        """
        client = self.connect()
        self.stop()
        self.reader.close()
        later: list[Any] = []
        self.patch(Reactor, "callWhenRunning", lambda _, *call: later.append(call))
        self.begin()
        self.assertEqual(len(self.store.held[".handover"]), 1)
        ((takeOver, *arguments),) = later
        takeOver(*arguments)
        self.assertEqual(self.store.held, {})
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_deadlines(self) -> None:
        """The stall time of a reader goes on from one process to the next."""
        self.connect()
        ((_, before),) = self.policy._sending.items()
        self.stop()
        self.reader.close()
        self.begin()
        self.reactor.advance(0)
        self.assertEqual([*self.policy._sending.values()], [before])

    def test_noState(self) -> None:
        """A connection without state is reset and counted, with a record of the cause."""
        client = self.connect()
        packed = pack([self.reader])
        self.addCleanup(os.close, packed)
        self.store.putNow({".handover": [packed]}, poll=False, seconds=0)
        self.reader.close()
        with capturedLogs() as events:
            self.begin()
        self.assertEqual(
            [each["text"] for each in records(events)],
            ["readers taken over: 0; reset: 1: the state is damaged"],
        )
        with self.assertRaises(ConnectionResetError):
            receiveAll(client)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))

    def test_full(self) -> None:
        """If the store is full, it keeps no reader, and each reader goes on as before."""
        client = self.connect()
        self.store.isFull = True
        with capturedLogs() as events:
            stopped = self.stop()
        self.assertEqual(
            [each["text"] for each in records(events)],
            ["cannot hand over readers (1): no room"],
        )
        self.assertEqual(self.store.held, {})
        self.assertNoResult(stopped)
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_shortOfDescriptors(self) -> None:
        """If no descriptor is left, also none to clear the store, each reader goes on as before."""

        def fail(*_arguments: object, **_settings: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        client = self.connect()
        self.patch(self.store, "putNow", fail)
        self.patch(self.store, "removeNow", fail)
        with capturedLogs() as events:
            self.stop()
        self.assertEqual(len(records(events)), 1)
        self.assertEqual(self.reactor.fetch(client), LONG.text)

    def test_others(self) -> None:
        """While one reader cannot be handed over, all readers go on as before."""
        client = self.connect()
        other = FakeReader(self.policy, poem=LONG)
        self.policy.begin(other)
        stopped = self.stop()
        self.assertEqual(self.store.held, {})
        self.policy.remove(other)
        self.reactor.advance(0.05)
        self.successResultOf(stopped)
        self.assertEqual(len(self.store.held[".handover"]), 1)
        self.assertTrue(client.recv(1))

    def test_cutShort(self) -> None:
        """At the end of the drain, readers are handed over if they can be, and reset otherwise."""
        self.connect()
        other = FakeReader(self.policy, poem=LONG)
        self.policy.begin(other)
        stopped = self.stop()
        self.reactor.advance(20)
        self.successResultOf(stopped)
        self.assertEqual((other.did, len(self.store.held[".handover"])), (["reset"], 1))

    def test_noSystemd(self) -> None:
        """Outside systemd there is no store and no handover."""
        self.begin({})
        self.connect()
        self.assertNoResult(self.stop())
        self.assertEqual(self.store.held, {})
        self.reader.close()
