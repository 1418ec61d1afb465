"""
C{systemctl reload} that fails if the reload does.

C{ExecReload=/usr/bin/python3 -m fastpoetry.systemd.reload} asks the main process of the unit to
reload, as SIGHUP would, and waits for what comes of it. Needs nothing but the standard library, so
that it starts quickly, and no permission beyond the unit's.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from signal import SIGTERM, signal
from typing import Any

__all__ = ["ReloadPort", "main"]

_GOOD = b"reloaded\n"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


def main(environ: Mapping[str, str] = os.environ) -> int:
    """
    Reload, and wait for it.

    @param environ: where systemd leaves C{MAINPID} and C{INVOCATION_ID}.
    @return: 0, or 1 after a line on stderr that says why not.
    """
    try:
        pid = int(environ["MAINPID"])
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(_address(pid, environ))
            if _readCredentials(server)[0] != pid:
                raise ConnectionRefusedError("somebody else answers")
            said = b"".join(iter(lambda: server.recv(4096), b""))
    except (KeyError, ValueError):
        said = b"only systemd can ask for it: MAINPID is not set"
    except OSError as why:
        said = f"the program cannot be asked: {why.strerror or why}".encode()
    if said == _GOOD:
        return 0
    reason = said.decode(errors="replace").strip() or "the program ended meanwhile"
    print(f"reload failed: {reason}", file=sys.stderr)
    return 1


class ReloadPort:
    """Lets the unit's user and root ask for reloads: C{IReadDescriptor}, without Twisted here."""

    def __init__(self, reactor: Any, reload: Callable[[], Any], environ: Mapping[str, str]) -> None:
        """
        @param reactor: provides C{IReactorFDSet}.
        @param reload: returns a Deferred that fires with why it failed, or nothing.
        @param environ: where systemd leaves C{INVOCATION_ID}.
        @raise OSError: that cannot be.
        """
        self._reactor = reactor
        self._reload = reload
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.bind(_address(os.getpid(), environ))
            self._socket.listen(16)
        except BaseException:
            self._socket.close()
            raise
        self.resume()

    def resume(self) -> None:
        """Look again for who asks."""
        self._reactor.addReader(self)

    def close(self) -> None:
        """Let nobody ask any more."""
        self._reactor.removeReader(self)
        self._socket.close()

    def fileno(self) -> int:
        """@return: the descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """@return: what stands before text that a reload prints."""
        return "-"

    def doRead(self) -> None:
        """Somebody asks."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            # Gone again; or no descriptor is left, and the reactor would ask all the time.
            self._reactor.removeReader(self)
            return
        if _readCredentials(client)[1] not in (0, os.geteuid()):
            client.close()
            return

        def tell(why: str) -> None:
            with client:
                client.setblocking(False)
                with suppress(OSError):  # who asked is gone
                    client.sendall(why.encode() or _GOOD)

        self._reload().addCallback(tell)

    def connectionLost(self, reason: object) -> None:
        """
        The reactor shuts down.

        @param reason: why.
        """
        self._socket.close()


def _address(pid: int, environ: Mapping[str, str]) -> str:
    """@return: an abstract name, one for each start of each unit."""
    return f"\0fastpoetry/reload/{environ.get('INVOCATION_ID', '')}/{pid}"


def _readCredentials(peer: Any) -> tuple[int, int, int]:
    """@return: the process, user and group at the other end, as they were when it began."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, group = _CREDENTIALS.unpack(found)
    return process, user, group


if __name__ == "__main__":
    # systemd stops the service meanwhile: to be ended by the signal would be a failure of that.
    signal(SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main())
