"""Tests for L{fastpoetry.apart.process}, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from functools import partial
from subprocess import run
from threading import Event, Thread
from typing import Any
from unittest import mock

from fakes import Reactor, Threads, awaited, countDescriptors, makeFolder, records, write
from messages import STILL
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from fastpoetry.apart import process as processModule
from fastpoetry.apart.poems import readAt
from fastpoetry.apart.process import Job, NoProcessError, Process, deferToProcess, startInProcess
from fastpoetry.apart.worker import WorkError

_getpid = partial(os.getpid)
_stop = partial(signal.raise_signal, int(signal.SIGSTOP))


def make(work: partial[Any] = _getpid) -> Process[Any]:
    """@return: a process that runs the given work."""
    return Process(work, "/disk")


class ProcessTests(SynchronousTestCase):
    """Tests for L{Process}."""

    def refusal(self, work: partial[Any]) -> str:
        """@return: the error of such work."""
        return str(self.assertRaises(WorkError, make(work).wait))

    def test_result(self) -> None:
        """
        Another process does the work. Afterwards the process has ended and its descriptors are
        closed.
        """
        before = countDescriptors()
        process = make().wait()
        self.assertNotEqual(process, os.getpid())
        self.assertRaises(ChildProcessError, os.waitpid, process, 0)
        self.assertEqual(countDescriptors(), before)

    def test_anything(self) -> None:
        """Arguments and results may be any text, and as large as a poem."""
        for value in ("\udcff\n\0", b"\xff" * (1 << 20), [("x", None, 1.5)]):
            self.assertEqual(make(partial(max, [value])).wait(), value)

    def test_path(self) -> None:
        """A path keeps its bytes in the other process."""
        folder = makeFolder(self)
        path = write(folder, os.fsdecode(b"\xff\xc3\xa9"), b"a poem")
        ((poem,), _, _) = make(partial(readAt, path)).wait()
        self.assertEqual(poem[1:3], (b"a poem", path))

    def test_failure(self) -> None:
        """
        An error with a message for people is raised here word for word; any other error by its
        name.
        """
        self.assertEqual(self.refusal(partial(readAt, "/\n")), "/\n: No such file or directory")
        self.assertEqual(
            self.refusal(partial(int, "x")),
            repr(ValueError("invalid literal for int() with base 10: 'x'")),
        )

    def test_killed(self) -> None:
        """A killed process is an error of one line."""
        self.assertEqual(
            self.refusal(partial(signal.raise_signal, int(signal.SIGKILL))),
            "/disk: its process was ended by signal 9",
        )

    def test_alone(self) -> None:
        """The process inherits no connection of ours, not even an inheritable one."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.set_inheritable(True)
            links = make(partial(os.listdir, "/proc/self/fd")).wait()
        # The last is the directory's own descriptor.
        self.assertEqual(sorted(map(int, links)), [0, 1, 2, 3])

    def test_signals(self) -> None:
        """
        Signals from a terminal do not end the process's work; signals of this process are
        unchanged.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.assertIsNone(make(partial(signal.raise_signal, int(signal.SIGTERM))).wait())
        self.assertEqual(signal.pthread_sigmask(signal.SIG_BLOCK, ()), before)

    def test_threads(self) -> None:
        """
        A process with threads starts another process without a warning, on each version of Python.
        """
        end = Event()
        thread = Thread(target=end.wait)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(end.set)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make().wait()
        self.assertEqual(caught, [])

    def test_imports(self) -> None:
        """The process imports few modules, since each reload waits for it."""
        for module in ("poems", "copies"):
            code = (
                f"import sys; sys.path.append({processModule._FOLDER!r}); "
                f"import fastpoetry.apart.{module}; print(*sys.modules)"
            )
            done = run([sys.executable, "-BIS", "-c", code], capture_output=True, text=True)
            for each in ("twisted", "re", "enum", "typing", "collections", "contextlib"):
                self.assertNotIn(each, done.stdout.split())

    def test_none(self) -> None:
        """If no process or file can be made, the error is one line and no descriptor stays open."""
        before = countDescriptors()
        for where, name in ((os, "memfd_create"), (processModule, "Popen"), (os, "pidfd_open")):
            with mock.patch.object(where, name, side_effect=OSError(11, "none is left")):
                why = self.assertRaises(NoProcessError, make)
            self.assertEqual(str(why), "/disk: no process can be started: none is left")
        self.assertEqual(countDescriptors(), before)
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)

    def test_noPython(self) -> None:
        """
        A process that ends before the work begins is an error whose line has the process's last
        words.
        """
        self.patch(processModule, "_FOLDER", "/nowhere")
        why = self.assertRaises(NoProcessError, make().wait)
        self.assertIn("No module named 'fastpoetry'", str(why))


class StartTests(SynchronousTestCase):
    """Tests for L{startInProcess}."""

    def test_result(self) -> None:
        """The work begins at once; its result is available on request."""
        finish = startInProcess(_getpid, "/disk")
        self.assertNotEqual(finish(), os.getpid())

    def test_failure(self) -> None:
        """An error of the work is raised on request, too."""
        finish = startInProcess(partial(readAt, "/none"), "/none")
        self.assertRaises(WorkError, finish)

    def test_loader(self) -> None:
        """What the loader writes to standard error before Python runs is no part of the result."""
        with mock.patch.dict(os.environ, LD_PRELOAD="/nonexistent.so"):
            finish = startInProcess(_getpid, "/disk")
        self.assertNotEqual(finish(), os.getpid())

    def test_none(self) -> None:
        """If a process cannot start, or ends early, the work is done here."""
        with mock.patch.object(processModule, "Popen", side_effect=OSError(11, "none")):
            self.assertEqual(startInProcess(_getpid, "/disk")(), os.getpid())
        with mock.patch.object(processModule, "_FOLDER", "/nowhere"):
            self.assertEqual(startInProcess(_getpid, "/disk")(), os.getpid())

    def test_still(self) -> None:
        """After a long wait the person is told the cause, and the wait goes on."""
        self.patch(processModule, "LONG_SECONDS", 0.001)
        process = make(_stop)
        os.waitid(os.P_PID, process._popen.pid, os.WSTOPPED | os.WNOWAIT)
        ended = Thread(target=os.kill, args=(process._popen.pid, signal.SIGCONT))
        lines: list[str] = []

        def write(line: str) -> None:
            lines.append(line)
            ended.start()

        self.patch(sys, "stderr", mock.Mock(write=write))
        process.wait()
        ended.join()
        self.assertEqual(lines, [f"fastpoetry: {process.describe(0.001)}\n"])


class JobTests(TestCase):
    """Tests for L{Job} and L{deferToProcess}, in a running reactor."""

    @property
    def reactor(self) -> Any:
        """The running reactor."""
        from twisted.internet import reactor

        return reactor

    def test_interface(self) -> None:
        """A job is a reader for the reactor."""
        reactor = Reactor()
        Threads(self, reactor)
        verifyObject(IReadDescriptor, Job(reactor, _getpid, "/disk"))

    @awaited
    async def test_result(self) -> None:
        """The result comes when the process has ended, and not before."""
        done = deferToProcess(self.reactor, _getpid, "/disk")
        self.assertNoResult(done)
        process = await done
        self.assertNotEqual(process, os.getpid())
        self.assertRaises(ChildProcessError, os.waitpid, process, 0)

    @awaited
    async def test_failure(self) -> None:
        """An error of the work comes when the process has ended, and not before."""
        with self.assertRaises(WorkError) as caught:
            await deferToProcess(self.reactor, partial(readAt, "/none"), "/none")
        self.assertEqual(str(caught.exception), "/none: No such file or directory")

    @awaited
    async def test_none(self) -> None:
        """If a process cannot start, or ends early, the work is done here."""
        with mock.patch.object(processModule, "_FOLDER", "/nowhere"):
            self.assertEqual(await deferToProcess(self.reactor, _getpid, "/disk"), os.getpid())
        for where, name in ((processModule, "Popen"), (self.reactor, "addReader")):
            with mock.patch.object(where, name, side_effect=OSError(11, "none")):
                self.assertEqual(await deferToProcess(self.reactor, _getpid, "/disk"), os.getpid())
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)

    @awaited
    async def test_cancelled(self) -> None:
        """A cancelled caller stops waiting; the process is reaped all the same."""
        job = Job(self.reactor, _getpid, "/disk")
        job.done.addErrback(lambda _: None).cancel()
        await job.ended
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)

    @awaited
    async def test_stopped(self) -> None:
        """
        A process that never ends is killed and reaped once the last caller has stopped waiting.
        """
        clock = Reactor()
        self.patch(clock, "addReader", self.reactor.addReader)
        self.patch(clock, "removeReader", self.reactor.removeReader)
        job = Job(clock, _stop, "/disk")
        os.waitid(os.P_PID, job._process._popen.pid, os.WSTOPPED | os.WNOWAIT)
        clock.advance(60)
        self.failureResultOf(job.done, WorkError)
        await job.ended
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)


class DeadlineTests(SynchronousTestCase):
    """Tests for processes that hang, on a fake clock."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = Threads(self, self.reactor)

    def test_record(self) -> None:
        """
        After 10 s one record says what the process waits for; after a minute the process is killed.
        """
        job = Job(self.reactor, _getpid, "/disk")
        with capturedLogs() as events:
            self.reactor.advance(9.9)
            self.assertEqual(events, [])
            self.reactor.advance(0.1)
            self.reactor.advance(49)
        (record,) = records(events)
        self.assertEqual(
            (record["text"], record["level"]), ("/disk: has not answered for 10 s", "warn")
        )
        self.assertEqual(record["message_id"], STILL)
        self.assertNoResult(job.done)
        process: Any = job._process
        self.assertFalse(process.isKilled)
        self.reactor.advance(1)
        self.assertTrue(process.isKilled)
        why = self.failureResultOf(job.done, WorkError)
        self.assertEqual(why.getErrorMessage(), "/disk: has not answered for 60 s")
        self.assertNoResult(job.ended)
        self.threads.work()
        self.successResultOf(job.ended)

    def test_inTime(self) -> None:
        """A process that ends in time leaves no timer and no record."""
        done = deferToProcess(self.reactor, _getpid, "/disk")
        self.threads.work()
        self.assertEqual(self.successResultOf(done), os.getpid())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.reactor.getReaders(), [])

    def test_tooMany(self) -> None:
        """While five processes hang, no sixth starts; other paths are not affected."""
        jobs = [Job(self.reactor, _getpid, "/disk") for _ in range(5)]
        self.reactor.advance(60)
        for job in jobs:
            self.failureResultOf(job.done, WorkError)
        why = self.failureResultOf(deferToProcess(self.reactor, _getpid, "/disk"), WorkError)
        self.assertEqual(why.getErrorMessage(), "/disk: 5 processes wait for it already")
        self.assertNoResult(deferToProcess(self.reactor, _getpid, "/other"))
        jobs[0].doRead()
        self.assertNoResult(deferToProcess(self.reactor, _getpid, "/disk"))
        self.threads.work()
        self.assertEqual(Job._stuck, [])
