"""Tests for C{packaging/tac/poetry-xmlrpc.tac}, under a real twistd and with real clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any
from xmlrpc.client import ServerProxy

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
TAC = ROOT / "packaging/tac/poetry-xmlrpc.tac"
POEM = (ROOT / "poetry/ecstasy.txt").read_bytes()

HANG_SECONDS = 60.0
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=")


class TacTests(SynchronousTestCase):
    """Tests for one poem over two protocols."""

    def setUp(self) -> None:
        """Make a clone with the poem, and with the deployment on free ports."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.poem = Path(folder.name, "poetry/ecstasy.txt")
        self.tac = Path(folder.name, "packaging/tac/poetry-xmlrpc.tac")
        for path in (self.poem, self.tac):
            path.parent.mkdir(parents=True)
        self.poem.write_bytes(POEM)
        text, count = re.subn(r'"tcp:100[08]0:', '"tcp:0:', TAC.read_text())
        self.assertEqual(count, 2)
        self.tac.write_text(text)
        self.environ = {
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            # With these two, the program answers systemctl reload.
            "INVOCATION_ID": folder.name,
            "NOTIFY_SOCKET": f"{folder.name}/notify",
        }
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(systemd.close)
        systemd.bind(self.environ["NOTIFY_SOCKET"])

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """
        Start a Python with the tested package on its path.

        @param arguments: for the interpreter.
        """
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.tac.parent,
            env={**os.environ, **self.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        guard = Timer(HANG_SECONDS, process.kill)
        guard.start()
        self.addCleanup(process.__exit__, None, None, None)
        self.addCleanup(process.terminate)
        self.addCleanup(guard.cancel)
        return process

    def find(self, process: subprocess.Popen[str], pattern: str) -> str:
        """@return: the group of a pattern in the first line of the log that matches."""
        seen = ""
        for line in process.stdout or ():
            found = re.search(pattern, line)
            if found:
                return found[1]
            seen += line
        raise self.failureException(f"{pattern} is not in {seen}")

    def serve(self) -> None:
        """Run twistd until it serves."""
        self.twistd = self.start([*TWISTD, "--python", str(self.tac)])
        self.port = int(self.find(self.twistd, r"serving poetry on 127\.0\.0\.1:(\d+)"))
        xmlrpcPort = self.find(self.twistd, r"Site starting on (\d+)")
        self.proxy = ServerProxy(f"http://127.0.0.1:{xmlrpcPort}")
        self.addCleanup(self.proxy("close"))
        self.find(self.twistd, "(loaded a poem from)")

    def call(self) -> bytes:
        """@return: the poem over XML-RPC."""
        poem: Any = self.proxy.poem()
        return bytes(poem.data)

    def connect(self) -> bytes:
        """@return: the poem over TCP."""
        with socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS) as client:
            return b"".join(iter(lambda: client.recv(65536), b""))

    def test_bothProtocols(self) -> None:
        """Both protocols return the poem, byte for byte."""
        self.serve()
        self.assertEqual(self.call(), POEM)
        self.assertEqual(self.connect(), POEM)

    def test_everyByte(self) -> None:
        """Bytes that XML cannot hold arrive too."""
        poem = bytes(range(256)) + b"]]></value>"
        self.poem.write_bytes(poem)
        self.serve()
        self.assertEqual(self.call(), poem)

    def test_reload(self) -> None:
        """After SIGHUP both protocols return the new poem: one service holds it."""
        self.serve()
        self.assertEqual(self.call(), POEM)  # so that it runs, and handles the signal
        self.poem.write_bytes(b"new\n")
        self.twistd.send_signal(signal.SIGHUP)
        self.find(self.twistd, "(loaded a poem from)")
        self.assertEqual((self.call(), self.connect()), (b"new\n", b"new\n"))

    def test_brokenReload(self) -> None:
        """If the new poem is invalid both return the old one, and the reload fails in one line."""
        self.serve()
        self.assertEqual(self.call(), POEM)
        self.poem.write_bytes(b"")
        self.environ["MAINPID"] = str(self.twistd.pid)
        said, _ = self.start(["-m", "fastpoetry.systemd.reload"]).communicate()
        self.assertEqual(said[: said.find(";")], f"reload failed: {self.poem}: is empty")
        self.find(self.twistd, r"(kept the old poem: .*ecstasy\.txt: is empty)")
        self.assertEqual((self.call(), self.connect()), (POEM, POEM))
        self.twistd.terminate()
        said, _ = self.twistd.communicate()
        self.assertNotIn("Traceback", said)

    def test_path(self) -> None:
        """The log has the poem's path in readable form."""
        self.twistd = self.start([*TWISTD, "--python", str(self.tac)])
        self.assertEqual(self.find(self.twistd, "loaded a poem from: (.*)"), str(self.poem))

    def test_taken(self) -> None:
        """A port in use is refused in one line, whichever of the two it is."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            description = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            text = self.tac.read_text()
            for name in ("listen", "listenForXMLRPC"):
                self.tac.write_text(
                    re.sub(f"^{name} = .*", f'{name} = "{description}"', text, flags=re.M)
                )
                twistd = self.start([*TWISTD, "--logfile=log", "--python", str(self.tac)])
                said, _ = twistd.communicate()
                self.assertEqual(said, f"fastpoetry: {description}: Address already in use\n")
                self.assertEqual(twistd.returncode, 1)

    def test_brokenPoem(self) -> None:
        """A poem that cannot be served is refused in one line."""
        self.poem.write_bytes(b"")
        twistd = self.start([*TWISTD, "--logfile=log", "--python", str(self.tac)])
        said, _ = twistd.communicate()
        self.assertRegex(said, r"^fastpoetry: .*ecstasy\.txt: is empty.*\n$")
        self.assertEqual(twistd.returncode, 1)

    def test_plainPython(self) -> None:
        """Plain Python starts no server from the file."""
        python = self.start([str(self.tac)])
        said, _ = python.communicate()
        self.assertEqual((said, python.returncode), ("", 0))
