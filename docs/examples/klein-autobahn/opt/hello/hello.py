from klein import route, run
from twisted.internet import reactor
from twisted.logger import globalLogBeginner
from twisted.python.log import NullFile

from fastpoetry.systemd.journal import observer
from fastpoetry.systemd.notify import NotifyService


@route("/")
def hello(request):
    return "Hello.\n"


globalLogBeginner.beginLoggingTo([observer()])
notify = NotifyService(reactor)
notify.startService()
reactor.addSystemEventTrigger("before", "shutdown", notify.stopService)
run(endpoint_description="adopted:", logFile=NullFile())
