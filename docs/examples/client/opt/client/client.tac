from twisted.application.internet import ClientService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol

from fastpoetry.systemd.notify import NotifyService

application = Application("client")
endpoint = clientFromString(reactor, "unix:/run/dbus/system_bus_socket")
client = ClientService(endpoint, Factory.forProtocol(Protocol))
client.setServiceParent(application)
NotifyService(reactor, ready=lambda: client.whenConnected(failAfterFailures=3)).setServiceParent(application)
