"""
A poetry server as an asyncio protocol on uvloop's loop.

It closes as soon as it has written and has no deadlines, limits or records.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop


class PoetryProtocol(asyncio.Protocol):
    """Sends the poem and closes."""

    def __init__(self, poem: bytes) -> None:
        """@param poem: the whole of it."""
        self._poem = poem

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Leave the rest to the transport."""
        stream = cast(asyncio.Transport, transport)
        stream.write(self._poem)
        stream.close()


async def serve(path: str, host: str, port: int) -> None:
    """Serve a poem for ever."""
    poem = Path(path).read_bytes()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PoetryProtocol(poem), host, port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    path, host, port = sys.argv[1:]
    uvloop.install()
    asyncio.run(serve(path, host, int(port)))
