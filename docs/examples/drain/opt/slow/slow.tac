from twisted.application.service import Application, Service
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from fastpoetry.systemd.notify import NotifyService


class Channel(HTTPChannel):
    def connectionMade(self):
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason):
        super().connectionLost(reason)
        self.site.remove(self)


class Draining(Site, Service):
    """
    A site whose stop waits for its requests.
    """

    protocol = Channel
    stopped = None

    def __init__(self, resource):
        super().__init__(resource)
        self.channels = set()

    def remove(self, channel):
        self.channels.discard(channel)
        if self.stopped is not None and not self.channels:
            self.stopped.callback(None)

    def stopService(self):
        super().stopService()
        for channel in list(self.channels):
            channel.persistent = False  # the channel closes after its answer
            if not channel.requests:
                channel.loseConnection()
        if self.channels:
            self.stopped = Deferred()
        return self.stopped


class Slow(Resource):
    isLeaf = True

    def render_GET(self, request):
        deferLater(reactor, 1, request.write, b"at last\n").addCallback(lambda _: request.finish())
        return NOT_DONE_YET


application = Application("slow")
site = Draining(Slow())
site.setServiceParent(application)  # before the port: services stop in reverse order
service("adopted:", site).setServiceParent(application)
NotifyService(reactor).setServiceParent(application)
