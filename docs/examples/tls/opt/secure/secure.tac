import os

from OpenSSL.SSL import Error
from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.server import Site
from twisted.web.static import Data

from fastpoetry.systemd.notify import NotifyService


class Certificate:
    """
    A certificate with its chain and its key, as last read.
    """

    def __init__(self, chain, key):
        self._chain, self._key = chain, key
        self.read()

    def read(self):
        context = CertificateOptions().getContext()
        context.use_certificate_chain_file(self._chain)
        context.use_privatekey_file(self._key)
        context.check_privatekey()
        self._context = context

    def getContext(self):
        return self._context


folder = os.environ.get("CREDENTIALS_DIRECTORY", "/etc/secure")
try:
    certificate = Certificate(f"{folder}/chain.pem", f"{folder}/key.pem")
except Error as why:
    raise SystemExit(f"secure: {folder}: {why}")
page = Data(b"in private\n", "text/plain")
page.isLeaf = True
application = Application("secure")
service("adopted:", TLSMemoryBIOFactory(certificate, False, Site(page))).setServiceParent(application)
NotifyService(reactor, reload=certificate.read).setServiceParent(application)
