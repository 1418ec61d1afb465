from buildbot.master import BuildMaster
from twisted.application.service import Application
from twisted.internet import reactor

from fastpoetry.systemd.notify import NotifyService, StartingService

application = Application("master")
services = StartingService()
services.setServiceParent(application)
BuildMaster("/var/lib/master", "master.cfg").setServiceParent(services)
NotifyService(reactor).setServiceParent(services)
