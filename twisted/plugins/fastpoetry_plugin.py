"""
What twistd and Twisted's endpoints find of fastpoetry: names only, so that looking costs nothing.
"""

from typing import Any

from twisted.application.service import ServiceMaker
from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _AdoptedParser:
    """
    The endpoint C{adopted:}, imported when it is first asked for.
    """

    prefix = "adopted"

    def parseStreamServer(self, reactor: Any, *args: str, **kwargs: str) -> IStreamServerEndpoint:
        """
        @see: L{fastpoetry.systemd.adopted.AdoptedParser}
        """
        from fastpoetry.systemd.adopted import AdoptedParser

        return AdoptedParser().parseStreamServer(reactor, *args, **kwargs)


fastpoetry = ServiceMaker("fastpoetry", "fastpoetry.tap", "A fast poetry service.", "fastpoetry")
proxy = ServiceMaker(
    "fastpoetry-proxy", "fastpoetry.proxytap", "A caching proxy for poetry.", "fastpoetry-proxy"
)
adopted = _AdoptedParser()
