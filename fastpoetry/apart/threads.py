"""
Work in threads that nobody waits for: names are looked up there, since getaddrinfo(3) blocks.

The reactor's pool has ten threads, and a stop waits for all of them. A thread that stands still, as
at a resolver that does not answer, would hold up others and the stop. These threads are daemons:
they end with the process. Callers limit how many there are.
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
    """A thread that cannot be had for now: one line."""


def startDaemon(run: Callable[[], None]) -> None:
    """
    Call something in a thread of its own, which ends with the process.

    @raise ThreadError: there are as many threads as may be (C{TasksMax=} in systemd's units).
    """
    try:
        Thread(target=run, daemon=True).start()
    except RuntimeError as why:
        raise ThreadError(f"no thread can be had: {why}") from None


def callAside(reactor: Any, work: Callable[[], _T]) -> Deferred[_T]:
    """
    Have work done in a thread.

    @param reactor: provides C{IReactorFromThreads}.
    @param work: what to call there.
    @return: fires in the reactor's thread with what comes of it. One that is cancelled forgets the
        work, which goes on.
    @raise ThreadError: if no thread can be had.
    """
    done: Deferred[_T] = Deferred()

    def run() -> None:
        try:
            result: _T | Failure = work()
        except BaseException:
            result = Failure()
        # Failures go the same way: callback() takes them for what they are.
        reactor.callFromThread(done.callback, result)

    startDaemon(run)
    return done
