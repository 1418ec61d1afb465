"""
The command behind C{systemctl reload}. It fails if the program's reload fails.

C{ExecReload=/usr/bin/python3 -m fastpoetry.systemd.reload} asks the main process of the unit to
reload, as SIGHUP would, and waits for the result. L{fastpoetry.systemd.reloading} answers. This
module imports no Twisted, so that it starts quickly, and uses only the unit's permissions.

Any local user may bind an abstract socket name. So the name of the port has a random part that no
other process can guess. The client finds it in C{/proc/self/net/unix}, and skips other processes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from signal import SIGTERM, signal
from time import monotonic, sleep

from fastpoetry.systemd.stderr import refusalLine

__all__ = ["main"]

RELOADED = b"reloaded"
"""The answer to a reload that ended well. Any other answer is the cause of a failure."""

NOTHING = b"there is nothing to reload"
"""The answer of a program without a reload."""

STILL_RUNS = b"\n"
"""Sent by the program each second during a reload."""

_SILENCE_SECONDS = 20.0
"""How long to wait for a message of the program. It sends one each second."""

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group


def main(environ: Mapping[str, str] = os.environ) -> int:
    """
    Reload the program, and wait for the result.

    @param environ: where systemd leaves C{MAINPID} and C{INVOCATION_ID}.
    @return: 0; or 1, after a line on stderr with the cause. It is an error in the journal, unless
        the program has logged the cause itself.
    """
    isLogged = False
    try:
        with _connect(int(environ["MAINPID"]), environ) as server:
            said = b"".join(iter(lambda: server.recv(4096), b"")).strip()
        isLogged = said not in (b"", NOTHING)
    except (KeyError, ValueError):
        said = b"only systemd can ask for a reload: MAINPID is not set"
    except TimeoutError:
        said = b"the program has not answered for %d s" % _SILENCE_SECONDS
    except ProcessLookupError:
        said = b""
    except OSError as why:
        said = f"the program cannot be asked: {why.strerror or why}".encode()
    if said == RELOADED:
        return 0
    reason = said.decode(errors="replace") or "the program ended meanwhile"
    line = f"reload failed: {reason}"
    print(line if isLogged else refusalLine(line), file=sys.stderr)
    return 1


def portPrefix(environ: Mapping[str, str]) -> str:
    """Return the prefix of the abstract names of all ports of this start of the unit."""
    return f"fastpoetry/reload/{environ.get('INVOCATION_ID', '')}/"


def readCredentials(peer: socket.socket) -> tuple[int, int]:
    """Return the process and the user that called listen(2) or connect(2) at the other end."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(found)
    return process, user


def _connect(pid: int, environ: Mapping[str, str]) -> socket.socket:
    """
    @raise ProcessLookupError: if the process has ended.
    @raise OSError: if the process has no port.
    """
    deadline = monotonic() + _SILENCE_SECONDS
    while True:
        isBusy = False
        for name in _findNames(portPrefix(environ)):
            server = socket.socket(socket.AF_UNIX)
            server.settimeout(_SILENCE_SECONDS)
            try:
                server.connect(b"\0" + name)
                if _isPort(server, pid):
                    return server
            except BlockingIOError:
                isBusy = True  # the port's queue is full
            except OSError:
                pass  # the port is gone
            server.close()
        if "Uid" not in _readStatus(pid):
            raise ProcessLookupError
        if not isBusy or monotonic() > deadline:
            raise ConnectionRefusedError(_explainAbsence(pid))
        sleep(0.1)


def _explainAbsence(pid: int) -> str:
    """
    Return why the program has no port here. systemd starts this command in the program's network,
    except in a user's unit: there it may not enter that network.
    """
    try:
        isHere = os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net")
    except PermissionError:  # the program has its own user namespace, or has or had another user
        isHere = _readStatus(pid).get("Uid", "").split()[:1] != [str(os.getuid())]
    except OSError:
        isHere = True
    if isHere:
        return "it has no NotifyService, or no NOTIFY_SOCKET"
    return "PrivateNetwork= of a user's unit may hide it; use ExecReload=/bin/kill -HUP $MAINPID"


def _findNames(prefix: str) -> Iterator[bytes]:
    """Return the abstract names with this prefix in this network namespace."""
    with open("/proc/self/net/unix", "rb") as table:
        names = {line.rstrip(b"\n").rpartition(b" @")[2] for line in table}
    return (name for name in names if name.startswith(prefix.encode()))


def _isPort(server: socket.socket, pid: int) -> bool:
    """
    Whether a process of this unit listens there. The process id alone is not enough: a listener
    keeps the id of a process that has ended.
    """
    process, user = readCredentials(server)
    # The second number is the effective user, which twistd's --uid sets.
    users = _readStatus(pid).get("Uid", "").split()[1:2]
    return process == pid and (user == os.geteuid() or str(user) in users)


def _readStatus(pid: int) -> dict[str, str]:
    """Return the lines of a process's C{status} in proc(5); none if the process has ended."""
    try:
        # The kernel may cut the name in the middle of a letter.
        with open(f"/proc/{pid}/status", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status)
    except OSError:
        return {}
    return {} if lines["State"].split()[0] == "Z" else lines


if __name__ == "__main__":
    # systemd sends SIGTERM if it stops the service meanwhile. If the signal killed this process,
    # the stop would be a failure. Only SuccessExitStatus=SIGTERM in the unit covers the time in
    # which Python starts or ends.
    signal(SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main())
