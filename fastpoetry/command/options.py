"""
What the twistd commands have in common on their command lines.

Reads and checks options; makes no service. Every refusal is one line on stderr and exit status 1,
since Twisted's own way (C{usage.UsageError}) prints the whole help and, before Twisted 24, exits
with 0.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from twisted.python import usage

from fastpoetry import __version__
from fastpoetry.delivery.limits import Limits
from fastpoetry.systemd.signals import ignoreHangup
from fastpoetry.systemd.stderr import refusalLine

DEFAULT_PORT = 10000
DEFAULT_INTERFACE = "localhost"


def refuse(why: object) -> NoReturn:
    """
    End the program with one line for the person who started it.

    @param why: becomes one line, whatever it holds.
    @raise SystemExit: always, with that line; Python prints it and exits with status 1.
    """
    raise SystemExit(refusalLine(f"fastpoetry: {why}"))


@dataclass
class Block:
    """
    One source of poems and where it is served.

    @ivar asked: the option that opened the block, as it was typed; empty before there was one.
    @ivar what: what that option says.
    @ivar port: a TCP port, if one was given.
    @ivar interface: where that port is, if that was given.
    @ivar listen: endpoint descriptions, instead of the two.
    @ivar digest: the SHA-256 that the poem must have, if that was said.
    """

    asked: str = ""
    what: Any = None
    port: int | None = None
    interface: str | None = None
    listen: list[str] = field(default_factory=list)
    digest: str | None = None

    @property
    def address(self) -> tuple[int, str]:
        """The port and the interface, where no endpoint is asked for instead."""
        port = DEFAULT_PORT if self.port is None else self.port
        return port, DEFAULT_INTERFACE if self.interface is None else self.interface


def parseSeconds(option: str, value: str) -> float:
    """
    A time that is long enough to be one.

    @raise SystemExit: if it is not.
    """
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        refuse(f"{option} {value}: not a number of seconds above 0")
    return seconds


def parseCount(least: int) -> Callable[[str, str], int]:
    """
    Make a reader of whole numbers.

    @param least: the smallest that will do.
    """

    def parse(option: str, value: str) -> int:
        # Longer than nine digits is no number that anybody means, nor one that int() may refuse.
        if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
            refuse(f"{option} {value}: not a whole number of {least} or more")
        return int(value)

    return parse


def tunable(
    option: str, key: str, parse: Callable[[str, str], float], doc: str
) -> Callable[..., None]:
    """
    Make the handler of an option that is given once, for the whole process.

    @param option: as it is typed, with its dashes.
    @param key: where its value goes in the options.
    @param parse: makes the value of the option and its text.
    @param doc: the help, with unit, default and reason.
    """

    def handle(self: CommandOptions, value: str) -> None:
        self.setOnce(option, key, parse(option, value))

    handle.__doc__ = doc
    return handle


_limits = Limits()


class CommandOptions(usage.Options):
    """
    Blocks with their ports, and the limits for them all.

    Of a single block C{self["port"]} and C{self["iface"]} have the address, as in the tutorial.

    @ivar blocks: what to serve, and where: one at least, once parsed.
    """

    command = ""
    """What twistd calls it."""

    opens = ""
    """The option that opens a block."""

    opt_drain_timeout = tunable(
        "--drain-timeout",
        "drainSeconds",
        parseSeconds,
        f"Seconds that a stop waits for poems under way, before their readers are reset "
        f"[default: {_limits.drainSeconds:g}, within the units' TimeoutStopSec=].",
    )
    opt_stall_timeout = tunable(
        "--stall-timeout",
        "stallSeconds",
        parseSeconds,
        f"Seconds that a reader may take nothing, before it is reset "
        f"[default: {_limits.stallSeconds:g}, which outlasts a train's tunnel].",
    )
    opt_min_rate = tunable(
        "--min-rate",
        "minRateBytesPerSecond",
        parseCount(0),
        f"Bytes a second that a reader must take on average once it has been there for the stall "
        f"timeout [default: {_limits.minRateBytesPerSecond}, half of a 1200 baud modem's].",
    )
    opt_max_readers = tunable(
        "--max-readers",
        "maxReaders",
        parseCount(1),
        f"Readers at a time; more wait in the backlog [default: {_limits.maxReaders}, or what the "
        "limit of open files leaves; one that has stopped costs the kernel 320 KiB at most].",
    )
    opt_max_readers_per_source = tunable(
        "--max-readers-per-source",
        "maxReadersPerSource",
        parseCount(1),
        f"Readers of one address or local user whose poems are under way at a time; more are "
        f"reset [default: {_limits.maxReadersPerSource}, a tenth of all].",
    )
    opt_journal_budget = tunable(
        "--journal-budget",
        "journalBudgetPerSecond",
        parseCount(0),
        f"Records a second about single readers; the rest are summed up in one "
        f"[default: {_limits.journalBudgetPerSecond}, since journald drops beyond 333].",
    )
    opt_exit_idle_time = tunable(
        "--exit-idle-time",
        "exitIdleSeconds",
        parseSeconds,
        "Seconds without a reader after which to exit, for a socket of systemd's that starts us "
        "again [default: never].",
    )

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block()]

    @property
    def limits(self) -> Limits:
        """The limits that were asked for, with the defaults for the others."""
        keys = self.keys() & Limits.__dataclass_fields__.keys()
        return Limits(**{key: self[key] for key in keys})

    @property
    def endpoints(self) -> list[str]:
        """The descriptions of all endpoints that the process is to have."""
        metrics = [self["metrics"]] if "metrics" in self else []
        return [description for block in self.blocks for description in block.listen] + metrics

    def opt_port(self, value: str) -> None:
        """The TCP port to listen on [default: 10000]."""
        if not re.fullmatch("[0-9]{1,5}", value) or int(value) > 65535:
            refuse(f"--port {value}: not a port from 0 to 65535")
        block = self.blocks[-1]
        if block.port is not None:
            refuse(f"--port {value}: given already ({block.port}); {self.opens} opens a new block")
        block.port = int(value)

    opt_p = opt_port

    def opt_iface(self, value: str) -> None:
        """The interface to listen on [default: localhost]."""
        block = self.blocks[-1]
        if block.interface is not None:
            refuse(f"--iface {value}: given already ({block.interface})")
        block.interface = value

    def opt_listen(self, value: str) -> None:
        """
        A Twisted endpoint to listen on, instead of --port and --iface, as adopted:name=ecstasy or
        tcp:10000. May be given several times.
        """
        self.blocks[-1].listen.append(value)

    def opt_metrics(self, value: str) -> None:
        """
        A Twisted endpoint where a monitoring system gets counts, as http://.../metrics in the text
        format of Prometheus, or OpenMetrics where it asks for that [default: none]. Needs
        prometheus_client, which Debian has as python3-prometheus-client.
        """
        self.setOnce("--metrics", "metrics", value)

    def opt_version(self) -> None:
        """Display the versions of fastpoetry and Twisted, and exit."""
        print("fastpoetry version:", __version__)
        super().opt_version()

    def parseArgs(self, *args: str) -> None:
        """
        Refuse what belongs to no option.

        @raise SystemExit: if there is something.
        """
        if args:
            refuse(f"{args[0]}: belongs to no option; what to serve comes after {self.opens}")

    def setOnce(self, option: str, key: str, value: object) -> None:
        """
        Take the value of an option that cannot have two.

        @raise SystemExit: if it has one already.
        """
        if key in self:
            refuse(f"{option} {value}: given already, as {self[key]}")
        self[key] = value

    def openBlock(self, asked: str, what: object) -> None:
        """Take what a block serves; what was said before the first belongs to it."""
        if self.blocks[-1].asked:
            self.blocks.append(Block())
        self.blocks[-1].asked, self.blocks[-1].what = asked, what

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Parse, refusing what cannot be in our way. This is the first that a twistd command hears of
        its being run.

        @raise SystemExit: if something cannot be.
        """
        if getattr(self, "parent", None) is not None:
            ignoreHangup()
        try:
            super().parseOptions(options)
        except usage.UsageError as why:
            twistd = os.path.basename(sys.argv[0])  # Debian calls it twistd3
            refuse(f"{why}; {twistd} {self.command} --help says what there is")

    def postOptions(self) -> None:
        """
        Check what spans several options.

        @raise SystemExit: if they do not go together.
        """
        if not self.blocks[0].asked:
            refuse(f"nothing to serve: say what with {self.opens}")
        for number, block in enumerate(self.blocks):
            hasPort = block.port is not None or block.interface is not None
            if block.listen and hasPort:
                refuse(f"{block.asked}: --listen {block.listen[0]} excludes --port and --iface")
            if number and not block.listen and block.port is None:
                refuse(f"{block.asked}: a second block needs a --port or --listen of its own")
        if len(self.blocks) == 1:
            self["port"], self["iface"] = self.blocks[0].address
