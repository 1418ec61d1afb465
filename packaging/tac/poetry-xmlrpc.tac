"""
One poem over two protocols, as a deployment: C{twistd --nodaemon --python poetry-xmlrpc.tac}.

A C{PoetryService} knows no protocol, so one of them serves both: plain TCP, and beside it XML-RPC::

    >>> from xmlrpc.client import ServerProxy
    >>> ServerProxy("http://127.0.0.1:10080").poem().data

It serves nothing by itself: plain Python only reads it.
"""

from contextlib import suppress

from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site
from twisted.web.xmlrpc import XMLRPC, Binary

from fastpoetry.command.assembly import checkEndpoints
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
    """
    The poem as a remote procedure.
    """

    def __init__(self, poetry):
        super().__init__()
        self._poetry = poetry

    def xmlrpc_poem(self):
        """
        Its bytes: as Binary, since XML has no place for every character.
        """
        return Binary(self._poetry.poem.text)


# twistd runs it under another name; what follows reads the poem and tries the ports.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # again at the start; here a refusal is one line
    except PoemError as why:
        refuse(why)

    poetry = PoetryService(selection)
    endpoint = serverFromString(reactor, listen)
    xmlrpc = service(listenForXMLRPC, Site(PoetryXMLRPC(poetry)), reactor)
    checkEndpoints({listen: endpoint, listenForXMLRPC: xmlrpc.endpoint})

    async def reload():
        with suppress(PoemError):  # then the old one stays, and the log has it
            await poetry.reload()

    application = Application("fastpoetry")
    for part in (
        poetry,
        PoetryListener(endpoint, PoetryFactory(poetry), reactor),
        xmlrpc,
        NotifyService(reactor, reload=reload),
    ):
        part.setServiceParent(application)
