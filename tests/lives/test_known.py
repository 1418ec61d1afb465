"""
Known faults: a life finds each of them when it is put back. Outsiders have found the first eight.

A fault that no life finds would show that the model has lost one of its promises.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from heapq import heappop
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from fastpoetry.delivery import handover
from fastpoetry.delivery.arrivals import Arrivals
from fastpoetry.delivery.fastport import BorrowedPort, SocketReader
from fastpoetry.delivery.gate import Gate
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.quota import Quota
from fastpoetry.delivery.sockets import END_ON_CLOSE, isOver, setLinger
from fastpoetry.systemd import clock
from fastpoetry.systemd.journal import JournalObserver
from lives.machine import Life
from lives.reader import mayVanish

_MOST_LIVES = 1_000

_Patch = tuple[object, str, Any]


def _lingerTakenBack() -> list[_Patch]:
    stop = BorrowedPort.stopListening

    def stopListening(port: Any) -> Any:
        setLinger(port._socket, END_ON_CLOSE)
        return stop(port)

    return [(BorrowedPort, "stopListening", stopListening)]


def _timerMarkedTooEarly() -> list[_Patch]:
    def arm(self: Any) -> None:
        while self._heap and self._isStale(self._heap[0]):
            heappop(self._heap)
        if not self._heap:
            self._close()
        elif self._heap[0][0] != self._armed:
            self._armed = self._heap[0][0]
            self._timer = self._timer or clock._Timer(self._reactor, self._run, self._timerLost)
            self._timer.set(max(self._armed - self.seconds(), 0))

    return [(clock.MonotonicClock, "_arm", arm)]


def _arrivalsNotCounted() -> list[_Patch]:
    def add(self: Any, arrival: Any) -> None:
        self._silentSince[arrival] = self._clock.seconds()

    return [(Arrivals, "add", add)]


def _readingBeforePause() -> list[_Patch]:
    def connectionLost(self: Any, reason: object) -> None:
        if self._isListening:
            self.startReading()
            self.policy.pause("accepting failed")

    return [(BorrowedPort, "connectionLost", connectionLost)]


def _quotaKept() -> list[_Patch]:
    giveUp = Policy.giveUp

    def giveUpOnly(policy: Policy, reader: Any, cause: str) -> None:
        with mock.patch.object(Quota, "remove"):
            giveUp(policy, reader, cause)

    return [(Policy, "giveUp", giveUpOnly)]


def _sentTwice() -> list[_Patch]:
    describe = handover.describe

    def describeLess(readers: Any, poems: Any) -> bytes:
        for reader in readers:
            reader.sentBytes = max(0, reader.sentBytes - 12)
        return describe(readers, poems)

    return [
        ("fastpoetry.command.handover", "describe", describeLess),
        (handover, "countSent", lambda _: None),
    ]


def _inputNotRead() -> list[_Patch]:
    def closeAfterClient(reader: SocketReader) -> bool:
        if isOver(reader):
            reader.close()
            return True
        setLinger(reader, END_ON_CLOSE)
        try:
            if reader.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return False
        except OSError:
            pass
        reader.close()
        return True

    return [(SocketReader, "closeAfterClient", closeAfterClient)]


def _notReadAgain() -> list[_Patch]:
    def open_(gate: Any) -> None:
        if gate._reopening is not None and gate._reopening.active():
            gate._reopening.cancel()
        gate._reopening = None

    return [(Gate, "open", open_)]


def _sentIsTaken() -> list[_Patch]:
    return [(SocketReader, "countTaken", lambda reader: reader.sentBytes)]


def _loggingWaits() -> list[_Patch]:
    def trySend(journal: JournalObserver, data: bytes) -> bool:
        journal._socket.sendto(data, journal._path)
        return True

    return [(JournalObserver, "_trySend", trySend)]


def _lostNotCounted() -> list[_Patch]:
    def tellDropped(journal: Any) -> None:
        journal._dropped = 0

    return [(JournalObserver, "_tellDropped", tellDropped)]


@pytest.mark.parametrize(
    "putBack",
    [
        pytest.param(_lingerTakenBack, id="linger taken back from a shared listener"),
        pytest.param(_timerMarkedTooEarly, id="timer marked as set before it is"),
        pytest.param(_arrivalsNotCounted, id="arrivals not counted by source"),
        pytest.param(_readingBeforePause, id="reading started before the pause"),
        pytest.param(_quotaKept, id="quota not returned after a reset"),
        pytest.param(_sentTwice, id="bytes sent twice after a hand-over"),
        pytest.param(_inputNotRead, id="closeAfterClient without draining input"),
        pytest.param(_notReadAgain, id="port not read again after EMFILE"),
        pytest.param(
            _sentIsTaken,
            id="sent bytes count as acknowledged",
            marks=pytest.mark.skipif(not mayVanish(), reason="a filter needs CAP_SYS_ADMIN here"),
        ),
        pytest.param(_loggingWaits, id="logging waits for a journal that does not read"),
        pytest.param(_lostNotCounted, id="lost records not reported"),
    ],
)
def test_known(putBack: Callable[[], list[_Patch]]) -> None:
    """A life finds the fault."""
    with ExitStack() as stack:
        for where, name, replacement in putBack():
            if isinstance(where, str):
                stack.enter_context(mock.patch(f"{where}.{name}", replacement))
            else:
                stack.enter_context(mock.patch.object(where, name, replacement))
        with pytest.raises((AssertionError, OSError, ExceptionGroup)):
            run_state_machine_as_test(seed(5)(Life), settings=_UNTIL_FOUND)


_UNTIL_FOUND = settings(
    max_examples=_MOST_LIVES,
    stateful_step_count=30,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)
