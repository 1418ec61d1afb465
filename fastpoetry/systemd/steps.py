"""
Work in steps: a generator yields the event that it waits for, and does not wait itself.

A program without a reactor takes the steps with L{driveNow}, a reactor with L{drive}.
"""

from __future__ import annotations

import os
import select
from collections.abc import Generator
from contextlib import closing
from io import FileIO
from time import monotonic
from typing import Any

from twisted.internet import defer
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Steps = Generator[tuple[int, int], None, None]
"""Yields a descriptor, and the event of poll(2) to wait for."""


def waitFor(number: int, seconds: float, event: int = select.POLLIN) -> bool:
    """
    Wait for an event of poll(2), or until the other end is closed.

    @return: whether that came in time.
    """
    poll = select.poll()
    poll.register(number, event)
    return bool(poll.poll(max(0, seconds) * 1000))


def makePipe() -> tuple[FileIO, FileIO]:
    """Return the end to read, and the end to write."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    return open(ours, "rb", 0), open(theirs, "wb", 0)


def driveNow(steps: Steps, seconds: float) -> None:
    """
    Take all steps, and block until they end.

    @param seconds: the time limit. At the limit a C{TimeoutError} is raised in the steps.
    """
    deadline = monotonic() + seconds
    with closing(steps):
        for number, event in steps:
            if not waitFor(number, deadline - monotonic(), event):
                steps.throw(TimeoutError(f"{seconds:g} s"))


def drive(steps: Steps, seconds: float, reactor: Any, clock: Any) -> Deferred[None]:
    """
    Take all steps as L{driveNow} does, but while the reactor runs.

    @param reactor: provides C{IReactorFDSet}.
    @param clock: provides C{IReactorTime}.
    @return: fires after the last step; fails with the error that a step raises.
    """

    async def driving() -> None:
        deadline = clock.seconds() + seconds
        with closing(steps):
            for number, event in steps:
                left = max(0, deadline - clock.seconds())
                try:
                    await _Event(reactor, number, event).come.addTimeout(left, clock)
                except defer.TimeoutError:
                    steps.throw(TimeoutError(f"{seconds:g} s"))

    return Deferred.fromCoroutine(driving())


class _Event(FileDescriptor):
    """An event of a descriptor. The reactor waits for it, and then fires C{come}."""

    def __init__(self, reactor: Any, number: int, event: int) -> None:
        super().__init__(reactor)
        self._number = number
        self.come: Deferred[None] = Deferred(lambda _: self._stopWaiting())
        (self.startWriting if event == select.POLLOUT else self.startReading)()

    def _stopWaiting(self) -> None:
        self.stopReading()
        self.stopWriting()

    def fileno(self) -> int:
        return self._number

    def doRead(self) -> None:
        self._stopWaiting()
        if not self.come.called:
            self.come.callback(None)

    doWrite = doRead

    def connectionLost(self, reason: Failure) -> None:
        """Stop waiting. The next step finds out why the other end has hung up."""
        self.doRead()
