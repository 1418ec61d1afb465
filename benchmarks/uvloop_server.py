"""
A poetry server as an asyncio protocol on uvloop's loop.

It closes right after its write. It has no deadlines, limits or records.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop


class PoetryProtocol(asyncio.Protocol):
    """Send the poem and close."""

    def __init__(self, poem: bytes) -> None:
        """@param poem: the whole poem."""
        self._poem = poem

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write and close; the transport sends the rest."""
        stream = cast(asyncio.Transport, transport)
        stream.write(self._poem)
        stream.close()


async def serve(path: str, host: str, port: int) -> None:
    """Serve a poem forever."""
    poem = Path(path).read_bytes()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PoetryProtocol(poem), host, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    path, host, port = sys.argv[1:]
    uvloop.install()
    asyncio.run(serve(path, host, int(port)))
