from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.task import react
from twisted.logger import globalLogBeginner
from twisted.protocols.wire import Echo

from fastpoetry.systemd.journal import observer
from fastpoetry.systemd.notify import NotifyService


async def main(reactor):
    await serverFromString(reactor, "adopted:").listen(Factory.forProtocol(Echo))
    notify = NotifyService(reactor, status=lambda: "echoing")
    notify.startService()
    reactor.addSystemEventTrigger("before", "shutdown", notify.stopService)
    await Deferred()


globalLogBeginner.beginLoggingTo([observer()])
react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
