"""
The fast way out of a listening socket.

Takes over the socket of a plain TCP or UNIX port and serves it without transports or protocols:
most readers cost an accept, a send and a close. Knows no files and nothing of systemd.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, NamedTuple

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

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.gate import Gate
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Reader, Source
from fastpoetry.delivery.sockets import (
    END_ON_CLOSE,
    FAMILIES,
    MOST_UNSENT_BYTES,
    RESET_ON_CLOSE,
    countUnacknowledged,
    countWaiting,
    findAddress,
    isOver,
    limitUnsent,
    setLinger,
)
from fastpoetry.poem import Poem

_BATCH = 64
"""Connections accepted between two looks at everything else."""

_NOW = socket.MSG_DONTWAIT  # saves making each accepted socket non-blocking
_LAST = _NOW | socket.MSG_MORE  # the shutdown to follow sends the rest and FIN in one segment

_SHORT = "few descriptors are left (LimitNOFILE=)"

_FAILED = "accepting failed"
_UNSERVED = "serving it failed"

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MOST_READS = 4
"""So that one that writes for ever holds up nobody; more is read at the next visit."""

_discarded = bytearray(65536)
"""What clients write is read into the same place and never looked at."""


class Home(NamedTuple):
    """
    What serves a reader.

    @ivar policy: the rules for it.
    @ivar reactor: says when the socket takes more of its poem.
    """

    policy: Policy
    reactor: IReactorFDSet


@implementer(IWriteDescriptor)
class SocketReader(socket.SocketType):
    """
    A reader that is its own socket: most need nothing else.

    The listening socket makes each connection reset on close, so that whatever ends the process,
    even a kill -9, is no end of the poem to its reader. Once the last byte is with the system, that
    is taken back from those who have not closed when they are first looked after. Most have by
    then, and need it no more.

    @ivar poem: what it is sent.
    @ivar address: whose it is.
    @ivar home: what serves it.
    @ivar sentBytes: how much of the poem the system has.
    """

    mayHandOver = True
    __slots__ = ("address", "home", "poem", "sentBytes")

    poem: Poem
    address: Address
    home: Home
    sentBytes: int

    def logPrefix(self) -> str:
        """What legacy log records call us."""
        return "poetry"

    def start(self, now: float) -> bool:
        """
        Send the poem. If not all of it goes at once, the rest is sent as the client takes it.

        @param now: the clock's seconds.
        @return: whether the system has all of it.
        """
        try:
            if len(self.poem.text) > MOST_UNSENT_BYTES:
                limitUnsent(self)
                # Where there is no reset, a part of the poem would look whole.
                if not FAMILIES[self.family].hasReset and self._turnAwayIfTooMany():
                    return False
            if self._send():
                return True
        except OSError:  # reset while it was in the backlog
            self.home.policy.ledger.left(self.poem, self.address, 0)
            self.close()
            return False
        if not self._turnAwayIfTooMany():
            self.home.policy.begin(self, now)
            self.home.reactor.addWriter(self)
        return False

    def _turnAwayIfTooMany(self) -> bool:
        """Turn the reader away, if its source has as many as it may; whether that was so."""
        self.address = findAddress(self, self.address)
        isTooMany = self.home.policy.isTooMany(self.address)
        if isTooMany:
            self.home.policy.turnAway(self.address)
            self.close()
        return isTooMany

    def sendRest(self) -> None:
        """Send what the client has yet to get, as it takes it."""
        try:
            self.home.reactor.addWriter(self)
        except (OSError, MemoryError):  # the reactor cannot watch one more
            self.home.policy.giveUp(self, _UNSERVED)

    def doWrite(self) -> Failure | None:
        """
        Send more, now that there is room for it.

        @return: what ends the connection, for the reactor, if something does.
        """
        try:
            if self._send():
                setLinger(self, END_ON_CLOSE)
                self.home.reactor.removeWriter(self)
                self.home.policy.finish(self)
        except OSError as why:
            return Failure(why)
        return None

    def closeAfterClient(self) -> bool:
        """
        Close the connection if the client has closed its side; what it wrote before is thrown away.

        Most connections are over by then, with nothing left for a close to lose. Whatever ends one
        that is not is an end of the poem from now on, since the system has all of it. Unread input
        would make our close a reset, and that could overtake the poem.
        """
        if isOver(self):
            self.close()
            return True
        setLinger(self, END_ON_CLOSE)
        try:
            for _ in range(_MOST_READS):
                if not self.recv_into(_discarded, 0, _NOW):
                    break
            else:
                return False
        except BlockingIOError:
            return False
        except OSError:
            pass  # reset by the client
        self.close()
        return True

    def countTaken(self) -> int:
        """How many bytes of the poem the client has acknowledged."""
        # The end takes a place of its own in the sequence, and is none of the poem's bytes.
        return self.sentBytes - min(self.sentBytes, countUnacknowledged(self))

    def isSent(self) -> bool:
        """Whether the system has all of the poem, and so goes on sending it when we are gone."""
        return self.sentBytes == len(self.poem.text)

    def end(self) -> None:
        """Close a connection whose client has everything, or will have it from the system."""
        if not self.closeAfterClient():  # which sees to it that our close is no reset
            self.close()

    def reset(self) -> None:
        """Close a connection short of its end, with a reset (on a UNIX socket there is none)."""
        setLinger(self, RESET_ON_CLOSE)
        self.home.reactor.removeWriter(self)
        self.close()

    def connectionLost(self, reason: Failure) -> None:
        """The client went away while its poem was under way, as the reactor found out."""
        self.close()
        self.home.policy.remove(self)

    def _send(self) -> bool:
        """
        Hand the system what it takes of the rest, without a copy; and the end after the last byte.

        @return: whether it has everything.
        """
        text = self.poem.text
        rest = memoryview(text)[self.sentBytes :] if self.sentBytes else text
        try:
            self.sentBytes += self.send(rest, _LAST)
        except BlockingIOError:
            return False
        if self.sentBytes < len(text):
            return False
        self.shutdown(socket.SHUT_WR)
        return True


@implementer(IListeningPort, IReadDescriptor)
class BorrowedPort:
    """
    A listening port that accepts in the place of another, and never more than the policy allows.

    It borrows the socket, and gives it back to be closed as its owner sees fit: an adopted socket
    stays with systemd, a UNIX socket's file goes.
    """

    _isListening = False
    _wasShort = False

    def __init__(self, port: tcp.Port, policy: Policy, reactor: IReactorFDSet) -> None:
        """
        @param port: a listening one, and so is a C{twisted.internet.unix.Port}.
        @param policy: has the rules for readers.
        """
        self._port = port
        self._socket: socket.socket = port.socket
        self.fileno = self._socket.fileno  # which the reactor asks for at each turn
        self.policy = policy
        self.reactor = reactor
        self._gate = Gate(policy.clock, policy.tellClosed)

    def startListening(self) -> None:
        """
        Accept, in the place of the port that was there before.

        From now on, connections are born with a reset for their end. The socket keeps this option:
        another process may accept from it too, and would lose the reset.
        """
        setLinger(self._socket, RESET_ON_CLOSE)
        self._isListening = True
        self._gate.add(self)
        self._port.stopReading()
        self.startReading()

    def stopListening(self) -> Deferred[None]:
        """
        Accept no more. Connections go on; see L{Policy.drain}.

        @return: fires when the socket is given back.
        """
        self._isListening = False
        self._gate.remove(self)
        self._gate.open()  # which runs no timer from now on
        self.stopReading()
        stopped: Deferred[None] = maybeDeferred(self._port.stopListening)
        return stopped

    @property
    def isAlive(self) -> bool:
        """Whether the port accepts, or will by itself."""
        willAccept = self._gate.willOpen or self.policy.gate.willOpen
        return willAccept or self in self.reactor.getReaders()

    def getHost(self) -> IAddress:
        """Where we listen."""
        address: IAddress = self._port.getHost()
        return address

    def startReading(self) -> None:
        """Accept what comes."""
        self.reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave what comes in the backlog."""
        self.reactor.removeReader(self)

    def logPrefix(self) -> str:
        """What legacy log records call us."""
        return "poetry"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of the port, as it ends or after an error: try again in a moment."""
        if self._isListening:
            self._pauseAlone(_FAILED)

    def doRead(self) -> None:
        """Accept connections, and make transports for them as the other port does."""
        failures = 0
        for _ in range(_BATCH):
            self.policy.pauseIfFull()
            if not self.policy.room or self._pauseIfShort():
                return
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as why:
                failures += 1
                if self._pauseAfter(why, failures):
                    return
            else:
                self._countDescriptors(connection.fileno())
                self._connect(connection, address)

    def _connect(self, connection: socket.socket, address: Any) -> None:
        """Connect a protocol of the other port's factory (C{tcp.Port.doRead})."""
        port: Any = self._port
        try:
            protocol = port.factory.buildProtocol(port._buildAddr(address))
            if protocol is None:
                connection.close()
                return
            transport = port.transport(
                connection, protocol, address, port, port.sessionno, port.reactor
            )
        except BaseException:  # nobody else would close it
            connection.close()
            raise
        port.sessionno += 1
        protocol.makeConnection(transport)

    def _countDescriptors(self, newest: int) -> None:
        """Learn from the number of a new descriptor whether few are left."""
        self._wasShort = newest >= self.policy.mostDescriptor

    def _pauseIfShort(self) -> bool:
        """Pause if so few descriptors are left that they are kept for others; whether that is."""
        if self._wasShort:
            self._wasShort = self._isShort()
        if self._wasShort:
            self.policy.pause(_SHORT)
        return self._wasShort

    def _isShort(self) -> bool:
        """Whether so few descriptors are left that they are kept for what else may need one."""
        try:
            lowest = os.dup(self._socket.fileno())
        except OSError:
            return True
        os.close(lowest)
        return lowest >= self.policy.mostDescriptor

    def _pauseAfter(self, why: OSError, failures: int) -> bool:
        """
        Pause if accepting fails for all connections, not for one (accept(2), Error handling).

        @param why: the last failure.
        @param failures: how many connections of this batch could not be accepted.
        @return: whether it does.
        """
        cause = why.strerror or str(why)
        if why.errno in _EXHAUSTED:
            self.policy.pause(cause)
        elif failures == _BATCH:
            self._pauseAlone(cause)
        else:
            return False
        return True

    def _pauseAlone(self, cause: str) -> None:
        """Accept nobody for a moment; other ports may."""
        self._gate.close()
        self.policy.tellClosed(cause)


class FastPort(BorrowedPort):
    """A listening port that sends poems, with nothing in between."""

    def __init__(
        self, port: tcp.Port, source: Source, policy: Policy, reactor: IReactorFDSet
    ) -> None:
        """
        @param port: as in L{BorrowedPort}.
        @param source: has the poem for each reader.
        """
        super().__init__(port, policy, reactor)
        self._source = source
        self._home = Home(policy, reactor)
        self._family = self._socket.family
        self._hasOldBacklog = True
        self._isRefusing = False
        self._waiting: Deferred[Poem] | None = None

    def stopListening(self) -> Deferred[None]:
        """
        Accept no more, and leave who waits for a poem in the backlog.

        @return: fires when the socket is given back.
        """
        if self._waiting is not None:
            self._waiting.cancel()
        return super().stopListening()

    @property
    def isAlive(self) -> bool:
        """Whether the port accepts, or will by itself, as when its source has a poem."""
        return self._waiting is not None or super().isAlive

    def doRead(self) -> None:
        """Serve who has come."""
        now = self.policy.clock.seconds()
        served: list[Reader] = []
        try:
            self._serve(served, now)
        finally:  # whatever is wrong with one, the others are counted and looked after
            if served:
                self.policy.addServed(served, now)

    def _serve(self, served: list[Reader], now: float) -> None:
        """
        Send poems to who has come.

        @param served: gets those whose poem went to the system at once.
        """
        policy = self.policy
        room = policy.room
        if not room:
            policy.pauseIfFull()
            room = policy.room
        failures = 0
        waiting = 1  # or more: the reactor says so
        for turn in range(_BATCH):
            if turn - failures == room or (self._wasShort and self._pauseIfShort()):
                return
            waiting = waiting or countWaiting(self._socket)
            if not waiting:
                self._hasOldBacklog = self._isRefusing = False
                return
            waiting -= 1
            poem = self._source.poem
            if poem is None and not self._isRefusing:
                self._waitForPoem()
                return
            try:
                reader = self._accept()
            except BlockingIOError:
                self._hasOldBacklog = self._isRefusing = False
                return
            except OSError as why:
                failures += 1
                if self._pauseAfter(why, failures):
                    return
                continue
            if poem is None:
                self._turnAway(reader)
            elif self._start(reader, poem, now):
                served.append(reader)

    def _accept(self) -> SocketReader:
        """
        The next connection in the backlog.

        @raise OSError: if there is none, or it cannot be had.
        """
        # What accept() does, but for flags and timeouts that nobody uses here.
        descriptor, address = self._socket._accept()  # type: ignore[attr-defined]
        self._countDescriptors(descriptor)
        try:
            reader = SocketReader(self._family, socket.SOCK_STREAM, 0, descriptor)
        except BaseException:  # nobody else would close it
            os.close(descriptor)
            raise
        reader.address = address
        if self._hasOldBacklog:  # from before startListening, so it inherited nothing
            setLinger(reader, RESET_ON_CLOSE)
        return reader

    def _start(self, reader: SocketReader, poem: Poem, now: float) -> bool:
        """Send a poem to a new connection; whether all of it went to the system."""
        reader.poem, reader.home, reader.sentBytes = poem, self._home, 0
        try:
            return reader.start(now)
        except BaseException:  # nobody else would close it
            self.policy.giveUp(reader, _UNSERVED)
            raise

    def _turnAway(self, reader: SocketReader) -> None:
        """Reset a new connection that has waited in vain."""
        setLinger(reader, RESET_ON_CLOSE)
        reader.close()
        self.policy.ledger.turnedAway(reader.address, "there is no poem yet")

    def _waitForPoem(self) -> None:
        """Leave who comes in the backlog, until there is a poem for them or there will be none."""
        if self._waiting is None:
            waiting = self._source.whenPoem()
            self._waiting = waiting
            self.policy.addWaitingPort(self)
            waiting.addCallbacks(self._serveAll, self._resetAll)
        if self._waiting is not None:
            self.stopReading()

    def _serveAll(self, _: Poem) -> None:
        """There is a poem for who has waited."""
        self._waiting = None
        self.policy.removeWaitingPort(self)
        self._gate.reopen()

    def _resetAll(self, failure: Failure) -> None:
        """Let who has waited know that there is no poem, and begin anew with who comes next."""
        self._waiting = None
        self.policy.removeWaitingPort(self)
        if failure.check(CancelledError):  # by our own stop, which leaves them in the backlog
            return
        self._isRefusing = True
        try:
            self.doRead()
        finally:
            self._gate.reopen()
