"""
Tests for L{fastpoetry.delivery.policy}: the deadlines of a reader.

Limits of readers are in C{test_policy}.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from unittest import mock

from fakes import FakeReader, said
from policies import WHOLE, PolicyCase
from twisted.logger import capturedLogs

from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem


class VisitTests(PolicyCase):
    """Tests for the times at which the policy visits readers for their progress."""

    def test_soonAtFirst(self) -> None:
        """A reader that was sent everything is visited soon, and then less and less often."""
        reader = self.lingering(taken=0)
        self.clock.pump([0.01] * 400)
        gaps = [later - each for each, later in pairwise(reader.asked)]
        self.assertLessEqual(reader.asked[0], 0.15)
        self.assertGreater(gaps[0], 2 * reader.asked[0])
        self.assertTrue(all(0.9 < gap < 1.2 for gap in gaps[-2:]), reader.asked)

    def test_underWay(self) -> None:
        """A reader whose poem is under way is visited once a second, for deadlines alone."""
        reader = self.sending()
        self.wait(3)
        self.assertEqual(reader.asked, [1.0, 2.0, 3.0])

    def test_gone(self) -> None:
        """A closed reader is visited no more; without readers no timer runs."""
        reader = self.lingering()
        reader.closed = True
        self.clock.pump([0.01] * 200)
        self.assertEqual(len(reader.asked), 1)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_left(self) -> None:
        """A reader that left by itself is not visited."""
        reader = self.sending()
        self.policy.remove(reader)
        self.wait(2)
        self.assertEqual(reader.asked, [])

    def test_aFaultyReader(self) -> None:
        """A reader whose visit fails does not keep the others from their deadlines."""
        faulty, other = self.sending(), self.sending()
        self.patch(faulty, "countTaken", lambda: 1 // 0)
        for _ in range(60):
            with contextlib.suppress(ZeroDivisionError):
                self.clock.advance(1)
        self.assertEqual(other.did, ["reset"])

    def test_servedTogether(self) -> None:
        """
        Each reader that was served at once is visited, and a closed one is no longer a reader.
        """
        readers = [FakeReader(self.policy) for _ in range(5)]
        self.policy.addServed([*readers])
        self.assertEqual(self.policy.readers, 5)
        for reader in readers[:3]:
            reader.closed = True
        self.clock.advance(0.1)
        self.assertEqual([each.asked for each in readers], [[0.1]] * 5)
        self.assertEqual(self.policy.readers, 2)

    def test_aFaultyOneOfThem(self) -> None:
        """
        If the visit to a reader that was served at once fails, the others are visited all the same,
        and the reader is visited again.
        """
        readers = [FakeReader(self.policy) for _ in range(3)]
        self.policy.addServed([*readers])
        patch = self.patch(readers[0], "closeAfterClient", lambda: 1 // 0)
        with contextlib.suppress(ZeroDivisionError):
            self.clock.advance(0.1)
        patch.restore()
        for reader in readers:
            reader.closed = True
        self.clock.advance(1)
        self.assertEqual(self.policy.readers, 0)


class StallTests(PolicyCase):
    """Tests for readers that take no bytes."""

    def test_reset(self) -> None:
        """A reader that takes no bytes for 30 s is reset."""
        reader = self.sending()
        self.wait(29)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["reset"])
        self.assertEqual(self.policy.readers, 0)

    def test_counted(self) -> None:
        """
        A stalled reader is counted once as given up, with a record of its progress and the cause.
        """
        self.sending()
        with capturedLogs() as events:
            self.wait(40)
        self.assertEqual(
            said(events),
            ["gave up on 192.0.2.7:40000 after 0 of 310 bytes: it took nothing for 30 s"],
        )
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))

    def test_sinceItLastTookSomething(self) -> None:
        """The stall timeout begins anew whenever the reader takes bytes."""
        reader = self.sending(poem=Poem("x", b"x" * 100_000, ""))
        self.wait(20)
        reader.taken = 90_000
        self.wait(30)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["reset"])

    def test_afterTheLastByteWasSent(self) -> None:
        """
        A reader that was sent everything and does not take it is reset too; it is already counted.
        """
        reader = self.lingering(taken=WHOLE - 1)
        self.wait(40)
        self.assertEqual(reader.did, ["reset"])
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))

    def test_onlyTheStalled(self) -> None:
        """Readers beside a stalled one are not affected."""
        poem = Poem("x", b"x" * 1_000_000, "")
        stalled, other = self.sending(poem=poem), self.sending(poem=poem)
        for taken in range(0, 400_000, 10_000):
            other.taken = taken
            self.wait(1)
        self.assertEqual((stalled.did, other.did), (["reset"], []))


class RateTests(PolicyCase):
    """Tests for readers that take bytes too slowly."""

    limits = Limits(stallSeconds=10, minRateBytesPerSecond=100)

    def read(self, rate: int, seconds: int) -> FakeReader:
        """@return: a reader that has read at a rate for a time."""
        reader = self.sending(poem=Poem("x", b"x" * 100_000, ""))
        for second in range(1, seconds + 1):
            reader.taken = second * rate
            self.clock.advance(1)
        return reader

    def test_tooSlow(self) -> None:
        """A reader below the least rate is reset after a while."""
        with capturedLogs() as events:
            self.assertEqual(self.read(99, 9).did, [])
            self.assertEqual(self.read(99, 10).did, ["reset"])
        self.assertIn("after 990 of 100000 bytes: it took 99 bytes/s", said(events)[-1])

    def test_fastEnough(self) -> None:
        """A reader at the least rate may stay for any time."""
        self.assertEqual(self.read(100, 200).did, [])

    def test_onAverage(self) -> None:
        """The average counts: a reader that took much may rest for a moment."""
        reader = self.read(1000, 10)
        self.wait(9)
        self.assertEqual(reader.did, [])

    def test_off(self) -> None:
        """With a least rate of 0 any rate is enough."""
        self.policy = Policy(Limits(minRateBytesPerSecond=0), self.clock)
        self.assertEqual(self.read(1, 100).did, [])


class LingerTests(PolicyCase):
    """Tests for readers that have taken everything and do not close."""

    def test_closed(self) -> None:
        """Two seconds after the reader took the last byte, its connection is closed, not reset."""
        reader = self.lingering(taken=0)
        self.wait(5)
        reader.taken = WHOLE
        self.wait(2)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["end"])

    def test_counted(self) -> None:
        """
        A poem is counted when its last byte goes to the system, and not again when the connection
        ends.
        """
        with capturedLogs() as events:
            self.lingering()
            self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))
            self.wait(5)
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))
        self.assertEqual(said(events), ["sending 310 bytes of poetry to 192.0.2.7:40000"])

    def test_sentAtLast(self) -> None:
        """
        A slow reader that was sent everything is counted as sent, even if its client then closes.
        """
        reader = self.sending()
        self.finish(reader)
        reader.closed = True
        self.wait(2)
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))

    def test_leftBefore(self) -> None:
        """A client that leaves before the last byte was sent is counted as left."""
        reader = self.sending()
        reader.taken = 100
        self.wait(1)
        with capturedLogs() as events:
            self.policy.remove(reader)
        self.assertEqual(said(events), ["192.0.2.7:40000 left after 100 of 310 bytes"])
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))


class DrainTests(PolicyCase):
    """Tests for a stop that waits for readers."""

    limits = Limits(drainSeconds=20, journalBudgetPerSecond=0)

    def test_nobody(self) -> None:
        """Without readers a stop ends at once."""
        self.successResultOf(self.policy.drain())

    def test_underWay(self) -> None:
        """A stop waits for poems under way, without lingering after them."""
        reader = self.sending()
        drained = self.policy.drain()
        self.wait(10)
        self.assertNoResult(drained)
        reader.taken = WHOLE
        self.finish(reader)
        self.assertNoResult(drained)
        self.wait(2)
        self.assertEqual(reader.did, ["end"])
        self.successResultOf(drained)

    def test_lingering(self) -> None:
        """A stop closes lingering readers at once."""
        reader = self.lingering()
        self.successResultOf(self.policy.drain())
        self.assertEqual(reader.did, ["end"])

    def test_notAcknowledged(self) -> None:
        """A stop waits until a reader's client has acknowledged everything."""
        reader = self.lingering(WHOLE - 1)
        drained = self.policy.drain()
        self.wait(2)
        self.assertNoResult(drained)
        reader.taken = WHOLE
        self.wait(1)
        self.assertEqual(reader.did, ["end"])
        self.successResultOf(drained)

    def test_leftToTheSystem(self) -> None:
        """
        After a tenth of a second a stop leaves the rest to the system, which sends it from its
        buffers.
        """
        reader = self.lingering(WHOLE - 1)
        reader.sent = True
        drained = self.policy.drain()
        self.clock.advance(0.09)
        self.assertEqual(reader.did, [])
        self.clock.advance(0.02)
        self.assertEqual(reader.did, ["end"])
        self.successResultOf(drained)

    def test_cutShort(self) -> None:
        """At the end of the drain all readers left are reset, and the stop ends."""
        readers = [self.sending(), self.lingering(WHOLE - 1)]
        drained = self.policy.drain()
        self.wait(19)
        self.assertNoResult(drained)
        self.wait(1)
        self.assertEqual([each.did for each in readers], [["reset"], ["reset"]])
        self.successResultOf(drained)

    def test_cutShortFails(self) -> None:
        """
        A reader that cannot be reset, or whose client sends without end, does not delay the end of
        a stop.
        """
        for come in (
            self.sending,
            lambda: self.lingering(WHOLE - 1),
            lambda: self.policy.addArrival(mock.Mock()),
        ):
            come()
            drained = self.policy.drain()
            with mock.patch.object(self.policy, "giveUp", side_effect=MemoryError):
                with contextlib.suppress(MemoryError):
                    self.wait(20)
                self.wait(1)
            self.successResultOf(drained)
            self.assertEqual((self.policy.readers, self.clock.getDelayedCalls()), (0, []))

    def test_cutShortIsTold(self) -> None:
        """A reader that is cut short is counted, with the cause."""
        self.policy = Policy(Limits(drainSeconds=1.5), self.clock)
        self.sending()
        self.policy.drain()
        with capturedLogs() as events:
            self.clock.pump([0.5] * 4)
        self.assertEqual(self.policy.ledger.counts, Counts(gaveUp=1))
        self.assertEqual(
            said(events),
            [
                "gave up on 192.0.2.7:40000 after 0 of 310 bytes: "
                "the server stops, and has waited 1.5 s"
            ],
        )

    def test_deadlinesHold(self) -> None:
        """A reader that stalls during a drain is given up as usual."""
        self.policy = Policy(Limits(drainSeconds=100, stallSeconds=10), self.clock)
        reader = self.sending()
        drained = self.policy.drain()
        self.wait(10)
        self.assertEqual(reader.did, ["reset"])
        self.successResultOf(drained)

    def test_twice(self) -> None:
        """Every caller of drain waits for the same end, also after it."""
        reader = self.sending()
        first, second = self.policy.drain(), self.policy.drain()
        self.policy.remove(reader)
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.policy.drain())

    def test_oneThatNoLongerWaits(self) -> None:
        """A caller that stops waiting does not end the drain for the others."""
        reader = self.sending()
        first, second = self.policy.drain(), self.policy.drain()
        first.addErrback(lambda _: None)
        first.cancel()
        self.assertNoResult(second)
        self.policy.remove(reader)
        self.successResultOf(second)

    def test_untold(self) -> None:
        """Counts not reported yet are reported before the process ends."""
        reader = self.sending()
        drained = self.policy.drain()
        with capturedLogs() as events:
            self.policy.remove(reader)
        self.successResultOf(drained)
        self.assertIn("1 left early", said(events)[0])
