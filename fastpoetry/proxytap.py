"""The twistd command C{fastpoetry-proxy}: its options, and the service that they describe."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import Any

from twisted.application.service import MultiService

from fastpoetry.apart.poems import encodable
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


class Options(CommandOptions):
    """The command line of C{twistd fastpoetry-proxy}."""

    synopsis = "[--upstream ENDPOINT] [--port PORT | --listen ENDPOINT] ..."
    longdesc = (
        "Sends the poem of another poetry server to each client and closes the connection. Each "
        "--upstream opens a block; the port and endpoints that follow belong to that block."
    )
    command = "fastpoetry-proxy"
    opens = "--upstream"

    opt_max_age = tunable(
        "--max-age",
        "maxAgeSeconds",
        partial(parseSeconds, mayBeZero=True),
        f"Seconds for which a poem is fresh: its upstream is not asked again "
        f"[default: {Freshness.maxAgeSeconds:g}; poems seldom change, and a reload asks at once].",
    )
    opt_stale_while_revalidate = tunable(
        "--stale-while-revalidate",
        "revalidateSeconds",
        partial(parseSeconds, mayBeZero=True),
        f"Seconds after --max-age for which a poem is served while another is fetched "
        f"[default: {Freshness.revalidateSeconds:g}, so that no reader waits for an upstream].",
    )
    opt_stale_if_error = tunable(
        "--stale-if-error",
        "errorSeconds",
        partial(parseSeconds, mayBeZero=True),
        f"Seconds after --max-age for which a poem is served while the upstream fails "
        f"[default: {Freshness.errorSeconds:g}, a day to mend it].",
    )
    opt_connect_timeout = tunable(
        "--connect-timeout",
        "connectSeconds",
        parseSeconds,
        f"Seconds that connecting to the upstream may take "
        f"[default: {Freshness.connectSeconds:g}].",
    )
    opt_idle_timeout = tunable(
        "--idle-timeout",
        "idleSeconds",
        parseSeconds,
        f"Seconds for which the upstream may send nothing [default: {Freshness.idleSeconds:g}].",
    )
    opt_total_timeout = tunable(
        "--total-timeout",
        "totalSeconds",
        parseSeconds,
        f"Seconds that a whole fetch may take, and that readers wait for a usable poem "
        f"[default: {Freshness.totalSeconds:g}, as long as people wait].",
    )
    opt_max_size = tunable(
        "--max-size",
        "mostBytes",
        partial(parseCount, 1),
        f"Bytes that a poem may have [default: {Freshness.mostBytes}, as in the server].",
    )

    def opt_upstream(self, value: str) -> None:
        """Fetch the poem from a Twisted client endpoint, as tcp:host=poems.example:port=10000."""
        self.openBlock(f"--upstream {value}", value)

    def opt_expect_sha256(self, value: str) -> None:
        """The SHA-256 of the upstream's poem, in hexadecimal: any other poem is refused."""
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            refuse(f"--expect-sha256 {value}: not 64 hexadecimal digits")
        block = self.blocks[-1]
        if block.digest is not None:
            refuse(f"--expect-sha256 {value}: given already ({block.digest})")
        block.digest = value.lower()

    def opt_cache(self, value: str) -> None:
        """
        The folder for copies that survive a restart [default: systemd's CACHE_DIRECTORY, or none].
        """
        self.setOnce("--cache", "cache", os.path.abspath(value))

    @property
    def endpoints(self) -> list[str]:
        """The descriptions of all endpoints, with those of the upstreams."""
        return super().endpoints + [block.value for block in self.blocks]

    @property
    def freshness(self) -> Freshness:
        """The limits from the options, or their defaults."""
        keys = Freshness.__dataclass_fields__.keys() & self.keys()
        return Freshness(**{key: self[key] for key in keys})


def makeService(options: Options, reactor: Any = None, clock: Any = None) -> MultiService:
    """
    Make the service that the options describe, as L{fastpoetry.tap.makeService} does.

    From now on, a L{Resolver} of the reactor looks up all names of the program.

    @raise SystemExit: if an upstream is invalid, an endpoint cannot listen, or the cache's folder
        is missing.
    """
    from fastpoetry.command.assembly import assemble, withClock  # imports Twisted's sockets
    from fastpoetry.proxy.upstream import Resolver, parseUpstream

    reactor, timed = withClock(reactor, clock)
    folder = options.get("cache") or os.environ.get("CACHE_DIRECTORY")
    with options.asServer():
        if folder and not os.path.isdir(folder):
            asked = "--cache " if "cache" in options else "CACHE_DIRECTORY="
            refuse(f"{asked}{folder}: not a folder")
    reactor.installNameResolver(Resolver(reactor))
    keepers: dict[str, Keeper] = {}

    def makeSource(block: Block) -> PoetryProxyService:
        try:
            endpoint = parseUpstream(block.value, timed)
        except ValueError as why:
            refuse(f"{block.option}: {why}{_whose(block.value)}")
        freshness = options.freshness
        name = encodable(block.value)
        if folder and name not in keepers:
            keepers[name] = Keeper(folder, name, timed, freshness.mostBytes)
        return PoetryProxyService(name, endpoint, freshness, timed, block.digest, keepers.get(name))

    return assemble(options, makeSource, reactor, timed)


def _whose(upstream: str) -> str:
    """Name the unit's file that holds the bad C{UPSTREAM=}, if there is one."""
    file = os.environ.get("UPSTREAM_FILE")
    return f" (UPSTREAM= in {file})" if file and os.environ.get("UPSTREAM", "") == upstream else ""
