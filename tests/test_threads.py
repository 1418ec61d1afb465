"""Tests for L{fastpoetry.threads}."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from queue import SimpleQueue
from typing import Any
from unittest import mock

from fakes import SECONDS, Reactor, Threads
from processes import ROOT
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.threads import ThreadError, callApart, callAside, startDaemon

_STANDS_STILL = """
import threading, time
from twisted.internet import reactor
from fastpoetry.threads import callAside

begun = threading.Event()

def work():
    begun.set()
    threading.Event().wait()

callAside(reactor, work)
begun.wait()
reactor.callWhenRunning(reactor.stop)
reactor.run()
print("ended")
"""


class CallTests(SynchronousTestCase):
    """Tests for L{callAside}."""

    def setUp(self) -> None:
        self.reactor = Reactor()

    def test_result(self) -> None:
        """What comes of the work is known when a thread has done it, and not before."""
        threads = Threads(self)
        done = callAside(self.reactor, lambda: "a poem")
        self.assertNoResult(done)
        threads.work()
        self.assertEqual(self.successResultOf(done), "a poem")

    def test_failure(self) -> None:
        """So is what it raises."""
        threads = Threads(self)
        done = callAside(self.reactor, lambda: 1 // 0)
        threads.work()
        self.failureResultOf(done, ZeroDivisionError)

    def test_cancelled(self) -> None:
        """Who cancels waits no longer, and what comes of the work is dropped in silence."""
        threads = Threads(self)
        done = callAside(self.reactor, lambda: "a poem")
        done.cancel()
        self.failureResultOf(done, CancelledError)
        threads.work()

    def test_elsewhere(self) -> None:
        """The work has a thread of its own, and its result comes by way of the reactor."""
        calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        reactor = mock.Mock(callFromThread=lambda *call: calls.put(call))
        done = callAside(reactor, threading.current_thread)
        f, *args = calls.get(timeout=SECONDS)
        self.assertNoResult(done)
        f(*args)
        thread = self.successResultOf(done)
        self.assertIsNot(thread, threading.current_thread())
        self.assertTrue(thread.daemon)

    def test_none(self) -> None:
        """Where no thread can be had, one line says so."""
        start = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        self.patch(threading.Thread, "start", start)
        why = self.assertRaises(ThreadError, startDaemon, lambda: None)
        self.assertEqual(str(why), "no thread can be had: can't start new thread")

    def test_end(self) -> None:
        """A process whose work stands still ends all the same."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        ended = subprocess.run(
            [sys.executable, "-c", _STANDS_STILL], env=environ, capture_output=True, timeout=60
        )
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, b"ended\n", b""))


class ApartTests(SynchronousTestCase):
    """Tests for L{callApart}."""

    def test_result(self) -> None:
        """The work is done by another process, which is gone afterwards."""
        process = callApart(os.getpid)
        self.assertNotEqual(process, os.getpid())
        self.assertRaises(ChildProcessError, os.waitpid, process, 0)

    def test_failure(self) -> None:
        """What it raises is raised here."""
        self.assertRaises(ZeroDivisionError, callApart, lambda: 1 // 0)

    def test_killed(self) -> None:
        """One that is killed has one line."""
        why = self.assertRaises(
            ThreadError, callApart, lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
        self.assertEqual(str(why), "the process that was to read has ended")

    def test_alone(self) -> None:
        """It has no connection of ours, and calls none of our handlers of signals."""
        ours, theirs = socket.socketpair()
        with ours, theirs:

            def work() -> bool:
                os.kill(os.getpid(), signal.SIGTERM)
                numbers = [ours.fileno(), theirs.fileno(), 0, 1, 2]
                return any(os.path.exists(f"/proc/self/fd/{number}") for number in numbers)

            self.assertFalse(callApart(work))

    def test_signals(self) -> None:
        """Who asked has its signals as they were."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        callApart(os.getpid)
        self.assertEqual(signal.pthread_sigmask(signal.SIG_BLOCK, ()), before)

    def test_none(self) -> None:
        """Where no process can be had, or no way to it, the work is done here."""
        for function in ("fork", "pipe"):
            with mock.patch.object(os, function, side_effect=OSError):
                self.assertEqual(callApart(os.getpid), os.getpid())
