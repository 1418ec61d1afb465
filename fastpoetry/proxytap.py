"""The twistd command C{fastpoetry-proxy}: its options, and the service they ask for."""

from __future__ import annotations

import os
import re
from typing import Any

from twisted.application.service import MultiService

from fastpoetry.command.identity import asServer
from fastpoetry.command.options import (
    Block,
    CommandOptions,
    parseCount,
    parseSeconds,
    refuse,
    tunable,
)
from fastpoetry.proxy.cache import Keeper
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.service import PoetryProxyService

_freshness = Freshness()


def _parseSpan(option: str, value: str) -> float:
    """
    A time that may be none at all.

    @raise SystemExit: if it is not a time.
    """
    return 0.0 if value == "0" else parseSeconds(option, value)


class Options(CommandOptions):
    """The command line of C{twistd fastpoetry-proxy}."""

    synopsis = "[--upstream ENDPOINT] [--port PORT | --listen ENDPOINT] ..."
    longdesc = (
        "Sends the poem of another poetry server to whoever connects, and closes. Each --upstream "
        "opens a block; the port and endpoints that follow are its own."
    )
    command = "fastpoetry-proxy"
    opens = "--upstream"

    opt_max_age = tunable(
        "--max-age",
        "maxAgeSeconds",
        _parseSpan,
        f"Seconds for which a poem is fresh: its upstream is not asked again "
        f"[default: {_freshness.maxAgeSeconds:g}; poems change seldom, and a reload asks at once].",
    )
    opt_stale_while_revalidate = tunable(
        "--stale-while-revalidate",
        "revalidateSeconds",
        _parseSpan,
        f"Seconds for which a poem is served after that while another is fetched "
        f"[default: {_freshness.revalidateSeconds:g}, so that nobody waits for an upstream].",
    )
    opt_stale_if_error = tunable(
        "--stale-if-error",
        "errorSeconds",
        _parseSpan,
        f"Seconds for which a poem is served after its freshness while the upstream gives none "
        f"[default: {_freshness.errorSeconds:g}, a day to mend it].",
    )
    opt_connect_timeout = tunable(
        "--connect-timeout",
        "connectSeconds",
        parseSeconds,
        f"Seconds to be connected to the upstream [default: {_freshness.connectSeconds:g}].",
    )
    opt_idle_timeout = tunable(
        "--idle-timeout",
        "idleSeconds",
        parseSeconds,
        f"Seconds for which the upstream may send nothing [default: {_freshness.idleSeconds:g}].",
    )
    opt_total_timeout = tunable(
        "--total-timeout",
        "totalSeconds",
        parseSeconds,
        f"Seconds for a whole fetch, and for readers to wait where there is no poem yet "
        f"[default: {_freshness.totalSeconds:g}, as long as people wait].",
    )
    opt_max_size = tunable(
        "--max-size",
        "mostBytes",
        parseCount(1),
        f"Bytes of a poem, at most [default: {_freshness.mostBytes}, as in the server].",
    )

    def opt_upstream(self, value: str) -> None:
        """Fetch the poem from a Twisted client endpoint, as tcp:host=poems.example:port=10000."""
        self.openBlock(f"--upstream {value}", value)

    def opt_expect_sha256(self, value: str) -> None:
        """The SHA-256 of the upstream's poem, in hexadecimal: any other is not taken."""
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            refuse(f"--expect-sha256 {value}: not 64 hexadecimal digits")
        block = self.blocks[-1]
        if block.digest is not None:
            refuse(f"--expect-sha256 {value}: given already ({block.digest})")
        block.digest = value.lower()

    def opt_cache(self, value: str) -> None:
        """
        The folder for copies that outlast a restart [default: systemd's CACHE_DIRECTORY, or none].
        """
        self.setOnce("--cache", "cache", os.path.abspath(value))

    @property
    def endpoints(self) -> list[str]:
        """The upstreams too."""
        return super().endpoints + [block.what for block in self.blocks]

    @property
    def freshness(self) -> Freshness:
        """The times that were asked for, with the defaults for the others."""
        keys = Freshness.__dataclass_fields__.keys() & self.keys()
        return Freshness(**{key: self[key] for key in keys})


def makeService(options: Options, reactor: Any = None, clock: Any = None) -> MultiService:
    """
    Make what the options ask for.

    @param options: parsed.
    @param reactor: for tests; twistd's own otherwise.
    @param clock: for tests; otherwise one that no step of the wall clock moves.
    @raise SystemExit: if an endpoint or the cache's folder cannot be had.
    """
    from fastpoetry.command.assembly import assemble, findReactor  # and with it Twisted's sockets
    from fastpoetry.proxy.upstream import Resolver, parseUpstream
    from fastpoetry.systemd.clock import MonotonicReactor

    reactor, clock = findReactor(reactor, clock)
    folder = options.get("cache") or os.environ.get("CACHE_DIRECTORY")
    with asServer(options):
        if folder and not os.path.isdir(folder):
            asked = "--cache " if "cache" in options else "CACHE_DIRECTORY="
            refuse(f"{asked}{folder}: not a folder")
    reactor.installNameResolver(Resolver(reactor))
    timed = MonotonicReactor(reactor, clock)
    keepers: dict[str, Keeper] = {}

    def makeSource(block: Block) -> PoetryProxyService:
        try:
            endpoint = parseUpstream(block.what, timed)
        except ValueError as why:
            refuse(f"{block.asked}: {why}{_whose(block.what)}")
        freshness = options.freshness
        if folder and block.what not in keepers:
            keepers[block.what] = Keeper(folder, block.what, timed, freshness.mostBytes)
        return PoetryProxyService(
            block.what, endpoint, freshness, timed, block.digest, keepers.get(block.what)
        )

    return assemble(options, makeSource, reactor, clock)


def _whose(upstream: str) -> str:
    """Where an upstream was written that is none, if it was in the file of a unit."""
    file = os.environ.get("UPSTREAM_FILE")
    return f" (UPSTREAM= in {file})" if file and os.environ.get("UPSTREAM", "") == upstream else ""
