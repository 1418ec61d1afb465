import asyncio
import logging
import signal
import socket

from systemd.daemon import notify

from fastpoetry.systemd.adopted import inherited
from fastpoetry.systemd.journal import JournalHandler


async def answer(reader, writer):
    logging.info("a client came", extra={"message_id": "f5a9b0f0d9c84ee4ae5c0e2b6d1e7c11"})
    writer.write(b"plain\n")
    writer.close()


async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    for each in inherited().claim():
        await asyncio.start_server(answer, sock=socket.socket(fileno=each.number))
    notify("READY=1")
    await ended.wait()


logging.basicConfig(level=logging.INFO, handlers=[JournalHandler()])
asyncio.run(main())
