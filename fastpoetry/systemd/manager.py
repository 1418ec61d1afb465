"""
The service manager at the other end of C{NOTIFY_SOCKET}: sd_notify(3).

Only this module sends messages there, and it does not know what they mean. It does not use
C{systemd.daemon.notify}, which blocks while systemd does not read, and needs a new descriptor for
each message. The protocol is public and stable.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections import ChainMap, deque
from collections.abc import Iterable, Mapping, Sequence
from select import POLLIN, POLLOUT
from socket import AF_UNIX, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET, socket

from twisted.logger import Logger

from fastpoetry.systemd.steps import Steps, makePipe, waitFor

MOST_DESCRIPTORS = 253
"""The most descriptors in one message: SCM_MAX_FD of unix(7)."""

Message = tuple[str, Sequence[int]]
"""A text for systemd, and the descriptors sent with it."""

_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)
"""Variables by which systemd informs this process only, not its children."""

_FOR_A_MOMENT = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
"""Errors of a message that can be sent later."""

MOST_MESSAGE_BYTES = 4096
"""systemd drops longer messages (NOTIFY_BUFFER_MAX in src/core/manager.c)."""

_hidden: dict[str, str] = {}
os.register_at_fork(after_in_child=_hidden.clear)  # a child does not speak for its parent


class ManagerError(Exception):
    """systemd was not reached, or has not answered. The message is one line with the cause."""


class Manager:
    """
    The service manager of this process.

    L{offer} and L{declare} send without waiting. L{tell} returns steps that wait for an answer.
    """

    _log = Logger()
    _hasComplained = False

    def __init__(self, address: str) -> None:
        """
        @param address: C{NOTIFY_SOCKET}: a path, or an abstract name with C{@} in place of its NUL.
            No message is sent to another address, such as C{vsock:2:1}.
        """
        self._shown = address
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._undeclared: deque[str] = deque()
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)

    def offer(self, message: str) -> bool:
        """
        Send a message that may be lost, because a newer one follows soon.

        @param message: the fields, one on a line.
        @return: false if systemd's queue is full, or memory is short: send it again later. The
            first other failure is logged.
        """
        try:
            self._send(self._socket, message)
        except OSError as why:
            if why.errno in _FOR_A_MOMENT:
                return False
            if not self._hasComplained:
                self._hasComplained = True
                self._log.warn(
                    "cannot send messages to systemd at {address}: {cause}",
                    address=self._shown,
                    cause=why.strerror or str(why),
                    message_id="ac0571782f8c46f194b4564c401e12c5",
                )
        return True

    def declare(self, message: str) -> None:
        """
        Send a message that must arrive, after all messages declared before.

        @param message: the fields. If they cannot be sent now, L{catchUp} sends them later.
        """
        self._undeclared.append(message)
        self.catchUp()

    def catchUp(self) -> None:
        """Send declared messages that could not be sent before."""
        while self._undeclared and self.offer(self._undeclared[0]):
            self._undeclared.popleft()

    def close(self) -> None:
        """Stop sending. Declared messages that are not sent yet are dropped."""
        self._undeclared.clear()
        self._socket.close()

    def tell(self, messages: Iterable[Message] = ()) -> Steps:
        """
        Send messages after all declared ones, and wait until systemd has acted on them.

        @param messages: the messages, sent in this order.
        @return: the steps. They raise L{ManagerError} if systemd is not there, or does not read.
        """
        try:
            with self._socket.dup() as wire:  # stays open until the steps end
                yield from self._tell(wire, messages)
        except TimeoutError as why:
            raise ManagerError(f"systemd has not read its messages for {why}") from why

    def _tell(self, wire: socket, messages: Iterable[Message]) -> Steps:
        self.catchUp()
        while self._undeclared:
            yield wire.fileno(), POLLOUT
            self.catchUp()
        unread = 0
        for text, numbers in messages:
            # The kernel limits the descriptors in unread messages to RLIMIT_NOFILE.
            if unread and unread + len(numbers) > MOST_DESCRIPTORS:
                yield from self._barrier(wire)
                unread = 0
            yield from self._deliver(wire, text, numbers)
            unread += len(numbers)
        yield from self._barrier(wire)

    def _barrier(self, wire: socket) -> Steps:
        """Send a descriptor that systemd closes once it has acted on all earlier messages."""
        ours, theirs = makePipe()
        with ours:
            with theirs:
                yield from self._deliver(wire, "BARRIER=1", [theirs.fileno()])
            while not waitFor(ours.fileno(), 0):
                yield ours.fileno(), POLLIN

    def _deliver(self, wire: socket, message: str, numbers: Sequence[int]) -> Steps:
        while True:
            try:
                self._send(wire, message, numbers)
                return
            except BlockingIOError:
                yield wire.fileno(), POLLOUT
            except OSError as why:
                cause = why.strerror or why
                raise ManagerError(f"systemd is not at NOTIFY_SOCKET: {cause}") from why

    def _send(self, wire: socket, message: str, numbers: Sequence[int] = ()) -> None:
        """@raise BlockingIOError: if systemd's queue is full."""
        if not self._shown:
            raise OSError(errno.EDESTADDRREQ, "the variable is not set")
        if self._address[:1] not in ("/", "\0"):
            raise OSError(errno.EAFNOSUPPORT, f"{self._shown!r} is not a path or an abstract name")
        # Connect for each message, because another systemd may listen at the address by now.
        wire.connect(self._address)
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", numbers))] if numbers else []
        wire.sendmsg([message.encode()], rights)


def hideFromChildren(environ: Mapping[str, str]) -> None:
    """
    Remove variables that are meant for this process from the environment that children inherit.

    @param environ: changed only if it is C{os.environ}.
    """
    if environ is os.environ:
        for name in _VARIABLES:
            if name in os.environ:
                _hidden[name] = os.environ.pop(name)


def withHidden(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the mapping; C{os.environ} with the variables that L{hideFromChildren} removed."""
    return ChainMap(os.environ, _hidden) if environ is os.environ else environ


def oneLine(text: str) -> str:
    """
    Return the first 1,000 characters as one printable line. systemd splits a datagram at line
    breaks, and drops one with a NUL or more than 4,096 bytes. A character has at most four.
    """
    return "".join(c if c.isprintable() else " " for c in text[:1000])
