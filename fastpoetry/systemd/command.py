"""
The twistd command C{systemd}, which runs any other, C{twistd systemd web --listen=adopted:}, or a
file with an application, C{twistd systemd --python=x.tac}.

The other command has its own options and makes its own service, unchanged; to it come readiness,
signs of life, a status, a reload if its services have a method C{reload} and, with C{--adopt}, the
passed sockets for whose addresses the program listens.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from inspect import signature
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
from twisted.python import usage

from fastpoetry.systemd.notify import NotifyService, StartingService
from fastpoetry.systemd.ports import AdoptedPorts, adoptPorts
from fastpoetry.systemd.stderr import refusalLine

__all__ = ["Options", "makeService"]

_NAME = "systemd"


class Options(usage.Options):
    """The other command and its options, or the file."""

    synopsis = "[--adopt] {COMMAND [options of that command] | --python=FILE}"
    longdesc = (
        "Runs COMMAND, or the application in FILE, under systemd: Type=notify is told when it has "
        "started, WatchdogSec= that it is alive, systemctl status what it is. If one of its "
        "services has a method reload, SIGHUP and systemctl reload call it."
    )
    optFlags = [
        ["adopt", None, "Where the program listens on the address of a passed socket, use that."]
    ]
    optParameters = [["python", "y", None, "Run the application in this file, as twistd does."]]

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Callable[[], Any], str]]:
        """The commands of twistd, but for this one. Looking at them imports none."""
        self.makers = {each.tapname: each for each in getPlugins(IServiceMaker)}
        for name in sorted(self.makers.keys() - {_NAME}):
            yield (
                name,
                None,
                partial(_makeOptions, self.makers[name]),
                self.makers[name].description,
            )

    def __missing__(self, key: str) -> Any:
        """Say what twistd was told, to a command that asks its parent."""
        parent: Any = self.parent
        if parent is None:
            raise KeyError(key)
        return parent[key]

    def postOptions(self) -> None:
        """
        See that there is a command, or a file.

        @raise SystemExit: there is neither, or there are both.
        """
        if (self.subCommand is None) == (self["python"] is None):
            twistd = os.path.basename(sys.argv[0])  # Debian calls it twistd3
            raise SystemExit(
                refusalLine(
                    f"systemd: which command? {twistd} systemd COMMAND [options of that command], "
                    f"or {twistd} systemd --python=FILE; {twistd} systemd --help has all"
                )
            )


def _makeOptions(maker: Any) -> Any:
    return maker.options()  # it may import the command, when that is the one


def makeService(options: Options) -> MultiService:
    """
    Make the program's service, and what talks with systemd.

    @param options: parsed.
    @return: both; the first alone, if it talks with systemd by itself.
    """
    from twisted.internet import reactor

    ports = adoptPorts(reactor) if options["adopt"] else None
    if ports is not None:
        atexit.register(ports.report)  # after a start that failed, it explains why
    service, description = _loadApplication(options) if options["python"] else _runMaker(options)
    services = StartingService()
    service.setServiceParent(services)
    if _isTalking(service):
        if ports is not None:
            reactor.callWhenRunning(ports.report)
        return services
    told = list(_findMethods(IService(service), "status"))
    reloads = list(_findMethods(IService(service), "reload"))
    NotifyService(
        reactor,
        status=lambda: "; ".join(str(tell()) for tell in told) or description,
        reload=partial(_reloadAll, reloads) if reloads else None,
        ready=None if ports is None else partial(_finishStart, ports),
    ).setServiceParent(services)
    return services


def _runMaker(options: Options) -> tuple[Any, str]:
    """@return: the other command's service, and what it is."""
    maker = options.makers[str(options.subCommand)]
    return maker.makeService(options.subOptions), f"{maker.tapname}: {maker.description}"


def _loadApplication(options: Options) -> tuple[Any, str]:
    """
    Load a file as C{twistd --python} does. A user and a group in it are used by twistd.

    @return: the application's service, and its name.
    @raise SystemExit: the file cannot be read, or one that it reads.
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
    service: Any = IService(application)
    return service, service.name


def _finishStart(ports: AdoptedPorts) -> None:
    ports.check()
    ports.report()


async def _reloadAll(reloads: list[Callable[[], Any]]) -> None:
    for reload in reloads:
        ending = reload()
        if isinstance(ending, Awaitable):
            await ending


def _isTalking(service: Any) -> bool:
    if IServiceCollection.providedBy(service):
        return any(map(_isTalking, service))
    return isinstance(service, NotifyService)


def _findMethods(service: Any, name: str) -> Iterator[Callable[[], Any]]:
    """
    @return: the method of the service or, if it has none, of the services in it. It needs no
        argument; what else is called so may mean another thing.
    """
    method = getattr(service, name, None)
    try:
        signature(method).bind()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        if IServiceCollection.providedBy(service):
            for child in service:
                yield from _findMethods(child, name)
    else:
        yield cast(Callable[[], Any], method)
