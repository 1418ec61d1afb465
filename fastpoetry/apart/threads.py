"""
Work in daemon threads, which end with the process. Names are looked up there, since getaddrinfo(3)
blocks.

The reactor's pool has ten threads, and a stop waits for all of them. A thread that hangs, for
example on a dead resolver, would delay other work and the stop. Callers limit the number of daemon
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from fastpoetry.apart.worker import WorkError

_T = TypeVar("_T")


class ThreadError(WorkError):
    """A thread that cannot be started for now: one line."""


def callAside(reactor: Any, work: Callable[[], _T]) -> Deferred[_T]:
    """
    Do work in a new thread.

    @param reactor: provides C{IReactorFromThreads}.
    @return: fires in the reactor's thread with the result. If it is cancelled, the work goes on.
    @raise ThreadError: if the limit of threads is reached (C{TasksMax=} in systemd's units).
    """
    done: Deferred[_T] = Deferred()

    def run() -> None:
        try:
            result: _T | Failure = work()
        except BaseException:
            result = Failure()
        # callback() accepts a Failure too, and treats it as one.
        reactor.callFromThread(done.callback, result)

    try:
        Thread(target=run, daemon=True).start()
    except RuntimeError as why:
        raise ThreadError(f"no thread can be started: {why}") from None
    return done
