from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet import reactor

from fastpoetry.systemd.notify import NotifyService


class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


factory = WebSocketServerFactory()
factory.protocol = Echo
application = Application("echo")
service("adopted:", factory).setServiceParent(application)
NotifyService(reactor).setServiceParent(application)
