"""Tests for L{fastpoetry.apart.threads}."""

from __future__ import annotations

import os
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

from fastpoetry.apart.threads import ThreadError, callAside

_STANDS_STILL = """
import threading, time
from twisted.internet import reactor
from fastpoetry.apart.threads import callAside

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
        """The result comes when a thread has done the work, and not before."""
        threads = Threads(self)
        done = callAside(self.reactor, lambda: "a poem")
        self.assertNoResult(done)
        threads.work()
        self.assertEqual(self.successResultOf(done), "a poem")

    def test_failure(self) -> None:
        """An error of the work comes when the thread has ended, and not before."""
        threads = Threads(self)
        done = callAside(self.reactor, lambda: 1 // 0)
        threads.work()
        self.failureResultOf(done, ZeroDivisionError)

    def test_cancelled(self) -> None:
        """
        A cancelled caller stops waiting, and the result of the work is dropped without a record.
        """
        threads = Threads(self)
        done = callAside(self.reactor, lambda: "a poem")
        done.cancel()
        self.failureResultOf(done, CancelledError)
        threads.work()

    def test_elsewhere(self) -> None:
        """The work has a thread of its own, and its result comes through the reactor."""
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
        """If no thread can start, the error is one line."""
        start = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        self.patch(threading.Thread, "start", start)
        why = self.assertRaises(ThreadError, callAside, self.reactor, lambda: None)
        self.assertEqual(str(why), "no thread can be started: can't start new thread")

    def test_end(self) -> None:
        """A process whose work hangs ends all the same."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        ended = subprocess.run(
            [sys.executable, "-c", _STANDS_STILL], env=environ, capture_output=True, timeout=60
        )
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, b"ended\n", b""))
