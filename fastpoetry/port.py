"""
The fast way out of a listening socket.

Takes over the socket of a plain TCP or UNIX port and serves it without transports or protocols:
most readers cost an accept, a send and a close. Knows no files and nothing of systemd.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Protocol

from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IReactorFDSet,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.ledger import Address
from fastpoetry.poem import Poem
from fastpoetry.policy import Policy, Reader

_MOST_UNSENT_BYTES = 128 * 1024
"""
How much of a poem waits in the kernel for a reader that takes nothing.

What that costs the machine was measured as 320 KiB at most, since packets to a client with a tiny
receive buffer are mostly overhead. A larger poem follows as its reader takes it
(TCP_NOTSENT_LOWAT, tcp(7)); unlike a small SO_SNDBUF, that leaves the window free to grow for a
reader far away.
"""

_BATCH = 64
"""Connections accepted between two looks at everything else."""

_NOW = socket.MSG_DONTWAIT  # saves making each accepted socket non-blocking
_LAST = _NOW | socket.MSG_MORE  # the shutdown to follow sends the rest and FIN in one segment

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MOST_READS = 4
"""So that one that writes for ever holds up nobody; more is read at the next visit."""

# What clients write is read into the same place and never looked at.
_wastepaper = bytearray(65536)


class Source(Protocol):
    """
    Where the port gets its poems.
    """

    @property
    def poem(self) -> Poem | None:
        """
        The poem for the next reader, if there is one yet.
        """

    def whenPoem(self) -> Deferred[Poem]:
        """
        Wait for a poem; fails where there will be none for who waits now.
        """


def countUnacknowledged(connection: socket.SocketType) -> int:
    """
    How many bytes the system holds that the peer has not acknowledged, the end included.

    On a UNIX socket nothing is lost once it is written, so there is nothing to wait for.
    """
    if connection.family == socket.AF_UNIX:
        return 0
    count: int = struct.unpack("i", ioctl(connection.fileno(), TIOCOUTQ, b"\0\0\0\0"))[0]
    return count


def limitUnsent(connection: socket.SocketType, poem: Poem) -> None:
    """
    Keep a large poem that its reader does not take from filling the machine's memory.
    """
    # On a UNIX socket, net.core.wmem_default is the limit.
    if len(poem.text) > _MOST_UNSENT_BYTES and connection.family != socket.AF_UNIX:
        option = socket.TCP_NOTSENT_LOWAT
        connection.setsockopt(socket.IPPROTO_TCP, option, _MOST_UNSENT_BYTES)


def setLinger(connection: socket.SocketType, linger: bytes) -> None:
    """
    Set what a close means, for a listening socket's future connections too (inet_csk_clone_lock).

    A UNIX socket knows no reset.
    """
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@implementer(IWriteDescriptor)
class SocketReader(Reader):
    """
    A reader on a bare socket.

    The listening socket makes each connection reset on close. Only when the last byte is with the
    system is that taken back, so that whatever ends the process before, even a kill -9, is no end
    of the poem to its reader.
    """

    __slots__ = ("_policy", "_reactor", "_sentBytes", "_socket")

    def __init__(
        self,
        connection: socket.SocketType,
        address: Address,
        poem: Poem,
        now: float,
        policy: Policy,
        reactor: IReactorFDSet,
    ) -> None:
        """
        @param connection: may be blocking; it is never waited for.
        @param now: the clock's seconds.
        """
        super().__init__(poem, address, now)
        self._socket = connection
        self._policy = policy
        self._reactor = reactor
        self._sentBytes = 0

    def fileno(self) -> int:
        """
        The descriptor, for the reactor; -1 once closed.
        """
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """
        What legacy log records call us.
        """
        return "poetry"

    def start(self) -> None:
        """
        Send the poem, or as much as goes at once, and have the rest sent and the end looked after.
        """
        try:
            limitUnsent(self._socket, self.poem)
            self._send()
        except OSError:  # reset while it was in the backlog
            self._policy.ledger.left(self.poem, self.address, 0)
            self._socket.close()
            return
        if self._sentBytes == len(self.poem.text):
            self._policy.finish(self, self.startedAt)
        elif self._policy.isTooMany(self.address):
            self._policy.turnAway(self.address)
            self._socket.close()
        else:
            self._policy.begin(self)
            self._reactor.addWriter(self)

    def doWrite(self) -> Failure | None:
        """
        Send more, now that there is room for it.

        @return: what ends the connection, for the reactor, if something does.
        """
        try:
            self._send()
        except OSError as why:
            return Failure(why)
        if self._sentBytes == len(self.poem.text):
            self._reactor.removeWriter(self)
            self._policy.finish(self, self._policy.seconds())
        return None

    def hasClosed(self) -> bool:
        """
        Whether the client has closed its side; what it wrote before is thrown away.

        Unread input would make our close a reset, and that could overtake the poem.
        """
        try:
            for _ in range(_MOST_READS):
                if not self._socket.recv_into(_wastepaper, 0, _NOW):
                    return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def measure(self) -> int:
        """
        How many bytes of the poem the client has acknowledged.
        """
        # The end takes a place of its own in the sequence, and is none of the poem's bytes.
        return self._sentBytes - min(self._sentBytes, countUnacknowledged(self._socket))

    def close(self) -> None:
        """
        Close a connection whose client has everything.
        """
        self._socket.close()
        self._policy.leave(self)

    def reset(self) -> None:
        """
        Close a connection short of its end, with a reset (on a UNIX socket there is none).
        """
        setLinger(self._socket, RESET_ON_CLOSE)
        self._reactor.removeWriter(self)
        self.close()

    def connectionLost(self, reason: Failure) -> None:
        """
        The client went away while its poem was under way, as the reactor found out.
        """
        self.close()

    def _send(self) -> None:
        """
        Hand the system what it takes of the rest, without a copy; and the end after the last byte.
        """
        text = self.poem.text
        rest = memoryview(text)[self._sentBytes :] if self._sentBytes else text
        try:
            self._sentBytes += self._socket.send(rest, _LAST)
        except BlockingIOError:
            return
        if self._sentBytes == len(text):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, END_ON_CLOSE)
            self._socket.shutdown(socket.SHUT_WR)


@implementer(IListeningPort, IReadDescriptor)
class BorrowedPort:
    """
    A listening port that accepts in the place of another, and never more than the policy allows.

    It borrows the socket, and gives it back to be closed as its owner sees fit: an adopted socket
    stays with systemd, a UNIX socket's file goes.
    """

    def __init__(self, port: tcp.Port, policy: Policy, reactor: IReactorFDSet) -> None:
        """
        @param port: a listening one, and so is a L{twisted.internet.unix.Port}.
        @param policy: has the rules for readers.
        """
        self._port = port
        self._socket: socket.socket = port.socket
        self._policy = policy
        self._reactor = reactor

    def startListening(self) -> None:
        """
        Accept, in the place of the port that was there before.
        """
        self._port.stopReading()
        self.startReading()

    def stopListening(self) -> Deferred[None]:
        """
        Accept no more. Connections go on; see L{Policy.drain}.

        @return: fires when the socket is given back.
        """
        self.stopReading()
        stopped: Deferred[None] = maybeDeferred(self._port.stopListening)
        return stopped

    def getHost(self) -> IAddress:
        """
        Where we listen.
        """
        address: IAddress = self._port.getHost()
        return address

    def startReading(self) -> None:
        """
        Accept what comes.
        """
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """
        Leave what comes in the backlog.
        """
        self._reactor.removeReader(self)

    def fileno(self) -> int:
        """
        The listening descriptor, for the reactor.
        """
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """
        What legacy log records call us.
        """
        return "poetry"

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor lets go of us as it ends.
        """

    def doRead(self) -> None:
        """
        Have the other port accept, one at a time: by itself it takes a hundred, and closes those
        that it has no descriptor for.
        """
        for _ in range(_BATCH):
            if self._policy.isFull():
                return
            self._port.numberAccepts = 1
            self._port.doRead()
            if self._port.numberAccepts == 1:  # it would be more, had it accepted one
                return


class FastPort(BorrowedPort):
    """
    A listening port that sends poems, with nothing in between.
    """

    def __init__(
        self, port: tcp.Port, source: Source, policy: Policy, reactor: IReactorFDSet
    ) -> None:
        """
        @param port: as in L{BorrowedPort}.
        @param source: has the poem for each reader.
        """
        super().__init__(port, policy, reactor)
        self._source = source
        self._hasOldBacklog = True
        self._waiting: Deferred[Poem] | None = None

    def startListening(self) -> None:
        """
        Accept; from now on, connections are born with a reset for their end.
        """
        setLinger(self._socket, RESET_ON_CLOSE)
        super().startListening()

    def stopListening(self) -> Deferred[None]:
        """
        Accept no more, and leave the socket as it was.

        @return: fires when the socket is given back.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        setLinger(self._socket, END_ON_CLOSE)
        return super().stopListening()

    def doRead(self) -> None:
        """
        Serve who has come.
        """
        # What accept() does, but for flags and timeouts that nobody uses here.
        accept = self._socket._accept  # type: ignore[attr-defined]
        family = self._socket.family
        now = self._policy.seconds()
        for _ in range(_BATCH):
            poem = self._source.poem
            if poem is None:
                self._waitForPoem()
                return
            if self._policy.isFull():
                return
            try:
                descriptor, address = accept()
            except BlockingIOError:
                self._hasOldBacklog = False
                return
            except OSError as why:
                if why.errno in _EXHAUSTED:
                    self._policy.pause(why.strerror or str(why))
                    return
                continue  # it was the client's connection that failed (accept(2), Error handling)
            connection = socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor)
            if self._hasOldBacklog:  # from before startListening, so it inherited nothing
                setLinger(connection, RESET_ON_CLOSE)
            SocketReader(connection, address, poem, now, self._policy, self._reactor).start()

    def _waitForPoem(self) -> None:
        """
        Leave who comes in the backlog, until there is a poem for them or there will be none.
        """
        self.stopReading()
        if self._waiting is None:
            self._policy.arrive(self)  # for all who wait behind us: the server is not idle
            self._waiting = waiting = self._source.whenPoem()
            waiting.addCallbacks(self._serveAll, self._resetAll)

    def forgo(self) -> None:
        """
        Leave those who wait in the backlog, for who adopts the socket next.
        """

    def _serveAll(self, _: Poem) -> None:
        self._waiting = None
        self._policy.depart(self)
        self.startReading()

    def _resetAll(self, failure: Failure) -> None:
        """
        Let who has waited know that there is no poem, and begin anew with who comes next.
        """
        self._waiting = None
        self._policy.depart(self)
        if failure.check(CancelledError):  # by our own stop, which leaves them in the backlog
            return
        with suppress(OSError):  # there is nobody left, or we come back for them at once
            while True:
                connection, address = self._socket.accept()
                setLinger(connection, RESET_ON_CLOSE)
                connection.close()
                self._policy.ledger.turnedAway(address, "there is no poem yet")
        self.startReading()
