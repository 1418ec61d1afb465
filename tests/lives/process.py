"""One process of the server in a life: the real parts, composed as the commands compose them."""

from __future__ import annotations

import gc
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, FunctionType, ModuleType
from typing import Any
from unittest import mock

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory

from fastpoetry.command.handover import HandOverService
from fastpoetry.delivery.haproxy import PatientEndpoint
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Source
from fastpoetry.listen import PoetryListener
from fastpoetry.protocol import PoetryFactory, PoetryProtocol
from fastpoetry.systemd.adopted import AdoptedEndpoint
from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.descriptors import Descriptor
from fastpoetry.systemd.journal import JournalObserver
from fastpoetry.systemd.store import StoreError
from lives.journal import Journal
from lives.kernel import Faults, Time, Turns

LIMITS = Limits(
    drainSeconds=5.0,
    stallSeconds=10.0,
    maxReaders=6,
    maxReadersPerSource=3,
    journalBudgetPerSecond=10_000,
)


class Store:
    """
    systemd's descriptor store, which outlives processes.

    @ivar isBroken: whether it refuses everything.
    """

    def __init__(self) -> None:
        self.isBroken = False
        self._held: list[tuple[str, int]] = []

    def putNow(self, descriptors: Mapping[str, Any], *, poll: bool, seconds: float) -> None:
        """
        Store duplicates of descriptors. A unit has one process, so its store has room for one.

        @raise StoreError: the store is broken, or another process has used it.
        """
        if self.isBroken or self._held:
            raise StoreError("this life's store takes nothing")
        for name, numbers in descriptors.items():
            self._held += [(name, os.dup(number)) for number in numbers]

    def removeNow(self, *names: str, seconds: float) -> None:
        """Close the descriptors under some names."""
        for name, number in self._held:
            if name in names:
                os.close(number)
        self._held = [each for each in self._held if each[0] not in names]

    def take(self, name: str) -> list[Any]:
        """@return: duplicates of the descriptors under a name, as at the start of a process."""
        return [mock.Mock(number=os.dup(held)) for each, held in self._held if each == name]

    def clear(self) -> None:
        """Close all descriptors, as systemd does when a unit stops for good."""
        self.removeNow(*{name for name, _ in self._held}, seconds=0.0)


class _OwnProtocol(PoetryProtocol):
    """A protocol of another program, so that its port stays on Twisted's transports."""


class _TLSEndpoint:
    """An endpoint whose clients must shake hands. In a life no client does."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def listen(self, factory: Any) -> Any:
        """Listen, and put TLS between the connections and their protocols."""
        return self._endpoint.listen(TLSMemoryBIOFactory(CertificateOptions(), False, factory))


WAYS = ("fast", "unix", "standard", "header", "tls")


class Process:
    """
    A process that serves on all of a life's sockets.

    @ivar acceptedAt: the time at which it accepted each connection, in seconds.
    @ivar handedOver: the number of readers it has handed over.
    @ivar records: the number of its records, by message id.
    """

    def __init__(
        self,
        makeSource: Callable[[Any, Any], Source],
        sockets: Mapping[str, socket.socket],
        store: Any,
        time: Time,
        faults: Faults,
    ) -> None:
        """
        @param makeSource: makes the source of the poems, for a reactor and a clock.
        @param sockets: listening sockets, by L{WAYS}.
        @param store: may hold readers of the previous process.
        """
        self.acceptedAt: list[float] = []
        self.handedOver = 0
        self.records: Counter[str] = Counter()
        self.reactor = Turns(time, faults)
        self.clock = MonotonicClock(self.reactor)
        self.policy = Policy(LIMITS, self.clock)
        self.source = makeSource(self.reactor, self.clock)
        self._passed = {way: os.dup(each.fileno()) for way, each in sockets.items()}
        self.listeners = {way: self._listener(way) for way in sockets}
        self._handOver = HandOverService(
            store, self.policy, self.reactor, {"NOTIFY_SOCKET": "/run/systemd/notify"}
        )
        self._root = MultiService()
        service: Any
        for service in (self.source, *self.listeners.values(), self._handOver):
            service.setServiceParent(self._root)
        self._stopping: Deferred[object] | None = None

    def _listener(self, way: str) -> PoetryListener:
        passed = (Descriptor.examine(self._passed[way], way),)
        endpoint: Any = AdoptedEndpoint(self.reactor, passed, mock.Mock())
        if way == "header":
            endpoint = PatientEndpoint(endpoint)
        elif way == "tls":
            endpoint = _TLSEndpoint(endpoint)
        factory = PoetryFactory(self.source, self.policy)
        if way == "standard":
            factory.protocol = _OwnProtocol
        return PoetryListener(endpoint, factory, self.reactor)

    def start(self) -> None:
        """Start as twistd does."""
        self._root.privilegedStartService()
        self._root.startService()

    @property
    def takenOver(self) -> int:
        """The number of readers that the previous process has handed over."""
        return self._handOver.takenOver

    @property
    def ports(self) -> Iterator[Any]:
        """The ports that accept connections."""
        for listener in self.listeners.values():
            yield from listener._ports

    def stop(self) -> None:
        """Begin to stop."""
        before = self.policy.handOver

        def count(readers: Any) -> bool:
            isDone = before is not None and before(readers)
            self.handedOver += isDone * len(readers)
            return isDone

        self.policy.handOver = count
        self._stopping = self._root.stopService()

    @property
    def isStopping(self) -> bool:
        """Whether it has begun to stop."""
        return self._stopping is not None

    @property
    def hasStopped(self) -> bool:
        """Whether the stop is complete."""
        return self._stopping is not None and self._stopping.called

    def exit(self) -> None:
        """
        Close everything that the process has open, as the kernel does at its exit or C{kill -9}.
        """
        for found in _findSockets(self.policy, self.reactor, self.source, self._root):
            os.close(found.detach())
        timer = self.clock._timer
        if timer is not None:
            timer.close()
        for number in self._passed.values():
            os.close(number)
        self.reactor.close()


_PLAIN = (type, ModuleType, FunctionType, FrameType, str, bytes, int, float, mock.Mock)
_SHARED = (Journal, JournalObserver)
"""Objects of all lives."""


def _findSockets(*roots: object) -> Iterator[socket.SocketType]:
    """@return: each open socket that these objects refer to, directly or indirectly."""
    seen: set[int] = set()
    waiting: list[Any] = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, (*_PLAIN, *_SHARED)):
            continue
        seen.add(id(each))
        if isinstance(each, socket.SocketType) and each.fileno() >= 0:
            yield each
        waiting += gc.get_referents(each)
