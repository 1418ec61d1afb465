"""Tests for L{fastpoetry.delivery.ledger}."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fakes import POEM, Receipt, records, said
from hypothesis import given
from hypothesis import strategies as st
from messages import FULL, GAVE_UP, GAVE_UP_NEAR_THE_END, LEFT, SENT, SUMMARY, TURNED_AWAY
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.ledger import Counts, Ledger
from fastpoetry.poem import Poem

HERE = ("192.0.2.7", 40000)
TO_HERE = Receipt(POEM, HERE)


class LedgerCase(SynchronousTestCase):
    """A test case with a ledger and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()

    def ledger(self, budget: int = 100) -> Ledger:
        """@return: a new ledger."""
        return Ledger(self.clock, budget)


class RecordTests(LedgerCase):
    """Tests for the records of single connections."""

    def one(self, event: str, *args: Any) -> dict[str, Any]:
        """@return: the text and level of the only record that an event makes."""
        with capturedLogs() as events:
            getattr(self.ledger(), event)(*args)
        (record,) = records(events)
        return record

    def test_sent(self) -> None:
        """A whole poem has a record with its bytes and its client, as the tutorial's server has."""
        self.assertEqual(
            self.one("countSent", [TO_HERE]),
            {
                "text": "sending 310 bytes of poetry to 192.0.2.7:40000",
                "level": "info",
                "bytes": 310,
                "peer": "192.0.2.7:40000",
                "poem": "ecstasy",
                "message_id": SENT,
            },
        )

    def test_left(self) -> None:
        """A client that left has a record of its progress."""
        self.assertEqual(
            self.one("countLeft", TO_HERE, 7),
            {
                "text": "192.0.2.7:40000 left after 7 of 310 bytes",
                "level": "info",
                "taken": 7,
                "bytes": 310,
                "peer": "192.0.2.7:40000",
                "poem": "ecstasy",
                "message_id": LEFT,
            },
        )

    def test_gaveUp(self) -> None:
        """A client that was given up has a warning with its progress and the cause of the reset."""
        self.assertEqual(
            self.one("countGivenUp", TO_HERE, 7, "it sleeps"),
            {
                "text": "gave up on 192.0.2.7:40000 after 7 of 310 bytes: it sleeps",
                "level": "warn",
                "taken": 7,
                "bytes": 310,
                "cause": "it sleeps",
                "peer": "192.0.2.7:40000",
                "poem": "ecstasy",
                "message_id": GAVE_UP,
            },
        )

    def test_turnedAway(self) -> None:
        """A client that was turned away has a warning with the cause."""
        self.assertEqual(
            self.one("countTurnedAway", HERE, "too many"),
            {
                "text": "turned 192.0.2.7:40000 away: too many",
                "level": "warn",
                "cause": "too many",
                "peer": "192.0.2.7:40000",
                "message_id": TURNED_AWAY,
            },
        )

    def test_hostileName(self) -> None:
        """Braces in a logged name are plain text."""
        reader = Receipt(Poem("{peer!r}", b"x", ""), "")
        record = self.one("countGivenUp", reader, 0, "{0.__class__}")
        self.assertEqual(record["text"], "gave up on unix after 0 of 1 bytes: {0.__class__}")


class CountTests(LedgerCase):
    """Tests for the counts."""

    def test_counts(self) -> None:
        """Each connection is counted once, by its end; bytes are those of whole poems."""
        ledger = self.ledger()
        ledger.countSent([TO_HERE])
        ledger.countSent([TO_HERE])
        ledger.countLeft(TO_HERE, 1)
        ledger.countLeft(TO_HERE, 1)
        ledger.countLeft(TO_HERE, 1)
        for _ in range(4):
            ledger.countGivenUp(TO_HERE, 1, "")
        for _ in range(5):
            ledger.countTurnedAway(HERE, "")
        self.assertEqual(ledger.counts, Counts(2, 620, 3, 4, 5))
        self.assertEqual(ledger.counts.connections, 14)

    def test_budgetDoesNotMatter(self) -> None:
        """A connection without a record of its own is counted too."""
        ledger = self.ledger(0)
        ledger.countSent([TO_HERE])
        ledger.countTurnedAway(HERE, "")
        self.assertEqual(ledger.counts, Counts(1, 310, 0, 0, 1))


class BudgetTests(LedgerCase):
    """Tests for the budget of records."""

    def test_spent(self) -> None:
        """Beyond the budget there are no more records, of any kind."""
        ledger = self.ledger(2)
        with capturedLogs() as events:
            ledger.countSent([TO_HERE])
            ledger.countTurnedAway(HERE, "")
            ledger.countSent([TO_HERE])
            ledger.countLeft(TO_HERE, 0)
            ledger.countGivenUp(TO_HERE, 0, "")
            ledger.countTurnedAway(HERE, "")
        self.assertEqual([each["message_id"] for each in events], [SENT, TURNED_AWAY])

    def test_summary(self) -> None:
        """
        At the end of the second one summary counts the connections without a record, and only
        those.
        """
        ledger = self.ledger(1)
        for _ in range(3):
            ledger.countSent([TO_HERE])
        for _ in range(4):
            ledger.countLeft(TO_HERE, 1)
        for _ in range(5):
            ledger.countGivenUp(TO_HERE, 1, "")
        for _ in range(6):
            ledger.countTurnedAway(HERE, "")
        self.clock.advance(0.9)
        with capturedLogs() as events:
            self.clock.advance(0.1)
        self.assertEqual(
            said(events),
            [
                "sent 2 more poems, 620 bytes, over 17 connections without a record each: "
                "4 left early, 5 given up on, 6 turned away"
            ],
        )
        self.assertEqual(events[0]["message_id"], SUMMARY)
        fields = ("poems", "bytes", "connections", "left", "gave_up", "turned_away")
        self.assertEqual([events[0][each] for each in fields], [2, 620, 17, 4, 5, 6])

    def test_renewed(self) -> None:
        """Each second has the whole budget again."""
        ledger = self.ledger(1)
        ledger.countSent([TO_HERE])
        ledger.countSent([TO_HERE])
        self.clock.advance(1)
        with capturedLogs() as events:
            ledger.countSent([TO_HERE])
            ledger.countSent([TO_HERE])
        self.assertEqual([each["message_id"] for each in events], [SENT])

    def test_summedUpOnce(self) -> None:
        """Connections in one summary are not in the next."""
        ledger = self.ledger(0)
        ledger.countSent([TO_HERE])
        self.clock.advance(1)
        with capturedLogs() as events:
            ledger.countLeft(TO_HERE, 1)
            self.clock.advance(1)
        self.assertEqual([(each["poems"], each["left"]) for each in events], [(0, 1)])

    def test_nothingToSumUp(self) -> None:
        """If every connection had a record, there is no summary."""
        ledger = self.ledger(1)
        ledger.countSent([TO_HERE])
        with capturedLogs() as events:
            self.clock.advance(1)
        self.assertEqual(events, [])

    def test_noTimerAtRest(self) -> None:
        """Without connections no timer runs."""
        ledger = self.ledger()
        ledger.countSent([TO_HERE])
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_budgetOfNothing(self) -> None:
        """With a budget of 0 every connection is in a summary."""
        ledger = self.ledger(0)
        with capturedLogs() as events:
            ledger.countSent([TO_HERE])
            ledger.countTurnedAway(HERE, "")
            self.clock.advance(1)
        self.assertEqual(
            [(each["message_id"], each["connections"]) for each in events], [(SUMMARY, 2)]
        )


class QuietTests(LedgerCase):
    """Tests for records of lasting conditions, which are repeated only now and then."""

    def test_now(self) -> None:
        """The first event has a record; later ones have none until 10 s have passed."""
        ledger, told = self.ledger(), []
        for second in range(21):
            with capturedLogs() as events:
                ledger.logFull("no room", 2)
            told += [second] * len(events)
            self.clock.advance(1)
        self.assertEqual(told, [0, 10, 20])

    def test_kinds(self) -> None:
        """Each kind of event has its own interval."""
        ledger = self.ledger()
        with capturedLogs() as events:
            ledger.logFull("no room", 2)
            ledger.logStalled(TO_HERE, 0, "it took nothing")
            ledger.logFull("no room", 2)
        self.assertEqual([each["message_id"] for each in events], [FULL, GAVE_UP_NEAR_THE_END])


class CloseTests(LedgerCase):
    """Tests for closing the ledger."""

    def test_flushes(self) -> None:
        """Connections not yet reported are reported at once when the process ends."""
        ledger = self.ledger(0)
        ledger.countSent([TO_HERE])
        with capturedLogs() as events:
            ledger.flush()
        self.assertEqual([each["poems"] for each in events], [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothingToTell(self) -> None:
        """Without connections, closing makes no record; nor does closing twice."""
        ledger = self.ledger(0)
        with capturedLogs() as events:
            ledger.flush()
            ledger.flush()
        self.assertEqual(events, [])


sizes = st.integers(0, 10**6)
endings = st.one_of(
    st.tuples(st.just("sent"), sizes),
    st.tuples(st.sampled_from(["left", "gaveUp", "turnedAway"]), st.just(0)),
)
steps = st.one_of(
    endings,
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.5])),
    st.tuples(st.just("close"), st.just(0)),
)


class SumTests(SynchronousTestCase):
    """Tests for the sums of the records."""

    @given(budget=st.integers(0, 5), story=st.lists(steps, max_size=60))
    def test_nothingGoesUncounted(self, budget: int, story: list[tuple[str, Any]]) -> None:
        """Whatever happens, single records and summaries together equal the counts."""
        with capturedLogs() as events:
            ledger = self.tell(budget, story)
            ledger.flush()
        told = Counts()
        for event in events:
            kind = event["message_id"]
            summary = event if kind == SUMMARY else Counter[str]()
            told.poems += summary["poems"] + (kind == SENT)
            told.bytes += summary["bytes"] + (event["bytes"] if kind == SENT else 0)
            told.left += summary["left"] + (kind == LEFT)
            told.gaveUp += summary["gave_up"] + (kind == GAVE_UP)
            told.turnedAway += summary["turned_away"] + (kind == TURNED_AWAY)
            if kind == SUMMARY:
                ends = ("poems", "left", "gave_up", "turned_away")
                self.assertEqual(event["connections"], sum(event[each] for each in ends))
        self.assertEqual(told, ledger.counts)

    @given(budget=st.integers(0, 5), story=st.lists(endings, max_size=20))
    def test_budgetIsKept(self, budget: int, story: list[tuple[str, Any]]) -> None:
        """However the connections of a second end, as many have a record as the budget allows."""
        with capturedLogs() as events:
            self.tell(budget, story)
        self.assertEqual(len(events), min(budget, len(story)))

    def tell(self, budget: int, story: list[tuple[str, Any]]) -> Ledger:
        """@return: a ledger with those events."""
        clock = Clock()
        ledger = Ledger(clock, budget)
        for name, value in story:
            if name == "sent":
                ledger.countSent([Receipt(Poem("x", b"x" * value, ""), HERE)])
            elif name == "wait":
                clock.advance(value)
            elif name == "turnedAway":
                ledger.countTurnedAway(HERE, "cause")
            elif name == "left":
                ledger.countLeft(TO_HERE, 1)
            elif name == "gaveUp":
                ledger.countGivenUp(TO_HERE, 1, "cause")
            else:
                ledger.flush()
        return ledger
