"""
One poem by TCP and by UDP, as RFC 865 has it: C{twistd --nodaemon --pidfile= --python
poetry-udp.tac}.

A C{PoetryService} knows no protocol, so one of them serves both: TCP, and beside it UDP, where each
datagram is answered with the first lines of the poem::

    $ echo | nc -u -w 1 127.0.0.1 10000

Where systemd passes sockets it is served on those, C{ListenStream=} and C{ListenDatagram=}. A
datagram's sender may be somebody else's address: give such a unit an C{IPAddressAllow=}.

It serves nothing by itself: plain Python only reads it.
"""

from contextlib import suppress
from socket import AF_INET, SOCK_DGRAM, socket
from time import monotonic

from twisted.application.service import Application, Service
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import DatagramProtocol

from fastpoetry.command.assembly import checkEndpoints
from fastpoetry.command.options import refuse
from fastpoetry.listen import PoetryListener
from fastpoetry.poem import PoemError, PoemNamed
from fastpoetry.protocol import PoetryFactory
from fastpoetry.service import PoetryService
from fastpoetry.systemd.adopted import AdoptedDatagrams, inherited
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.tap import findPoetryPath

poem = "ecstasy"
listen = "tcp:10000:interface=127.0.0.1"
addressForUDP = ("127.0.0.1", 10000)

# RFC 865 asks for less than 512 characters, and here the last is a newline.
mostBytes = 512

# With this and the loopback interface nobody can have us flood anybody.
mostAnswersPerSecond = 20

folders = findPoetryPath(__file__).split(":")


class PoetryDatagrams(DatagramProtocol):
    """
    The beginning of the poem for each datagram, whatever is in that.
    """

    def __init__(self, poetry):
        self._poetry = poetry
        self._second = self._answers = 0

    def datagramReceived(self, datagram, address):
        """
        Answer, if not too many were answered in this second.
        """
        second = int(monotonic())
        if second != self._second:
            self._second, self._answers = second, 0
        if self._answers < mostAnswersPerSecond:
            self._answers += 1
            with suppress(OSError):  # no route, or a firewall: a datagram may always be lost
                self.transport.write(firstLines(self._poetry.poem.text), address)


class DatagramService(Service):
    """
    Receives for as long as it runs.
    """

    def __init__(self, listen):
        self._listen = listen

    def startService(self):
        """
        Receive.
        """
        super().startService()
        self._port = self._listen()

    def stopService(self):
        """
        Receive no more.
        """
        super().stopService()
        return self._port.stopListening()


def firstLines(text):
    """
    As many whole lines as go into a datagram; of a line that is too long for one, its beginning.
    """
    head = text[:mostBytes]
    end = len(text) if len(text) <= mostBytes else head.rfind(b"\n") + 1
    return head[: end or mostBytes]


# twistd runs it under another name; what follows reads the poem and tries the ports.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # again at the start; here a refusal is one line
    except PoemError as why:
        refuse(why)
    poetry = PoetryService(selection)

    def answer():
        return PoetryDatagrams(poetry)

    if inherited().descriptors:
        datagrams = AdoptedDatagrams(reactor, inherited().claim(kind=SOCK_DGRAM))
        endpoint = serverFromString(reactor, "adopted:")

        def listenForUDP():
            return datagrams.listen(answer)

    else:
        endpoint = serverFromString(reactor, listen)
        checkEndpoints({listen: endpoint})
        bound = socket(AF_INET, SOCK_DGRAM)
        bound.setblocking(False)
        try:
            bound.bind(addressForUDP)
        except OSError as why:
            refuse(f"{addressForUDP}: {why.strerror}")

        def listenForUDP():
            return reactor.adoptDatagramPort(bound.fileno(), AF_INET, answer())

    async def reload():
        with suppress(PoemError):  # then the old one stays, and the log has it
            await poetry.reload()

    application = Application("fastpoetry")
    for part in (
        poetry,
        PoetryListener(endpoint, PoetryFactory(poetry), reactor),
        DatagramService(listenForUDP),
        NotifyService(reactor, reload=reload),
    ):
        part.setServiceParent(application)
