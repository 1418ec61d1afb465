"""Fastpoetry's plugins for twistd and Twisted's endpoints: only names, so the import is cheap."""

import gc
from typing import Any

from twisted.application.service import IService, ServiceMaker
from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _AdoptedParser:
    """The endpoint C{adopted:}, imported when it is first asked for."""

    prefix = "adopted"

    def parseStreamServer(self, reactor: Any, *args: str, **kwargs: str) -> IStreamServerEndpoint:
        """@see: L{fastpoetry.systemd.adopted.AdoptedParser}"""
        from fastpoetry.systemd.adopted import AdoptedParser

        return AdoptedParser().parseStreamServer(reactor, *args, **kwargs)


class _Command(ServiceMaker):
    """
    A command that has its process to itself.

    twistd runs one command only. So no other code needs TLS, and C{gc.freeze} keeps no other
    code's garbage.
    """

    def makeService(self, options: Any) -> IService:
        """@see: C{makeService} of the command's module, which any program may call."""
        from fastpoetry.command.tls import importTwisted

        importTwisted(options.endpoints)
        service: IService = super().makeService(options)
        # All objects of the start stay. A full collection would look at each of them and free no
        # memory. It would take the time of a thousand poems (gc, Python Library Reference).
        gc.freeze()
        return service


fastpoetry = _Command("fastpoetry", "fastpoetry.tap", "A fast poetry service.", "fastpoetry")
proxy = _Command(
    "fastpoetry-proxy", "fastpoetry.proxytap", "A caching proxy for poetry.", "fastpoetry-proxy"
)
systemd = ServiceMaker(
    "systemd",
    "fastpoetry.systemd.command",
    "Any other command, with readiness, watchdog, status and reload for systemd.",
    "systemd",
)
adopted = _AdoptedParser()
