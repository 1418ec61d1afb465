"""
The service manager at the other end of C{NOTIFY_SOCKET}, for what is only said: sd_notify(3).

C{systemd.daemon.notify} would block for as long as the manager does not read, raise where there is
none, and need a new descriptor each time, when the program may just have run out of them. The
protocol is a public and stable one; the manual page has examples of doing without the library.
"""

from __future__ import annotations

from collections import deque
from socket import AF_UNIX, SOCK_DGRAM, socket

from twisted.logger import Logger


class Manager:
    """The service manager, told without ever waiting for it."""

    _log = Logger()
    _complained = False

    def __init__(self, address: str) -> None:
        """
        @param address: a path, or an abstract name with C{@} in place of its NUL. What is neither,
            such as C{vsock:2:1}, is complained of once and told nothing.
        """
        self._told = address
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._undeclared: deque[str] = deque()
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self.close = self._socket.close

    def offer(self, message: str) -> bool:
        """
        Send what may get lost, since the like of it follows soon.

        @return: whether there was room for it; there always is where nobody listens.
        """
        if self._address[:1] not in ("/", "\0"):
            self._complain("only a path or an abstract name can be told")
            return True
        try:
            self._socket.sendto(message.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError as why:
            self._complain(why.strerror or str(why))
        return True

    def declare(self, message: str) -> None:
        """Send what must arrive, after all that was declared before: if there is no room, later."""
        self._undeclared.append(message)
        self.catchUp()

    def catchUp(self) -> None:
        """Send what there was no room for."""
        while self._undeclared and self.offer(self._undeclared[0]):
            self._undeclared.popleft()

    def _complain(self, cause: str) -> None:
        if not self._complained:
            self._complained = True
            self._log.warn(
                "systemd cannot be told how this program is doing: {address}: {cause}",
                address=self._told,
                cause=cause,
                message_id="ac0571782f8c46f194b4564c401e12c5",
            )
