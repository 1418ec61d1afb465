from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.web.server import Site
from twisted.web.static import Data

from fastpoetry.systemd.notify import NotifyService

application = Application("two")
for name in ("public", "admin"):
    page = Data(f"This is {name}.\n".encode(), "text/plain")
    page.isLeaf = True
    service(f"adopted:name={name}", Site(page)).setServiceParent(application)
NotifyService(reactor).setServiceParent(application)
