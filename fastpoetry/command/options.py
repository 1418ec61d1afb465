"""
The options that the twistd commands share.

Parses and checks options; makes no service. To refuse is to raise C{SystemExit}, see L{refuse}: one
line on stderr and exit status 1. Twisted's own way (C{usage.UsageError}) prints the whole help and,
before Twisted 24, exits with 0.
"""

from __future__ import annotations

import math
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
    End the program with one line for the person at the terminal.

    @param why: converted to one line, even if it has several.
    @raise SystemExit: with that line; Python prints it and exits with status 1.
    """
    raise SystemExit(refusalLine(f"fastpoetry: {why}"))


@dataclass
class Block:
    """
    One source of poems, and where it is served.

    @ivar option: what opened the block, as it was typed; empty before that option.
    @ivar value: the value of that option, if it has one.
    @ivar port: the TCP port, if one was given.
    @ivar interface: the interface of that port, if one was given.
    @ivar listen: endpoint descriptions, in place of port and interface.
    @ivar digest: the SHA-256 that the poem must have, if one was given.
    @ivar selection: the poems that the value selects, if it names poems.
    """

    option: str = ""
    value: Any = None
    port: int | None = None
    interface: str | None = None
    listen: list[str] = field(default_factory=list)
    digest: str | None = None
    selection: Any = None

    @property
    def address(self) -> tuple[int, str]:
        """The port and the interface, for a block without endpoint descriptions."""
        port = DEFAULT_PORT if self.port is None else self.port
        return port, DEFAULT_INTERFACE if self.interface is None else self.interface


def parseSeconds(option: str, value: str, mayBeZero: bool = False) -> float:
    """Parse a time in seconds. Refuse text that is not a number, or is too small."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf or (mayBeZero and seconds == 0)):
        least = ", 0 or more" if mayBeZero else " above 0"
        refuse(f"{option} {value}: not a number of seconds{least}")
    return seconds


def parseCount(least: int, option: str, value: str) -> int:
    """Parse a whole number. Refuse text that is not one, or a number below C{least}."""
    # int() refuses some very long numbers. Nine digits are enough.
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
        refuse(f"{option} {value}: not a whole number of {least} or more")
    return int(value)


def tunable(
    option: str, key: str, parse: Callable[[str, str], float], doc: str
) -> Callable[..., None]:
    """
    Make the handler of an option that is given once, for the whole process.

    @param option: as it is typed, with its dashes.
    @param key: the key of its value in the options.
    @param parse: converts the text of the value; gets the option's name too, for a refusal.
    @param doc: the help, with unit, default and reason.
    """

    def handle(self: CommandOptions, value: str) -> None:
        self.setOnce(option, key, parse(option, value))

    handle.__doc__ = doc
    return handle


class CommandOptions(usage.Options):
    """
    Blocks with their ports, and the limits for all of them.

    With a single block, C{self["port"]} and C{self["iface"]} are its address, as in the tutorial.

    @ivar blocks: what to serve, and where. There is at least one.
    """

    command = ""
    """The command's name in twistd."""

    opens = ""
    """The option that opens a block."""

    opt_drain_timeout = tunable(
        "--drain-timeout",
        "drainSeconds",
        parseSeconds,
        f"Seconds that a stop waits for poems under way before it resets their readers "
        f"[default: {Limits.drainSeconds:g}, within the units' TimeoutStopSec=].",
    )
    opt_stall_timeout = tunable(
        "--stall-timeout",
        "stallSeconds",
        parseSeconds,
        f"Seconds that a reader may take no byte before it is reset "
        f"[default: {Limits.stallSeconds:g}, longer than a train is in a tunnel].",
    )
    opt_min_rate = tunable(
        "--min-rate",
        "minRateBytesPerSecond",
        partial(parseCount, 0),
        f"Bytes a second that a reader must take on average once it is older than the stall "
        f"timeout [default: {Limits.minRateBytesPerSecond}, half the rate of a 1200 baud modem].",
    )
    opt_max_readers = tunable(
        "--max-readers",
        "maxReaders",
        partial(parseCount, 1),
        f"Readers at a time; more wait in the backlog [default: {Limits.maxReaders}, or as many "
        "as the limit of open files allows; a stopped reader costs the kernel 320 KiB at most].",
    )
    opt_max_readers_per_source = tunable(
        "--max-readers-per-source",
        "maxReadersPerSource",
        partial(parseCount, 1),
        f"Readers of one address or local user whose poems are under way; more are reset "
        f"[default: {Limits.maxReadersPerSource}, a tenth of all].",
    )
    opt_journal_budget = tunable(
        "--journal-budget",
        "journalBudgetPerSecond",
        partial(parseCount, 0),
        f"Records a second about single readers; one summary has the rest "
        f"[default: {Limits.journalBudgetPerSecond}, since journald drops more than 333].",
    )
    opt_exit_idle_time = tunable(
        "--exit-idle-time",
        "exitIdleSeconds",
        parseSeconds,
        "Seconds without a client after which to exit, for a server that its .socket unit starts "
        "again [default: never].",
    )

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block()]

    @property
    def limits(self) -> Limits:
        """The limits from the options, or their defaults."""
        keys = self.keys() & Limits.__dataclass_fields__.keys()
        return Limits(**{key: self[key] for key in keys})

    @property
    def endpoints(self) -> list[str]:
        """The descriptions of all endpoints of the process."""
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
        A Twisted endpoint to listen on, in place of --port and --iface, as adopted:name=ecstasy or
        tcp:10000. May be given several times.
        """
        self.blocks[-1].listen.append(value)

    def opt_metrics(self, value: str) -> None:
        """
        A Twisted endpoint that serves counts for monitoring, as http://.../metrics in the text
        format of Prometheus, or OpenMetrics on request [default: none]. Needs prometheus_client,
        in Debian python3-prometheus-client.
        """
        self.setOnce("--metrics", "metrics", value)

    def opt_version(self) -> None:
        """Display the versions of fastpoetry and Twisted, and exit."""
        print("fastpoetry version:", __version__)
        super().opt_version()

    def parseArgs(self, *args: str) -> None:
        """Refuse an argument that belongs to no option."""
        if args:
            refuse(f"{args[0]}: belongs to no option; what to serve comes after {self.opens}")

    def setOnce(self, option: str, key: str, value: object) -> None:
        """Set an option. Refuse a second value."""
        if key in self:
            refuse(f"{option} {value}: given already, as {self[key]}")
        self[key] = value

    def openBlock(self, option: str, value: object = None) -> None:
        """Open a block. Options before the first block belong to the first."""
        if self.blocks[-1].option:
            self.blocks.append(Block())
        self.blocks[-1].option, self.blocks[-1].value = option, value

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and refuse wrong options. This is the first code of ours that twistd runs."""
        if getattr(self, "parent", None) is not None:
            ignoreHangup()
        try:
            super().parseOptions(options)
        except usage.UsageError as why:
            twistd = os.path.basename(sys.argv[0])  # Debian calls it twistd3
            refuse(f"{why}; {twistd} {self.command} --help lists the options")

    @contextmanager
    def asServer(self) -> Iterator[None]:
        """
        Take the user and group of twistd's --uid and --gid for a while, to check files as the
        server.

        @raise SystemExit: if there is no such user; twistd would not start either.
        """
        twistd: Any = getattr(self, "parent", None) or {}
        uid, gid = twistd.get("uid"), twistd.get("gid")
        if os.geteuid() != 0 or (uid is None and gid is None):
            yield
            return
        groups, egid = os.getgroups(), os.getegid()
        try:
            if uid is None:
                os.setegid(gid)
            else:
                try:
                    user = pwd.getpwuid(uid)
                except KeyError:
                    refuse(f"--uid {uid}: no user has that number")
                group = user.pw_gid if gid is None else gid
                os.initgroups(user.pw_name, group)
                os.setegid(group)
                os.seteuid(uid)
            yield
        finally:
            os.seteuid(0)
            os.setegid(egid)
            os.setgroups(groups)

    def postOptions(self) -> None:
        """Refuse options that conflict, and a command line with nothing to serve."""
        if not self.blocks[0].option:
            refuse(f"nothing to serve: say what with {self.opens}")
        for number, block in enumerate(self.blocks):
            hasPort = block.port is not None or block.interface is not None
            if block.listen and hasPort:
                refuse(f"{block.option}: --listen {block.listen[0]} excludes --port and --iface")
            if number and not block.listen and block.port is None:
                refuse(f"{block.option}: each further block needs a --port or --listen of its own")
        if len(self.blocks) == 1:
            self["port"], self["iface"] = self.blocks[0].address
