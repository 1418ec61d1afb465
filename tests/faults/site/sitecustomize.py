"""
Faults of the machine, inside one process: Python imports this module before any other.

Files say which faults are on, so that a test can change them while the process runs; see L{Site}.
"""

import builtins
import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time
from typing import Any

_FOLDER = os.environ["SITE_FOLDER"]

_HURRIED = {"LONG_SECONDS": 0.5, "MOST_SECONDS": 2.0}
"""The limits of work apart with the fault C{hurry}."""


def _read(name: str) -> str:
    try:
        with _open(os.path.join(_FOLDER, name)) as file:
            return file.read()
    except OSError:  # there is no such fault, or no descriptor to read it
        return ""


def _waitWhile(name: str) -> None:
    while _read(name):
        _sleep(0.01)


_open, _sleep, _time, _timeNs = builtins.open, time.sleep, time.time, time.time_ns
_accept: Any = socket.socket._accept  # type: ignore[attr-defined]
_epoll = select.epoll
_getaddrinfo, _start, _run = socket.getaddrinfo, threading.Thread.start, subprocess.Popen.__init__


def _stepped() -> float:
    return _time() + float(_read("clock") or 0)


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


def _runIfThereAre(process: Any, *args: Any, **how: Any) -> None:
    if _read("processes"):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    _run(process, *args, **how)


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
socket.getaddrinfo = _lookUp
threading.Thread.start = _startIfThereAre  # type: ignore[assignment, method-assign]
socket.socket._accept = _acceptIfThereIsMemory  # type: ignore[attr-defined]
select.epoll = _Epoll  # type: ignore[assignment, misc]
subprocess.Popen.__init__ = _runIfThereAre  # type: ignore[method-assign, assignment]
if _read("lowat"):
    socket.TCP_NOTSENT_LOWAT = 9999  # type: ignore[misc]
if _read("hurry"):
    from fastpoetry.apart import process

    _module = vars(process)
    _process, _patient = _module["Process"], {each: _module[each] for each in _HURRIED}

    def _startInAHurry(*args: Any) -> Any:
        """Set the limits of the work that begins."""
        _module.update(_HURRIED if _read("hurry") else _patient)
        return _process(*args)

    _module["Process"] = _startInAHurry
if _read("python"):
    sys.executable = _read("python")
