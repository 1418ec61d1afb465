"""Tests for L{fastpoetry.proxy.cache}."""

from __future__ import annotations

import os
from unittest import mock

from fakes import Reactor, Threads, makeFolder, records, said, write
from hypothesis import given
from hypothesis import strategies as st
from messages import NO_COPY, STILL
from proxies import UPSTREAM, load, save
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart.process import NoProcessError
from fastpoetry.poem import Poem
from fastpoetry.proxy import cache
from fastpoetry.proxy.cache import Copy, Keeper

arguments = st.binary().map(os.fsdecode)


class KeeperTests(SynchronousTestCase):
    """Tests for L{Keeper}: processes finish, and time passes, when a test says so."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.reactor = Reactor()
        self.threads = Threads(self, self.reactor)
        self.keeper = Keeper(self.folder, UPSTREAM, self.reactor)
        self.path = self.keeper.path
        self.addCleanup(lambda: self.assertEqual(self.reactor.getDelayedCalls(), []))

    def copy(self, text: bytes = b"a poem\n") -> Copy:
        """@return: a copy of such a poem, as L{Keeper.load} gives it."""
        return Copy(Poem(UPSTREAM, text, self.path), 1234.5)

    def said(self) -> list[str]:
        """@return: the records made while the processes work."""
        with capturedLogs() as events:
            self.threads.work()
        return said(events)

    def test_load(self) -> None:
        """A process reads the copy."""
        save(self.path, b"a poem\n", 1234.5)
        loaded = self.keeper.load()
        self.assertNoResult(loaded)
        self.threads.work()
        self.assertEqual(self.successResultOf(loaded), self.copy())

    def test_loadFails(self) -> None:
        """A copy that cannot be used is ignored, with a warning."""
        write(self.folder, os.path.basename(self.path), b"damaged")
        loaded = self.keeper.load()
        with capturedLogs() as events:
            self.threads.work()
        self.assertIsNone(self.successResultOf(loaded))
        cause = f"{self.path}: is damaged, and will be replaced"
        self.assertEqual(
            records(events),
            [
                {
                    "text": f"the copy on disk cannot be used: {cause}",
                    "level": "warn",
                    "cause": cause,
                    "upstream": UPSTREAM,
                    "message_id": NO_COPY,
                }
            ],
        )

    def test_oneAtATime(self) -> None:
        """
        While one copy is written, only the latest of the following copies is kept for writing.
        """
        saved: list[bytes] = []
        self.patch(cache, "writeCopy", lambda path, text, *others: saved.append(text))
        for text in (b"1", b"2", b"3", b"4"):
            self.keeper.save(self.copy(text))
        self.threads.work()
        self.assertEqual(saved, [b"1"])
        self.threads.work()
        self.assertEqual(saved, [b"1", b"4"])
        self.threads.work()
        self.assertEqual(saved, [b"1", b"4"])

    def test_fails(self) -> None:
        """A failed write has a warning, and the next copy is written."""
        self.keeper.path = "/nowhere/x"
        self.keeper.save(self.copy(b"1"))
        self.keeper.save(self.copy(b"2"))
        self.assertEqual(
            self.said(),
            ["the copy on disk cannot be used: /nowhere/x: No such file or directory"],
        )
        self.keeper.path = self.path
        self.keeper.save(self.copy(b"3"))
        self.threads.work()
        self.assertEqual(self.said(), [])
        self.assertEqual(load(self.path), (b"3", 1234.5))

    def test_failsOtherwise(self) -> None:
        """
        Any other failure to write has a record, and the next copy is written. The same cause has a
        record again only after a successful write.
        """
        record = "the copy on disk cannot be used: MemoryError()"
        with mock.patch.object(cache, "writeCopy", side_effect=MemoryError):
            for expected in ([record], [], []):
                self.keeper.save(self.copy())
                self.assertEqual(self.said(), expected)
        self.keeper.save(self.copy())
        self.assertEqual(self.said(), [])
        with mock.patch.object(cache, "writeCopy", side_effect=MemoryError):
            self.keeper.save(self.copy())
            self.assertEqual(self.said(), [record])

    def test_still(self) -> None:
        """
        A hanging process has a record, and another when it is killed. No other process starts until
        it has ended; then the latest copy is written.
        """
        self.keeper.save(self.copy(b"1"))
        (stuck,) = self.reactor.getReaders()
        with capturedLogs() as events:
            for number in range(2, 100):
                self.reactor.advance(1)
                self.keeper.save(self.copy(b"%d" % number))
        still, given = records(events)
        self.assertEqual(still["message_id"], STILL)
        self.assertIn(self.path, still["cause"])
        self.assertEqual(given["message_id"], NO_COPY)
        self.assertEqual(given["cause"], f"{self.path}: has not answered for 60 s")
        self.assertEqual(self.reactor.getReaders(), [stuck])
        self.threads.work()
        self.threads.work()
        self.assertEqual(load(self.path), (b"99", 1234.5))

    def test_noProcess(self) -> None:
        """
        If no process can start, no copy is written, with a warning. A copy is still read. The next
        copy is written once a process can start.
        """
        save(self.path, b"0", 1234.5)
        self.threads.why = NoProcessError("no process can be started: none is left")
        with capturedLogs() as events:
            self.keeper.save(self.copy(b"1"))
            loaded = self.keeper.load()
        self.assertEqual(
            said(events),
            ["the copy on disk cannot be used: no process can be started: none is left"],
        )
        self.assertEqual(self.successResultOf(loaded), self.copy(b"0"))
        self.successResultOf(self.keeper.finish())
        self.threads.why = None
        self.keeper.save(self.copy(b"2"))
        self.threads.work()
        self.assertEqual(load(self.path), (b"2", 1234.5))

    def test_finish(self) -> None:
        """The end waits for the copy being written, and for the one that follows it."""
        self.successResultOf(self.keeper.finish())
        self.keeper.save(self.copy(b"1"))
        self.keeper.save(self.copy(b"2"))
        finished = [self.keeper.finish() for _ in range(2)]
        self.threads.work()
        for each in finished:
            self.assertNoResult(each)
        self.threads.work()
        for each in finished:
            self.successResultOf(each)

    def test_finishLate(self) -> None:
        """The end comes after a moment at the latest."""
        self.keeper.save(self.copy())
        finished = self.keeper.finish()
        self.reactor.advance(1)
        self.successResultOf(finished)
        self.threads.work()

    @given(arguments, arguments)
    def test_upstreams(self, one: str, other: str) -> None:
        """Each upstream has a file of its own in the folder, whatever its name."""
        paths = [Keeper(self.folder, each, self.reactor).path for each in (one, other)]
        self.assertEqual(paths[0] == paths[1], one == other)
        for path in paths:
            self.assertEqual(os.path.dirname(path), self.folder)
            self.assertRegex(os.path.basename(path), r"\A[0-9a-f]+\.poem\Z")
