from socket import SOCK_DGRAM

from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.names.dns import DNSDatagramProtocol
from twisted.names.hosts import Resolver
from twisted.names.server import DNSServerFactory

from fastpoetry.systemd.adopted import AdoptedDatagrams, inherited
from fastpoetry.systemd.notify import NotifyService

factory = DNSServerFactory(clients=[Resolver("/etc/resolver")])
application = Application("resolver")
service("adopted:", factory).setServiceParent(application)
datagrams = AdoptedDatagrams(reactor, inherited().claim(kind=SOCK_DGRAM))
datagrams.listen(lambda: DNSDatagramProtocol(factory))
NotifyService(reactor).setServiceParent(application)
