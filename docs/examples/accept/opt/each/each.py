from contextlib import suppress

from twisted.internet import reactor
from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo

from fastpoetry.systemd.adopted import adoptConnection, inherited


class Once(Echo):
    def connectionLost(self, reason):
        with suppress(ReactorNotRunning):  # SIGTERM has stopped it
            reactor.stop()


for passed in inherited().take("connection"):
    with suppress(OSError):  # the client has gone meanwhile
        adoptConnection(reactor, passed.number, Factory.forProtocol(Once))
        reactor.run()
