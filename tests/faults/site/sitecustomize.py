"""
Faults of the machine, inside one process: Python imports this before anything else.

What is at fault is said in files, so that a test can change it while the process runs; see L{Site}.
"""

import builtins
import errno
import os
import select
import socket
import sys
import threading
import time
from typing import Any

_FOLDER = os.environ["SITE_FOLDER"]


def _read(name: str) -> str:
    try:
        with _open(os.path.join(_FOLDER, name)) as file:
            return file.read()
    except OSError:  # there is no such fault, or no descriptor to see it with
        return ""


def _waitWhile(name: str) -> None:
    while _read(name):
        _sleep(0.01)


_open, _sleep, _time, _timeNs = builtins.open, time.sleep, time.time, time.time_ns
_accept: Any = socket.socket._accept  # type: ignore[attr-defined]
_epoll = select.epoll
_osOpen, _getaddrinfo, _start = os.open, socket.getaddrinfo, threading.Thread.start


def _stepped() -> float:
    return _time() + float(_read("clock") or 0)


def _openWhenItMoves(path: Any, flags: int, *args: Any, **how: Any) -> int:
    if _read("disk") and os.fsdecode(path).endswith((".txt", ".poem")):
        _waitWhile("disk")
    return _osOpen(path, flags, *args, **how)


def _lookUp(host: Any, *args: Any, **how: Any) -> Any:
    if host == "silent.example":
        _waitWhile("resolver")
        host = "127.0.0.1"
    if host == "six.example":
        host = "::1"
    return _getaddrinfo(host, *args, **how)


def _startIfThereAre(thread: threading.Thread) -> None:
    if _read("threads"):
        raise RuntimeError("can't start new thread")
    _start(thread)


def _acceptIfThereIsMemory(listening: socket.socket) -> Any:
    if value := _read("accept"):
        if value == "once":
            os.unlink(os.path.join(_FOLDER, "accept"))
        raise MemoryError("no memory for a connection")
    return _accept(listening)


class _Epoll:
    """An epoll(7) that can watch no more descriptors."""

    def __init__(self, *args: Any) -> None:
        self._real = _epoll(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def register(self, *args: Any) -> None:
        if _read("epoll"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._real.register(*args)


time.time = _stepped
time.time_ns = lambda: int(_stepped() * 1e9)
os.open = _openWhenItMoves
socket.getaddrinfo = _lookUp
threading.Thread.start = _startIfThereAre  # type: ignore[assignment, method-assign]
socket.socket._accept = _acceptIfThereIsMemory  # type: ignore[attr-defined]
select.epoll = _Epoll  # type: ignore[assignment, misc]
if _read("lowat"):
    socket.TCP_NOTSENT_LOWAT = 9999  # type: ignore[misc]
if _read("writer"):
    sys.executable = _read("writer")
