"""Tests for L{fastpoetry.command.metrics}: what a monitoring system reads."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import SkipTest

from fakes import POEM, FakeReader, FakeSource, FakeTransport, Reactor, Receipt
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy

if find_spec("prometheus_client") is None:
    raise SkipTest("prometheus_client is not installed")

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parseOpenMetrics
from prometheus_client.parser import text_string_to_metric_families as parseText

from fastpoetry.command.metrics import Meter, makeMetricsService

EXAMPLES = Path(__file__).resolve().parent.parent / "packaging/examples"
RULES = EXAMPLES / "prometheus/fastpoetry.rules.yml"
ADDRESS = IPv4Address("TCP", "192.0.2.7", 40000)
NOW = 1_800_000_000.0


class Reloading(FakeSource):
    """A source whose reloads end when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.reloading: list[Deferred[None]] = []

    def reload(self) -> Deferred[None]:
        """Begin to reload."""
        self.reloading.append(Deferred())
        return self.reloading[-1]


class MetricsCase(SynchronousTestCase):
    """A test case with a policy, a meter and its page."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.clock = Clock()
        self.policy = Policy(Limits(journalBudgetPerSecond=0), self.reactor)
        self.meter = Meter(self.policy, lambda: NOW, self.clock.seconds)
        service: Any = makeMetricsService(
            "tcp:10017", self.meter, self.reactor, self.reactor, self.policy.logPaused
        )
        service.startService()
        self.addCleanup(service.stopService)
        ((_, self.factory, _, _),) = self.reactor.tcpServers

    def get(self, path: str = "/metrics", *headers: str) -> tuple[str, str]:
        """@return: the head of the response, and its body."""
        protocol: Any = self.factory.buildProtocol(ADDRESS)
        transport = FakeTransport(ADDRESS)
        protocol.makeConnection(transport)
        lines = (f"GET {path} HTTP/1.0", *headers, "", "")
        protocol.dataReceived("\r\n".join(lines).encode())
        head, body = transport.value().split(b"\r\n\r\n", 1)
        protocol.connectionLost(Failure(ConnectionDone()))
        return head.decode(), body.decode()

    def samples(self) -> dict[str, float]:
        """@return: every sample in the text."""
        _, text = self.get()
        found = {}
        for family in parseText(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found


class MeterTests(MetricsCase):
    """Tests for the metrics."""

    def test_counts(self) -> None:
        """Each count of the ledger has a metric of its own."""
        for number, each in enumerate(fields(Counts), 1):
            setattr(self.policy.ledger.counts, each.name, number)
        samples = self.samples()
        self.assertEqual(
            {name: value for name, value in samples.items() if name.endswith("_total")},
            {
                "fastpoetry_poems_total": 1,
                "fastpoetry_poem_bytes_total": 2,
                "fastpoetry_left_total": 3,
                "fastpoetry_gave_up_total": 4,
                "fastpoetry_turned_away_total": 5,
                "fastpoetry_checks_total": 6,
            },
        )

    def test_readers(self) -> None:
        """The number of readers is a metric."""
        self.policy.begin(FakeReader(self.policy))
        self.assertEqual(self.samples()["fastpoetry_readers"], 1)

    def test_eachTime(self) -> None:
        """Each request returns the present values."""
        self.assertEqual(self.samples()["fastpoetry_poems_total"], 0)
        self.policy.ledger.countSent([Receipt(POEM, None)])
        self.assertEqual(self.samples()["fastpoetry_poems_total"], 1)

    def about(self, name: str) -> dict[str, float]:
        """@return: the samples whose names have that beginning."""
        return {key: value for key, value in self.samples().items() if key.startswith(name)}

    def test_freshness(self) -> None:
        """A metric has the time at which each source got its poem, if the source has one."""
        source = FakeSource()
        source.freshAt = NOW - 5
        self.meter.add("poem ecstasy", source)
        self.meter.add("upstream x", FakeSource())
        name = "fastpoetry_poem_timestamp_seconds"
        self.assertEqual(self.about(name), {f"{name}{{source=poem ecstasy}}": NOW - 5})

    def test_anyName(self) -> None:
        """A path that is not UTF-8 does not keep the metrics from being read."""
        source = FakeSource()
        source.freshAt = NOW
        self.meter.add("poem /x/\udcff.txt", source)
        name = "fastpoetry_poem_timestamp_seconds"
        self.assertEqual(self.about(name), {f"{name}{{source=poem /x/\\udcff.txt}}": NOW})

    def test_alerts(self) -> None:
        """The example's alerts use existing metrics."""
        ecstasy = Reloading()
        ecstasy.freshAt = NOW
        self.meter.add("poem ecstasy", ecstasy)()
        ecstasy.reloading[0].callback(None)
        asked = set(re.findall(r"\bfastpoetry_\w+", RULES.read_text()))
        self.assertGreater(len(asked), 4)
        self.assertEqual(asked - {key.partition("{")[0] for key in self.samples()}, set())

    def test_reloads(self) -> None:
        """The reloads of each source are counted by their outcome, and the last one is timed."""
        ecstasy, science = Reloading(), Reloading()
        reload = self.meter.add("ecstasy", ecstasy)
        self.meter.add("science", science)
        first, second = (reload() for _ in range(2))
        self.clock.advance(2.5)
        ecstasy.reloading[0].callback(None)
        self.successResultOf(first)
        self.clock.advance(0.25)
        ecstasy.reloading[1].errback(OSError())
        self.failureResultOf(second, OSError)
        self.assertEqual(
            self.about("fastpoetry_reload"),
            {
                "fastpoetry_reloads_total{result=done,source=ecstasy}": 1,
                "fastpoetry_reloads_total{result=failed,source=ecstasy}": 1,
                "fastpoetry_reloads_total{result=done,source=science}": 0,
                "fastpoetry_reloads_total{result=failed,source=science}": 0,
                "fastpoetry_reload_timestamp_seconds{source=ecstasy}": NOW,
                "fastpoetry_reload_duration_seconds{source=ecstasy}": 2.75,
            },
        )

    def test_sameName(self) -> None:
        """Blocks that serve one name share metrics: all reloads, and the time of the older poem."""
        sources = [Reloading(), Reloading()]
        for age, source in enumerate(sources):
            source.freshAt = NOW - age
            self.meter.add("ecstasy", source)()
            source.reloading[0].callback(None)
        self.assertEqual(
            self.about("fastpoetry_poem_timestamp"),
            {"fastpoetry_poem_timestamp_seconds{source=ecstasy}": NOW - 1},
        )
        done = self.about("fastpoetry_reloads_total{result=done")
        self.assertEqual(done, {"fastpoetry_reloads_total{result=done,source=ecstasy}": 2})


class PageTests(MetricsCase):
    """Tests for the formats."""

    def test_text(self) -> None:
        """The default is the text format."""
        head, _ = self.get()
        self.assertTrue(head.startswith("HTTP/1.0 200"), head)
        self.assertIn("text/plain; version=0.0.4", head)

    def test_openMetrics(self) -> None:
        """A request for OpenMetrics gets OpenMetrics, with its end marker."""
        head, text = self.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0")
        self.assertIn("application/openmetrics-text; version=", head)  # Debian 12 has 0.0.1
        self.assertTrue(text.endswith("# EOF\n"))
        names = {family.name for family in parseOpenMetrics(text)}
        self.assertLessEqual({"fastpoetry_poems", "fastpoetry_readers"}, names)

    def test_elsewhere(self) -> None:
        """No other page exists."""
        for path in ("/", "/x", "/metrics/x"):
            head, _ = self.get(path)
            self.assertTrue(head.startswith("HTTP/1.0 404"), head)

    def test_quiet(self) -> None:
        """A request makes no record."""
        with capturedLogs() as events:
            self.get()
        self.assertEqual(events, [])

    def test_strange(self) -> None:
        """An unreadable version in a request is not an error."""
        for accept in ("application/openmetrics-text; version=x.y; escaping=zz", "\xff", ";;=,"):
            head, _ = self.get("/metrics", f"Accept: {accept}")
            self.assertTrue(head.startswith("HTTP/1.0 200"), head)

    def test_seldom(self) -> None:
        """The text is made ten times a second at most, whatever the number of requests."""
        ledger = self.policy.ledger
        found = []
        for _ in range(20):
            found.append(self.samples()["fastpoetry_poems_total"])
            ledger.counts.poems += 1
        self.assertEqual(found, [*range(10), *[9] * 10])
        self.reactor.advance(1)
        self.assertEqual(self.samples()["fastpoetry_poems_total"], 20)
