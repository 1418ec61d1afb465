"""
Who a client is, and where a server listens: in a record, as one source, from a PROXY header.

Opens and asks no socket.
"""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

Address = tuple[str, int] | tuple[str, int, int, int] | int | str | None
"""
What accept(2) says of a client: host and port first for INET; for UNIX nothing of use. There, the
client's user takes its place where it is asked for.
"""

_MAPPED_TEXT = "::ffff:"
_MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4 address begins with on an IPv6 socket (RFC 4291, 2.5.5.2)."""


def addressOf(peer: IAddress) -> Address:
    """What accept(2) would have said of one of Twisted's addresses."""
    host = getattr(peer, "host", None)
    return None if host is None else (host, getattr(peer, "port", 0))


def formatPeer(address: Address) -> str:
    """
    A client's address for a person: C{192.0.2.7:40000}, C{[2001:db8::7]:40000} or C{unix}; an IPv4
    client of an IPv6 socket is shown as any other.
    """
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[:2]
    if "." in host:
        host = host.removeprefix(_MAPPED_TEXT)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def formatHost(address: Any) -> str:
    """A listening address for a person: C{127.0.0.1:10000}, or the path of a UNIX socket."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"a UNIX socket without a name")
    return formatPeer((address.host, address.port))


def sourceOf(address: Address) -> bytes | None:
    """
    What counts as one source: an IPv4 address, or the /64 of an IPv6 one, all of which is commonly
    one customer's (RFC 6177); on a UNIX socket, a user.
    """
    if isinstance(address, int):
        return b"user %d" % address
    if not isinstance(address, tuple):
        return None
    host = address[0].partition("%")[0]
    try:
        packed = inet_pton(AF_INET6, host)
    except OSError:  # IPv4, or whatever a PROXY header may say
        return host.encode()
    return packed if packed.startswith(_MAPPED) else packed[:8]


def normalise(peer: Any) -> Any:
    """
    The address that a PROXY header says, as the kernel would write it.

    @raise OSError: if it is not an address; it may be text meant to forge a record.
    @raise ValueError: likewise, or its port is not from 0 to 65535.
    """
    if isinstance(peer, IPv4Address | IPv6Address):
        if not 0 <= peer.port <= 65535:
            raise ValueError(f"{peer.port} is no port")
        family = AF_INET6 if isinstance(peer, IPv6Address) else AF_INET
        host = inet_ntop(family, inet_pton(family, peer.host))
        return type(peer)(peer.type, host, peer.port)
    return peer
