"""
The endpoint of an upstream: parsing its description, and looking up its name.

Does not fetch. The caller limits how long connecting may take.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from socket import AF_INET6, SOCK_STREAM, getaddrinfo
from threading import Thread
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from fastpoetry.apart.worker import WorkError

_Address = IPv4Address | IPv6Address

_FORM = "; the right form is tcp:host=poems.example:port=10000"

_UNLIMITED: Any = None
"""No limit for connecting."""

_WORD = re.compile(r"((?:[^:\\]|\\.)*)(?::|\Z)", re.DOTALL)
"""A part of a description. In it, a backslash escapes the next character."""

_BRACKETS = re.compile(r"\[([^\[\]\\]*)\]")
_HOST = re.compile(r"(?<=:host=)([^\\=]*?)(?=:[A-Za-z]+=|\Z)")
_POSITION = re.compile(r"(?<=\Atcp:)([^\\=]*)(?=:[0-9]+\Z)")
"""The places where people may write an IPv6 address with plain colons."""


def parseUpstream(description: str, reactor: Any) -> IStreamClientEndpoint:
    """
    Make the endpoint of an upstream.

    The IPv4 and IPv6 addresses of a name are tried as in RFC 8305.

    @param description: a Twisted client endpoint's; colons in an IPv6 address need no backslash.
    @param reactor: for connections, names and time.
    @raise ValueError: with one line that tells the fault and shows the right form.
    """
    if not description:
        raise ValueError(f"names no upstream{_FORM}")
    for place in (_BRACKETS, _HOST, _POSITION):
        description = place.sub(_escape, description)
    words = [match[1] for match in _WORD.finditer(description)]
    if any(word.startswith("timeout=") for word in words):
        raise ValueError("timeout= is not supported; use --connect-timeout")
    if words[0] == "tcp":
        return _parseTCP(words[1:], reactor)
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, description)
    except Exception as why:  # each kind of endpoint has its own errors
        reason = str(why) or type(why).__name__
        raise ValueError(f"not a Twisted client endpoint: {reason}{_FORM}") from None
    return endpoint


def _escape(address: re.Match[str]) -> str:
    """Escape the colons of an IPv6 address. Return any other text unchanged."""
    if isIPv6Address(address[1]):
        return address[1].replace(":", r"\:")
    return address[0]


def _parseTCP(words: list[str], reactor: Any) -> HostnameEndpoint:
    """Make the endpoint of a host and a port, given by position or by name."""
    given = {}
    names = ["host", "port"]
    for word in filter(None, words):
        key, equals, value = word.partition("=")
        if not equals:
            key, value = (names.pop(0) if names else ""), word
        if key not in ("host", "port", "bindAddress") or key in given:
            raise ValueError(f"{word!a} is more than was expected{_FORM}")
        given[key] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    host, port = given.get("host", ""), given.get("port", "")
    if not host:
        raise ValueError(f"has no host{_FORM}")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"port {port!a} is not from 1 to 65535{_FORM}")
    source = (given["bindAddress"], 0) if "bindAddress" in given else None
    return HostnameEndpoint(reactor, host, int(port), timeout=_UNLIMITED, bindAddress=source)


class ThreadError(WorkError):
    """A thread that cannot be started for now: one line."""


@implementer(IHostResolution)
class _Lookup:
    """A lookup of a name, which cannot be cancelled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        pass


@implementer(IHostnameResolver)
class Resolver:
    """
    Looks names up in daemon threads, with one thread at a time for each name.

    getaddrinfo(3) blocks. The reactor's pool has ten threads, and a stop waits for all of them: on
    a dead resolver, without a limit. Daemon threads end with the process.
    """

    def __init__(self, reactor: Any, getaddrinfo: Callable[..., Any] = getaddrinfo) -> None:
        """@param reactor: provides C{IReactorFromThreads}."""
        self._reactor = reactor
        self._getaddrinfo = getaddrinfo
        self._waiters: dict[tuple[str, int], list[Deferred[list[_Address]]]] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """@raise ThreadError: if no thread can be started."""
        found = self._find(hostName, portNumber)
        lookup = _Lookup(hostName)
        resolutionReceiver.resolutionBegan(lookup)

        def tell(addresses: list[_Address]) -> None:
            for address in addresses:
                if isinstance(address, tuple(addressTypes or (IPv4Address, IPv6Address))):
                    resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        found.addCallback(tell)
        return lookup

    def _find(self, name: str, port: int) -> Deferred[list[_Address]]:
        if isIPAddress(name):
            return succeed([IPv4Address("TCP", name, port)])
        if isIPv6Address(name):
            return succeed([IPv6Address("TCP", name, port)])
        waiters = self._waiters.setdefault((name, port), [])
        if not waiters:
            try:
                Thread(target=partial(self._look, name, port), daemon=True).start()
            except RuntimeError as why:  # the limit of threads is reached (TasksMax=)
                raise ThreadError(f"no thread can be started: {why}") from None
        waiters.append(Deferred())
        return waiters[-1]

    def _look(self, name: str, port: int) -> None:
        """Look a name up, in its thread. On any error there are no addresses."""
        addresses: list[_Address] = []
        # Besides gaierror, there is any OSError that kept the C library from asking (EAI_SYSTEM).
        with suppress(Exception):
            for family, _, _, _, where in self._getaddrinfo(name, port, type=SOCK_STREAM):
                make = IPv6Address if family == AF_INET6 else IPv4Address
                addresses.append(make("TCP", *where))
        self._reactor.callFromThread(self._end, name, port, addresses)

    def _end(self, name: str, port: int, addresses: list[_Address]) -> None:
        for waiter in self._waiters.pop((name, port)):
            waiter.callback(addresses)
