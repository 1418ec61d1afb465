"""Tests for Twisted without TLS, in processes of their own."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from unittest import skipUnless

from fakes import receiveAll
from processes import ROOT, SECONDS, Workplace, fetchFrom, findFreePort, waitUntil
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.command.tls import isPlain

TLS = ("OpenSSL", "cryptography", "service_identity", "twisted.internet.ssl")
"""Modules that only TLS needs. Python's own ssl comes with asyncio."""

NEEDLESS = (*TLS, "twisted.application.internet", "automat", "prometheus_client")
"""Modules that serving a poem does not need."""

# twistd with a logger that writes the names of the loaded modules once the server listens.
_SPYING = """
import os, sys
from twisted.scripts.twistd import run

def look(event):
    if event.get("log_format", "").startswith("serving poetry on"):
        with open("loading", "w") as file:
            print(*sys.modules, file=file)
        os.replace("loading", "loaded")

sys.modules["spy"] = sys.modules["__main__"]
observer = lambda: look
sys.argv = ["twistd", "--nodaemon", "--pidfile=", "--logger=spy.observer", *sys.argv[1:]]
run()
"""

# Another program, with our service as a part.
_OTHER = """
import sys
from fastpoetry.systemd import adopted, journal, notify
from fastpoetry.tap import Options, makeService
options = Options()
options.parseOptions(["--poem", "poetry/ecstasy.txt", "--port", "0"])
makeService(options)
print(*sys.modules)
"""

# Asks for TLS although it declared that it would not.
_LATER = """
from fastpoetry.command.tls import importTwisted
importTwisted(["tcp:10000"])
from twisted.internet import endpoints, reactor, protocol, ssl
try:
    reactor.listenSSL(0, protocol.Factory(), ssl.CertificateOptions())
except Exception as why:
    print(type(why).__name__)
"""


class PlainTests(SynchronousTestCase):
    """Tests for L{isPlain}."""

    def test_plain(self) -> None:
        """Socket endpoints are plain, with or without a PROXY header."""
        plain = ("tcp:10000", "tcp:host=x:port=1", "adopted:", "unix:/x", "haproxy:tcp6:1")
        for each in (*plain, r"adopted:name=x:else=tcp\:1"):
            self.assertTrue(isPlain(each), each)

    def test_notPlain(self) -> None:
        """TLS endpoints are not plain, wherever TLS is; nor are unknown ones."""
        known = ("ssl:1", "tls:x:1", "haproxy:ssl:1", "txsni:/x:tcp:1", r"adopted:else=ssl\:1")
        for each in (*known, "onion:1", "", "TCP:1"):
            self.assertFalse(isPlain(each), each)


@skipUnless(find_spec("OpenSSL"), "no pyOpenSSL")
class ProcessTests(SynchronousTestCase):
    """Tests for the modules that a process loads."""

    def setUp(self) -> None:
        """Make the workplace, and find a free port."""
        self.place = Workplace(self)
        self.port = findFreePort()

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a twistd that writes its loaded modules."""
        return self.place.begin(sys.executable, "-c", _SPYING, *arguments)

    def findLoaded(self, process: subprocess.Popen[str], among: Sequence[str]) -> Sequence[str]:
        """@return: the modules that such a process has loaded, from a list."""
        file = self.place.folder / "loaded"
        waitUntil(lambda: process.poll() is not None or file.exists(), "a server that listens")
        loaded = waitUntil(file.read_text, "what is loaded").split()
        return [name for name in among if name in loaded]

    def test_server(self) -> None:
        """A server of plain sockets loads no TLS module, and serves."""
        process = self.begin(
            *("fastpoetry", "--poem", "poetry/ecstasy.txt", "--listen", f"tcp:{self.port}"),
            *("--listen", "unix:socket", "--listen", "haproxy:unix:proxied"),
        )
        self.assertEqual(self.findLoaded(process, NEEDLESS), [])
        poem = (ROOT / "poetry" / "ecstasy.txt").read_bytes()
        self.assertEqual(fetchFrom(process, ("127.0.0.1", self.port)), poem)

    def test_proxy(self) -> None:
        """A proxy with a plain upstream loads no TLS module."""
        process = self.begin("fastpoetry-proxy", "--upstream", "unix:none", "--port", "0")
        self.assertEqual(self.findLoaded(process, TLS), [])

    def test_upstream(self) -> None:
        """A proxy with one upstream behind TLS loads the TLS modules."""
        process = self.begin(
            *("fastpoetry-proxy", "--upstream", "unix:none", "--listen", "unix:socket"),
            *("--upstream", f"tls:poems:{self.port}", "--listen", "unix:other"),
        )
        self.assertEqual(self.findLoaded(process, TLS), list(TLS))

    @skipUnless(shutil.which("openssl"), "no openssl")
    def test_works(self) -> None:
        """A server with one socket behind TLS serves through it, whichever option asks for it."""
        certificate = str(self.place.folder / "certificate.pem")
        made = self.place.run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=poems"),
            *("-days", "2", "-keyout", certificate + ".key", "-out", certificate),
        )
        self.assertEqual(made[0], 0, made)
        secure = f"ssl:{self.port}:privateKey={certificate}.key:certKey={certificate}"
        process = self.begin(
            *("fastpoetry", "--poem", "poetry/ecstasy.txt", "--listen", "unix:socket"),
            *("--poem", "poetry/science.txt", "--listen", secure),
        )
        self.assertEqual(self.findLoaded(process, TLS), list(TLS))
        fetchFrom(process, str(self.place.folder / "socket"))
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        address = ("127.0.0.1", self.port)
        with (
            socket.create_connection(address, SECONDS) as plain,
            context.wrap_socket(plain) as client,
        ):
            poem = (ROOT / "poetry" / "science.txt").read_bytes()
            self.assertEqual(receiveAll(client), poem)

    def test_otherPrograms(self) -> None:
        """In a program with our service beside others, Twisted is unchanged."""
        status, loaded, errors = self.place.run(sys.executable, "-c", _OTHER)
        self.assertEqual((status, errors), (0, ""))
        self.assertLessEqual(set(TLS), set(loaded.split()))

    def test_later(self) -> None:
        """A later request for TLS is refused, and never served in plain text."""
        told = self.place.run(sys.executable, "-c", _LATER)
        self.assertEqual(told, (0, "AssertionError\n", ""))
