"""Tests for L{fastpoetry.proxy.outage}, through the service that uses it."""

from __future__ import annotations

from itertools import pairwise

from fakes import records
from messages import BACK, FAILED, FETCHED
from proxies import UPSTREAM, ProxyCase
from twisted.logger import capturedLogs


class OutageTests(ProxyCase):
    """Tests for a long outage of an upstream: how often it is tried, and which records are made."""

    def failUntil(self, seconds: float) -> None:
        """Make every attempt fail until that time, while a reader asks ten times a second."""
        while self.reactor.seconds() < seconds:
            self.ask()
            if self.upstream.isBusy:
                self.upstream.refuse()
            self.reactor.advance(0.1)

    def test_pauses(self) -> None:
        """The pauses between attempts grow from a second to at most ten, and differ each time."""
        self.failUntil(300)
        attempts = self.upstream.attempts
        pauses = [after - before for before, after in pairwise(attempts)]
        # The clock here advances in tenths of a second.
        self.assertTrue(all(0.99 <= each <= 10.2 for each in pauses), pauses)
        self.assertLess(pauses[0], 2.2)
        self.assertGreater(min(pauses[4:]), 4.9)
        self.assertGreater(len({round(each, 1) for each in pauses}), 5)

    def test_afterwards(self) -> None:
        """The next outage begins with a short pause again."""
        self.failUntil(100)
        self.reactor.advance(10)
        self.fetch(b"a poem")
        self.reactor.advance(60)
        before = self.reactor.seconds()
        self.failUntil(before + 3)
        self.assertEqual([each >= before for each in self.upstream.attempts[-2:]], [True] * 2)

    def test_records(self) -> None:
        """An outage has a record when it begins, one every ten minutes, and one when it ends."""
        with capturedLogs() as events:
            self.failUntil(1500)
            self.reactor.advance(10)
            self.fetch()
        ids = [each["message_id"] for each in records(events)]
        self.assertEqual(ids, [FAILED, FAILED, FAILED, FETCHED, BACK])
        first, second, third, _, last = records(events)
        self.assertEqual(
            first,
            {
                "text": f"no poem from {UPSTREAM} for 0 s: upstream refused",
                "level": "warn",
                "upstream": UPSTREAM,
                "seconds": 0,
                "cause": "upstream refused",
                "attempts": 1,
                "message_id": FAILED,
            },
        )
        self.assertTrue(600 <= second["seconds"] <= 611, second)
        self.assertTrue(1200 <= third["seconds"] <= 1222, third)
        self.assertEqual(last["level"], "info")
        self.assertTrue(1500 <= last["seconds"] <= 1520, last)
        self.assertEqual(last["attempts"], len(self.upstream.attempts) - 1)
        self.assertRegex(last["text"], r" is back after 15\d\d s and \d+ attempts$")

    def test_nobodyAsks(self) -> None:
        """Without readers no attempt is made."""
        self.ask()
        self.upstream.refuse()
        self.reactor.advance(1000)
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_description(self) -> None:
        """The description has the outage's duration and cause, with a poem and without."""
        self.ask()
        self.upstream.refuse()
        self.reactor.advance(0.5)
        self.assertEqual(self.service.description, f"{UPSTREAM}. Stale for 0 s: upstream refused")
        self.failUntil(312)
        self.assertIn("Stale for 312 s: upstream refused", self.service.description)
