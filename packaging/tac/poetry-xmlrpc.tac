"""
One poem over two protocols: C{twistd --nodaemon --python poetry-xmlrpc.tac}.

A C{PoetryService} does not depend on a protocol, so one service serves both TCP and XML-RPC::

    >>> from xmlrpc.client import ServerProxy
    >>> ServerProxy("http://127.0.0.1:10080").poem().data

Under plain Python this file serves nothing.
"""

from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site
from twisted.web.xmlrpc import XMLRPC, Binary

from fastpoetry.command.assembly import checkEndpoints, reloadAll
from fastpoetry.command.options import refuse
from fastpoetry.listen import PoetryListener
from fastpoetry.poem import PoemError, PoemNamed
from fastpoetry.protocol import PoetryFactory
from fastpoetry.service import PoetryService
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.tap import findPoetryPath

poem = "ecstasy"
listen = "tcp:10000:interface=127.0.0.1"
listenForXMLRPC = "tcp:10080:interface=127.0.0.1"

folders = findPoetryPath(__file__).split(":")


class PoetryXMLRPC(XMLRPC):
    """Serves the poem as a remote procedure."""

    def __init__(self, poetry):
        super().__init__()
        self._poetry = poetry

    def xmlrpc_poem(self):
        """Return the bytes of the poem, as Binary because XML cannot contain every character."""
        return Binary(self._poetry.poem.text)


# twistd runs this file under another name. The rest reads the poem and tries the ports.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # the service loads again; loading here reports an error in one line
    except PoemError as why:
        refuse(why)

    poetry = PoetryService(selection)
    endpoint = serverFromString(reactor, listen)
    xmlrpc = service(listenForXMLRPC, Site(PoetryXMLRPC(poetry)), reactor)
    checkEndpoints({listen: endpoint, listenForXMLRPC: xmlrpc.endpoint})

    application = Application("fastpoetry")
    for part in (
        poetry,
        PoetryListener(endpoint, PoetryFactory(poetry), reactor),
        xmlrpc,
        NotifyService(reactor, reload=lambda: reloadAll([poetry.reload])),
    ):
        part.setServiceParent(application)
