"""
A signpost on the web: GET /NAME leads to the address that a table has for NAME.
"""

from twisted.application.service import MultiService
from twisted.application.strports import service
from twisted.logger import Logger
from twisted.python import usage
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.util import redirectTo

from fastpoetry.systemd.notify import NotifyService


class Signpost(Resource):
    isLeaf = True
    _log = Logger()

    def __init__(self, path):
        super().__init__()
        self._path = path
        self._requests = 0
        self.read()

    def read(self):
        with open(self._path) as table:
            self._addresses = dict(line.split() for line in table)

    def describe(self):
        return f"{len(self._addresses)} names, {self._requests} requests"

    def render_GET(self, request):
        self._requests += 1
        name = b"/".join(request.postpath).decode(errors="replace")
        if name in self._addresses:
            return redirectTo(self._addresses[name].encode(), request)
        self._log.warn(
            "nothing is called {name}", name=name, message_id="bf959922182f406294f59108d0a5d6d0"
        )
        request.setResponseCode(404)
        return b"Nothing is called that.\n"


class Options(usage.Options):
    optParameters = [["table", "t", "/etc/signpost", "A name and an address on each line."]]


def makeService(options):
    from twisted.internet import reactor

    try:
        signpost = Signpost(options["table"])
    except (OSError, ValueError) as why:
        raise SystemExit(f"signpost: --table {options['table']}: {why}") from None
    services = MultiService()
    service("adopted:", Site(signpost)).setServiceParent(services)
    notify = NotifyService(reactor, status=signpost.describe, reload=signpost.read)
    notify.setServiceParent(services)
    return services
