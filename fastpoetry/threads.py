"""
Work in threads that nobody waits for, and in processes where a thread would not do.

A thread of the reactor's pool is one of ten, and a stop waits for all of them: one that stands
still, as at a resolver that does not answer, keeps its place from others and the process from its
end. These are daemons. How many there are is up to who asks.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from resource import RLIMIT_NOFILE, getrlimit
from signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals
from threading import Thread
from typing import Any, NoReturn, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

_T = TypeVar("_T")


class ThreadError(Exception):
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


def callApart(work: Callable[[], _T]) -> _T:
    """
    Have work done by a process of its own, and wait for it.

    What reads from a disk that does not answer (disk sleep, ps(1)) cannot be ended, not even by
    SIGKILL, and neither can any process with a thread that does: it is that one then, and not ours.
    Where no process can be had, the work is done here.

    @param work: what to call there. What comes of it is pickled.
    @return: that.
    @raise ThreadError: if the process is ended before.
    """
    try:
        ours, theirs = os.pipe()
    except OSError:
        return work()
    with open(ours, "rb") as told:
        # The other process has our handlers of signals, and must call none of them.
        before = pthread_sigmask(SIG_BLOCK, valid_signals())
        try:
            process = os.fork()
            if not process:
                _workApart(work, theirs)
        except OSError:
            return work()
        finally:
            pthread_sigmask(SIG_SETMASK, before)
            os.close(theirs)
        try:
            outcome = pickle.load(told)
        except (EOFError, pickle.UnpicklingError):
            outcome = False, ThreadError("the process that was to read has ended")
    with suppress(ChildProcessError):  # somebody else has seen to all children
        os.waitpid(process, 0)
    isGood, result = outcome
    if not isGood:
        raise result
    done: _T = result
    return done


def _workApart(work: Callable[[], object], told: int) -> NoReturn:
    """Work, and tell what comes of it. No connection waits for the end of this process."""
    try:
        most, _ = getrlimit(RLIMIT_NOFILE)
        os.closerange(0, told)
        os.closerange(told + 1, min(most, 2**31 - 1) if most > 0 else 2**31 - 1)
        with open(told, "wb") as file:
            try:
                outcome: tuple[bool, object] = True, work()
            except BaseException as why:
                outcome = False, why
            pickle.dump(outcome, file, pickle.HIGHEST_PROTOCOL)
    finally:
        os._exit(0)
