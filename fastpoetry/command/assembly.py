"""
Assembles the blocks of a command line and their sources into one service.

Each part has a module of its own. This one checks endpoints before twistd becomes a daemon.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from twisted.application.service import IService, MultiService
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import (
    StandardIOEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IReactorTime, IStreamServerEndpoint

from fastpoetry.command.handover import HandOverService
from fastpoetry.command.idle import IdleService
from fastpoetry.command.options import Block, CommandOptions, refuse
from fastpoetry.command.preflight import Preflight
from fastpoetry.delivery.ledger import countOf
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Source
from fastpoetry.listen import PoetryListener
from fastpoetry.poem import PoemError
from fastpoetry.protocol import PoetryFactory
from fastpoetry.systemd.adopted import AdoptError
from fastpoetry.systemd.clock import MonotonicClock, MonotonicReactor
from fastpoetry.systemd.descriptors import inherited, logUnused
from fastpoetry.systemd.notify import NotifyService, ReloadError
from fastpoetry.systemd.store import Store

_Made = TypeVar("_Made")

_BACKLOG = 4096
"""Connections that may wait in a backlog; net.core.somaxconn is the upper limit."""


def withClock(reactor: Any, clock: Any) -> tuple[Any, MonotonicReactor]:
    """Return the reactor, by default twistd's, and the same one with a given or monotonic clock."""
    if reactor is None:
        from twisted.internet import reactor
    return reactor, MonotonicReactor(reactor, clock or MonotonicClock(reactor))


def assemble(
    options: CommandOptions,
    makeSource: Callable[[Block], Source],
    reactor: Any,
    clock: IReactorTime,
) -> MultiService:
    """
    Make the whole service: one C{MultiService} for each block, and the services that they share.

    @param makeSource: makes the source of a block's poems, a service.
    @param clock: for all timers.
    @raise SystemExit: if a source cannot be made, or an endpoint cannot listen.
    """
    policy = Policy(options.limits, clock)
    root = MultiService()
    sources: list[Source] = []
    listeners: list[PoetryListener] = []
    with Preflight() as preflight:
        for block in options.blocks:
            source = makeSource(block)
            sources.append(source)
            parts = MultiService()
            parts.setServiceParent(root)
            source.setServiceParent(parts)
            factory = PoetryFactory(source, policy)
            for endpoint in _makeEndpoints(block, preflight, reactor):
                listeners.append(PoetryListener(endpoint, factory, reactor))
                listeners[-1].setServiceParent(parts)
        reloads = [source.reload for source in sources]
        if "metrics" in options:
            meter, metrics = _makeMetrics(options["metrics"], policy, preflight, reactor, clock)
            metrics.setServiceParent(root)
            named = zip(options.blocks, sources, strict=True)
            reloads = [meter.add(block.option.lstrip("-"), source) for block, source in named]
    logUnused(inherited(), options.endpoints)
    if "exitIdleSeconds" in options:
        seconds = options["exitIdleSeconds"]
        idle = IdleService(clock, seconds, lambda: policy.idleSeconds, reactor.stop)
        idle.setServiceParent(root)

    handOver = HandOverService(Store(reactor, clock=clock), policy, reactor)
    handOver.setServiceParent(root)

    def status() -> str:
        served = ", ".join(source.description for source in sources)
        sent = countOf(policy.ledger.counts.poems, "poem")
        readers = countOf(policy.readers, "reader")
        return f"Serving {served}: {sent} sent, {readers}{handOver.description}"

    NotifyService(
        reactor,
        status=status,
        reload=lambda: Deferred.fromCoroutine(reloadAll(reloads)),
        # The watchdog uses the same clock. If it calls this, the clock's timers run.
        alive=lambda: all(listener.isAlive for listener in listeners),
        clock=clock,
    ).setServiceParent(root)
    return root


async def reloadAll(reloads: list[Callable[[], Deferred[None]]]) -> None:
    """
    Reload all sources, even if one fails.

    @raise ReloadError: if sources failed and logged their causes.
    @raise Exception: if a source failed with an unexpected error, which is not in the log yet.
    """
    begun = [maybeDeferred(reload) for reload in reloads]
    ended: list[tuple[bool, Any]] = await DeferredList(begun, consumeErrors=True)
    failures = [why for isWell, why in ended if not isWell]
    for failure in failures:
        if not failure.check(PoemError):
            failure.raiseException()
    if failures:
        raise ReloadError("; ".join(failure.getErrorMessage() for failure in failures))


def _makeEndpoints(block: Block, preflight: Preflight, reactor: Any) -> list[IStreamServerEndpoint]:
    """Make the endpoints where a block listens. Refuse those that cannot listen."""
    if block.listen:
        return [_parseEndpoint(each, preflight, reactor) for each in block.listen]
    port, interface = block.address
    # The loopback address (RFC 6761, 6.3). A minimal Debian cannot look the name up.
    host = "127.0.0.1" if interface == "localhost" else interface
    make = TCP6ServerEndpoint if isIPv6Address(host) else TCP4ServerEndpoint
    endpoint = make(reactor, port, _BACKLOG, host)
    _check(f"--port {port} --iface {interface}", endpoint, preflight)
    return [endpoint]


def checkEndpoints(endpoints: Mapping[str, IStreamServerEndpoint]) -> None:
    """
    Check that endpoints can listen. Programs that compose services by hand call this.

    @param endpoints: each under the name that a refusal shows.
    @raise SystemExit: if one cannot listen.
    """
    with Preflight() as preflight:
        for asked, endpoint in endpoints.items():
            _check(asked, endpoint, preflight)


def _check(asked: str, endpoint: IStreamServerEndpoint, preflight: Preflight) -> None:
    """Refuse an endpoint that cannot listen."""
    try:
        preflight.check(endpoint)
    except (OSError, TypeError, UnicodeError) as why:  # an invalid host raises the last two
        isBarred = isinstance(why, OSError) and why.errno == errno.EAFNOSUPPORT
        hint = "; a unit's service opens no port: add it to the .socket" if isBarred else ""
        refuse(f"{asked}: {getattr(why, 'strerror', None) or why}{hint}")


def _parseEndpoint(description: str, preflight: Preflight, reactor: Any) -> IStreamServerEndpoint:
    """Make the endpoint of a description, which may begin with C{haproxy:}, or refuse it."""
    asked = f"--listen {description}"
    # Twisted's haproxy: connects the protocol before the header; see PatientWrapper.
    inner = description.removeprefix("haproxy:")
    endpoint: IStreamServerEndpoint = _makeOrRefuse(asked, lambda: serverFromString(reactor, inner))
    if isinstance(endpoint, StandardIOEndpoint):
        refuse(f"{asked}: has no port, and one client only")
    _check(asked, endpoint, preflight)
    if inner == description:
        return endpoint
    from fastpoetry.delivery.haproxy import PatientEndpoint  # rarely used, and slow to import

    return PatientEndpoint(endpoint)


def _makeMetrics(
    description: str, policy: Policy, preflight: Preflight, reactor: Any, clock: IReactorTime
) -> tuple[Any, IService]:
    """Make the meter that collects the metrics, and the service that serves them, or refuse."""
    asked = f"--metrics {description}"
    try:
        from fastpoetry.command.metrics import Meter, makeMetricsService  # rarely used
        from fastpoetry.command.page import PageEndpoint
    except ModuleNotFoundError as why:
        if not (why.name or "").startswith("prometheus_client"):
            raise
        refuse(f"{asked}: needs prometheus_client (apt install python3-prometheus-client)")
    meter = Meter(policy)
    service = _makeOrRefuse(
        asked, lambda: makeMetricsService(description, meter, reactor, clock, policy.logPaused)
    )
    _check(asked, service.endpoint, preflight)
    service.endpoint = PageEndpoint(service.endpoint)
    return meter, service


def _makeOrRefuse(asked: str, make: Callable[[], _Made]) -> _Made:
    """
    Make an endpoint, or a service with one, from a description. Refuse an invalid description, and
    one for which systemd passed no descriptor.
    """
    try:
        return make()
    except AdoptError as why:
        refuse(why)
    except Exception as why:  # each kind of endpoint has its own errors
        refuse(f"{asked}: not a Twisted endpoint description: {why or type(why).__name__}")
