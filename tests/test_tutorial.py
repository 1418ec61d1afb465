"""
Tests for users of the Twisted introduction: C{docs/from-the-tutorial.md} as printed, and the tests
that part 15 has for its own server.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple
from unittest import SkipTest, skipUnless

from fakes import LONG, awaited, makeFolder, receiveAll, write
from processes import (
    ROOT,
    SECONDS,
    Workplace,
    fetchFrom,
    findFreePort,
    findTwistd,
    finish,
    isRunning,
    ownNetwork,
    waitUntil,
)
from twisted.application.internet import TCPServer
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from fastpoetry.listen import PoetryListener
from fastpoetry.protocol import PoetryFactory
from fastpoetry.service import PoetryService

GUIDE = (ROOT / "docs/from-the-tutorial.md").read_text()


class Step(NamedTuple):
    """
    A command from the guide.

    @ivar command: for a shell.
    @ivar printed: its output; an ellipsis stands for any text.
    """

    command: str
    printed: str

    def isAsPrinted(self, seen: str) -> bool:
        """@return: whether the command printed what the guide says."""
        pattern = ".*".join(map(re.escape, self.printed.split("…")))
        return re.fullmatch(pattern, seen) is not None


def readFiles() -> dict[str, str]:
    """The files in the guide, by name."""
    return dict(re.findall(r"^`(\S+)`:\n\n```python\n(.*?)^```", GUIDE, re.M | re.S))


def readSteps() -> list[Step]:
    """The commands in the guide, in order."""
    blocks = re.findall(r"^( *)```console\n(.*?)^\1```", GUIDE, re.M | re.S)
    text = "".join(dedent(block) for _, block in blocks)
    text = text.replace("\n> ", "\0")  # the lines of one command
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)
    return [Step(command.replace("\0", "\n"), printed) for command, printed in steps]


class CloneCase(SynchronousTestCase):
    """A test case with a clone, and a twistd on the path."""

    def setUp(self) -> None:
        # The tutorial's own deployment resolves localhost with the system; a root without
        # /etc/hosts cannot.
        try:
            socket.gethostbyname("localhost")
        except OSError as why:
            raise SkipTest(f"localhost cannot be resolved: {why}") from None
        self.place = Workplace(self)
        folder = self.place.folder
        for name in ("fastpoetry", "packaging", "twisted"):
            (folder / name).symlink_to(ROOT / name)
        for name, text in readFiles().items():
            (folder / name).write_text(text)
        (folder / "bin").mkdir()
        twistd = folder / "bin/twistd"
        twistd.write_text(f'#!/bin/sh\nexec {shlex.join(findTwistd())} "$@"\n')
        twistd.chmod(0o755)
        self.exports = [f"export PATH={folder}/bin:$PATH"]


@skipUnless(shutil.which("netcat"), "no netcat")
class GuideTests(CloneCase):
    """Tests that run the guide's commands."""

    def type(self, step: Step) -> None:
        """
        Run a command, and check that it prints what the guide says. A command that reads the log is
        repeated until the text is there; a command that ends servers is followed by a wait for
        their end.
        """
        if step.command.startswith("export "):
            self.exports.append(step.command)
        script = "\n".join([*self.exports, step.command])
        seen = self.place.run("sh", "-c", script)
        if step.command.startswith(("grep ", "tail ")):
            waitUntil(lambda: step.isAsPrinted(self.place.run("sh", "-c", script)[1]), step.command)
        else:
            self.assertEqual((seen[0], seen[2]), (0, ""), step.command)
            self.assertTrue(step.isAsPrinted(seen[1]), f"{step}: {seen[1]}")
        if step.command.startswith("kill `"):
            waitUntil(lambda: not self.place.findProcesses(), f"the end after {step.command}")

    def test_guide(self) -> None:
        """A user who types the guide's commands sees the guide's output."""
        steps = readSteps()
        self.assertGreater(len(steps), 30)
        with ownNetwork():
            for step in steps:
                self.type(step)


class DeploymentTests(CloneCase):
    """Tests for the tutorial's own deployment, beyond the guide."""

    def test_foreground(self) -> None:
        """The deployment also runs in the foreground, and logs there."""
        with ownNetwork():
            command = (*findTwistd(), "--nodaemon", "--pidfile=", "--python", "poem.tac")
            twistd = self.place.begin(*command)
            poem = fetchFrom(twistd, ("127.0.0.1", 10000))
            twistd.terminate()
            _, output, errors = finish(twistd)
        self.assertEqual((poem, errors), ((ROOT / "poetry/ecstasy.txt").read_bytes(), ""))
        self.assertIn(f"loaded a poem from: {self.place.folder}/poetry/ecstasy.txt\n", output)
        self.assertIn(f"sending {len(poem)} bytes of poetry to 127.0.0.1:", output)
        self.assertNotIn("journalctl", output)

    def test_underWay(self) -> None:
        """A stop of the program waits for readers under way, though C{TCPServer} does not."""
        place = self.place
        (place.folder / "poetry/ecstasy.txt").write_bytes(LONG.text)
        with ownNetwork():
            pid = place.daemon("--python", "poem.tac")
            with socket.create_connection(("127.0.0.1", 10000), SECONDS) as reader:
                begun = reader.recv(1)
                os.kill(pid, signal.SIGTERM)
                waitUntil(lambda: "Received SIGTERM" in place.log, "the stop to begin")
                self.assertTrue(begun + receiveAll(reader) == LONG.text)
            waitUntil(lambda: not isRunning(pid), "the end")
        self.assertIn("sending 4194304 bytes of poetry to 127.0.0.1:", place.log)


class Client(Protocol):
    """
    A client like the tutorial's: it has the poem when the connection ends.

    @ivar ended: fires with the bytes, or fails after an unclean end.
    """

    def __init__(self) -> None:
        self._poem = b""
        self.ended: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Store a piece of the poem."""
        self._poem += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire the Deferred."""
        if reason.check(ConnectionDone):
            self.ended.callback(self._poem)
        else:
            self.ended.errback(reason)


class RealReactorTests(TestCase):
    """
    The tutorial's tests for its own server, and further tests of ours, on the running reactor.
    Trial checks that no timer is left; each test's end checks that no socket is.
    """

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.folder = makeFolder(self)
        self.poem = Path(write(self.folder, "x.txt", b"Our hands were firmly cemented\n"))
        self.service = PoetryService(self.poem)
        self.top = MultiService()
        self.service.setServiceParent(self.top)
        self.factory = PoetryFactory(self.service)

    def listen(self, endpoint: Any) -> PoetryListener:
        """Start one of our listeners."""
        listener = PoetryListener(endpoint, self.factory, self.reactor)
        listener.setServiceParent(self.top)
        self.start()
        return listener

    def addressesOf(self, listener: PoetryListener) -> tuple[Any, ...]:
        """@return: the addresses of a listener, TCP or UNIX."""
        return listener.addresses

    def start(self) -> None:
        """Start the service as twistd does."""
        self.top.privilegedStartService()
        self.top.startService()

    async def stop(self) -> None:
        """Stop the service, and check that the reactor is empty."""
        await self.top.stopService()
        self.assertNothingLeft()

    def assertNothingLeft(self) -> None:
        """Check that the reactor has only its own readers."""
        self.assertEqual(self.reactor.removeAll(), [])

    async def fetch(self, endpoint: IStreamClientEndpoint) -> bytes:
        """@return: the bytes that a client gets."""
        client: Client = await connectProtocol(endpoint, Client())
        return await client.ended

    def tcp(self, port: int) -> IStreamClientEndpoint:
        """@return: an endpoint to connect to."""
        return TCP4ClientEndpoint(self.reactor, "127.0.0.1", port)

    @awaited
    async def test_poem(self) -> None:
        """A client of a port with our factory gets the poem."""
        self.start()
        port = self.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.assertEqual(await self.fetch(self.tcp(port.getHost().port)), self.poem.read_bytes())
        await port.stopListening()
        self.assertNothingLeft()

    @awaited
    async def test_nobodyThere(self) -> None:
        """After the port is closed, a client is refused."""
        self.start()
        port = self.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        with self.assertRaises(ConnectError):
            await self.fetch(self.tcp(number))
        self.assertNothingLeft()

    @awaited
    async def test_TCPServer(self) -> None:
        """After one of the tutorial's services has stopped, a client is refused."""
        number = findFreePort()
        TCPServer(number, self.factory, interface="127.0.0.1").setServiceParent(self.top)
        self.start()
        self.assertEqual(await self.fetch(self.tcp(number)), self.poem.read_bytes())
        self.assertEqual(self.factory.policy.ledger.counts.poems, 1)
        await self.stop()

    @awaited
    async def test_listener(self) -> None:
        """Our listener knows its address, and releases it at the stop."""
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        (address,) = self.addressesOf(listener)
        self.assertEqual(await self.fetch(self.tcp(address.port)), self.poem.read_bytes())
        await self.stop()
        self.assertEqual(listener.addresses, ())
        with self.assertRaises(ConnectError):
            await self.fetch(self.tcp(address.port))

    @awaited
    async def test_UNIX(self) -> None:
        """Our listener on a UNIX socket knows its address, and releases it at the stop."""
        path = f"{self.folder}/s"
        self.listen(UNIXServerEndpoint(self.reactor, path))
        poem = await self.fetch(UNIXClientEndpoint(self.reactor, path))
        self.assertEqual(poem, self.poem.read_bytes())
        await self.stop()
        self.assertFalse(Path(path).exists())

    @awaited
    async def test_underWay(self) -> None:
        """A stop of our listener waits for readers under way."""
        self.poem.write_bytes(LONG.text)
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        (address,) = self.addressesOf(listener)
        reader = await connectProtocol(self.tcp(address.port), Client())
        stopped = self.top.stopService()
        self.assertNoResult(stopped)
        self.assertEqual(await reader.ended, LONG.text)
        await stopped
        self.assertNothingLeft()

    @awaited
    async def test_again(self) -> None:
        """A stopped listener can be started again."""
        listener = self.listen(TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1"))
        for _ in range(2):
            (address,) = self.addressesOf(listener)
            self.assertEqual(await self.fetch(self.tcp(address.port)), self.poem.read_bytes())
            await self.stop()
            self.start()
        await self.stop()
