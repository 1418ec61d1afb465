"""
Checks of endpoints before the program becomes a daemon.

After that, an error in listening is only a traceback in a log. The sockets that this module binds
serve no client and are closed again. It removes abandoned UNIX sockets.
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

_MOST_PATH_BYTES = 107
"""The longest path of a UNIX socket: C{sun_path} of unix(7), without its final NUL."""


class Preflight(ExitStack):
    """
    Tries endpoints out.

    It holds their ports until it is closed, and remembers their paths, to find one that is asked
    for twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._paths: set[str] = set()

    def check(self, endpoint: IStreamServerEndpoint) -> None:
        """
        Check that an endpoint can listen. Endpoints of unknown kinds pass.

        @raise OSError: if it cannot listen.
        """
        # There is no public way to the address of these endpoints. If a private attribute is
        # missing, that is an error, and the endpoint does not pass.
        while isinstance(endpoint, _WrapperServerEndpoint):
            endpoint = endpoint._wrappedEndpoint
        if isinstance(endpoint, (TCP4ServerEndpoint, TCP6ServerEndpoint, SSL4ServerEndpoint)):
            self._checkPort(endpoint._interface, endpoint._port)
        elif isinstance(endpoint, UNIXServerEndpoint):
            self._checkPath(endpoint._address)

    def _checkPort(self, interface: str, port: int) -> None:
        """Bind a TCP port as Twisted does."""
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        tried = self.enter_context(socket.socket(family, socket.SOCK_STREAM))
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((interface, port))
        except OverflowError:
            raise OSError(errno.EINVAL, "not a port from 0 to 65535") from None
        tried.listen(0)  # two sockets that are only bound may share a port

    def _checkPath(self, path: str) -> None:
        """
        Check that a UNIX socket can be made. Remove an abandoned socket and its lock.

        Twisted's lock holds the number of a process, which another process may have by now: in a
        container, every program is process 1. So the lock of an abandoned socket is ignored.
        """
        full = os.path.abspath(path)
        if full in self._paths:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._paths.add(full)
        if len(os.fsencode(path)) > _MOST_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        folder = os.path.dirname(full)
        os.stat(folder)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            with socket.socket(socket.AF_UNIX) as client, suppress(ConnectionRefusedError):
                client.setblocking(False)
                with suppress(BlockingIOError):  # its backlog is full
                    client.connect(path)
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            os.unlink(path)  # only if it was there: another program may have made a file since
        with suppress(FileNotFoundError):
            os.unlink(f"{path}.lock")
