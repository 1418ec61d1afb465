"""
One poem over two protocols, as a deployment: C{twistd --nodaemon --python poetry-xmlrpc.tac}.

A C{PoetryService} knows no protocol, so one of them serves both: plain TCP, and beside it XML-RPC::

    >>> from xmlrpc.client import ServerProxy
    >>> ServerProxy("http://127.0.0.1:10080").poem().data

It serves nothing by itself: plain Python only reads it and the poem.
"""

import os

from twisted.application.service import Application
from twisted.application.strports import service
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site
from twisted.web.xmlrpc import XMLRPC, Binary

from fastpoetry.listen import PoetryListener
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.command.options import refuse
from fastpoetry.poem import PoemError, PoemNamed
from fastpoetry.delivery.policy import Limits, Policy
from fastpoetry.protocol import PoetryFactory
from fastpoetry.service import PoetryService
from fastpoetry.tap import DEFAULT_POETRY_PATH

poem = "ecstasy"
listen = "tcp:10000:interface=127.0.0.1"
listenForXMLRPC = "tcp:10080:interface=127.0.0.1"

# The poems of the clone that this file is in come first; where there is none, those installed.
clone = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
folders = [os.path.join(clone, "poetry"), *DEFAULT_POETRY_PATH.split(":")]


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


selection = PoemNamed(poem, folders)
try:
    selection.load()
except PoemError as why:
    refuse(why)

application = Application("fastpoetry")
poetry = PoetryService(selection, reactor)
factory = PoetryFactory(poetry, Policy(Limits(), reactor))
for part in (
    poetry,
    PoetryListener(serverFromString(reactor, listen), factory, reactor),
    service(listenForXMLRPC, Site(PoetryXMLRPC(poetry))),
    NotifyService(reactor, reload=poetry.reload),
):
    part.setServiceParent(application)
