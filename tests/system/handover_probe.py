"""
Readers of a large poem that check every byte, run inside a machine by the system's Python.

Once all readers have a byte, each reads in its own way until a line comes on stdin. Then all read
on as fast as they can. The results are printed as JSON: each reader's kind, its number of bytes,
whether these are a poem or the beginning of one, and how the connection ended.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path


async def read(
    kind: str,
    host: str,
    port: int,
    texts: list[bytes],
    begun: asyncio.Barrier,
    hurry: asyncio.Event,
) -> list[object]:
    """
    Read one poem.

    @param kind: C{slow} reads 100 kB/s; C{stopped} reads no more; C{tiny} reads no more, and has a
        tiny buffer.
    """
    client = socket.socket(socket.AF_UNIX if "/" in host else socket.AF_INET)
    client.setblocking(False)
    if kind != "slow" and "/" not in host:
        size = 1 if kind == "tiny" else 16384
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, host if "/" in host else (host, port))
    piece = await loop.sock_recv(client, 1)
    await begun.wait()
    got, candidates, end = 0, texts, "end"
    while piece:
        candidates = [each for each in candidates if each[got : got + len(piece)] == piece]
        got += len(piece)
        if not candidates:
            end = "other bytes"
            break
        if not hurry.is_set():
            await (asyncio.sleep(0.1) if kind == "slow" else hurry.wait())
        try:
            piece = await loop.sock_recv(client, 1 << 20 if hurry.is_set() else 10_000)
        except ConnectionError:
            end = "reset"
            break
    client.close()
    isWhole = any(len(each) == got for each in candidates)
    return [kind, got, isWhole, end]


async def main(host: str, port: str, kinds: str, *poems: str) -> None:
    """
    Run all readers.

    @param kinds: the number of each kind: C{slow=50,stopped=50,tiny=1}.
    @param poems: files with the texts that a reader may get.
    """
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def go() -> None:
        loop.remove_reader(0)
        hurry.set()

    loop.add_reader(0, go)
    texts = [Path(each).read_bytes() for each in poems]
    wanted = [
        kind
        for kind, count in (each.split("=") for each in kinds.split(","))
        for _ in range(int(count))
    ]
    begun = asyncio.Barrier(len(wanted) + 1)
    readers = [
        asyncio.create_task(read(kind, host, int(port), texts, begun, hurry)) for kind in wanted
    ]
    await begun.wait()
    print("reading", flush=True)
    print(json.dumps(await asyncio.gather(*readers)), flush=True)


asyncio.run(main(*sys.argv[1:]))
