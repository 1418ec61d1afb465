"""
One poem, assembled by hand: C{twistd --nodaemon --pidfile= --python by-hand.tac}.

C{fastpoetry.tac} calls C{makeService} instead. A source of poems and its listener form a block, a
C{MultiService}. C{NotifyService}, which reports to systemd and reloads at SIGHUP, starts last.
Under plain Python this file serves nothing.
"""

from twisted.application.service import Application, MultiService
from twisted.internet.endpoints import serverFromString

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

folders = findPoetryPath(__file__).split(":")

# twistd runs this file under another name. The rest reads the poem and tries the port.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # the service loads again; loading here reports an error in one line
    except PoemError as why:
        refuse(why)
    endpoint = serverFromString(reactor, listen)
    checkEndpoints({listen: endpoint})

    block = MultiService()
    poetry = PoetryService(selection)
    poetry.setServiceParent(block)
    factory = PoetryFactory(poetry)
    PoetryListener(endpoint, factory, reactor).setServiceParent(block)

    application = Application("fastpoetry")
    block.setServiceParent(application)
    NotifyService(reactor, reload=lambda: reloadAll([poetry.reload])).setServiceParent(application)
