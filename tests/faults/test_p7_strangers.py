"""P7: clients and local users read and write only what they should."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path
from unittest import SkipTest

from messages import LEFT_OUT, SERVING

from .clients import connect, fetch, readAll, run
from .server import FaultCase, Server, makeText, wait

_SECRET = b"what nobody may read\n" * 20

_OWN = ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "LOG_NAMESPACE", "LOG_LEVEL", "MESSAGE_ID")

_FIELDS = {
    *_OWN,
    *("CODE_FILE", "CODE_LINE", "CODE_FUNC", "SYSLOG_FACILITY"),
    *("ADDRESSES", "ADDRESS", "BYTES", "CAUSE", "DIGEST", "OFFSET", "ORIGIN", "PEER", "POEM"),
    *("SECONDS", "SIGNAL", "TAKEN", "READERS", "VERSION", "EXE", "PYVERSION", "REACTOR"),
    *("FACTORY", "FAILURE"),
    *("CONNECTIONS", "POEMS", "LEFT", "GAVE_UP", "TURNED_AWAY"),
}
"""Every field that a record of a poetry server may have."""


class NameTests(FaultCase):
    """Tests for names that lead out of the poetry folders."""

    def setUp(self) -> None:
        """Put a secret file beside the poetry folder."""
        super().setUp()
        self.poetry = self.folder / "poetry"
        self.poetry.mkdir()
        (self.poetry / "poem.txt").write_bytes(makeText(3003))
        self.secret = self.folder / "secret.txt"
        self.secret.write_bytes(_SECRET)
        self.address = self.listen()

    def serveNamed(self, *options: str, before: tuple[str, ...] = ()) -> Server:
        """Start a server with a name on the poetry path."""
        where = [f"--poetry-path={self.poetry}", "--listen=adopted"]
        arguments = ["fastpoetry", *options, *where]
        server = Server(arguments, self.listeners, self.log, {}, before=before)
        self.addCleanup(server.close)
        return server

    def assertRefused(self, name: str) -> None:
        """Assert that a name is refused in one line without any part of the secret."""
        self.log.unlink(missing_ok=True)
        self.assertEqual(self.serveNamed("--poem", name).wait(), 1, name)
        self.assertRegex(self.log.read_text(errors="replace"), r"\Afastpoetry: .*\n\Z", name)
        self.assertNotIn(b"nobody may", self.log.read_bytes(), name)

    def test_invalidNames(self) -> None:
        """A path, a part of a path, or any other text that is not a name is refused."""
        for name in (
            *("..", "", "secret.txt", "..\\secret", "%2e%2e%2fsecret"),
            *("poem\n", "poem\x1b[2J\udcff", "poem" * 1000),
        ):
            self.assertRefused(name)

    def test_links(self) -> None:
        """A link out of the folder is refused, in every form."""
        (self.poetry / "absolute.txt").symlink_to(self.secret)
        (self.poetry / "relative.txt").symlink_to("../secret.txt")
        (self.poetry / "chain.txt").symlink_to("relative.txt")
        (self.poetry / "around").symlink_to("..")
        (self.poetry / "folder.txt").symlink_to("around/secret.txt")
        for name in ("absolute", "relative", "chain", "folder"):
            self.assertRefused(name)

    def test_linksAreNotOpened(self) -> None:
        """A link out of the folder is not followed: the file at its end is never opened."""
        (self.poetry / "out.txt").symlink_to(self.secret)
        trace = self.folder / "trace"
        server = self.serveNamed("--poem=out", before=tracing(trace))
        self.assertEqual(server.wait(), 1)
        wait(lambda: "exited with 1" in trace.read_text(), "the trace")
        opened = re.findall(r'open(?:at)?\(.*?"(.*?)"', trace.read_text())
        self.assertIn("out.txt", trace.read_text())
        self.assertIn("fastpoetry", " ".join(opened))
        self.assertEqual([each for each in opened if each.endswith(("secret.txt", "out.txt"))], [])

    def test_anthology(self) -> None:
        """
        An anthology omits a link out of the folder, with one record, and serves the other poems.
        """
        (self.poetry / "out.txt").symlink_to(self.secret)
        (self.poetry / ".hidden.txt").write_bytes(_SECRET)
        server = self.serveNamed("--anthology")
        replies = [run(fetch(self.address, makeText(3003))) for _ in range(20)]
        self.assertAll("isExact", replies)
        self.assertEqual(len(server.records(LEFT_OUT)), 1)


class JournalTests(FaultCase):
    """Tests for records with clients' text and odd file names."""

    def setUp(self) -> None:
        """Bind journald's socket."""
        super().setUp()
        self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.journal.close)
        self.journal.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.journal.bind(str(self.folder / "journal"))
        self.environ = {"FAULTS_JOURNAL": str(self.folder / "journal")}

    def serveToJournal(self, *arguments: str) -> Server:
        """Start a server that logs to that socket."""
        server = Server(
            arguments, self.listeners, self.log, self.environ, logger="observers.journal"
        )
        self.addCleanup(server.close)
        return server

    def read(self) -> list[dict[str, bytes]]:
        """The records so far; see L{parseRecord}."""
        records = []
        self.journal.setblocking(False)
        try:
            while True:
                records.append(parseRecord(self.journal.recv(1 << 20)))
        except BlockingIOError:
            return records

    def assertSane(self, records: list[dict[str, bytes]]) -> None:
        """Assert that no record has an extra or a foreign field."""
        for record in records:
            self.assertLessEqual(record.keys(), _FIELDS)
            self.assertIn(record["PRIORITY"], [b"3", b"4", b"6"])
            self.assertEqual(record["SYSLOG_IDENTIFIER"], b"fastpoetry")
            for value in record.values():
                self.assertNotRegex(value, rb"[\0-\x08\x0b-\x1f\x7f]")

    def test_strangers(self) -> None:
        """Bytes from a client, even in a PROXY header, add no record and no field."""
        address, poem = self.listen(), self.write(makeText(3003))
        server = self.serveToJournal(*self.arguments(endpoint="haproxy:adopted"))
        forged = b"1.2.3.4\nPRIORITY=0\nMESSAGE=forged\n\nMESSAGE=forged\n\x1b[2J"
        headers = [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 %b 192.0.2.2 1 2\r\n" % forged,
            b"PROXY TCP6 %b\xff\xfe ::1 1 2\r\n" % forged.replace(b".", b":"),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 x\nPRIORITY=0 y\r\n",
            b"PROXY %b\r\n" % forged,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\x0cMESSAGE=forg",
            forged * 100,
        ]
        for header in headers:
            with connect(address) as client:
                client.sendall(header + forged)
                client.shutdown(socket.SHUT_WR)
                readAll(client)
        with connect(address) as client:
            client.sendall(headers[0])
            self.assertEqual(readAll(client), (len(poem), "end"))
        server.end()
        records = self.read()
        self.assertSane(records)
        self.assertTrue([each for each in records if "PEER" in each])

    def test_clientNames(self) -> None:
        """The name of a client's end of a UNIX socket adds no record and no field."""
        self.listen(family=socket.AF_UNIX)
        self.write(makeText(3003))
        server = self.serveToJournal(*self.arguments())
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(b"\0%d\nPRIORITY=0\nMESSAGE=forged\n" % os.getpid())
            client.connect(self.listeners["poem"].getsockname())
            readAll(client)
        server.end()
        records = self.read()
        self.assertSane(records)
        self.assertNotIn(b"forged", b"".join(b"".join(each.values()) for each in records))

    def test_fileNames(self) -> None:
        """A poem with a hostile name makes one record, and so does its refusal."""
        self.listen()
        name = "a\nPRIORITY=0\nMESSAGE=forged\n\x1b[2J\udcff"
        path = self.folder / f"{name}.txt"
        path.write_bytes(b"\xff no UTF-8 \nMESSAGE=forged\n")
        server = self.serveToJournal("fastpoetry", f"--poem={path}", "--listen=adopted")
        self.assertTrue(run(fetch(self.listeners["poem"].getsockname())).count)
        path.unlink()
        server.send(signal.SIGHUP)
        records: list[dict[str, bytes]] = []

        def isRefused() -> bool:
            records.extend(self.read())
            return b"3" in _priorities(records)

        wait(isRefused, "a refusal")
        server.end()
        records += self.read()
        self.assertSane(records)
        self.assertEqual(_priorities(records).count(b"3"), 1)
        self.assertEqual(_priorities(records).count(b"4"), 1)

    def test_nothingIsWritten(self) -> None:
        """
        From start to stop, with a reload, no file is opened for writing, made, moved or removed.
        """
        address, poem = self.listen(), self.write(makeText(3003))
        first = self.serve()  # makes twistd cache its plugins, if it may write
        first.waitFor(SERVING)
        first.end()
        trace = self.folder / "trace"
        server = Server(
            self.arguments(),
            self.listeners,
            self.log,
            self.environ,
            logger="observers.journal",
            before=tracing(trace),
        )
        self.addCleanup(server.close)
        self.assertAll("isExact", [run(fetch(address, poem))])
        self.write(makeText(3003, 1))
        server.send(signal.SIGHUP)
        wait(lambda: run(fetch(address, makeText(3003, 1))).isExact, "the reload")
        server.end()
        wait(lambda: "+++ killed by SIGTERM" in trace.read_text(), "the trace")
        calls = trace.read_text()
        self.assertIn("poem.txt", calls)
        written = re.findall(rf"(?m)^.*(?:{_WRITING})(?!.*= -1 ).*$", calls)
        self.assertEqual(written, [])


def _priorities(records: list[dict[str, bytes]]) -> list[bytes]:
    return [each["PRIORITY"] for each in records]


def parseRecord(datagram: bytes) -> dict[str, bytes]:
    """
    Parse a record as journald does (systemd.io/JOURNAL_NATIVE_PROTOCOL).

    @raise ValueError: if the record is malformed or has a field twice.
    """
    record: dict[str, bytes] = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, isShort, value = line.partition(b"=")
        if not isShort:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        if name.decode() in record:
            raise ValueError(f"{name!r} again: {value!r}")
        record[name.decode()] = value
    return record


_WRITING = (
    r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND)|"
    r"\b(?:mk\w+|unlink\w*|rename\w*|link\w*|symlink\w*|chmod|fchmodat|chown\w*|truncate|rmdir)\("
)


def tracing(trace: Path) -> tuple[str, ...]:
    """
    A command that runs a command and notes the files it uses.

    @raise SkipTest: if tracing is not possible.
    """
    if shutil.which("strace") is None:
        raise SkipTest("there is no strace")
    # -D keeps our process ID for the traced process, as systemd's variables need.
    return ("strace", "-D", "-f", "-q", "-o", str(trace), "-e", "trace=%file")
