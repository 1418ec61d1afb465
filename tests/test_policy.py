"""
Tests for L{fastpoetry.delivery.policy}, with readers that take what a test says.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from resource import RLIM_INFINITY

from fakes import POEM, FakeArrival, FakePort, FakeReader, records, said
from messages import FULL, GAVE_UP_NEAR_THE_END
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery import policy as policyModule
from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.policy import Limits, Policy
from fastpoetry.poem import Poem

HERE = ("192.0.2.7", 40000)
THERE = ("192.0.2.8", 40000)

WHOLE = len(POEM.text)


class PolicyCase(SynchronousTestCase):
    """
    A policy, a clock and a port.
    """

    limits = Limits()

    def setUp(self) -> None:
        self.clock = Clock()
        self.policy = Policy(self.limits, self.clock)
        self.port = FakePort()
        self.policy.addPort(self.port)

    def sending(self, address: Address = HERE, poem: Poem = POEM) -> FakeReader:
        """
        @return: a reader whose poem is under way.
        """
        reader = FakeReader(self.policy, address, poem)
        self.policy.begin(reader, self.clock.seconds())
        return reader

    def finish(self, reader: FakeReader) -> None:
        """
        Have the rest of a reader's poem go to the system.
        """
        self.policy.finish(reader)

    def lingering(self, taken: int = WHOLE, address: Address = HERE) -> FakeReader:
        """
        @return: a reader whose poem went out at once, of which so much is acknowledged.
        """
        reader = FakeReader(self.policy, address)
        reader.taken = taken
        self.policy.addServed([reader], self.clock.seconds())
        return reader

    def countRoom(self) -> int:
        """
        @return: how many more may be here, once the ports wait if there are none.
        """
        self.policy.pauseIfFull()
        return self.policy.room

    def wait(self, seconds: int) -> None:
        """
        Let time pass, a second at a time.
        """
        self.clock.pump([1.0] * seconds)


class VisitTests(PolicyCase):
    """
    Tests for when readers are asked how far they have come.
    """

    def test_soonAtFirst(self) -> None:
        """
        One that has been sent everything is asked soon, and then less and less often.
        """
        reader = self.lingering(taken=0)
        self.clock.pump([0.01] * 400)
        gaps = [later - each for each, later in pairwise(reader.asked)]
        self.assertLessEqual(reader.asked[0], 0.15)
        self.assertGreater(gaps[0], 2 * reader.asked[0])
        self.assertTrue(all(0.9 < gap < 1.2 for gap in gaps[-2:]), reader.asked)

    def test_underWay(self) -> None:
        """
        One whose poem is under way is asked once a second, for deadlines alone.
        """
        reader = self.sending()
        self.wait(3)
        self.assertEqual(reader.asked, [1.0, 2.0, 3.0])

    def test_gone(self) -> None:
        """
        One that has closed is asked no more, and no timer runs when all have.
        """
        reader = self.lingering()
        reader.closed = True
        self.clock.pump([0.01] * 200)
        self.assertEqual(len(reader.asked), 1)
        self.assertEqual(self.policy.readers, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_left(self) -> None:
        """
        One that left by itself is not asked.
        """
        reader = self.sending()
        self.policy.remove(reader)
        self.wait(2)
        self.assertEqual(reader.asked, [])

    def test_everybody(self) -> None:
        """
        Those who come at different times are all asked in time.
        """
        readers = []
        for _ in range(10):
            readers.append(self.sending())
            self.clock.advance(0.25)
        self.clock.pump([0.25] * 8)
        for reader in readers:
            (first, second) = (each - reader.startedAt for each in reader.asked[:2])
            self.assertTrue(1 <= first <= 1.5 and 2 <= second <= 3, reader.asked)

    def test_together(self) -> None:
        """
        Those who come one soon after the other are asked together.
        """
        readers = []
        for _ in range(20):
            readers.append(self.sending())
            self.clock.advance(0.05)
        self.clock.pump([0.05] * 100)
        rounds = sorted({when for reader in readers for when in reader.asked})
        self.assertLess(len(rounds), 20)

    def test_afterAPause(self) -> None:
        """
        Who comes when all have gone is asked as the first one was.
        """
        self.policy.remove(self.sending())
        self.wait(5)
        reader = self.sending()
        self.wait(1)
        self.assertEqual(reader.asked, [6.0])

    def test_aRoundIsBounded(self) -> None:
        """
        Where many are due, the sockets get their turn after 500 of them at the latest.
        """
        asked = [0]
        readers = [self.sending() for _ in range(1201)]

        def look() -> None:
            asked.append(sum(len(each.asked) for each in readers))
            if asked[-1] < len(readers):
                self.clock.callLater(0, look)

        self.clock.callLater(1, look)
        self.clock.advance(1)
        self.assertEqual(asked[-1], 1201)
        leaps = [later - each for each, later in pairwise(asked)]
        self.assertLessEqual(max(leaps), 500)

    def test_aFaultyReader(self) -> None:
        """
        One that cannot be asked does not keep the others from their deadlines.
        """
        faulty, other = self.sending(), self.sending()
        self.patch(faulty, "countTaken", lambda: 1 // 0)
        for _ in range(60):
            with contextlib.suppress(ZeroDivisionError):
                self.clock.advance(1)
        self.assertEqual(other.did, ["reset"])

    def test_servedTogether(self) -> None:
        """
        Of those who were served at once, each is asked, and who has closed is no reader any more.
        """
        readers = [FakeReader(self.policy) for _ in range(5)]
        self.policy.addServed([*readers], self.clock.seconds())
        self.assertEqual(self.policy.readers, 5)
        for reader in readers[:3]:
            reader.closed = True
        self.clock.advance(0.1)
        self.assertEqual([each.asked for each in readers], [[0.1]] * 5)
        self.assertEqual(self.policy.readers, 2)

    def test_aFaultyOneOfThem(self) -> None:
        """
        One of them that cannot be asked does not keep the others from being asked.
        """
        readers = [FakeReader(self.policy) for _ in range(3)]
        self.policy.addServed([*readers], self.clock.seconds())
        self.patch(readers[0], "closeAfterClient", lambda: 1 // 0)
        with contextlib.suppress(ZeroDivisionError):
            self.clock.advance(0.1)
        for reader in readers[1:]:
            reader.closed = True
        self.clock.advance(1)
        self.assertEqual(self.policy.readers, 0)

    def test_oneTimer(self) -> None:
        """
        However many groups wait, they take one timer beside that of the records.
        """
        for _ in range(10):
            self.lingering()
            self.clock.advance(0.001)
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)


class StallTests(PolicyCase):
    """
    Tests for readers that take nothing.
    """

    def test_reset(self) -> None:
        """
        One that takes nothing for 30 s is reset.
        """
        reader = self.sending()
        self.wait(29)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["reset"])
        self.assertEqual(self.policy.readers, 0)

    def test_counted(self) -> None:
        """
        It is counted as given up on, once, with a record that says how far it came and why.
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
        """
        The time begins anew whenever it takes something.
        """
        reader = self.sending(poem=Poem("x", b"x" * 100_000, ""))
        self.wait(20)
        reader.taken = 90_000
        self.wait(30)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["reset"])

    def test_afterTheLastByteWasSent(self) -> None:
        """
        One that was sent everything, and does not take it, is reset too; it is counted already.
        """
        reader = self.lingering(taken=WHOLE - 1)
        self.wait(40)
        self.assertEqual(reader.did, ["reset"])
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))

    def test_onlyTheStalled(self) -> None:
        """
        The others do not notice.
        """
        poem = Poem("x", b"x" * 1_000_000, "")
        stalled, other = self.sending(poem=poem), self.sending(poem=poem)
        for taken in range(0, 400_000, 10_000):
            other.taken = taken
            self.wait(1)
        self.assertEqual((stalled.did, other.did), (["reset"], []))


class RateTests(PolicyCase):
    """
    Tests for readers that take next to nothing.
    """

    limits = Limits(stallSeconds=10, minRateBytesPerSecond=100)

    def read(self, rate: int, seconds: int) -> FakeReader:
        """
        @return: one that has read at a rate for a time.
        """
        reader = self.sending(poem=Poem("x", b"x" * 100_000, ""))
        for second in range(1, seconds + 1):
            reader.taken = second * rate
            self.clock.advance(1)
        return reader

    def test_tooSlow(self) -> None:
        """
        One that takes less than the least rate is reset, once it has been there for a while.
        """
        with capturedLogs() as events:
            self.assertEqual(self.read(99, 9).did, [])
            self.assertEqual(self.read(99, 10).did, ["reset"])
        self.assertIn("after 990 of 100000 bytes: it took 99 bytes/s", said(events)[-1])

    def test_fastEnough(self) -> None:
        """
        One that takes the least rate may stay, for however long.
        """
        self.assertEqual(self.read(100, 200).did, [])

    def test_onAverage(self) -> None:
        """
        It is the average that counts: one that took much may rest for a moment.
        """
        reader = self.read(1000, 10)
        self.wait(9)
        self.assertEqual(reader.did, [])

    def test_off(self) -> None:
        """
        With a least rate of 0 whatever is taken is enough.
        """
        self.policy = Policy(Limits(minRateBytesPerSecond=0), self.clock)
        self.assertEqual(self.read(1, 100).did, [])


class LingerTests(PolicyCase):
    """
    Tests for readers that have everything and do not close.
    """

    def test_closed(self) -> None:
        """
        Two seconds after it took the last byte its connection is closed, not reset.
        """
        reader = self.lingering(taken=0)
        self.wait(5)
        reader.taken = WHOLE
        self.wait(2)
        self.assertEqual(reader.did, [])
        self.wait(1)
        self.assertEqual(reader.did, ["end"])

    def test_counted(self) -> None:
        """
        A poem is counted when it goes to the system, and not again when the connection ends.
        """
        with capturedLogs() as events:
            self.lingering()
            self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))
            self.wait(5)
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))
        self.assertEqual(said(events), ["sending 310 bytes of poetry to 192.0.2.7:40000"])

    def test_sentAtLast(self) -> None:
        """
        So is one that took its time; that its client closes then is no loss.
        """
        reader = self.sending()
        self.finish(reader)
        reader.closed = True
        self.wait(2)
        self.assertEqual(self.policy.ledger.counts, Counts(1, WHOLE))

    def test_leftBefore(self) -> None:
        """
        A client that leaves before the last byte was sent is counted as that.
        """
        reader = self.sending()
        reader.taken = 100
        self.wait(1)
        with capturedLogs() as events:
            self.policy.remove(reader)
        self.assertEqual(said(events), ["192.0.2.7:40000 left after 100 of 310 bytes"])
        self.assertEqual(self.policy.ledger.counts, Counts(left=1))


class SourceTests(PolicyCase):
    """
    Tests for the limit of one source.
    """

    limits = Limits(maxReadersPerSource=2)

    def test_limit(self) -> None:
        """
        A source may have so many readers under way; others have their own.
        """
        self.sending()
        self.assertFalse(self.policy.isTooMany(HERE))
        self.sending(("192.0.2.7", 40001))
        self.assertTrue(self.policy.isTooMany(("192.0.2.7", 40002)))
        self.assertFalse(self.policy.isTooMany(THERE))

    def test_left(self) -> None:
        """
        One that leaves makes room.
        """
        readers = [self.sending(), self.sending()]
        self.policy.remove(readers[0])
        self.assertFalse(self.policy.isTooMany(HERE))
        self.sending()
        self.assertTrue(self.policy.isTooMany(HERE))

    def test_sent(self) -> None:
        """
        One that has been sent everything makes room.
        """
        readers = [self.sending(), self.sending()]
        self.finish(readers[0])
        self.assertFalse(self.policy.isTooMany(HERE))

    def test_givenUpOn(self) -> None:
        """
        One that is given up on makes room, once.
        """
        self.sending()
        self.wait(20)
        self.sending()
        self.wait(10)
        self.assertFalse(self.policy.isTooMany(HERE))
        self.sending()
        self.assertTrue(self.policy.isTooMany(HERE))

    def test_UNIX(self) -> None:
        """
        The readers of a UNIX socket are no source.
        """
        for address in ("", "", "", None, None, None):
            self.sending(address)
        self.assertFalse(self.policy.isTooMany("") or self.policy.isTooMany(None))

    def test_IPv6(self) -> None:
        """
        A /64 of IPv6 is one source, however many addresses of it somebody uses.
        """
        self.sending(("2001:db8:0:1::1", 40000, 0, 0))
        self.sending(("2001:db8:0:1:ffff::2", 40000, 0, 0))
        self.assertTrue(self.policy.isTooMany(("2001:db8:0:1::3", 40000, 0, 0)))
        self.assertFalse(self.policy.isTooMany(("2001:db8:0:2::3", 40000, 0, 0)))

    def test_linkLocal(self) -> None:
        """
        So is one of an interface, whose name comes with the address.
        """
        self.sending(("fe80::1%lo", 40000, 0, 1))
        self.sending(("fe80::2%lo", 40000, 0, 1))
        self.assertTrue(self.policy.isTooMany(("fe80::3%lo", 40000, 0, 1)))

    def test_mappedIPv4(self) -> None:
        """
        IPv4 clients of an IPv6 socket are a source each.
        """
        self.sending(("::ffff:192.0.2.7", 40000, 0, 0))
        self.sending(("::ffff:192.0.2.7", 40001, 0, 0))
        self.assertTrue(self.policy.isTooMany(("::ffff:192.0.2.7", 40002, 0, 0)))
        self.assertFalse(self.policy.isTooMany(("::ffff:192.0.2.8", 40000, 0, 0)))

    def test_turnedAway(self) -> None:
        """
        One that is turned away is counted, with a record that names the limit.
        """
        with capturedLogs() as events:
            self.policy.turnAway(HERE)
        self.assertEqual(
            said(events),
            ["turned 192.0.2.7:40000 away: 2 readers of its address are under way"],
        )
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))


class CrowdTests(PolicyCase):
    """
    Tests for a source many of whose readers were sent a small poem and do not take it: each has
    its place in the kernel's memory.
    """

    limits = Limits(maxReadersPerSource=2)

    def test_tooMany(self) -> None:
        """
        Those beyond the limit of one source are reset; others are not.
        """
        readers = [self.lingering(taken=0) for _ in range(3)]
        other = self.lingering(taken=0, address=THERE)
        self.wait(3)
        self.assertEqual([each.did for each in readers], [[], [], ["reset"]])
        self.assertEqual(other.did, [])

    def test_theyCount(self) -> None:
        """
        They count with those under way, until they leave or are gone.
        """
        reader, _ = self.lingering(taken=0), self.sending()
        self.assertFalse(self.policy.isTooMany(HERE))
        self.wait(3)
        self.assertTrue(self.policy.isTooMany(HERE))
        self.policy.remove(reader)
        self.assertFalse(self.policy.isTooMany(HERE))

    def test_whoHasEverything(self) -> None:
        """
        Who has everything and only lingers does not count.
        """
        readers = [self.lingering() for _ in range(3)]
        self.clock.pump([0.1, 1.0])
        self.assertEqual([each.did for each in readers], [[], [], []])
        self.assertFalse(self.policy.isTooMany(HERE))

    def test_record(self) -> None:
        """
        Their poems are counted as sent already; a warning now and then says who takes nothing.
        """
        with capturedLogs() as events:
            for _ in range(5):
                self.lingering(taken=10)
            self.wait(9)
        self.assertEqual(self.policy.ledger.counts, Counts(5, 5 * WHOLE))
        self.assertEqual(
            records(events)[5:],
            [
                {
                    "text": "gave up on 192.0.2.7:40000, who does not take the last 300 bytes: "
                    "2 readers of its address take nothing",
                    "level": "warn",
                    "peer": "192.0.2.7:40000",
                    "bytes": 300,
                    "cause": "2 readers of its address take nothing",
                    "message_id": GAVE_UP_NEAR_THE_END,
                }
            ],
        )


class ArrivalTests(PolicyCase):
    """
    Tests for connections that have to wait before they are readers.
    """

    limits = Limits(maxReaders=2)

    def arrive(self) -> FakeArrival:
        """
        @return: a connection that waits.
        """
        arrival = FakeArrival(self.policy)
        self.policy.addArrival(arrival)
        return arrival

    def test_counts(self) -> None:
        """
        It takes a reader's place, and whoever comes next waits for it.
        """
        first, _ = self.arrive(), self.arrive()
        self.assertEqual(self.policy.readers, 2)
        self.assertEqual(self.countRoom(), 0)
        self.policy.removeArrival(first)
        self.assertEqual((self.policy.readers, self.port.reading), (1, True))

    def test_departsOnce(self) -> None:
        """
        It makes room once.
        """
        first, _ = self.arrive(), self.arrive()
        self.policy.removeArrival(first)
        self.policy.removeArrival(first)
        self.assertEqual(self.policy.readers, 1)

    def test_idle(self) -> None:
        """
        While it waits somebody is there.
        """
        arrival = self.arrive()
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 0.0)
        self.policy.removeArrival(arrival)
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 5.0)

    def test_drain(self) -> None:
        """
        A stop does not wait for who has had nothing yet.
        """
        arrivals = [self.arrive(), self.arrive()]
        self.successResultOf(self.policy.drain())
        self.assertEqual([each.drained for each in arrivals], [True, True])


class FullTests(PolicyCase):
    """
    Tests for the limit of all readers.
    """

    limits = Limits(maxReaders=2)

    def fill(self) -> list[FakeReader]:
        """
        @return: as many readers as may be.
        """
        return [self.sending(), self.sending()]

    def test_room(self) -> None:
        """
        Below the limit there is room, and the ports accept.
        """
        self.sending()
        self.assertGreater(self.countRoom(), 0)
        self.assertEqual(self.port.turns, 0)

    def test_full(self) -> None:
        """
        At the limit the ports accept nothing, and one record says so.
        """
        self.fill()
        with capturedLogs() as events:
            self.assertEqual(self.countRoom(), 0)
            self.assertEqual(self.countRoom(), 0)
        self.assertEqual((self.port.reading, self.port.turns), (False, 1))
        self.assertEqual(
            records(events),
            [
                {
                    "text": "no more than 2 readers may be here (--max-readers); "
                    "with 2 here, new ones wait in the backlog",
                    "level": "warn",
                    "cause": "no more than 2 readers may be here (--max-readers)",
                    "readers": 2,
                    "message_id": FULL,
                }
            ],
        )

    def test_resumes(self) -> None:
        """
        When one leaves the ports accept again, at once.
        """
        readers = self.fill()
        self.policy.pauseIfFull()
        self.policy.remove(readers[0])
        self.assertTrue(self.port.reading)
        self.assertGreater(self.countRoom(), 0)

    def test_looksAgain(self) -> None:
        """
        While nobody leaves the ports look again now and then.
        """
        self.fill()
        self.policy.pauseIfFull()
        self.clock.advance(0.2)
        self.assertFalse(self.port.reading)
        self.clock.advance(0.05)
        self.assertTrue(self.port.reading)
        self.policy.pauseIfFull()
        self.assertFalse(self.port.reading)

    def test_looksAgainAnew(self) -> None:
        """
        When it is full again the time until then begins anew.
        """
        readers = self.fill()
        self.policy.pauseIfFull()
        self.clock.advance(0.2)
        self.policy.remove(readers[0])
        self.sending()
        self.policy.pauseIfFull()
        self.clock.advance(0.2)
        self.assertFalse(self.port.reading)

    def test_noFloodOfRecords(self) -> None:
        """
        A limit that stays reached is told once in 10 s.
        """
        self.patch(self.policy, "limits", Limits(stallSeconds=100, maxReaders=2))
        self.fill()
        with capturedLogs() as events:
            for _ in range(100):
                self.policy.pauseIfFull()
                self.clock.advance(0.25)
        self.assertEqual([each["log_time"] > 0 for each in events], [True] * 3)

    def test_lingerersLeave(self) -> None:
        """
        At the limit nobody lingers: who has everything is closed, and its place is free.
        """
        reader = self.lingering()
        self.sending()
        with capturedLogs() as events:
            self.assertGreater(self.countRoom(), 0)
        self.assertEqual(reader.did, ["end"])
        self.assertTrue(self.port.reading)
        self.assertEqual(events, [])

    def test_everybodyWhoLingersGoes(self) -> None:
        """
        They all go at once, rather than one for each that comes.
        """
        readers = [self.lingering(), self.lingering()]
        self.policy.pauseIfFull()
        self.assertEqual([each.did for each in readers], [["end"], ["end"]])

    def test_whoHasNotEverythingStays(self) -> None:
        """
        Who has not everything yet stays.
        """
        reader = self.lingering(WHOLE - 1)
        self.sending()
        self.assertEqual(self.countRoom(), 0)
        self.assertEqual(reader.did, [])

    def test_lingersAgain(self) -> None:
        """
        When there is room again, who comes may linger.
        """
        readers = self.fill()
        self.policy.pauseIfFull()
        for each in readers:
            self.policy.remove(each)
        reader = self.lingering()
        self.wait(1)
        self.assertEqual(reader.did, [])

    def test_exhausted(self) -> None:
        """
        Where the system has no room the ports wait too, and the record names its cause.
        """
        with capturedLogs() as events:
            self.policy.pause("Too many open files")
        self.assertFalse(self.port.reading)
        self.assertEqual(
            said(events), ["Too many open files; with 0 here, new ones wait in the backlog"]
        )
        self.clock.advance(0.25)
        self.assertTrue(self.port.reading)

    def test_removedPort(self) -> None:
        """
        A port that is gone is left alone.
        """
        other = FakePort()
        self.policy.addPort(other)
        self.policy.removePort(self.port)
        self.policy.pause("")
        self.clock.advance(1)
        self.assertEqual((self.port.turns, other.turns), (0, 2))


class DescriptorTests(SynchronousTestCase):
    """
    Tests for what the limit of open files allows.
    """

    def most(self, descriptors: int) -> int:
        """
        @return: the number of a descriptor from which on the others are kept from readers.
        """
        self.patch(policyModule, "getrlimit", lambda _: (descriptors, RLIM_INFINITY))
        return Policy(Limits(), Clock()).mostDescriptor

    def test_fewer(self) -> None:
        """
        Some of what may be open is kept from readers.
        """
        self.assertEqual(self.most(64), 32)

    def test_noLimit(self) -> None:
        """
        Where there is no limit, no descriptor is the last.
        """
        self.assertGreater(self.most(RLIM_INFINITY), 1_000_000)


class DrainTests(PolicyCase):
    """
    Tests for a stop that waits for readers.
    """

    limits = Limits(drainSeconds=20, journalBudgetPerSecond=0)

    def test_nobody(self) -> None:
        """
        With nobody here there is nothing to wait for.
        """
        self.successResultOf(self.policy.drain())

    def test_underWay(self) -> None:
        """
        A poem under way is waited for; then nobody lingers.
        """
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
        """
        Who has everything is closed at once.
        """
        reader = self.lingering()
        self.successResultOf(self.policy.drain())
        self.assertEqual(reader.did, ["end"])

    def test_notAcknowledged(self) -> None:
        """
        Who was sent everything is waited for until it has it.
        """
        reader = self.lingering(WHOLE - 1)
        drained = self.policy.drain()
        self.wait(2)
        self.assertNoResult(drained)
        reader.taken = WHOLE
        self.wait(1)
        self.assertEqual(reader.did, ["end"])
        self.successResultOf(drained)

    def test_cutShort(self) -> None:
        """
        When the time is over everybody who is still here is reset, and the stop goes on.
        """
        readers = [self.sending(), self.lingering(WHOLE - 1)]
        drained = self.policy.drain()
        self.wait(19)
        self.assertNoResult(drained)
        self.wait(1)
        self.assertEqual([each.did for each in readers], [["reset"], ["reset"]])
        self.successResultOf(drained)

    def test_cutShortIsTold(self) -> None:
        """
        Who is cut short is counted, with the cause.
        """
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
        """
        A reader that stalls meanwhile is given up on as ever.
        """
        self.policy = Policy(Limits(drainSeconds=100, stallSeconds=10), self.clock)
        reader = self.sending()
        drained = self.policy.drain()
        self.wait(10)
        self.assertEqual(reader.did, ["reset"])
        self.successResultOf(drained)

    def test_twice(self) -> None:
        """
        Whoever asks waits for the same end, also after it.
        """
        reader = self.sending()
        first, second = self.policy.drain(), self.policy.drain()
        self.policy.remove(reader)
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.policy.drain())

    def test_oneThatNoLongerWaits(self) -> None:
        """
        One that gives up waiting does not end it for the others.
        """
        reader = self.sending()
        first, second = self.policy.drain(), self.policy.drain()
        first.addErrback(lambda _: None)
        first.cancel()
        self.assertNoResult(second)
        self.policy.remove(reader)
        self.successResultOf(second)

    def test_untold(self) -> None:
        """
        What was not told yet is told before the process ends.
        """
        reader = self.sending()
        drained = self.policy.drain()
        with capturedLogs() as events:
            self.policy.remove(reader)
        self.successResultOf(drained)
        self.assertIn("1 left early", said(events)[0])

    def test_noTimer(self) -> None:
        """
        No deadline is left behind.
        """
        reader = self.sending()
        self.policy.drain()
        self.policy.remove(reader)
        self.wait(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class IdleTests(PolicyCase):
    """
    Tests for how long nobody has been here.
    """

    def test_fromTheStart(self) -> None:
        """
        Before anybody came the time counts from the start.
        """
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 5.0)

    def test_somebody(self) -> None:
        """
        While somebody is here, be it only to linger, there is no such time.
        """
        self.clock.advance(5)
        reader = self.sending()
        self.clock.advance(1)
        self.assertEqual(self.policy.idleSeconds, 0.0)
        self.finish(reader)
        self.assertEqual(self.policy.idleSeconds, 0.0)

    def test_sinceTheLastLeft(self) -> None:
        """
        It counts from when the last one left.
        """
        readers = [self.sending(), self.sending()]
        self.policy.remove(readers[0])
        self.clock.advance(3)
        self.policy.remove(readers[1])
        self.clock.advance(4)
        self.assertEqual(self.policy.idleSeconds, 4.0)
