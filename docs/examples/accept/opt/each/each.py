from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo

from fastpoetry.systemd.adopted import adoptConnection, inherited


class Once(Echo):
    def connectionLost(self, reason):
        reactor.stop()


for passed in inherited().take("connection"):
    adoptConnection(reactor, passed.number, Factory.forProtocol(Once))
reactor.run()
