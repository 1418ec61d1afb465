"""What twistd and Twisted's endpoints find of fastpoetry: names only, so that it costs nothing."""

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
    A command whose process is its own.

    twistd runs one and nothing else, so that no TLS need be there for others, and nobody else's
    garbage is kept.
    """

    def makeService(self, options: Any) -> IService:
        """@see: C{makeService} of the command's module, which is for any program."""
        from fastpoetry.command.tls import importTwisted

        importTwisted(options.endpoints)
        service: IService = super().makeService(options)
        # What is loaded by now stays. A full collection looks at all of it, for as long as a
        # thousand poems take, and finds nothing (gc, Python Library Reference).
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
