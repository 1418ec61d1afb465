"""
Tells clients how many bytes they have sent, also before a restart.
"""

import json
import os
from contextlib import suppress

from twisted.application.service import Application, Service
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from fastpoetry.systemd.adopted import adoptConnection, detachConnection
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.systemd.store import Store, makeMemory, pack, readMemory, unpack


class Tally(Protocol):
    total = 0

    def connectionMade(self):
        self.factory.clients.append(self)

    def dataReceived(self, data):
        self.total += len(data)
        self.transport.write(b"%d\n" % self.total)

    def connectionLost(self, reason):
        self.factory.clients.remove(self)


class Keeper(Service):
    """
    Leaves the clients to the next process, and takes over those of the last one.
    """

    _log = Logger()

    def __init__(self, factory):
        self.factory = factory
        self.store = Store(reactor)

    def startService(self):
        super().startService()
        reactor.callWhenRunning(self.adopt)  # before that, SIGTERM would lose the clients

    def adopt(self):
        stored = self.store.take("totals") + self.store.take("clients")
        if len(stored) == 2:
            totals = json.loads(readMemory(stored[0].number, 2**20))
            for number, total in zip(unpack(stored[1].number), totals, strict=True):
                with suppress(OSError):  # the client has gone meanwhile
                    adoptConnection(reactor, number, self.factory).protocol.total = total
        if stored:
            for each in stored:
                os.close(each.number)
            self.store.removeNow("totals", "clients")

    def stopService(self):
        super().stopService()
        return maybeDeferred(self.leave).addErrback(
            lambda failure: self._log.failure("no client is kept", failure)
        )

    def leave(self):
        clients = list(self.factory.clients)
        totals = makeMemory(json.dumps([client.total for client in clients]).encode())
        packed = pack([detachConnection(client.transport) for client in clients])
        return self.store.put({"totals": [totals], "clients": [packed]}, poll=False)


factory = Factory.forProtocol(Tally)
factory.clients = []
application = Application("tally")
Keeper(factory).setServiceParent(application)  # before the port: services stop in reverse order
service("adopted:", factory).setServiceParent(application)
notify = NotifyService(reactor, status=lambda: f"{len(factory.clients)} clients")
notify.setServiceParent(application)
