"""
Twisted without TLS, for a process that only serves poems, and needs no TLS for that.

Twisted's sockets import pyOpenSSL and cryptography if they are installed, as they always are on
Debian. These take a third of the start's time and a quarter of a waiting server's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

_PLAIN = ("adopted", "systemd", "tcp", "tcp6", "unix")
"""The kinds of endpoints that never use TLS. Any other kind may use it."""


def isPlain(description: str) -> bool:
    """Whether a description, of a server or client endpoint, certainly needs no TLS."""
    kind, _, rest = description.partition(":")
    if kind == "haproxy":
        return isPlain(rest)
    _, hasOther, other = rest.partition("else=")
    return kind in _PLAIN and (not hasOther or isPlain(other.replace("\\:", ":")))


def importTwisted(descriptions: Iterable[str]) -> None:
    """
    Import Twisted's sockets: without TLS, if no endpoint can need it.

    For the rest of the process, Twisted then acts as if pyOpenSSL were not installed. So call this
    only in a process that runs no other program's code. If another reactor or logger has imported
    TLS already, TLS stays.

    @param descriptions: of all endpoints of the process.
    """
    if "OpenSSL" in sys.modules or not all(map(isPlain, descriptions)):
        return
    # A module that is None cannot be imported (Python Language Reference, 5.3.1).
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    try:
        # While these are imported, they try to import OpenSSL, and catch the ImportError.
        import twisted.internet.endpoints
        import twisted.internet.posixbase  # noqa: F401
    finally:
        del sys.modules["OpenSSL"]
