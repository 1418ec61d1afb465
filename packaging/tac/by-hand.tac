"""
One poem, its parts put together by hand: C{twistd --nodaemon --pidfile= --python by-hand.tac}.

The other deployments leave that to C{makeService}. A source of poems and a listener are a block,
which is a C{MultiService} of its own; what tells systemd, and reloads at SIGHUP, comes last. It
serves nothing by itself: plain Python only reads it.
"""

from contextlib import suppress

from twisted.application.service import Application, MultiService
from twisted.internet.endpoints import serverFromString

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

folders = findPoetryPath(__file__).split(":")

# twistd runs it under another name; what follows reads the poem and tries the port.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # again at the start; here a refusal is one line
    except PoemError as why:
        refuse(why)
    endpoint = serverFromString(reactor, listen)
    checkEndpoints({listen: endpoint})

    block = MultiService()
    poetry = PoetryService(selection)
    poetry.setServiceParent(block)
    factory = PoetryFactory(poetry)
    PoetryListener(endpoint, factory, reactor).setServiceParent(block)

    async def reload():
        with suppress(PoemError):  # then the old one stays, and the log has it
            await poetry.reload()

    application = Application("fastpoetry")
    block.setServiceParent(application)
    NotifyService(reactor, reload=reload).setServiceParent(application)
