"""
Metrics for a monitoring system, by HTTP: counts, readers, freshness and reloads.

They have the text format of Prometheus, or OpenMetrics on request. This module only reads what
others count. It is imported only for --metrics, since it imports prometheus_client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from fastpoetry.apart.poems import encodable
from fastpoetry.command.page import PageFactory
from fastpoetry.delivery.ledger import Counts
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Source

_OPEN_METRICS = "application/openmetrics-text"

_MOST_PER_SECOND = 10
"""How often the text is made in a second. A monitoring system asks once in some seconds."""

_COUNTS = {
    "poems": ("poems", "Poems that were handed to the kernel whole."),
    "bytes": ("poem_bytes", "Bytes of those poems."),
    "left": ("left", "Connections that clients closed before the end of their poem."),
    "gaveUp": ("gave_up", "Connections that were reset before the end of their poem."),
    "turnedAway": ("turned_away", "Connections that were reset before their poem, or early in it."),
    "checks": ("checks", "Connections by which balancers checked that the server answers."),
}
"""The metric's name and help text for each field of L{Counts}."""


@dataclass
class _Group:
    """
    The sources with one name, and their reloads.

    @ivar endedAt: when the last reload ended, in seconds since the epoch.
    @ivar seconds: how long the last reload took.
    """

    sources: list[Source] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    endedAt: float | None = None
    seconds: float = 0.0


class Meter:
    """Collects the metrics at each request."""

    def __init__(
        self,
        policy: Policy,
        now: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        @param now: the time of day, in seconds since the epoch.
        @param seconds: a monotonic clock.
        """
        self._policy = policy
        self._now = now
        self._seconds = seconds
        self._groups: dict[str, _Group] = {}

    def add(self, name: str, source: Source) -> Callable[[], Deferred[None]]:
        """
        Add the metrics of a source.

        @param name: its label. Sources with the same name share their metrics: all their reloads,
            and the time of the oldest poem.
        @return: does what L{Source.reload} does, and measures the reload.
        """
        group = self._groups.setdefault(encodable(name), _Group())
        group.sources.append(source)
        return lambda: Deferred.fromCoroutine(self._reload(source, group))

    async def _reload(self, source: Source, group: _Group) -> None:
        begun = self._seconds()
        try:
            await source.reload()
            group.done += 1
        except Exception:
            group.failed += 1
            raise
        finally:
            group.endedAt, group.seconds = self._now(), self._seconds() - begun

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as a collector of prometheus_client does."""
        counts = self._policy.ledger.counts
        for each in fields(Counts):
            name, help_ = _COUNTS[each.name]
            yield CounterMetricFamily(f"fastpoetry_{name}", help_, getattr(counts, each.name))
        yield GaugeMetricFamily("fastpoetry_readers", "Connected readers.", self._policy.readers)
        yield from self._collectSources()

    def _collectSources(self) -> Iterator[Metric]:
        fresh = GaugeMetricFamily(
            "fastpoetry_poem_timestamp_seconds",
            "When the poem that is served was read or fetched, since the epoch.",
            labels=["source"],
        )
        counts = CounterMetricFamily(
            "fastpoetry_reloads", "Reloads that have ended.", labels=["source", "result"]
        )
        ended = GaugeMetricFamily(
            "fastpoetry_reload_timestamp_seconds",
            "When the last reload ended, since the epoch.",
            labels=["source"],
        )
        took = GaugeMetricFamily(
            "fastpoetry_reload_duration_seconds",
            "How long the last reload took.",
            labels=["source"],
        )
        for name, group in self._groups.items():
            found = [source.freshAt for source in group.sources]
            if times := [each for each in found if each is not None]:
                fresh.add_metric([name], min(times))
            counts.add_metric([name, "done"], group.done)
            counts.add_metric([name, "failed"], group.failed)
            if group.endedAt is not None:
                ended.add_metric([name], group.endedAt)
                took.add_metric([name], group.seconds)
        yield from (fresh, counts, ended, took)


class Exposition:
    """The metrics as text. It is made at most L{_MOST_PER_SECOND} times a second."""

    def __init__(self, meter: Meter, seconds: Callable[[], float]) -> None:
        self._meter: Any = meter  # prometheus_client takes any object with collect()
        self._seconds = seconds
        self._second = 0
        self._allowance = _MOST_PER_SECOND
        self._texts: dict[str, tuple[bytes, bytes]] = {}

    def render(self, accept: bytes) -> tuple[bytes, bytes]:
        """Return the content type and the text, for the value of C{Accept:}."""
        # prometheus_client's own choice raises an error for a version that it cannot parse.
        wanted = _OPEN_METRICS if _OPEN_METRICS.encode() in accept.lower() else ""
        second = int(self._seconds())
        if second != self._second:
            self._second, self._allowance = second, _MOST_PER_SECOND
        if self._allowance > 0 or wanted not in self._texts:
            self._allowance -= 1
            encode, contentType = choose_encoder(wanted)
            self._texts[wanted] = contentType.encode(), encode(self._meter)
        return self._texts[wanted]


def makeMetricsService(
    description: str,
    meter: Meter,
    reactor: Any,
    clock: IReactorTime,
    tell: Callable[[str], object],
) -> StreamServerEndpointService:
    """
    Make the service that serves C{/metrics}. Before it starts, give it a L{PageEndpoint}.

    @param description: of the endpoint, for Twisted's parser, which raises its own errors.
    @param clock: times the connections.
    @param tell: see L{PageFactory}.
    """
    render = Exposition(meter, clock.seconds).render
    return strports.service(description, PageFactory(b"/metrics", render, clock, tell), reactor)
