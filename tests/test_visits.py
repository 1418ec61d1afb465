"""Tests for L{fastpoetry.delivery.visits}."""

from __future__ import annotations

from unittest import mock

from fakes import POEM, Receipt
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.readers import Reader
from fastpoetry.delivery.visits import Round


class RoundTests(SynchronousTestCase):
    """Tests for L{Round}; its readers are kept for another visit if the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.visited: list[tuple[float, Reader]] = []
        self.kept: list[Reader] = []
        self.isKept = False
        self.round = Round(self.clock, 1.0, self.visit, self.keep)

    def visit(self, reader: Reader) -> bool:
        """Record the time of a visit."""
        self.visited.append((self.clock.seconds(), reader))
        return self.isKept

    def keep(self, readers: list[Reader], now: float) -> None:
        """Visit the readers again, as the policy's rounds do."""
        self.kept += readers
        if readers:
            self.round.add(readers, now)

    def come(self, times: int = 1) -> list[Reader]:
        """@return: readers that came together."""
        readers: list[Reader] = [Receipt(POEM, None) for _ in range(times)]
        self.round.add(readers, self.clock.seconds())
        return readers

    def times(self) -> list[float]:
        """@return: the times of a reader's visits."""
        return sorted({when for when, _ in self.visited})

    def test_once(self) -> None:
        """A reader is visited once, after the delay; then no reader waits, and no timer runs."""
        readers = self.come(3)
        self.assertEqual(self.round.waiting, 3)
        self.clock.pump([0.5] * 6)
        self.assertEqual(self.visited, [(1.0, each) for each in readers])
        self.assertEqual((self.round.waiting, self.clock.getDelayedCalls()), (0, []))

    def test_again(self) -> None:
        """A reader that is kept is visited again and again."""
        self.isKept = True
        self.come()
        self.clock.pump([1.0] * 3)
        self.assertEqual((self.times(), self.round.waiting), ([1.0, 2.0, 3.0], 1))

    def test_noTimer(self) -> None:
        """If a timer temporarily cannot be set, before a round or in it, no other visit is lost."""
        with mock.patch.object(self.clock, "callLater", side_effect=MemoryError):
            self.assertRaises(MemoryError, self.come)
        self.assertEqual(self.round.waiting, 0)
        self.come()
        self.clock.advance(0.5)
        self.come()
        with mock.patch.object(self.clock, "callLater", side_effect=MemoryError):
            self.assertRaises(MemoryError, self.clock.advance, 0.5)
        self.come()
        self.clock.pump([0.5] * 4)
        self.assertEqual((len(self.visited), self.round.waiting), (3, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_afterAPause(self) -> None:
        """A reader that comes when all others have gone is visited as the first one was."""
        self.come()
        self.clock.pump([1.0] * 5)
        self.come()
        self.clock.advance(1)
        self.assertEqual(self.times(), [1.0, 6.0])

    def test_everybody(self) -> None:
        """
        Readers that come at different times are all visited in time, and those that come close
        together in one round.
        """
        came = {}
        for _ in range(20):
            came[self.clock.seconds()] = self.come()[0]
            self.clock.advance(0.05)
        self.clock.pump([0.05] * 40)
        visited = {id(reader): when for when, reader in self.visited}
        for when, reader in came.items():
            self.assertTrue(1 <= visited[id(reader)] - when <= 1.5, (when, visited[id(reader)]))
        self.assertLess(len(self.times()), 5)

    def test_oneTimer(self) -> None:
        """Any number of readers share one timer."""
        for _ in range(10):
            self.come()
            self.clock.advance(0.01)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_bounded(self) -> None:
        """
        If many readers are due, the reactor serves its sockets after a hundred of them at the
        latest.
        """
        for _ in range(1001):
            self.come()
        seen = [0]

        def look() -> None:
            seen.append(len(self.visited))
            if seen[-1] < 1001 and len(seen) < 1001:
                self.clock.callLater(0, look)

        self.clock.callLater(1, look)
        self.clock.advance(1)
        self.assertEqual(seen[-1], 1001)
        self.assertLessEqual(max(map(int.__sub__, seen[1:], seen)), 100)

    def test_visitAll(self) -> None:
        """
        All readers can be visited at once, due or not; a reader that is kept is visited once all
        the same.
        """
        self.isKept = True
        readers = self.come(2) + self.come()
        self.round.visitAll()
        self.assertEqual([each for _, each in self.visited], readers)
        self.assertEqual(self.round.waiting, 3)

    def test_stop(self) -> None:
        """After a stop no reader is visited and no timer is left, and the rounds can begin anew."""
        self.come()
        self.round.stop()
        self.assertEqual((self.round.waiting, self.clock.getDelayedCalls()), (0, []))
        self.come()
        self.clock.advance(1)
        self.assertEqual(len(self.visited), 1)

    def test_stopsWithinAVisit(self) -> None:
        """A visit may stop the rounds."""

        def visit(_: Reader) -> bool:
            self.round.stop()
            return False

        self.round = Round(self.clock, 1.0, visit, lambda *_: None)
        self.come()
        self.come()
        self.clock.advance(1)
        self.round.visitAll()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_faulty(self) -> None:
        """
        If the visit to one reader fails, all readers are visited the next time, and that reader is
        the last.
        """
        faulty, beside = self.come(2)
        (later,) = self.come()

        def visit(reader: Reader) -> bool:
            if reader is faulty:
                raise MemoryError
            return self.visit(reader)

        self.round._visit = visit
        self.assertRaises(MemoryError, self.clock.advance, 1)
        self.assertEqual(self.kept, [beside, later, faulty])
        self.round._visit = self.visit
        self.clock.pump([0.5] * 4)
        self.assertEqual([each for _, each in self.visited], [beside, later, faulty])
