"""
One poem by TCP and by UDP, as RFC 865 has it: C{twistd --nodaemon --pidfile= --python
poetry-udp.tac}.

A C{PoetryService} does not depend on a protocol, so one service serves both TCP and UDP. The answer
to each datagram is the first lines of the poem::

    $ echo | nc -u -w 1 127.0.0.1 10000

If systemd passes sockets, of C{ListenStream=} and C{ListenDatagram=}, the poem is served on those.
The source address of a datagram can be forged, so give such a unit an C{IPAddressAllow=}.

Under plain Python this file serves nothing.
"""

from contextlib import suppress
from socket import AF_INET, SOCK_DGRAM, socket
from time import monotonic

from twisted.application.service import Application, Service
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import DatagramProtocol

from fastpoetry.command.assembly import checkEndpoints, reloadAll
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

# RFC 865 recommends fewer than 512 characters: here 511, and a last newline.
mostBytes = 512

# This limit and the loopback interface keep attackers from using this server to flood others.
mostAnswersPerSecond = 20

folders = findPoetryPath(__file__).split(":")


class PoetryDatagrams(DatagramProtocol):
    """Answers each datagram with the beginning of the poem, and ignores its content."""

    def __init__(self, poetry):
        self._poetry = poetry
        self._second = self._answers = 0

    def datagramReceived(self, datagram, address):
        """Answer, up to a number of answers a second."""
        second = int(monotonic())
        if second != self._second:
            self._second, self._answers = second, 0
        if self._answers < mostAnswersPerSecond:
            self._answers += 1
            with suppress(OSError):  # no route, or a firewall: a datagram may always be lost
                self.transport.write(firstLines(self._poetry.poem.text), address)


class DatagramService(Service):
    """Receives datagrams while the service runs."""

    def __init__(self, listen):
        self._listen = listen

    def startService(self):
        """Begin to receive datagrams."""
        super().startService()
        self._port = self._listen()

    def stopService(self):
        """Stop receiving datagrams."""
        super().stopService()
        return self._port.stopListening()


def firstLines(text):
    """Return the whole lines that fit into a datagram, or the beginning of a long first line."""
    head = text[:mostBytes]
    end = len(text) if len(text) <= mostBytes else head.rfind(b"\n") + 1
    return head[: end or mostBytes]


# twistd runs this file under another name. The rest reads the poem and tries the ports.
if __name__ != "__main__":
    from twisted.internet import reactor

    selection = PoemNamed(poem, folders)
    try:
        selection.load()  # the service loads again; loading here reports an error in one line
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

    application = Application("fastpoetry")
    for part in (
        poetry,
        PoetryListener(endpoint, PoetryFactory(poetry), reactor),
        DatagramService(listenForUDP),
        NotifyService(reactor, reload=lambda: reloadAll([poetry.reload])),
    ):
        part.setServiceParent(application)
