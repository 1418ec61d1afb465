"""
What can be refused before the program becomes a daemon.

Listening and reading come after that, when all that is left for an error is a traceback in a log.
Listens for no client: what it binds is closed again. Removes what nobody uses any more.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import ExitStack, suppress

from twisted.internet.abstract import isIPv6Address
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
    _WrapperServerEndpoint,
)
from twisted.internet.interfaces import IStreamServerEndpoint


class Preflight(ExitStack):
    """
    Tries endpoints out.

    Until it is closed it holds their ports, so that one that is asked for twice is found too.
    """

    def check(self, endpoint: IStreamServerEndpoint) -> None:
        """
        See whether an endpoint can be had. Those of no kind that is known here pass.

        @raise OSError: if it cannot.
        """
        # Where these endpoints keep what they were told; there is no public way to it. That it is
        # not there is an error and no reason to let them pass.
        while isinstance(endpoint, _WrapperServerEndpoint):
            endpoint = endpoint._wrappedEndpoint
        if isinstance(endpoint, (TCP4ServerEndpoint, TCP6ServerEndpoint, SSL4ServerEndpoint)):
            self._checkPort(endpoint._interface, endpoint._port)
        elif isinstance(endpoint, UNIXServerEndpoint):
            _checkPath(endpoint._address)

    def _checkPort(self, interface: str, port: int) -> None:
        """Bind a TCP port as Twisted does."""
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        tried = self.enter_context(socket.socket(family, socket.SOCK_STREAM))
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((interface, port))
        except OverflowError:
            raise OSError(errno.EINVAL, "not a port from 0 to 65535") from None
        tried.listen(0)  # two that are only bound may share a port


def _checkPath(path: str) -> None:
    """
    See whether a UNIX socket can be made. One that nobody serves is a leftover, and so is its lock,
    whatever that says: Twisted goes by a number in it, which another process may have by now, as in
    a container where every program is process 1.
    """
    folder = os.path.dirname(path) or "."
    os.stat(folder)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with socket.socket(socket.AF_UNIX) as client, suppress(ConnectionRefusedError):
            client.setblocking(False)
            client.connect(path)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        os.unlink(path)  # not what another program has made since
    with suppress(FileNotFoundError):
        os.unlink(f"{path}.lock")
