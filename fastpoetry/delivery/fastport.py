"""
A port that serves readers without transports and protocols.

Takes over the socket of a plain TCP or UNIX port. Most readers cost an accept, a send and a close.
Knows neither files nor systemd.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, NamedTuple

from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.gate import Gate
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Reader, Source
from fastpoetry.delivery.sockets import (
    END_ON_CLOSE,
    MOST_UNSENT_BYTES,
    RESET_ON_CLOSE,
    TCP_FAMILIES,
    UNSERVED,
    countBacklog,
    countUnacknowledged,
    findAddress,
    isOver,
    limitUnread,
    limitUnsent,
    setLinger,
)
from fastpoetry.poem import Poem

_BATCH = 64
"""Connections that are accepted before the reactor's other work gets its turn."""

_NOW = socket.MSG_DONTWAIT  # saves a call that makes each accepted socket non-blocking
_LAST = _NOW | socket.MSG_MORE  # the shutdown that follows sends the rest and FIN in one segment

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MOST_READS = 4
"""Reads at one visit, so that a client that writes for ever delays no other."""

_discarded = bytearray(65536)
"""Input from clients is read into this buffer, and ignored."""


class Home(NamedTuple):
    """
    The objects that serve a reader.

    @ivar reactor: tells when the reader's socket takes more; provides C{IReactorFDSet} and
        C{IReactorFromThreads}.
    """

    policy: Policy
    reactor: Any


@implementer(IWriteDescriptor)
class SocketReader(socket.SocketType):
    """
    A reader that is a socket itself, since most readers need nothing else.

    Each connection inherits a reset on close from the listening socket. So if the process dies,
    even by kill -9, a reader sees a reset, not the end of its poem. Once the kernel has the last
    byte, the connection may close with an end. The first visit allows this for each client that is
    still connected. Most clients have closed by then, which saves the call.

    @ivar sentBytes: how much of the poem the kernel has.
    """

    mayHandOver = True
    __slots__ = ("address", "home", "poem", "sentBytes")

    poem: Poem
    address: Address
    home: Home
    sentBytes: int

    def logPrefix(self) -> str:
        return "poetry"

    def start(self) -> bool:
        """
        Send the poem. If not all of it goes at once, the rest is sent as the client takes it.

        @return: whether the kernel has all of it.
        """
        try:
            if len(self.poem.text) > MOST_UNSENT_BYTES:
                limitUnsent(self)
                # On a UNIX socket there is no reset, so a part of the poem would look whole.
                if self.family not in TCP_FAMILIES and self._turnAwayIfTooMany():
                    return False
            if self._send():
                return True
        except OSError:  # reset while it was in the backlog
            self.home.policy.ledger.countLeft(self, 0)
            self.close()
            return False
        if not self._turnAwayIfTooMany():
            limitUnread(self)
            self.home.policy.begin(self)
            self.home.reactor.addWriter(self)
        return False

    def _turnAwayIfTooMany(self) -> bool:
        """Turn the reader away if its source has too many. Return whether it was turned away."""
        self.address = findAddress(self, self.address)
        isSourceFull = self.home.policy.isSourceFull(self.address)
        if isSourceFull:
            self.home.policy.countTurnedAway(self.address)
            self.close()
        return isSourceFull

    def sendRest(self) -> None:
        """Send the rest of the poem as the client takes it."""
        try:
            self.home.reactor.addWriter(self)
        except (OSError, MemoryError):  # the reactor cannot watch another socket
            self.home.policy.giveUp(self, UNSERVED)

    def doWrite(self) -> Failure | None:
        """Send more. Return the failure for which the reactor ends the connection, if any."""
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
        Close the connection if the client has closed its side and its system has everything.
        Whatever it wrote is discarded.

        Most connections are over at the first visit, so a close loses no bytes. From now on any
        other connection closes with an end, since the kernel has all of the poem. Unread input
        would make our close a reset, which could overtake the poem.
        """
        if isOver(self):
            self.close()
            return True
        setLinger(self, END_ON_CLOSE)
        try:
            for _ in range(_MOST_READS):
                if not self.recv_into(_discarded, 0, _NOW):
                    if countUnacknowledged(self):
                        return False  # the deadlines and the quota apply to the rest
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
        # FIN takes a sequence number too. It is not a byte of the poem.
        return max(0, self.sentBytes - countUnacknowledged(self))

    def isSent(self) -> bool:
        return self.sentBytes == len(self.poem.text)

    def end(self) -> None:
        if not self.closeAfterClient():  # this reads the input, so our close is no reset
            self.close()

    def reset(self) -> None:
        """Close a connection before its end, with a reset. A UNIX socket just closes."""
        setLinger(self, RESET_ON_CLOSE)
        self.home.reactor.removeWriter(self)
        # After the reactor's turn. A connection that is accepted in this turn could get the same
        # number, and with it an event that was meant for this one.
        self.home.reactor.callFromThread(self.close)

    def connectionLost(self, reason: Failure) -> None:
        """Close the connection: the client left while its poem was under way."""
        self.close()
        self.home.policy.remove(self)

    def _send(self) -> bool:
        """
        Pass the kernel as much of the rest as it takes, without a copy. After the last byte, shut
        our side down. Return whether the kernel has everything.
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
    A listening port that replaces one of Twisted's, and accepts only what the policy allows.

    It borrows the socket of the other port. At the end it gives the socket back, and the other port
    closes it in its own way: systemd keeps an adopted socket, and a UNIX port removes its file.
    """

    _wasShort = False

    def __init__(self, port: tcp.Port, policy: Policy, reactor: Any) -> None:
        """@param port: listening; for UNIX a C{twisted.internet.unix.Port}, which is a subclass."""
        self._port = port
        self._socket: socket.socket = port.socket
        self.getHost = port.getHost
        self.fileno = self._socket.fileno  # called by the reactor at each turn
        self.policy = policy
        self.reactor = reactor
        self._gate = Gate(policy.clock, policy.logPaused)

    def startListening(self) -> None:
        """
        Accept in place of the other port.

        From now on, each new connection inherits a reset on close. The socket keeps this option
        even after a stop, since another process may accept from it and rely on the reset.
        """
        setLinger(self._socket, RESET_ON_CLOSE)
        self._gate.add(self)
        self._port.stopReading()
        self.startReading()

    def stopListening(self) -> Deferred[None]:
        """
        Stop accepting, and give the socket back. The connections go on, see L{Policy.drain}.

        @return: fires when the other port has closed the socket.
        """
        self._gate.remove(self)
        self._gate.open()  # this cancels its timer
        self.stopReading()
        return maybeDeferred(self._port.stopListening)

    @property
    def isAlive(self) -> bool:
        """Whether the port accepts, or a timer will make it accept."""
        willAccept = self._gate.willOpen or self.policy.gate.willOpen
        return willAccept or self in self.reactor.getReaders()

    def startReading(self) -> None:
        self.reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave new connections in the backlog."""
        self.reactor.removeReader(self)

    def logPrefix(self) -> str:
        return "poetry"

    def connectionLost(self, reason: Failure) -> None:
        """After an unexpected error in L{doRead}, try again soon if the port still listens."""
        if self._gate.hasPorts:
            self._pauseAlone("accepting failed")

    def doRead(self) -> None:
        """Accept connections, and give them transports as the other port does."""
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
                self._wasShort = connection.fileno() >= self.policy.firstReserved
                self._connect(connection, address)

    def _connect(self, connection: socket.socket, address: Any) -> None:
        """Connect a protocol of the other port's factory, as C{tcp.Port.doRead} does."""
        port: Any = self._port
        try:
            protocol = port.factory.buildProtocol(port._buildAddr(address))
            if protocol is None:
                connection.close()
                return
            transport = port.transport(
                connection, protocol, address, port, port.sessionno, port.reactor
            )
        except BaseException:  # it would stay open
            connection.close()
            self.policy.ledger.countTurnedAway(address, UNSERVED)
            raise
        port.sessionno += 1
        try:
            protocol.makeConnection(transport)
        except Exception:  # of a program's own protocol: other clients do not wait for it
            log.err()
            transport.abortConnection()

    def _pauseIfShort(self) -> bool:
        """Pause if only reserved descriptors are left. Return whether it paused."""
        if self._wasShort:
            self._wasShort = self._isShort()
        if self._wasShort:
            self.policy.pause("few descriptors are left (LimitNOFILE=)")
        return self._wasShort

    def _isShort(self) -> bool:
        """Whether only reserved descriptors are left, see L{Policy.firstReserved}."""
        try:
            lowest = os.dup(self._socket.fileno())
        except OSError:
            return True
        os.close(lowest)
        return lowest >= self.policy.firstReserved

    def _pauseAfter(self, why: OSError, failures: int) -> bool:
        """
        Pause if accepting fails for all connections, not just for one (accept(2), Error handling).

        @param failures: how many connections of this batch could not be accepted.
        @return: whether it paused.
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
        self._gate.close()
        self.policy.logPaused(cause)


class FastPort(BorrowedPort):
    """A listening port that sends poems without transports and protocols."""

    def __init__(self, port: tcp.Port, source: Source, policy: Policy, reactor: Any) -> None:
        super().__init__(port, policy, reactor)
        self._source = source
        self._home = Home(policy, reactor)
        self._family = self._socket.family
        self._hasOldBacklog = True
        self._refusalsLeft = 0
        self._waiting: Deferred[Poem] | None = None

    def stopListening(self) -> Deferred[None]:
        """Stop accepting. Clients that wait for a poem stay in the backlog."""
        if self._waiting is not None:
            self._waiting.cancel()
        return super().stopListening()

    @property
    def isAlive(self) -> bool:
        """Whether the port accepts, or a timer or the source's poem will make it accept."""
        return self._waiting is not None or super().isAlive

    def doRead(self) -> None:
        """Serve the connections in the backlog."""
        served: list[Reader] = []
        try:
            self._serve(served)
        finally:  # an error in one reader leaves the others counted and visited
            if served:
                self.policy.addServed(served)

    def _serve(self, served: list[Reader]) -> None:
        """
        Send poems to the connections in the backlog.

        @param served: receives the readers whose whole poem went to the kernel at once.
        """
        policy = self.policy
        room = policy.room
        if not room:
            policy.pauseIfFull()
            room = policy.room
        failures = 0
        waiting = 1  # at least one, since the reactor called
        for turn in range(_BATCH):
            if turn - failures == room or (self._wasShort and self._pauseIfShort()):
                return
            waiting = waiting or countBacklog(self._socket)
            if not waiting:
                self._hasOldBacklog, self._refusalsLeft = False, 0
                return
            waiting -= 1
            poem = self._source.poem
            if poem is None and not self._refusalsLeft:
                self._waitForPoem()
                return
            try:
                reader = self._accept()
            except BlockingIOError:
                self._hasOldBacklog, self._refusalsLeft = False, 0
                return
            except OSError as why:
                failures += 1
                if self._pauseAfter(why, failures):
                    return
                continue
            if poem is None:
                self._refusalsLeft -= 1
                reader.close()  # a reset, as each connection inherits it
                policy.ledger.countTurnedAway(reader.address, "there is no poem yet")
            elif self._start(reader, poem):
                served.append(reader)

    def _accept(self) -> SocketReader:
        """
        Accept the next connection in the backlog.

        @raise OSError: if the backlog is empty, or accepting fails.
        """
        # This is accept() without the flags and timeouts, which are unused here.
        descriptor, address = self._socket._accept()  # type: ignore[attr-defined]
        self._wasShort = descriptor >= self.policy.firstReserved
        try:
            reader = SocketReader(self._family, socket.SOCK_STREAM, 0, descriptor)
        except BaseException:  # it would stay open
            os.close(descriptor)
            raise
        reader.address = address
        if self._hasOldBacklog:  # from before startListening, so without the inherited reset
            setLinger(reader, RESET_ON_CLOSE)
        return reader

    def _start(self, reader: SocketReader, poem: Poem) -> bool:
        """Send a poem to a new connection. Return whether all of it went to the kernel."""
        reader.poem, reader.home, reader.sentBytes = poem, self._home, 0
        try:
            return reader.start()
        except BaseException:  # it would stay open
            self.policy.giveUp(reader, UNSERVED)
            raise

    def _waitForPoem(self) -> None:
        """Leave new connections in the backlog until the source has a poem, or fails."""
        if self._waiting is None:
            waiting = self._source.whenPoem()
            self._waiting = waiting
            self.policy.addWaitingPort(self)
            waiting.addBoth(self._endWait)
        if self._waiting is not None:
            self.stopReading()

    def _endWait(self, result: Poem | Failure) -> None:
        """Accept again. If there is no poem, first reset the connections that waited."""
        self._waiting = None
        self.policy.removeWaitingPort(self)
        if not isinstance(result, Failure):
            self._gate.reopen()
        elif not result.check(CancelledError):  # stopListening leaves them in the backlog
            # Reset only those that have waited. Later clients begin a new wait.
            isCounted = self._family in TCP_FAMILIES
            self._refusalsLeft = countBacklog(self._socket) if isCounted else 2**31
            try:
                if self._refusalsLeft:  # otherwise a wait for no client would begin
                    self.doRead()
            finally:
                self._gate.reopen()
