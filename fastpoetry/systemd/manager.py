"""
The service manager at the other end of C{NOTIFY_SOCKET}: sd_notify(3).

The only module that speaks there. It does not know what the messages mean. C{systemd.daemon.notify}
blocks while systemd does not read, and needs a new descriptor for each message. The protocol is
public and stable, and its manual page has examples that do without the library.
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

from fastpoetry.systemd.steps import Steps, isReady

MOST_DESCRIPTORS = 253
"""Descriptors that one message can carry: SCM_MAX_FD of unix(7)."""

Message = tuple[str, Sequence[int]]
"""A text for systemd, and the descriptors that go with it."""


_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)
"""What systemd tells this process alone."""

_hidden: dict[str, str] = {}


class ManagerError(Exception):
    """systemd was not told, or has not answered: one line that says why."""


class Manager:
    """
    The service manager of this process.

    It is told without waiting, by L{offer} and L{declare}. What waits for it is in steps: L{tell}.
    """

    _log = Logger()
    _hasComplained = False

    def __init__(self, address: str) -> None:
        """
        @param address: C{NOTIFY_SOCKET}: a path, or an abstract name with C{@} in place of its NUL.
            No message is sent to another address, such as C{vsock:2:1}.
        """
        self._told = address
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._undeclared: deque[str] = deque()
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)

    def offer(self, message: str) -> bool:
        """
        Send a message that may get lost, because the next one follows soon.

        @param message: the fields, one on a line.
        @return: false if the queue of systemd is full. A message that can never arrive is a record.
        """
        try:
            self._send(self._socket, message)
        except BlockingIOError:
            return False
        except OSError as why:
            self._complain(why.strerror or str(why))
        return True

    def declare(self, message: str) -> None:
        """
        Send a message that must arrive, after all messages declared before.

        @param message: the fields. If the queue of systemd is full, L{catchUp} sends them later.
        """
        self._undeclared.append(message)
        self.catchUp()

    def catchUp(self) -> None:
        """Send declared messages for which there was no room."""
        while self._undeclared and self.offer(self._undeclared[0]):
            self._undeclared.popleft()

    def close(self) -> None:
        """Send nothing more."""
        self._undeclared.clear()
        self._socket.close()

    def tell(self, messages: Iterable[Message] = ()) -> Steps:
        """
        Send messages after all declared ones, and wait until systemd has acted on them.

        @param messages: in this order.
        @return: the steps. They raise L{ManagerError} if systemd is not there, or does not read.
        """
        try:
            with self._socket.dup() as wire:  # stays open until the steps end
                yield from self._tell(wire, messages)
        except TimeoutError as why:
            raise ManagerError(f"systemd has not read what it was told for {why}") from why

    def _tell(self, wire: socket, messages: Iterable[Message]) -> Steps:
        self.catchUp()
        while self._undeclared:
            yield wire.fileno(), POLLOUT
            self.catchUp()
        unread = 0
        for text, numbers in messages:
            # The kernel allows as many descriptors under way as RLIMIT_NOFILE.
            if unread and unread + len(numbers) > MOST_DESCRIPTORS:
                yield from self._barrier(wire)
                unread = 0
            yield from self._deliver(wire, text, numbers)
            unread += len(numbers)
        yield from self._barrier(wire)

    def _barrier(self, wire: socket) -> Steps:
        """Wait until systemd closes a descriptor, as it does after all messages before it."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                yield from self._deliver(wire, "BARRIER=1", [theirs])
            finally:
                os.close(theirs)
            while not isReady(ours, 0):
                yield ours, POLLIN
        finally:
            os.close(ours)

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
        """
        @raise BlockingIOError: the queue of systemd is full.
        @raise OSError: no message can be sent there.
        """
        if not self._told:
            raise OSError(errno.EDESTADDRREQ, "it is not set")
        if self._address[:1] not in ("/", "\0"):
            raise OSError(errno.EAFNOSUPPORT, f"{self._told!r} is no path and no abstract name")
        # For each message: another systemd may be at the address by now.
        wire.connect(self._address)
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", numbers))] if numbers else []
        wire.sendmsg([message.encode()], rights)

    def _complain(self, cause: str) -> None:
        if not self._hasComplained:
            self._hasComplained = True
            self._log.warn(
                "systemd cannot be told how this program is doing: {address}: {cause}",
                address=self._told,
                cause=cause,
                message_id="ac0571782f8c46f194b4564c401e12c5",
            )


def hideFromChildren(environ: Mapping[str, str]) -> None:
    """
    Take what systemd tells this process alone out of the environment that children inherit.

    @param environ: nothing is taken out of any other mapping than C{os.environ}.
    """
    if environ is os.environ:
        for name in _VARIABLES:
            if name in os.environ:
                _hidden[name] = os.environ.pop(name)


def withHidden(environ: Mapping[str, str]) -> Mapping[str, str]:
    """
    @param environ: the environment of this process, or another mapping.
    @return: the same, with what is hidden from children.
    """
    return ChainMap(os.environ, _hidden) if environ is os.environ else environ


def oneLine(text: str) -> str:
    """
    @param text: any text.
    @return: one printable line of it. systemd splits a datagram at line breaks, and drops one that
        has a NUL or more than 4,096 bytes; a character has up to 4.
    """
    return "".join(c if c.isprintable() else " " for c in text[:1000])
