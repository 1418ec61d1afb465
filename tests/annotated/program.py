"""
A program of somebody else's, annotated throughout, that uses all that is public: for the type
checkers alone. Nobody runs it.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, ITransport
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import globalLogBeginner

from fastpoetry.systemd.adopted import (
    AdoptedDatagrams,
    AdoptedEndpoint,
    AdoptedPort,
    AdoptError,
    adoptConnection,
    detachConnection,
)
from fastpoetry.systemd.clock import MonotonicClock
from fastpoetry.systemd.descriptors import Descriptor, inherited
from fastpoetry.systemd.journal import JournalHandler, JournalObserver, observer
from fastpoetry.systemd.notify import NotifyService
from fastpoetry.systemd.store import Store


class Table:
    """Something to serve."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def describe(self) -> str:
        return f"{len(self.names)} names"

    async def reload(self) -> None:
        self.names["a"] = "b"


def describeAll() -> list[str]:
    found: tuple[Descriptor, ...] = inherited().descriptors
    return [f"{each.number} {each.name} {each.nature}" for each in found if each.family]


def listen(reactor: Any, factory: IProtocolFactory) -> Deferred[IListeningPort]:
    return AdoptedEndpoint(reactor, inherited().claim("admin")).listen(factory)


def listenForDatagrams(reactor: Any) -> IAddress | str:
    try:
        found = inherited().claim("dns", socket.SOCK_DGRAM)
        port: AdoptedPort = AdoptedDatagrams(reactor, found).listen(DatagramProtocol)
    except AdoptError as why:
        return str(why)
    return port.getHost()


def restore(reactor: Any, factory: IProtocolFactory) -> Store:
    store = Store(reactor)
    for each in store.take("client"):
        adoptConnection(reactor, each.number, factory)
    return store


def keep(store: Store, transports: list[ITransport]) -> Deferred[None]:
    return store.put({"client": [detachConnection(each) for each in transports]})


def configure() -> None:
    journal: JournalObserver = observer({"SYSLOG_IDENTIFIER": "table"})
    observers: Any = [journal]  # pyright knows nothing of zope.interface
    globalLogBeginner.beginLoggingTo(observers)
    logging.basicConfig(handlers=[JournalHandler(logging.INFO, journal=journal)])
    journal.flush(0.5)


def start(reactor: Any) -> NotifyService:
    table = Table()
    notify = NotifyService(reactor, status=table.describe, reload=table.reload)
    notify.startService()
    MonotonicClock(reactor).callLater(1, print, "whatever the clock on the wall says")
    return notify
