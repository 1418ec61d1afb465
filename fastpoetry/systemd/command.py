"""
The twistd command C{systemd}, which runs any other: C{twistd systemd web --listen=adopted:}.

The other command has its own options and makes its own service, unchanged; to it come readiness,
signs of life, a status and, if its service has a C{reload}, that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any

from twisted.application.service import IService, IServiceCollection, IServiceMaker, MultiService
from twisted.plugin import getPlugins
from twisted.python import usage

from fastpoetry.systemd.notify import NotifyService, StartingService

__all__ = ["Options", "makeService"]

_NAME = "systemd"


class Options(usage.Options):
    """The other command, and its options."""

    synopsis = "COMMAND [options of that command]"
    longdesc = (
        "Runs COMMAND under systemd: Type=notify is told when it has started, WatchdogSec= that it "
        "is alive, systemctl status what it is. If its service has a method reload, SIGHUP and "
        "systemctl reload call it."
    )

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
        See that there is a command.

        @raise SystemExit: there is none.
        """
        if self.subCommand is None:
            twistd = os.path.basename(sys.argv[0])  # Debian calls it twistd3
            raise SystemExit(
                f"systemd: which command? {twistd} systemd COMMAND [options of that command]; "
                f"{twistd} systemd --help has all"
            )


def _makeOptions(maker: Any) -> Any:
    return maker.options()  # it may import the command, when that is the one


def makeService(options: Options) -> MultiService:
    """
    Make the other command's service, and what talks with systemd.

    @param options: parsed.
    @return: both; the first alone, if it talks with systemd by itself.
    """
    from twisted.internet import reactor

    maker = options.makers[str(options.subCommand)]
    service: Any = maker.makeService(options.subOptions)
    services = StartingService()
    service.setServiceParent(services)
    if _isTalking(service):
        return services
    provided: Any = IService(service)

    def describe() -> str:
        return f"{maker.tapname}: {maker.description}"

    NotifyService(
        reactor,
        status=_findMethod(provided, "status") or describe,
        reload=_findMethod(provided, "reload"),
    ).setServiceParent(services)
    return services


def _isTalking(service: Any) -> bool:
    if IServiceCollection.providedBy(service):
        return any(map(_isTalking, service))
    return isinstance(service, NotifyService)


def _findMethod(service: Any, name: str) -> Callable[[], Any] | None:
    """@return: a method that needs no argument; what else is called so may mean another thing."""
    method = getattr(service, name, None)
    try:
        signature(method).bind()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return method
