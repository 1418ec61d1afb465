"""
Addresses of clients and listeners.

Formats them for records, checks them, and derives the source whose clients share a quota. Opens and
queries no socket.
"""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

Address = tuple[str, int] | tuple[str, int, int, int] | int | str | None
"""
A client's address from accept(2): for INET a tuple that begins with host and port. For UNIX it is
useless, so L{fastpoetry.delivery.sockets.findAddress} replaces it by the number of the client's
user.
"""

_MAPPED_TEXT = "::ffff:"
_MAPPED = bytes(10) + b"\xff\xff"
"""The prefix of an IPv4 address on an IPv6 socket (RFC 4291, 2.5.5.2)."""


def addressOf(peer: IAddress) -> Address:
    """Convert one of Twisted's addresses to the form of accept(2)."""
    host = getattr(peer, "host", None)
    return None if host is None else (host, getattr(peer, "port", 0))


def formatPeer(address: Address) -> str:
    """
    Format a client's address: C{192.0.2.7:40000}, C{[2001:db8::7]:40000} or C{unix}.

    An IPv4 client of an IPv6 socket looks like any other IPv4 client.
    """
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[:2]
    if "." in host:
        host = host.removeprefix(_MAPPED_TEXT)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def formatHost(address: Any) -> str:
    """Format a listening address: C{127.0.0.1:10000}, or the path of a UNIX socket."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"a UNIX socket without a name")
    return formatPeer((address.host, address.port))


def sourceOf(address: Address) -> bytes | None:
    """
    Return the source of an address: clients of one source share a quota.

    It is an IPv4 address or the /64 of an IPv6 address, which commonly belongs to one customer
    (RFC 6177). On a UNIX socket it is a user.
    """
    if isinstance(address, int):
        return b"user %d" % address
    if not isinstance(address, tuple):
        return None
    host = address[0].partition("%")[0]
    try:
        packed = inet_pton(AF_INET6, host)
    except OSError:  # IPv4, or any text from a PROXY header
        return host.encode()
    if packed.startswith(_MAPPED):  # an IPv4 client of an IPv6 socket
        return inet_ntop(AF_INET, packed[-4:]).encode()
    return packed[:8]


def normalise(peer: Any) -> Any:
    """
    Convert the address in a PROXY header to the kernel's form.

    @raise OSError: if it is not an address; it may be text meant to forge a record.
    @raise ValueError: likewise, or if its port is not from 0 to 65535.
    """
    if isinstance(peer, IPv4Address | IPv6Address):
        if not 0 <= peer.port <= 65535:
            raise ValueError(f"{peer.port} is not a port")
        family = AF_INET6 if isinstance(peer, IPv6Address) else AF_INET
        host = inet_ntop(family, inet_pton(family, peer.host))
        return type(peer)(peer.type, host, peer.port)
    return peer
