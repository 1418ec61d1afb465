"""
The twistd command C{systemd}: runs another command, or a file with an application, under systemd.

Two examples: C{twistd systemd web --listen=adopted:} and C{twistd systemd --python=x.tac}.

The other command keeps its options and makes its service unchanged. This command adds readiness,
watchdog pings and a status. It adds a reload if a service has a method C{reload}. With C{--adopt}
the program gets the passed sockets that are bound to its addresses.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import import_module
from inspect import iscoroutinefunction, signature
from typing import Any, cast

from twisted.application.service import (
    IProcess,
    IService,
    IServiceCollection,
    IServiceMaker,
    MultiService,
    loadApplication,
)
from twisted.plugin import getPlugins
from twisted.python import log, usage
from twisted.python.failure import Failure

from fastpoetry.systemd.deferreds import asDeferred
from fastpoetry.systemd.notify import NotifyService, StartingService
from fastpoetry.systemd.ports import AdoptedPorts, adoptPorts
from fastpoetry.systemd.starting import walk
from fastpoetry.systemd.stderr import refusalLine

__all__ = ["Options", "makeService"]

_NAME = "systemd"

_AS_TEXT: dict[str, Any] = {}
"""Has C{signature} leave annotations alone. Python 3.14 would look up the names in them."""
if sys.version_info >= (3, 14):
    _AS_TEXT["annotation_format"] = import_module("annotationlib").Format.STRING


class Options(usage.Options):
    """The command to run with its options, or the file to run."""

    synopsis = "[--adopt] {COMMAND [options of that command] | --python=FILE}"
    longdesc = (
        "Runs COMMAND, or the application in FILE, under systemd. systemd learns when the program "
        "is ready (Type=notify), that it is alive (WatchdogSec=), and its status. SIGHUP and "
        "systemctl reload call the method reload of each service that has one."
    )
    optFlags = [
        ["adopt", None, "Use a passed socket where the program listens on the socket's address."]
    ]
    optParameters = [["python", "y", None, "Run the application in this file, as twistd does."]]

    @cached_property
    def makers(self) -> dict[str, Any]:
        """The makers of twistd's commands, by name. Finding them imports no command."""
        return {each.tapname: each for each in getPlugins(IServiceMaker)}

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], Any], str]]:
        """The commands of twistd without this one."""
        for name, maker in sorted(self.makers.items()):
            if name != _NAME:
                yield name, None, partial(_makeOptions, maker), maker.description

    def __missing__(self, key: str) -> Any:
        """Look up an option of twistd itself, for a command that asks its parent."""
        parent: Any = self.parent
        if parent is None:
            raise KeyError(key)
        return parent[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Look up an option of twistd itself, too."""
        try:
            return self[key]
        except KeyError:
            return default

    def postOptions(self) -> None:
        """
        Check that either a command or a file was given.

        @raise SystemExit: if neither was given, or both were.
        """
        if (self.subCommand is None) == (self["python"] is None):
            twistd = os.path.basename(sys.argv[0])  # Debian calls it twistd3
            why = (
                f"systemd: which command? {twistd} systemd COMMAND [options of that command], "
                f"or {twistd} systemd --python=FILE; {twistd} systemd --help lists all commands"
            )
            raise SystemExit(refusalLine(why))


def _makeOptions(maker: Any) -> Any:
    return maker.options()  # may import the command, so call this for the chosen one only


def makeService(options: Options) -> MultiService:
    """
    Make the program's service, and the service that notifies systemd.

    @return: both services. A program with a L{NotifyService} of its own gets no second one.
    """
    from twisted.internet import reactor

    ports = adoptPorts(reactor) if options["adopt"] else None
    if ports is not None:
        atexit.register(ports.report)  # after a failed start the report helps to find the cause
    if options["python"]:
        service = _loadApplication(options)
        description = service.name
    else:
        maker = options.makers[str(options.subCommand)]
        service = maker.makeService(options.subOptions)
        description = f"{maker.tapname}: {maker.description}"
    services = StartingService()
    service.setServiceParent(services)
    own = next((each for each in walk(service) if isinstance(each, NotifyService)), None)
    if own is not None:
        if ports is not None:
            own.ready = partial(_finishAfter, own.ready, ports)
        return services
    methods = _findMethods(IService(service), "status")
    statuses = [each for each in methods if not iscoroutinefunction(each)]
    reloads = list(_findMethods(IService(service), "reload"))
    NotifyService(
        reactor,
        status=lambda: "; ".join(str(status()) for status in statuses) or description,
        reload=partial(_reloadAll, reloads) if reloads else None,
        ready=None if ports is None else partial(_finishStart, ports),
    ).setServiceParent(services)
    return services


def _loadApplication(options: Options) -> Any:
    """
    Load a file as C{twistd --python} does. twistd then uses the application's user and group.

    @raise SystemExit: if the file, or a file that it reads, cannot be read.
    """
    try:
        application = loadApplication(options["python"], "python")
    except OSError as why:
        raise SystemExit(refusalLine(f"systemd: --python={options['python']}: {why}")) from None
    process = IProcess(application)
    twistd: Any = options.parent or {}
    for key in ("uid", "gid"):
        if twistd.get(key) is None:
            twistd[key] = getattr(process, key)
    return IService(application)


async def _finishAfter(ready: Any, ports: AdoptedPorts) -> None:
    """Finish the start after what the program's own L{NotifyService} waits for."""
    await asDeferred(ready() if callable(ready) else ready)
    _finishStart(ports)


def _finishStart(ports: AdoptedPorts) -> None:
    ports.check()
    ports.report()


async def _reloadAll(reloads: list[Callable[[], Any]]) -> None:
    """
    Reload all services, even if one fails.

    @raise Exception: the first error, after all reloads. The others are in the log.
    """
    failures: list[Failure] = []
    for reload in reloads:
        try:
            await asDeferred(reload())
        except GeneratorExit:
            raise
        except BaseException:  # SystemExit, or CancelledError of asyncio
            failures.append(Failure())
    for failure in failures[1:]:
        log.err(failure)
    if failures:
        failures[0].raiseException()


def _findMethods(service: Any, name: str) -> Iterator[Callable[[], Any]]:
    """
    Return the service's method of this name; without one, the methods of its child services. Only
    methods without required arguments count: another signature may have another meaning.
    """
    method = getattr(service, name, None)
    try:
        signature(method, **_AS_TEXT).bind()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if IServiceCollection.providedBy(service):
            for child in service:
                yield from _findMethods(child, name)
    else:
        yield cast(Callable[[], Any], method)
