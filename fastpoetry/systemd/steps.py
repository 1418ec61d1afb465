"""
Work in steps that never block: a generator yields the event that it waits for.

A blocking program takes the steps with L{take}, a reactor with L{drive}.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from time import monotonic
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

Steps = Generator[tuple[int, int], None, None]
"""Yields a descriptor, and the event of poll(2) to wait for."""


def isReady(number: int, seconds: float, event: int = select.POLLIN) -> bool:
    """
    @param number: a descriptor.
    @param seconds: how long to wait for the event.
    @param event: an event of poll(2).
    @return: whether the event has come, or the other end is closed.
    """
    poll = select.poll()
    poll.register(number, event)
    return bool(poll.poll(max(0, seconds) * 1000))


def take(steps: Steps, seconds: float) -> None:
    """
    Take all steps, and block until they end.

    @param steps: the steps.
    @param seconds: the time limit. At the limit a C{TimeoutError} is raised in the steps.
    """
    deadline = monotonic() + seconds
    with closing(steps):
        for number, event in steps:
            if not isReady(number, deadline - monotonic(), event):
                steps.throw(_late(seconds))


def drive(steps: Steps, seconds: float, reactor: Any, clock: Any) -> Deferred[None]:
    """
    Take all steps while the reactor runs.

    @param steps: the steps.
    @param seconds: the time limit. At the limit a C{TimeoutError} is raised in the steps.
    @param reactor: provides C{IReactorFDSet}.
    @param clock: provides C{IReactorTime}.
    @return: fires after the last step; fails with the error that a step raises.
    """
    return _Drive(steps, seconds, reactor, clock).done


def _late(seconds: float) -> TimeoutError:
    return TimeoutError(f"{seconds:g} s")


class _Drive:
    """Takes each step when the reactor reports its event."""

    def __init__(self, steps: Steps, seconds: float, reactor: Any, clock: Any) -> None:
        self._steps = steps
        self._reactor = reactor
        self._waiting: _Waiting | None = None
        self.done: Deferred[None] = Deferred(lambda _: self._end())
        self._limit = clock.callLater(seconds, self._proceed, partial(steps.throw, _late(seconds)))
        self._step()

    def _step(self) -> None:
        self._proceed(partial(next, self._steps))

    def _proceed(self, resume: Callable[[], tuple[int, int]]) -> None:
        self._stopWaiting()
        try:
            number, event = resume()
            self._waiting = _Waiting(self._reactor, number, event, self._step)
        except StopIteration:
            self._end()
            self.done.callback(None)
        except Exception as why:
            self._end()
            self.done.errback(why)

    def _stopWaiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def _end(self) -> None:
        if self._limit.active():
            self._limit.cancel()
        self._stopWaiting()
        self._steps.close()


@implementer(IReadDescriptor, IWriteDescriptor)
class _Waiting:
    """A descriptor that the reactor watches for one event."""

    def __init__(self, reactor: Any, number: int, event: int, ready: Callable[[], None]) -> None:
        self._reactor = reactor
        self._number = number
        self._ready: Callable[[], None] | None = ready
        (reactor.addWriter if event == select.POLLOUT else reactor.addReader)(self)

    def stop(self) -> None:
        """Remove the descriptor from the reactor."""
        self._ready = None
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)

    def fileno(self) -> int:
        """@return: the descriptor."""
        return self._number

    def logPrefix(self) -> str:
        """@return: the prefix of output that is printed during a step."""
        return "-"

    def doRead(self) -> None:
        """Take the next step."""
        if self._ready is not None:
            self._ready()

    def doWrite(self) -> None:
        """Take the next step."""
        self.doRead()

    def connectionLost(self, reason: Failure) -> None:
        """
        Take the next step, which finds out the cause. Some reactors call this if the other end
        hangs up.

        @param reason: why.
        """
        self.doRead()
