"""
A process for work that may hang, for example on a dead disk.

A process survives even SIGKILL while one of its threads waits for such a disk. Therefore another
process does the work. It runs a program of its own, L{fastpoetry.apart.worker}, since the fork of a
process with threads may deadlock.

A reactor watches a descriptor for the end of the process, so no thread waits for it.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from mmap import ACCESS_READ, mmap
from select import POLLIN, poll
from signal import SIG_BLOCK, SIG_SETMASK, SIGINT, SIGTERM, pthread_sigmask
from subprocess import Popen
from typing import Any, BinaryIO, Generic, TypeVar

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, execute
from twisted.logger import Logger

from fastpoetry.apart.poems import encodable
from fastpoetry.apart.worker import VERSION, WorkError

_T = TypeVar("_T")

LONG_SECONDS = 10.0
"""When to report that work takes long. A disk that slept has started by then."""

MOST_SECONDS = 60.0
"""When to give up. After 90 s systemd would end a reload, and log no cause."""

_MOST_STUCK = 5
"""How many blocked processes may wait for one path. Each takes about 8 MiB."""

_FOLDER = os.path.abspath(os.path.join(__file__, "..", "..", ".."))
"""The folder that has the package."""

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from fastpoetry.apart.worker import main; main()"
)


class NoProcessError(WorkError):
    """A process that cannot be started for the work: one line."""


class Process(Generic[_T]):
    """
    A process that does one piece of work, from its start to its end.

    Its standard files are in memory. It inherits no other file, so it holds no connection open.

    @ivar where: the path that the work reads or writes.
    """

    def __init__(self, work: partial[_T], where: str) -> None:
        """
        Start the process.

        @param work: a function of a module that imports little, since the process imports it anew.
            C{marshal} must support its arguments and its result.
        @raise NoProcessError: if the process cannot be started.
        """
        self.where = where
        try:
            self._start(work)
        except (OSError, MemoryError) as why:
            cause = why.strerror if isinstance(why, OSError) else repr(why)
            raise NoProcessError(f"{where}: no process can be started: {cause}") from None

    def _start(self, work: partial[_T]) -> None:
        request = work.func.__module__, work.func.__qualname__, work.args
        with ExitStack() as opened:
            asked = opened.enter_context(open(os.memfd_create("request"), "w+b"))
            self._said = opened.enter_context(open(os.memfd_create("answer"), "w+b"))
            asked.write(marshal.dumps(request, VERSION))
            asked.seek(0)
            self._popen = _run(asked, self._said)
            opened.callback(self._popen.wait)
            opened.callback(self._popen.kill)
            self._end = os.pidfd_open(self._popen.pid)
            opened.pop_all()
            asked.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable once the process has ended."""
        return self._end

    def kill(self) -> None:
        """Kill the process. If it waits for a disk, it ends when the disk answers."""
        self._popen.kill()

    def describe(self, seconds: float) -> str:
        return f"{self.where}: process {self._popen.pid} has waited for it for {seconds:g} s"

    def wait(self) -> _T:
        """Wait for the end of the process, without a limit, and L{take} its result."""
        end = poll()
        end.register(self._end, POLLIN)
        if not end.poll(LONG_SECONDS * 1000):
            sys.stderr.write(f"fastpoetry: {self.describe(LONG_SECONDS)}\n")
            end.poll()
        return self.take()

    def take(self) -> _T:
        """
        Take the result of the process, which has ended.

        @raise NoProcessError: if it did not begin the work, or could not write the result.
        @raise WorkError: if the work failed, or the process was killed.
        """
        status = self._popen.wait()
        os.close(self._end)
        with self._said as said:
            if status < 0:
                raise WorkError(f"{self.where}: its process was ended by signal {-status}")
            if status > 0:
                said.seek(0)
                cause = said.read().decode(errors="replace").strip().split("\n")[-1]
                raise NoProcessError(f"{self.where}: no process can be started: {cause}")
            with mmap(said.fileno(), 0, access=ACCESS_READ) as answer:
                isDone, result = marshal.loads(answer)
        if not isDone:
            raise WorkError(result)
        done: _T = result
        return done


def startInProcess(work: partial[_T], where: str) -> Callable[[], _T]:
    """
    Begin the work of a L{Process} before there is a reactor.

    @return: a function that waits for the work, and returns its result or raises L{WorkError}. If
        no process can be started, it does the work itself.
    """
    try:
        process = Process(work, where)
    except NoProcessError:
        return work

    def finish() -> _T:
        try:
            return process.wait()
        except NoProcessError:
            return work()

    return finish


class Job(FileDescriptor, Generic[_T]):
    """
    A piece of work that a reactor waits for. A deadline ends the wait and kills the process.

    @ivar done: fires with the work's result, or fails with L{WorkError}, within L{MOST_SECONDS}.
    @ivar ended: fires when the process has ended, even later.
    """

    _log = Logger()
    _stuck: list[str] = []
    """The paths of processes that were given up and still run."""

    def __init__(self, reactor: Any, work: partial[_T], where: str) -> None:
        """
        Start the process, see L{Process}.

        @param reactor: provides C{IReactorFDSet}, and C{IReactorTime} with a monotonic clock.
        @raise NoProcessError: if no process can be started.
        @raise WorkError: if too many blocked processes wait for the path.
        """
        if self._stuck.count(where) >= _MOST_STUCK:
            raise WorkError(f"{where}: {_MOST_STUCK} processes wait for it already")
        super().__init__(reactor)
        self.done: Deferred[_T] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._process = Process(work, where)
        try:
            self.startReading()
        except OSError as why:
            self._process.kill()
            with suppress(WorkError):
                self._process.take()
            raise NoProcessError(f"{where}: no process can be started: {why.strerror}") from None
        self._timers = [
            reactor.callLater(LONG_SECONDS, self._tell),
            reactor.callLater(MOST_SECONDS, self._giveUp),
        ]

    def fileno(self) -> int:
        return self._process.fileno()

    def doRead(self) -> None:
        """Take the result. The process has ended."""
        self.stopReading()
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        result = execute(self._process.take)
        if self.done.called:
            result.addErrback(lambda _: None)  # the result is too late
        else:
            result.chainDeferred(self.done)
        self.ended.callback(None)

    def _tell(self) -> None:
        self._log.warn(
            "{cause}",
            cause=encodable(self._process.describe(LONG_SECONDS)),
            message_id="0de3d9f732b547fe9d8cff1dae47ef49",
        )

    def _giveUp(self) -> None:
        where = self._process.where
        self._stuck.append(where)
        self.ended.addCallback(lambda _: self._stuck.remove(where))
        self._process.kill()
        self.done.errback(WorkError(self._process.describe(MOST_SECONDS)))


def deferToProcess(reactor: Any, work: partial[_T], where: str) -> Deferred[_T]:
    """Return L{Job.done}. If no process can be started, this one does the work."""

    async def call() -> _T:
        try:
            return await Job(reactor, work, where).done
        except NoProcessError:
            return work()

    return Deferred.fromCoroutine(call())


def _run(stdin: BinaryIO, stdout: BinaryIO) -> Popen[bytes]:
    # A bare Python, without the user's settings or packages. It decodes paths as this process does.
    python = [sys.executable, "-BIS", "-X", f"utf8={sys.flags.utf8_mode}"]
    # A terminal signals each process, and so may systemd. A copy must still be written to its end.
    before = pthread_sigmask(SIG_BLOCK, (SIGINT, SIGTERM))
    try:
        return Popen([*python, "-c", _PROGRAM, _FOLDER], stdin=stdin, stdout=stdout, stderr=stdout)
    finally:
        pthread_sigmask(SIG_SETMASK, before)
