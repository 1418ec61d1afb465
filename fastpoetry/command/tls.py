"""
Twisted without TLS, for a process that does nothing but serve poems and needs none for that.

Twisted's sockets bring in pyOpenSSL and cryptography wherever these are installed, as they always
are on Debian: a third of the time of a start and a quarter of a waiting server's memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

_PLAIN = ("adopted", "systemd", "tcp", "tcp6", "unix")
"""The kinds of endpoints that are known to do without. Any other may need it."""


def isPlain(description: str) -> bool:
    """
    Whether an endpoint of that description certainly has no TLS.

    @param description: of a server or a client, as Twisted parses it.
    """
    kind, _, rest = description.partition(":")
    return isPlain(rest) if kind == "haproxy" else kind in _PLAIN


def importTwisted(descriptions: Iterable[str]) -> None:
    """
    Import what of Twisted has to do with sockets: without TLS, if no endpoint can need it.

    Twisted is then as it is where pyOpenSSL is not installed, and for as long as the process lives:
    only who knows what else the process does may call this. Where TLS is there already, because
    another reactor or logger was asked for, it stays.

    @param descriptions: of all endpoints that the process is to have.
    """
    if "OpenSSL" in sys.modules or not all(map(isPlain, descriptions)):
        return
    # What is None cannot be imported (import_from in the Python Language Reference, 5.3.1).
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    try:
        # These look for it once, when they are imported, and take an ImportError for an answer.
        import twisted.internet.endpoints
        import twisted.internet.posixbase  # noqa: F401
    finally:
        del sys.modules["OpenSSL"]
