"""
A poetry server as in a Twisted tutorial, to compare the fast one with.

It is one plugin file. It has no deadlines and no limits, closes right after its write, and logs
each poem.
"""

# A tutorial's code, and Twisted's types disagree with it.
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

from twisted.application import internet, service, strports
from twisted.internet.protocol import Factory, Protocol
from twisted.plugin import IPlugin
from twisted.python import log, usage
from zope.interface import implementer


class PoetryProtocol(Protocol):
    """Send the poem and close."""

    factory: PoetryFactory

    def connectionMade(self) -> None:
        poem = self.factory.service.poem
        log.msg(f"sending {len(poem)} bytes of poetry to {self.transport.getPeer()}")
        self.transport.write(poem)
        self.transport.loseConnection()


class PoetryFactory(Factory):
    """Make protocols that know the service with the poem."""

    protocol = PoetryProtocol
    noisy = False

    def __init__(self, source: PoetryService) -> None:
        self.service = source


class PoetryService(service.Service):
    """Read the poem at the start."""

    poem = b""

    def __init__(self, path: str) -> None:
        self.path = path

    def startService(self) -> None:
        super().startService()
        with open(self.path, "rb") as poem:
            self.poem = poem.read()
        log.msg(f"loaded a poem from: {self.path}")


class Options(usage.Options):
    """A poem and where to serve it."""

    optParameters = [
        ["port", "p", 10000, "The port number to listen on.", int],
        ["poem", None, None, "The path to the poem."],
        ["iface", None, "localhost", "The interface to listen on."],
        ["listen", None, None, "An endpoint to listen on instead."],
    ]


@implementer(service.IServiceMaker, IPlugin)
class TutorialServiceMaker:
    """Puts the service and its port together."""

    tapname = "tutorial-poetry"
    description = "A tutorial's poetry service."
    options = Options

    def makeService(self, options: dict[str, Any]) -> service.MultiService:
        parent = service.MultiService()
        source = PoetryService(options["poem"])
        source.setServiceParent(parent)
        factory = PoetryFactory(source)
        if options["listen"]:
            port = strports.service(options["listen"], factory)
        else:
            port = internet.TCPServer(options["port"], factory, interface=options["iface"])
        port.setServiceParent(parent)
        return parent


serviceMaker = TutorialServiceMaker()
