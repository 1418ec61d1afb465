"""
Tests for L{fastpoetry.systemd.store}, with a small systemd in a thread.

Tests on a booted system show that the real systemd behaves like this one.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

from fakes import countDescriptors, makeFolder
from hypothesis import given
from hypothesis import strategies as st
from passing import Passing, inherit
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fastpoetry.systemd import store
from fastpoetry.systemd.store import Store, StoreError, makeMemory, pack, readMemory, unpack

reactor: Any = _reactor


class Systemd:
    """
    A service manager with a store for one unit.

    @ivar held: its descriptors by name, each with whether it is polled.
    @ivar messages: the messages received, without barriers.
    """

    def __init__(self, case: SynchronousTestCase, most: int) -> None:
        """@param most: C{FileDescriptorStoreMax=}."""
        path = str(Path(makeFolder(case), "notify"))
        self.environ = {"NOTIFY_SOCKET": path}
        self.held: list[tuple[str, int, bool]] = []
        self.messages: list[str] = []
        self._most = most
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._thread = Thread(target=self._run, daemon=True)
        case.addCleanup(self._close)

    def start(self) -> None:
        """Begin to read messages."""
        self._thread.start()

    def names(self) -> list[str]:
        """The names in the store, without the one that our code adds to confirm delivery."""
        return [name for name, _, _ in self.held]

    def number(self, name: str) -> int:
        """The number of a descriptor in the store."""
        return next(number for each, number, _ in self.held if each == name)

    def _run(self) -> None:
        while True:
            data, numbers, _, _ = socket.recv_fds(self._socket, 4096, 300)
            if data == b"end":
                return
            self._read(data.decode(), numbers)

    def _read(self, message: str, numbers: Sequence[int]) -> None:
        fields = dict(line.split("=", 1) for line in message.split("\n"))
        name = fields.get("FDNAME", "stored")
        if "BARRIER" not in fields:
            self.messages.append(message)
        if "FDSTORE" in fields:
            room = max(0, self._most - len(self.held))
            poll = fields.get("FDPOLL") != "0"
            self.held += [(name, os.dup(number), poll) for number in numbers[:room]]
        if "FDSTOREREMOVE" in fields:
            for each in [each for each in self.held if each[0] == name]:
                os.close(each[1])
                self.held.remove(each)
        for number in numbers:
            os.close(number)

    def _close(self) -> None:
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"end", self.environ["NOTIFY_SOCKET"])
            self._thread.join()
        self._socket.close()
        for _, number, _ in self.held:
            os.close(number)


class NowTests(Passing, SynchronousTestCase):
    """Tests for the calls that wait for systemd."""

    def setUp(self) -> None:
        gc.collect()  # otherwise sockets of earlier tests would close during this test
        self.before = set(os.listdir("/proc/self/fd"))

    def store(self, most: int = 10, **variables: str) -> Store:
        """@return: the store of a systemd with that limit."""
        self.systemd = Systemd(self, most)
        self.systemd.start()
        return Store(environ={**self.systemd.environ, **variables})

    def memory(self, text: str) -> int:
        """@return: a memfd."""
        number = makeMemory(text.encode())
        self.addCleanup(os.close, number)
        return number

    def test_put(self) -> None:
        """The store keeps each descriptor under its name, and nothing else of ours."""
        store = self.store()
        listening = self.listening()
        store.putNow({"state": [self.memory("now")], "extra": [listening, self.memory("")]})
        self.assertEqual(self.systemd.names(), ["state", "extra", "extra"])
        self.assertEqual(readMemory(self.systemd.number("state"), 3), b"now")
        self.assertEqual({poll for _, _, poll in self.systemd.held}, {True})

    def test_notPolled(self) -> None:
        """A descriptor may be put without polling."""
        store = self.store()
        store.putNow({"a": [self.memory("")]}, poll=False)
        self.assertEqual([poll for _, _, poll in self.systemd.held], [False])

    def test_many(self) -> None:
        """Any number of descriptors may share a name, though one message carries 253."""
        store = self.store(1000)
        one = self.memory("")
        store.putNow({"a": [one] * 600})
        self.assertEqual(self.systemd.names(), ["a"] * 600)

    def test_nothing(self) -> None:
        """Putting nothing sends no message."""
        Store(environ={}).putNow({})
        Store(environ={}).putNow({"a": []})

    def test_full(self) -> None:
        """A descriptor that does not fit is an error that names the setting; so is a full store."""
        for most in (0, 1, 2):
            store = self.store(most)
            why = self.assertRaises(StoreError, store.putNow, {"a": [self.memory("")] * 2})
            self.assertIn("FileDescriptorStoreMax=", str(why))
            self.assertFalse([name for name in self.systemd.names() if "probe" in name])

    def test_fullAsTold(self) -> None:
        """If systemd tells its limit, the error has it too."""
        store = self.store(1, FDSTORE="1")
        self.assertEqual(store.size, 1)
        why = self.assertRaises(StoreError, store.putNow, {"a": [self.memory("")]})
        self.assertIn("store of 1 is", str(why))

    def test_tooManyForTheLimit(self) -> None:
        """What cannot fit by that limit is not sent: systemd may close late what it has dropped."""
        store = self.store(9, FDSTORE="2")
        with self.assertRaises(StoreError):
            store.putNow({"a": [self.memory("")] * 2})
        self.assertEqual(self.systemd.names(), [])
        store.putNow({"a": [self.memory("")]})
        self.assertEqual(self.systemd.names(), ["a"])

    def test_size(self) -> None:
        """An invalid limit counts as unknown."""
        sizes = [Store(environ={"FDSTORE": text}).size for text in ("", "x", "-1", "7")]
        self.assertEqual([*sizes, Store(environ={}).size], [None, None, None, 7, None])

    def test_remove(self) -> None:
        """Descriptors of removed names leave the store; others stay. Any name can be removed."""
        store = self.store()
        store.putNow({"a": [self.memory("")] * 2, "b": [self.memory("")]})
        store.removeNow("a", "c")
        self.assertEqual(self.systemd.names(), ["b"])

    def test_noSystemd(self) -> None:
        """Outside systemd, or without a process at the address, the error is one line."""
        for address, said in (
            ("", "systemd is not at NOTIFY_SOCKET: the variable is not set"),
            ("vsock:2:1", "'vsock:2:1' is not a path or an abstract name"),
            ("/nonexistent", "systemd is not at NOTIFY_SOCKET: No such file or directory"),
            ("@nobody", "systemd is not at NOTIFY_SOCKET: Connection refused"),
        ):
            store = Store(environ={"NOTIFY_SOCKET": address})
            for why in (
                self.assertRaises(StoreError, store.putNow, {"a": [0]}),
                self.assertRaises(StoreError, store.removeNow, "a"),
            ):
                self.assertIn(said, str(why))

    def test_names(self) -> None:
        """A name that systemd would not accept is refused."""
        for name in ("", "a:b", "a\nFDPOLL=0", "ä", "a" * 256):
            self.assertRaises(ValueError, Store(environ={}).putNow, {name: [0]})
            self.assertRaises(ValueError, Store(environ={}).removeNow, name)

    def test_standsStill(self) -> None:
        """
        The wait for a systemd that does not read ends on time, whether its queue is full or not.
        """
        systemd = Systemd(self, 10)
        store = Store(environ=systemd.environ)
        for _ in range(3):
            why = self.assertRaises(
                StoreError, store.putNow, {str(n): [0] for n in range(600)}, seconds=0
            )
            self.assertIn("has not read its messages for 0 s", str(why))

    def test_clean(self) -> None:
        """However a call ends, it leaves no descriptor open."""
        self.test_standsStill()
        self.test_full()
        self.test_noSystemd()
        self.doCleanups()
        self.assertEqual(set(os.listdir("/proc/self/fd")), self.before)

    def test_take(self) -> None:
        """A descriptor passed under a name can be taken, once."""
        found = inherit((self.listening(), "web"), (self.listening(), "extra"))
        store = Store(environ={}, passed=lambda: found)
        self.assertEqual([each.name for each in store.take("extra")], ["extra"])
        self.assertEqual(store.take("extra"), ())
        self.assertEqual([each.name for each in found.claim()], ["web"])


class ReactorTests(Passing, TestCase):
    """Tests for the calls that leave the reactor running."""

    def test_put(self) -> Deferred[Any]:
        """Several descriptors are put and removed at a time, in as many messages as needed."""
        # The fake systemd is a thread, so its descriptors count to this process's limit of 1,024.
        # While it copies a message, it has the 253 of that message twice.
        systemd = Systemd(self, 1000)
        systemd.start()
        store = Store(reactor, environ=systemd.environ)
        with open("/dev/null") as file:
            number = os.dup(file.fileno())
        self.addCleanup(os.close, number)

        async def put() -> None:
            await gatherResults(
                [
                    store.put({"a": [number] * 300}),
                    store.put({str(n): [number] for n in range(100)}),
                    store.remove("nothing"),
                ]
            )
            self.assertEqual(len(systemd.held), 400)
            await store.remove("a", "99")
            self.assertEqual(len(systemd.held), 99)

        return Deferred.fromCoroutine(put())

    def test_full(self) -> Deferred[Any]:
        """A descriptor that does not fit is an error."""
        systemd = Systemd(self, 1)
        systemd.start()
        store = Store(reactor, environ=systemd.environ)
        return self.assertFailure(store.put({"a": [0]}), StoreError)

    def test_standsStill(self) -> None:
        """The wait for a systemd that does not read ends on time, and leaves the reactor empty."""
        before = os.listdir("/proc/self/fd")
        clock = Clock()
        systemd = Systemd(self, 1)
        store = Store(reactor, clock=clock, environ=systemd.environ)
        waiting = [store.put({str(n): [0] for n in range(600)}) for _ in range(2)]
        clock.advance(5)
        for each in waiting:
            self.failureResultOf(each, StoreError)
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before) + 1)  # one is the fake's
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """A caller that stops waiting cancels the call."""
        systemd = Systemd(self, 1)
        waiting = Store(reactor, environ=systemd.environ).put({"a": [0]})
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    def test_noSystemd(self) -> None:
        """Outside systemd the call fails at once."""
        self.failureResultOf(Store(reactor, environ={}).put({"a": [0]}), StoreError)


class MemoryTests(SynchronousTestCase):
    """Tests for a program's state in memory."""

    @given(st.binary(max_size=100))
    def test_state(self, data: bytes) -> None:
        """The state is read as it was written, each time from the beginning."""
        number = makeMemory(data)
        try:
            os.lseek(number, 1, os.SEEK_SET)
            self.assertEqual([readMemory(number, 100) for _ in range(2)], [data] * 2)
            self.assertEqual(readMemory(number, len(data)), data)
            self.assertFalse(os.get_inheritable(number))
        finally:
            os.close(number)

    def test_bounded(self) -> None:
        """A state larger than the limit is refused."""
        number = makeMemory(b"1234")
        self.addCleanup(os.close, number)
        self.assertRaises(ValueError, readMemory, number, 3)

    def test_noMemory(self) -> None:
        """A state that does not fit leaves no descriptor open."""
        before = countDescriptors()
        with mock.patch("fcntl.fcntl", side_effect=OSError(errno.ENOSPC, "")):
            self.assertRaises(OSError, makeMemory, b"1234")
        self.assertEqual(countDescriptors(), before)

    def test_sealed(self) -> None:
        """The state cannot be changed."""
        number = makeMemory(b"1234")
        self.addCleanup(os.close, number)
        self.assertRaises(OSError, os.pwrite, number, b"5", 0)
        self.assertRaises(OSError, os.ftruncate, number, 0)


class PackTests(SynchronousTestCase):
    """Tests for many descriptors packed into one."""

    def setUp(self) -> None:
        self.before = set(os.listdir("/proc/self/fd"))

    def memories(self, count: int) -> list[int]:
        """@return: memfds that contain their numbers."""
        made = [makeMemory(str(n).encode()) for n in range(count)]
        for number in made:
            self.addCleanup(os.close, number)
        return made

    def test_order(self) -> None:
        """
        Descriptors come out in the order they were packed, as often as they were put in; then the
        pack is empty.
        """
        packed = pack([*self.memories(300), *self.memories(1)])
        self.addCleanup(os.close, packed)
        found = unpack(packed)
        texts = [int(readMemory(number, 9)) for number in found]
        self.assertEqual(texts, [*range(300), 0])
        self.assertFalse(any(map(os.get_inheritable, found)))
        self.assertEqual(unpack(packed), [])
        for number in found:
            os.close(number)

    def test_nothing(self) -> None:
        """An empty list can be packed too."""
        packed = pack([])
        self.addCleanup(os.close, packed)
        self.assertEqual(unpack(packed), [])

    def test_otherThings(self) -> None:
        """A descriptor that is not a pack is empty."""
        ours, theirs = socket.socketpair()
        for made in (ours, theirs):
            self.addCleanup(made.close)
        with open("/dev/null") as file:
            theirs.send(b"bytes of a client")
            self.assertEqual([unpack(file.fileno()), unpack(ours.fileno())], [[], []])
        self.assertEqual(ours.recv(100), b"bytes of a client")

    def test_closed(self) -> None:
        """Closing a pack closes the descriptors in it: a client sees the end."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        packed = pack([ours])
        ours.close()
        theirs.setblocking(False)
        self.assertRaises(BlockingIOError, theirs.recv, 1)
        os.close(packed)
        self.assertEqual(theirs.recv(1), b"")

    def test_tooMany(self) -> None:
        """More descriptors than the kernel queues are refused, and the call does not wait."""
        self.assertRaises(OSError, pack, self.memories(1) * 200_000)

    def test_gap(self) -> None:
        """If descriptors are missing in the middle, all after them are closed."""
        (first,) = self.memories(1)
        last, packed = os.dup(first), pack([])
        self.addCleanup(os.close, packed)
        messages = iter([(b"2", [first]), (b"1", [last]), None])
        self.patch(store, "_receive", lambda _: next(messages))
        self.assertEqual(unpack(packed), [first])
        self.assertRaises(OSError, os.fstat, last)

    def test_noRoom(self) -> None:
        """
        If this process has too many open files, the first ones come out and the others are closed.
        """
        packed = pack(self.memories(600))
        self.addCleanup(os.close, packed)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        before = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 300, hard))
        try:
            found = unpack(packed)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        texts = [int(readMemory(number, 9)) for number in found]
        self.assertEqual(texts, list(range(len(found))))
        self.assertLess(len(found), 600)
        self.assertGreater(len(found), 253)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + len(found))
        for number in found:
            os.close(number)
