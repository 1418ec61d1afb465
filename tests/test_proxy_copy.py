"""Tests for the proxy's copy on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from fakes import makeFolder, records
from messages import NO_COPY
from proxies import FRESHNESS, UPSTREAM, ProxyCase, load, save
from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs

from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Keeper


class CopyTests(ProxyCase):
    """Tests for the copy on disk."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = makeFolder(self)
        self.path = self.keeper().path
        self.reactor.advance(100_000)
        self.restart(keeper=self.keeper())

    def keeper(self) -> Keeper:
        """@return: the keeper of the copy."""
        return Keeper(self.folder, UPSTREAM, self.reactor)

    def restartWith(self, text: bytes, age: float, **others: Any) -> None:
        """Start with a copy of that age."""
        save(self.path, text, self.reactor.seconds() - age)
        self.restart(keeper=self.keeper(), **others)

    def test_kept(self) -> None:
        """A fetched poem is there after a restart, as fresh as before."""
        self.fetch()
        self.reactor.advance(59)
        self.restart(keeper=self.keeper())
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)
        self.reactor.advance(1)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 2)

    def test_onlyWhole(self) -> None:
        """An incomplete poem has no copy."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"half a")
        self.upstream.close(ConnectionLost())
        self.threads.work()
        self.assertIsNone(load(self.path))

    def test_upstreamIsDown(self) -> None:
        """
        A stale copy is served when the upstream turns out to be down, also to readers that waited
        for it.
        """
        self.restartWith(b"old", 900)
        waiting = self.wait()
        self.assertNoResult(waiting)
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")
        self.assertEqual(self.served, b"old")

    def test_tooOld(self) -> None:
        """A copy that is too old even for an outage is not served."""
        self.restartWith(b"old", 1060)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertNoResult(waiting)

    def test_fromTheFuture(self) -> None:
        """A copy from the future, which a wrong clock makes, is treated as new."""
        self.restartWith(b"old", -1e9)
        self.assertEqual(self.served, b"old")
        self.reactor.advance(60)
        self.assertEqual(self.served, b"old")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_notExpected(self) -> None:
        """A copy that is not the expected poem is not served."""
        digest = Poem("", b"new", "").digest
        with capturedLogs() as events:
            self.restartWith(b"old", 0, expectedDigest=digest)
        self.assertIsNone(self.served)
        (record,) = records(events)
        self.assertEqual(record["message_id"], NO_COPY)
        self.assertIn("is another poem", record["cause"])

    def test_damaged(self) -> None:
        """A damaged copy has one warning, and the next fetch replaces it."""
        with open(self.path, "wb") as file:
            file.write(b"damaged")
        with capturedLogs() as events:
            self.restart(keeper=self.keeper())
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
        self.assertIsNone(self.served)
        self.fetch()
        copy = load(self.path)
        assert copy is not None
        self.assertEqual(copy[0], b"a poem")

    def test_unwritable(self) -> None:
        """If a copy cannot be written there is a warning, and readers are served all the same."""
        os.rmdir(self.folder)
        self.addCleanup(os.mkdir, self.folder)
        with capturedLogs() as events:
            self.fetch()
        self.assertEqual(self.served, b"a poem")
        (_, warning) = records(events)
        self.assertEqual(warning["message_id"], NO_COPY)
        self.assertEqual(warning["cause"], f"{self.path}: No such file or directory")

    def wall(self) -> float:
        """@return: the wall clock."""
        return self.reactor.seconds() + self.wallOffset

    def test_clock(self) -> None:
        """
        The wall clock is read only for the age at the start and for the copy; however it is set
        later, a poem is as fresh as it was.
        """
        for offset in (-86_400.0, 86_400.0):
            self.wallOffset = 0.0
            self.fetch()
            self.restart(keeper=self.keeper())
            before = len(self.upstream.attempts)
            self.wallOffset = offset
            self.reactor.advance(59)
            self.assertEqual(self.served, b"a poem")
            self.assertEqual(len(self.upstream.attempts), before)
            self.reactor.advance(1)
            self.assertEqual(self.served, b"a poem")
            self.assertEqual(len(self.upstream.attempts), before + 1)
            self.give(b"a poem")
            copy = load(self.path)
            assert copy is not None
            self.assertEqual(copy[1], self.wall())
            self.reactor.advance(60)

    def test_notReadYet(self) -> None:
        """A reader that comes while the copy is read waits for the copy, and causes no fetch."""
        self.fetch()
        self.service.stopService()
        self.service = self.make(keeper=self.keeper())
        self.service.startService()
        waiting = self.wait()
        self.assertNoResult(waiting)
        self.threads.work()
        self.assertEqual(self.successResultOf(waiting).text, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_upstreamIsSilent(self) -> None:
        """
        A reader that comes while the copy is read still waits when the fetch fails, and gets the
        stale copy.
        """
        save(self.path, b"old", self.wall() - 1000)
        self.service.stopService()
        self.service = self.make(replace(FRESHNESS, totalSeconds=5.0), keeper=self.keeper())
        self.service.startService()
        self.reactor.advance(0.02)
        waiting = self.wait()
        self.reactor.advance(0.04)
        self.threads.work()
        self.reactor.pump([0.01] * 510)
        self.assertEqual(self.successResultOf(waiting).text, b"old")

    def test_neverRead(self) -> None:
        """
        The proxy waits a second for the disk; then it asks the upstream, and a later result of the
        disk is ignored.
        """
        save(self.path, b"old", self.wall())
        self.service.stopService()
        self.service = self.make(keeper=self.keeper())
        self.service.startService()
        (stuck,) = self.reactor.getReaders()
        self.reactor.removeReader(stuck)
        waiting = self.wait()
        self.reactor.advance(1)
        self.give(b"new")
        self.assertEqual(self.successResultOf(waiting).text, b"new")
        self.reactor.addReader(stuck)
        self.threads.work()
        self.assertEqual(self.served, b"new")

    def test_stop(self) -> None:
        """A stop waits for the copy being written, but only for a moment."""
        for end in (self.threads.work, lambda: self.reactor.advance(1)):
            self.restart(keeper=self.keeper())
            self.service.reload()
            self.upstream.accept()
            self.upstream.send(b"a poem")
            self.upstream.close()
            stopped = self.service.stopService()
            assert stopped is not None
            self.assertNoResult(stopped)
            end()
            self.successResultOf(stopped)
        self.threads.work()

    def test_apart(self) -> None:
        """Another process writes the copy: a slow disk delays no reader."""
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"a poem")
        self.upstream.close()
        self.successResultOf(waiting)
        self.assertIsNone(load(self.path))
        self.threads.work()
        self.assertIsNotNone(load(self.path))
