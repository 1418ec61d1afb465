"""
An annotated program of another author that uses every public name: only type checkers read it. It
is never run.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, ITransport
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner

from fastpoetry.systemd.adopted import (
    AdoptedDatagrams,
    AdoptedEndpoint,
    AdoptedParser,
    AdoptedPort,
    adoptConnection,
    detachConnection,
)
from fastpoetry.systemd.clock import MonotonicClock, MonotonicReactor
from fastpoetry.systemd.descriptors import AdoptError, Descriptor, Inherited, inherited, refusal
from fastpoetry.systemd.journal import JournalHandler, JournalObserver, observer
from fastpoetry.systemd.notify import (
    ManagerError,
    NotifyService,
    NotReady,
    ReloadError,
    StartingService,
    startNotifying,
)
from fastpoetry.systemd.store import Store, StoreError, makeMemory, pack, readMemory, unpack


class Table:
    """Something to serve."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.loaded: Deferred[None] = Deferred()

    def describe(self) -> str:
        return f"{len(self.names)} names"

    async def load(self) -> None:
        await self.loaded
        if not self.names:
            raise NotReady("no names")

    async def reload(self) -> None:
        if "a" in self.names:
            raise ReloadError("there is an a already")
        self.names["a"] = "b"


def describeAll() -> list[str]:
    passed: Inherited = inherited()
    everything = (*passed.descriptors, Descriptor.examine(0, "stdin"))
    return [
        f"{each.number} {each.name} {each.nature} {each.listens}"
        for each in everything
        if each.family and each.kind and each.serves(socket.SOCK_STREAM) and not each.isStray
    ]


def listen(reactor: Any, factory: IProtocolFactory) -> Deferred[IListeningPort]:
    if inherited().isNothing:
        raise refusal("table: nobody passes a socket")
    endpoint = AdoptedEndpoint(reactor, inherited().claim("admin"))
    assert endpoint.descriptors
    return endpoint.listen(factory)


def parse(reactor: Any, name: str) -> Any:
    parser = AdoptedParser()
    return parser.parseStreamServer(reactor, **{"name": name, "else": f"{parser.prefix}:"})


def listenForDatagrams(reactor: Any) -> IAddress | str:
    try:
        found = inherited().claim("dns", socket.SOCK_DGRAM)
        port: AdoptedPort = AdoptedDatagrams(reactor, found).listen(DatagramProtocol)
    except AdoptError as why:
        return str(why)
    return port.getHost()


async def restart(port: AdoptedPort) -> int:
    await port.stopListening()
    port.startListening()
    print("serves", port.factory)
    return len(port.ports)


def close(port: AdoptedPort) -> Deferred[None]:
    return port.loseConnection()


def handBack(found: tuple[Descriptor, ...]) -> None:
    inherited().release(found)
    inherited().reclaim(found)
    print("left:", *inherited().free)


def restore(reactor: Any, clock: MonotonicClock, factory: IProtocolFactory) -> Store:
    store = Store(reactor, clock=clock, environ=os.environ, passed=inherited)
    for each in store.take("client"):
        adoptConnection(reactor, each.number, factory)
    for packed in store.take("packed"):
        for number in unpack(packed.number):
            adoptConnection(reactor, number, factory)
    for state in store.take("state"):
        print(readMemory(state.number, 1024).decode(), "of", store.size)
    return store


def keep(store: Store, transports: list[ITransport]) -> Deferred[None]:
    return store.put({"client": [detachConnection(each) for each in transports]}, seconds=1.0)


def keepNow(store: Store, transports: list[ITransport]) -> None:
    packed = pack([detachConnection(each) for each in transports])
    try:
        store.putNow({"packed": [packed], "state": [makeMemory(b"state")]}, poll=False)
        store.removeNow("client")
    except StoreError as why:
        print(why)


def configure() -> JournalObserver:
    journal: JournalObserver = observer({"SYSLOG_IDENTIFIER": "table"})
    observers: Any = [journal]  # pyright does not support zope.interface
    globalLogBeginner.beginLoggingTo(observers)
    handler = JournalHandler(logging.INFO, journal=journal)
    logging.basicConfig(handlers=[handler])
    entry = logging.makeLogRecord({"msg": "begun"})
    handler.emit(entry)
    journal.log(entry, "begun")
    journal.send({"MESSAGE": b"begun"}, 0.0)
    if os.fork() == 0:
        journal.forget()
    journal.flush(0.5)
    journal.end()
    return journal


def start(reactor: Any) -> NotifyService:
    table, clock = Table(), MonotonicClock(reactor)
    notify = NotifyService(
        reactor,
        status=table.describe,
        reload=table.reload,
        ready=table.load,
        alive=lambda: bool(table.names),
        extendSeconds=60,
        reloadSeconds=30.0,
        clock=clock,
        environ=os.environ,
        setHandler=signal.signal,
    )
    services = StartingService()
    services.addService(StartingService())
    notify.setServiceParent(services)
    notify.privilegedStartService()
    services.startService()
    if services.started is not None:
        services.started.addCallback(print)
    loop = LoopingCall(notify.tell, EXTEND_TIMEOUT_USEC=5_000_000)
    both: Any = MonotonicReactor(reactor, clock)  # pyright does not support zope.interface
    loop.clock = both
    clock.callLater(1, print, f"whatever the wall says: {clock.seconds()}")
    assert clock.getDelayedCalls()
    return notify


def startAlone(reactor: Any) -> NotifyService:
    return startNotifying(reactor, status=lambda: "no services")


async def stop(notify: NotifyService, store: Store) -> None:
    notify.tell("STATUS=stops", ERRNO=2)
    try:
        await notify.settle(seconds=1.0)
    except ManagerError as why:
        notify.tellTrouble(str(why))
    notify.stopService()
    await store.remove("client", seconds=1.0)
