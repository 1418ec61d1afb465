"""Tests for what a proxy does with its copy on disk."""

from __future__ import annotations

import os
from typing import Any

from fakes import makeFolder, records
from messages import NO_COPY
from proxies import UPSTREAM, ProxyCase, load, save
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
        """@return: what keeps the copy."""
        return Keeper(self.folder, UPSTREAM, self.reactor)

    def restartWith(self, text: bytes, age: float, **others: Any) -> None:
        """Begin with a copy of some age."""
        save(self.path, text, self.reactor.seconds() - age)
        self.restart(keeper=self.keeper(), **others)

    def test_kept(self) -> None:
        """What was fetched is there after a restart, as fresh as before."""
        self.fetch()
        self.reactor.advance(59)
        self.restart(keeper=self.keeper())
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)
        self.reactor.advance(1)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 2)

    def test_onlyWhole(self) -> None:
        """What was not whole is not."""
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"half a")
        self.upstream.close(ConnectionLost())
        self.threads.work()
        self.assertIsNone(load(self.path))

    def test_upstreamIsDown(self) -> None:
        """
        A stale copy is served when the upstream turns out to be down, to who waited for that too.
        """
        self.restartWith(b"old", 900)
        waiting = self.wait()
        self.assertNoResult(waiting)
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")
        self.assertEqual(self.served, b"old")

    def test_tooOld(self) -> None:
        """One that is too old even for that is not."""
        self.restartWith(b"old", 1060)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertNoResult(waiting)

    def test_fromTheFuture(self) -> None:
        """One from the future, as a clock that was wrong makes it, is taken for a new one."""
        self.restartWith(b"old", -1e9)
        self.assertEqual(self.served, b"old")
        self.reactor.advance(60)
        self.assertEqual(self.served, b"old")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_notExpected(self) -> None:
        """One that is not the poem that is expected by now is not served."""
        digest = Poem("", b"new", "").digest
        with capturedLogs() as events:
            self.restartWith(b"old", 0, expectedDigest=digest)
        self.assertIsNone(self.served)
        (record,) = records(events)
        self.assertEqual(record["message_id"], NO_COPY)
        self.assertIn("is another poem", record["cause"])

    def test_damaged(self) -> None:
        """A damaged one has one warning, and the next fetch replaces it."""
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
        """Where no copy can be written there is a warning, and readers are served all the same."""
        os.rmdir(self.folder)
        self.addCleanup(os.mkdir, self.folder)
        with capturedLogs() as events:
            self.fetch()
        self.assertEqual(self.served, b"a poem")
        (_, warning) = records(events)
        self.assertEqual(warning["message_id"], NO_COPY)
        self.assertEqual(warning["cause"], f"{self.path}: No such file or directory")

    def wall(self) -> float:
        """@return: the time of day."""
        return self.reactor.seconds() + self.wallOffset

    def test_clock(self) -> None:
        """
        The time of day is asked for an age at the start, and for the copy; however it is set
        meanwhile, a poem is as fresh as it was.
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
        """
        Whoever comes while the copy is read waits for that, and is not the reason for a fetch.
        """
        self.fetch()
        self.service.stopService()
        self.service = self.make(keeper=self.keeper())
        self.service.startService()
        waiting = self.wait()
        self.assertNoResult(waiting)
        self.threads.work()
        self.assertEqual(self.successResultOf(waiting).text, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_neverRead(self) -> None:
        """
        A disk that does not give it is waited for for a second; then the upstream is asked, and
        what comes of the disk after that makes no difference.
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
        """A stop waits for a copy that is being written, but for no longer than a moment."""
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
        """Another process writes it: the disk holds up nobody."""
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"a poem")
        self.upstream.close()
        self.successResultOf(waiting)
        self.assertIsNone(load(self.path))
        self.threads.work()
        self.assertIsNotNone(load(self.path))
