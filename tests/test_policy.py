"""
Tests for L{fastpoetry.delivery.policy}: the present readers, and the limits for new ones.

Deadlines are in C{test_deadlines}.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from resource import RLIM_INFINITY
from typing import Any

from fakes import FakeArrival, FakeReader, records, said
from messages import FULL, GAVE_UP_NEAR_THE_END
from policies import HERE, THERE, WHOLE, PolicyCase
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery import policy as policyModule
from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy


class ArrivalTests(PolicyCase):
    """Tests for connections that have not yet named their client."""

    limits = Limits(maxReaders=2, maxReadersPerSource=3)

    def setUp(self) -> None:
        super().setUp()
        self.entered: list[FakeArrival] = []

    def arrive(self, address: Address = None) -> FakeArrival:
        """@return: a connection that has sent no header."""
        arrival = FakeArrival(self.policy, address)
        self.policy.addArrival(arrival)
        return arrival

    def admit(self, arrival: FakeArrival) -> None:
        """Let a connection name its client; it waits for a poem as soon as it has a place."""

        def enter() -> None:
            self.entered.append(arrival)
            self.policy.addWaiting(arrival)

        self.policy.admit(arrival, enter)

    def test_noPlace(self) -> None:
        """
        A connection that has not named its client takes no place from readers, and is not a reader.
        """
        for _ in range(5):
            self.arrive()
        self.assertEqual((self.policy.readers, self.countRoom()), (0, 2))
        self.assertEqual(self.port.turns, 0)

    def test_source(self) -> None:
        """
        A source has a limit of connections that have not named their client; connections without a
        source are not counted.
        """
        first = [self.arrive(HERE) for _ in range(3)]
        late, other = self.arrive(HERE), self.arrive(THERE)
        self.assertEqual(late.dismissed, "its source already has 3 connections that say nothing")
        self.assertEqual([each.dismissed for each in [*first, other]], [""] * 4)
        self.assertFalse(self.policy.isSourceFull(HERE))
        self.policy.remove(first[0])
        self.assertEqual(self.arrive(HERE).dismissed, "")

    def test_most(self) -> None:
        """Beyond a thousand silent connections, the oldest gives way to the next."""
        first, second = self.arrive(), self.arrive()
        for _ in range(999):
            self.arrive()
        self.assertEqual(first.dismissed, "it said nothing, and others need its place")
        self.assertEqual(second.dismissed, "")

    def test_mostAtOnce(self) -> None:
        """Each further connection makes another give way, though the first is still closing."""
        first, second = self.arrive(), self.arrive()
        self.patch(first, "dismiss", lambda _: None)
        for _ in range(1000):
            self.arrive()
        self.assertNotEqual(second.dismissed, "")

    def test_mostQueued(self) -> None:
        """A connection that waits for a place does not give way to silent ones."""
        self.sending(THERE)
        self.sending(THERE)
        queued = self.arrive()
        self.admit(queued)
        for _ in range(1000):
            self.arrive()
        self.assertEqual(queued.dismissed, "")

    def test_descriptors(self) -> None:
        """If few descriptors are left, connections give way after a second of silence."""
        first = self.arrive()
        self.clock.advance(1)
        second = self.arrive()
        self.policy.pause("few descriptors are left")
        self.assertEqual((first.dismissed != "", second.dismissed), (True, ""))

    def test_admitted(self) -> None:
        """
        A connection that has named its client takes a place, and its source has one more reader.
        """
        arrival = self.arrive(HERE)
        self.admit(arrival)
        self.assertEqual((self.entered, self.policy.readers), ([arrival], 1))
        for _ in range(3):
            self.assertEqual(self.arrive(HERE).dismissed, "")

    def test_queue(self) -> None:
        """
        A connection that has named its client is queued if there is no place, and enters in its
        turn when a reader leaves.
        """
        readers = [self.sending(THERE), self.sending(THERE)]
        first, second, third = (self.arrive() for _ in range(3))
        for each in (first, second, third):
            self.admit(each)
        self.assertEqual((self.entered, self.policy.readers), ([], 2))
        self.policy.remove(first)
        self.policy.remove(readers[0])
        self.assertEqual((self.entered, self.policy.readers), ([second], 2))
        self.policy.remove(second)
        self.assertEqual(self.entered, [second, third])

    def test_lingerer(self) -> None:
        """A lingering reader gives its place to a waiting connection at once."""
        self.lingering()
        self.sending()
        arrival = self.arrive()
        self.admit(arrival)
        self.assertEqual(self.entered, [arrival])

    def test_waiting(self) -> None:
        """Connections that wait for a poem count for their source until they leave or begin."""
        arrivals = [self.arrive(HERE), self.arrive(HERE)]
        self.policy = Policy(Limits(maxReadersPerSource=2), self.clock)
        for each in arrivals:
            self.policy.addWaiting(each)
        self.assertTrue(self.policy.isSourceFull(HERE))
        self.policy.remove(arrivals[0])
        self.assertFalse(self.policy.isSourceFull(HERE))
        begun: Any = arrivals[1]
        self.policy.begin(begun)
        self.assertEqual(self.policy.readers, 1)
        self.policy.addWaiting(arrivals[0])
        self.assertTrue(self.policy.isSourceFull(HERE))

    def test_idle(self) -> None:
        """A waiting connection keeps the program from being idle."""
        arrival = self.arrive()
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 0.0)
        self.policy.remove(arrival)
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 5.0)

    def test_drain(self) -> None:
        """A stop does not wait for connections that have received no byte, wherever they wait."""
        silent, waiting = self.arrive(), self.arrive()
        self.policy.addWaiting(waiting)
        self.successResultOf(self.policy.drain())
        self.assertEqual([silent.drained, waiting.drained], [True, True])

    def test_manyLeave(self) -> None:
        """Any number of queued connections may each leave as soon as it has a place."""
        reader = self.sending()
        self.policy.limits = Limits(maxReaders=1)
        left = []
        for number in range(2 * sys.getrecursionlimit()):
            arrival = self.arrive()

            def enter(arrival: FakeArrival = arrival, number: int = number) -> None:
                self.policy.addWaiting(arrival)
                left.append(number)
                self.policy.remove(arrival)

            self.policy.admit(arrival, enter)
        self.policy.remove(reader)
        self.assertEqual(left, list(range(2 * sys.getrecursionlimit())))

    def test_queuedInAStop(self) -> None:
        """A connection that queues for a place during a stop waits only a moment."""
        readers = [self.sending(THERE), self.sending(THERE)]
        late = self.arrive()
        self.patch(late, "drain", lambda: None)  # as a connection that waits for its handshake
        self.policy.drain()
        self.patch(late, "drain", partial(setattr, late, "drained", True))
        self.admit(late)
        self.assertTrue(late.drained)
        self.assertEqual((self.entered, self.policy.readers), ([], len(readers)))

    def test_queuedAtTheEnd(self) -> None:
        """At the end of a stop a queued connection is dismissed. It gets no reader's place."""
        for _ in range(2):
            self.sending(THERE)
        queued = self.arrive()
        self.patch(queued, "drain", lambda: None)
        self.admit(queued)
        self.policy.drain()
        self.wait(int(self.limits.drainSeconds) + 1)
        self.assertEqual(self.entered, [])
        self.assertIn("the server stops", queued.dismissed)

    def test_duringAStop(self) -> None:
        """A connection that comes during a stop is told about the stop at once."""
        self.sending()
        self.policy.drain()
        self.assertTrue(self.arrive().drained)


class FullTests(PolicyCase):
    """Tests for the limit of all readers together."""

    limits = Limits(maxReaders=2)

    def fill(self) -> list[FakeReader]:
        """@return: as many readers as the limit allows."""
        return [self.sending(), self.sending()]

    def test_room(self) -> None:
        """Below the limit there is a place, and the ports accept."""
        self.sending()
        self.assertGreater(self.countRoom(), 0)
        self.assertEqual(self.port.turns, 0)

    def test_full(self) -> None:
        """At the limit the ports pause, and one record says so."""
        self.fill()
        with capturedLogs() as events:
            self.assertEqual(self.countRoom(), 0)
            self.assertEqual(self.countRoom(), 0)
        self.assertFalse(self.port.reading)
        self.assertEqual(
            records(events),
            [
                {
                    "text": "no more than 2 readers may connect (--max-readers); "
                    "with 2 connected, new ones wait in the backlog",
                    "level": "warn",
                    "cause": "no more than 2 readers may connect (--max-readers)",
                    "readers": 2,
                    "message_id": FULL,
                }
            ],
        )

    def test_readsAgain(self) -> None:
        """A port that got its poem while there is no room is paused like the others."""
        self.fill()
        self.policy.pauseIfFull()
        self.port.startReading()
        self.policy.pauseIfFull()
        self.assertFalse(self.port.reading)

    def test_resumes(self) -> None:
        """When a reader leaves, the ports accept again at once."""
        readers = self.fill()
        self.policy.pauseIfFull()
        self.policy.remove(readers[0])
        self.assertTrue(self.port.reading)
        self.assertGreater(self.countRoom(), 0)

    def test_looksAgain(self) -> None:
        """While no reader leaves, the ports check now and then."""
        self.fill()
        self.policy.pauseIfFull()
        self.clock.advance(0.2)
        self.assertFalse(self.port.reading)
        self.clock.advance(0.05)
        self.assertTrue(self.port.reading)
        self.policy.pauseIfFull()
        self.assertFalse(self.port.reading)

    def test_noFloodOfRecords(self) -> None:
        """A limit that stays reached has one record in 10 s."""
        self.patch(self.policy, "limits", Limits(stallSeconds=100, maxReaders=2))
        self.fill()
        with capturedLogs() as events:
            for _ in range(100):
                self.policy.pauseIfFull()
                self.clock.advance(0.25)
        self.assertEqual([each["log_time"] > 0 for each in events], [True] * 3)

    def test_lingerersLeave(self) -> None:
        """
        At the limit readers do not linger: a reader that has taken everything is closed, and its
        place is free.
        """
        reader = self.lingering()
        self.sending()
        with capturedLogs() as events:
            self.assertGreater(self.countRoom(), 0)
        self.assertEqual(reader.did, ["end"])
        self.assertTrue(self.port.reading)
        self.assertEqual(events, [])

    def test_lingeringReadersClose(self) -> None:
        """All lingering readers are closed at once, not one for each new client."""
        readers = [self.lingering(), self.lingering()]
        self.policy.pauseIfFull()
        self.assertEqual([each.did for each in readers], [["end"], ["end"]])

    def test_unservedReaderStays(self) -> None:
        """A reader that has not taken everything stays."""
        reader = self.lingering(WHOLE - 1)
        self.sending()
        self.assertEqual(self.countRoom(), 0)
        self.assertEqual(reader.did, [])

    def test_lingersAgain(self) -> None:
        """Below the limit again, new readers may linger."""
        readers = self.fill()
        self.policy.pauseIfFull()
        for each in readers:
            self.policy.remove(each)
        reader = self.lingering()
        self.wait(1)
        self.assertEqual(reader.did, [])

    def test_exhausted(self) -> None:
        """
        If the system has run out of resources the ports wait too, and the record names the cause.
        """
        with capturedLogs() as events:
            self.policy.pause("Too many open files")
        self.assertFalse(self.port.reading)
        self.assertEqual(
            said(events), ["Too many open files; with 0 connected, new ones wait in the backlog"]
        )
        self.clock.advance(0.25)
        self.assertTrue(self.port.reading)


class SourceTests(PolicyCase):
    """Tests for the limit of readers of one source."""

    limits = Limits(maxReadersPerSource=2)

    def test_limit(self) -> None:
        """A source has a limit of readers under way; other sources have their own."""
        self.sending()
        self.assertFalse(self.policy.isSourceFull(HERE))
        self.sending(("192.0.2.7", 40001))
        self.assertTrue(self.policy.isSourceFull(("192.0.2.7", 40002)))
        self.assertFalse(self.policy.isSourceFull(THERE))

    def test_left(self) -> None:
        """A reader that leaves makes a place free."""
        readers = [self.sending(), self.sending()]
        self.policy.remove(readers[0])
        self.assertFalse(self.policy.isSourceFull(HERE))
        self.sending()
        self.assertTrue(self.policy.isSourceFull(HERE))

    def test_sent(self) -> None:
        """A reader that was sent everything makes a place free."""
        readers = [self.sending(), self.sending()]
        self.finish(readers[0])
        self.assertFalse(self.policy.isSourceFull(HERE))

    def test_handedOver(self) -> None:
        """A reader that was handed over makes a place free."""
        for each in (self.sending(), self.sending()):
            each.mayHandOver = True
        self.policy.handOver = lambda readers: True
        drained = self.policy.drain()
        self.clock.pump([0.05] * 4)
        self.successResultOf(drained)
        self.assertFalse(self.policy.isSourceFull(HERE))

    def test_abandoned(self) -> None:
        """At the end of a stop, a reader that survived its reset makes a place free."""
        for each in (self.sending(), self.sending()):
            self.patch(each, "reset", lambda: 1 // 0)
        drained = self.policy.drain()
        with contextlib.suppress(ZeroDivisionError):
            self.wait(20)
        self.clock.advance(0)
        self.successResultOf(drained)
        self.assertFalse(self.policy.isSourceFull(HERE))

    def test_lingererStays(self) -> None:
        """A stop ends in time even if readers that were sent their whole poems cannot be reset."""
        for each in (self.lingering(taken=0), self.lingering(taken=0)):
            self.patch(each, "reset", lambda: 1 // 0)
        drained = self.policy.drain()
        with contextlib.suppress(ZeroDivisionError):
            self.wait(20)
        self.clock.advance(0)
        self.successResultOf(drained)

    def test_notBegun(self) -> None:
        """The record of a reader that is reset before its poem begins says that it got nothing."""
        with capturedLogs() as events:
            self.policy.giveUp(FakeReader(self.policy), "a test")
        self.assertEqual(said(events), ["gave up on unix after 0 of 310 bytes: a test"])

    def test_gotNothing(self) -> None:
        """The record of a reader that leaves at once says that it got nothing."""
        with capturedLogs() as events:
            self.policy.remove(self.sending())
        self.assertEqual(said(events), ["192.0.2.7:40000 left after 0 of 310 bytes"])

    def test_atRest(self) -> None:
        """After a stop without readers no timer is left."""
        self.policy.remove(self.sending())
        self.policy.pause("a test")
        self.successResultOf(self.policy.drain())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_arrivalStays(self) -> None:
        """A stop ends in time even if a silent connection does not end."""
        arrival = FakeArrival(self.policy)
        self.patch(arrival, "drain", lambda: None)
        self.policy.addArrival(arrival)
        drained = self.policy.drain()
        self.wait(20)
        self.clock.advance(0)
        self.successResultOf(drained)

    def test_turnedAway(self) -> None:
        """A client that is turned away is counted, with a record of the limit."""
        with capturedLogs() as events:
            self.policy.countTurnedAway(HERE)
        self.assertEqual(
            said(events),
            ["turned 192.0.2.7:40000 away: its source has 2 readers already"],
        )
        self.assertEqual(self.policy.ledger.counts, Counts(turnedAway=1))


class CrowdTests(PolicyCase):
    """
    Tests for a source with many readers that were sent a small poem and do not take it: each uses
    memory of the kernel.
    """

    limits = Limits(maxReadersPerSource=2)

    def test_tooMany(self) -> None:
        """Readers beyond the limit of one source are reset; those of other sources are not."""
        readers = [self.lingering(taken=0) for _ in range(3)]
        other = self.lingering(taken=0, address=THERE)
        self.wait(3)
        self.assertEqual([each.did for each in readers], [[], [], ["reset"]])
        self.assertEqual(other.did, [])

    def test_theyCount(self) -> None:
        """
        Readers that do not take a small poem count together with readers under way, until they
        leave.
        """
        reader, _ = self.lingering(taken=0), self.sending()
        self.assertFalse(self.policy.isSourceFull(HERE))
        self.wait(3)
        self.assertTrue(self.policy.isSourceFull(HERE))
        self.policy.remove(reader)
        self.assertFalse(self.policy.isSourceFull(HERE))

    def test_servedReader(self) -> None:
        """A reader that has taken everything and only lingers does not count."""
        readers = [self.lingering() for _ in range(3)]
        self.clock.pump([0.1, 1.0])
        self.assertEqual([each.did for each in readers], [[], [], []])
        self.assertFalse(self.policy.isSourceFull(HERE))

    def test_record(self) -> None:
        """
        A poem that a reader does not take counts as sent; a warning now and then names the source.
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
                    "text": "gave up on 192.0.2.7:40000, which does not take the last 300 bytes: "
                    "its source already has 2 readers that take nothing",
                    "level": "warn",
                    "peer": "192.0.2.7:40000",
                    "bytes": 300,
                    "cause": "its source already has 2 readers that take nothing",
                    "message_id": GAVE_UP_NEAR_THE_END,
                }
            ],
        )


class DescriptorTests(SynchronousTestCase):
    """Tests for the limit of open files."""

    def most(self, descriptors: int) -> int:
        """@return: the number from which on descriptors are reserved."""
        self.patch(policyModule, "getrlimit", lambda _: (descriptors, RLIM_INFINITY))
        return Policy(Limits(), Clock()).firstReserved

    def test_fewer(self) -> None:
        """Some of the allowed descriptors are reserved."""
        self.assertEqual(self.most(64), 32)

    def test_noLimit(self) -> None:
        """Without a limit of open files, no descriptor is reserved."""
        self.assertGreater(self.most(RLIM_INFINITY), 1_000_000)


class IdleTests(PolicyCase):
    """Tests for the idle time."""

    def test_fromTheStart(self) -> None:
        """Before the first reader the idle time counts from the start."""
        self.clock.advance(5)
        self.assertEqual(self.policy.idleSeconds, 5.0)

    def test_somebody(self) -> None:
        """While there is a reader, even one that lingers, there is no idle time."""
        self.clock.advance(5)
        reader = self.sending()
        self.clock.advance(1)
        self.assertEqual(self.policy.idleSeconds, 0.0)
        self.finish(reader)
        self.assertEqual(self.policy.idleSeconds, 0.0)

    def test_sinceTheLastLeft(self) -> None:
        """The idle time counts from when the last reader left."""
        readers = [self.sending(), self.sending()]
        self.policy.remove(readers[0])
        self.clock.advance(3)
        self.policy.remove(readers[1])
        self.clock.advance(4)
        self.assertEqual(self.policy.idleSeconds, 4.0)
