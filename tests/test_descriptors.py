"""Tests for L{fastpoetry.systemd.descriptors}, on real sockets passed by a fake libsystemd."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis.strategies import characters, text
from passing import Passing, inherit
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd import descriptors
from fastpoetry.systemd.descriptors import AdoptError, Inherited, refusal


class Libsystemd:
    """A fake C{listen_fds_with_names} that reads a dictionary and returns any descriptors."""

    def __init__(self, environ: dict[str, str], numbers: list[int]) -> None:
        self.environ = environ
        self.numbers = numbers

    def __call__(self) -> dict[int, str]:
        if self.environ.get("LISTEN_PID") != str(os.getpid()):
            return {}
        names = self.environ["LISTEN_FDNAMES"].split(":")
        if not int(self.environ["LISTEN_FDS"]) == len(names) == len(self.numbers):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return dict(zip(self.numbers, names, strict=True))


def told(count: int, names: str, pid: int | None = None) -> dict[str, str]:
    """
    @param count: the number of descriptors.
    @param names: their names.
    @param pid: the process they are for; L{None} for this process.
    @return: the variables of the protocol.
    """
    pid = pid or os.getpid()
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}


class EnvironmentTests(Passing, SynchronousTestCase):
    """Tests for what L{Inherited} reads from the environment."""

    def inherit(self, environ: dict[str, str], initial: dict[str, str], count: int) -> Inherited:
        """
        @param environ: the environment.
        @param initial: the environment at the program's start.
        @param count: the number of listening sockets that are really open.
        @return: the inherited descriptors.
        """
        numbers = [self.listening().fileno() for _ in range(count)]
        return Inherited(environ, initial, Libsystemd(environ, numbers))

    def test_environment(self) -> None:
        """Descriptors are those in the environment, in its order."""
        found = self.inherit(told(2, "b:a"), {}, 2)
        self.assertEqual([each.name for each in found.descriptors], ["b", "a"])

    def test_variablesRemoved(self) -> None:
        """The variables of the protocol are removed, and no others."""
        environ = {**told(1, "a"), "LISTEN_PIDFDID": "1", "LISTEN_ADDRESS": "::", "HOME": "/"}
        self.inherit(environ, {}, 1)
        self.assertEqual(environ, {"LISTEN_ADDRESS": "::", "HOME": "/"})

    def test_variablesRemovedAtRefusal(self) -> None:
        """The variables are removed even if they contradict each other."""
        environ = told(1, "a:b")
        self.inherit(environ, {}, 1)
        self.assertEqual(environ, {})

    def test_consumed(self) -> None:
        """Variables already removed from the environment are read from the initial environment."""
        environ = {"LISTEN_FDNAMES": "a"}
        found = self.inherit(environ, told(1, "a"), 1)
        self.assertEqual([each.name for each in found.descriptors], ["a"])
        self.assertEqual(environ, {})

    def test_environmentFirst(self) -> None:
        """The present environment takes precedence over the initial one."""
        found = self.inherit(told(1, "now"), told(1, "then"), 1)
        self.assertEqual([each.name for each in found.descriptors], ["now"])

    def test_nothing(self) -> None:
        """Without descriptors, the refusal names what should pass them."""
        with self.assertRaises(AdoptError) as caught:
            self.inherit({}, {}, 0).claim("a")
        self.assertEqual(
            str(caught.exception),
            "adopted:name=a: no descriptor was passed: "
            "a .socket unit or systemd-socket-activate must pass one; "
            "it may not have Accept=yes; if it has a new address, restart it; "
            "else=ENDPOINT needs no descriptor",
        )

    def test_leftNames(self) -> None:
        """Names without a count, as Twisted leaves them to its children, are not descriptors."""
        with self.assertRaises(AdoptError) as caught:
            self.inherit({"LISTEN_FDNAMES": "a"}, {}, 0).claim()
        self.assertIn("adopted: no descriptor was passed", str(caught.exception))

    def test_otherProcess(self) -> None:
        """Descriptors passed to another process are refused, with both process IDs."""
        with self.assertRaises(AdoptError) as caught:
            self.inherit(told(1, "a", pid=os.getpid() + 1), {}, 1).claim("a")
        self.assertEqual(
            str(caught.exception),
            f"adopted:name=a: LISTEN_PID='{os.getpid() + 1}' LISTEN_FDS='1' LISTEN_FDNAMES='a' "
            f"is for another process, this is {os.getpid()}",
        )

    def test_noProcess(self) -> None:
        """A count without a process ID is refused, and the refusal names the missing variable."""
        with self.assertRaises(AdoptError) as caught:
            self.inherit({"LISTEN_FDS": "1"}, {}, 1).claim("a")
        self.assertEqual(
            str(caught.exception),
            "adopted:name=a: LISTEN_FDS='1' without LISTEN_PID, which names the process",
        )

    def test_isNothing(self) -> None:
        """
        No count, or a count of zero, means no descriptors; a count for another process means some.
        """
        found = [
            self.inherit(environ, {}, 0).isNothing
            for environ in ({}, {"LISTEN_FDNAMES": "a"}, {"LISTEN_FDS": "0"}, told(1, "a", pid=1))
        ]
        self.assertEqual(found, [True, True, True, False])

    def test_countDiffers(self) -> None:
        """More names than descriptors are refused, with both numbers."""
        with self.assertRaises(AdoptError) as caught:
            self.inherit(told(1, "a:b"), {}, 1).claim("a")
        self.assertEqual(
            str(caught.exception),
            "adopted:name=a: count, names and open descriptors do not agree: "
            f"LISTEN_PID='{os.getpid()}' LISTEN_FDS='1' LISTEN_FDNAMES='a:b'",
        )


class ClaimTests(Passing, SynchronousTestCase):
    """Tests for L{Inherited.claim}."""

    def refused(self, found: Inherited, name: str | None = None) -> str:
        """
        @param found: the inherited descriptors.
        @param name: the name to claim.
        @return: the refusal.
        """
        with self.assertRaises(AdoptError) as caught:
            found.claim(name)
        return str(caught.exception)

    def test_everything(self) -> None:
        """Without a name, a claim takes every socket."""
        a, b = self.listening(), self.listening()
        given = inherit((a, "a"), (b, "b")).claim()
        self.assertEqual([each.number for each in given], [a.fileno(), b.fileno()])

    def test_oneName(self) -> None:
        """With a name, a claim takes every socket of that name, of any family."""
        families = [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6]
        passed = [(self.listening(family), "a") for family in families]
        given = inherit(*passed, (self.listening(), "b")).claim("a")
        self.assertEqual([each.family for each in given], families)

    def test_severalNames(self) -> None:
        """Sockets of two names are given out by two claims."""
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        given = [found.claim("b"), found.claim("a")]
        self.assertEqual([[each.name for each in claim] for claim in given], [["b"], ["a"]])

    def test_once(self) -> None:
        """A socket is given out only once."""
        a = self.listening()
        found = inherit((a, "a"))
        found.claim("a")
        self.assertEqual(
            self.refused(found, "a"),
            "adopted:name=a: given out already; "
            f"passed: {a.fileno()} 'a' AF_INET 127.0.0.1:{a.getsockname()[1]}",
        )

    def test_rest(self) -> None:
        """Without a name, a claim takes the remaining sockets; without any left it is refused."""
        found = inherit((self.listening(), "a"), (self.listening(), "b"))
        found.claim("a")
        self.assertEqual([each.name for each in found.claim()], ["b"])
        self.assertIn("adopted: given out already; passed: ", self.refused(found))

    def test_unknownName(self) -> None:
        """An unknown name is refused, with the list of names."""
        a, b, c = self.listening(), self.listening(socket.AF_INET6), self.listening(socket.AF_UNIX)
        self.assertEqual(
            self.refused(inherit((a, "science"), (b, "science"), (c, "x")), "ecstasy"),
            "adopted:name=ecstasy: no passed descriptor has that name; "
            "its .socket must listen first; passed: "
            f"{a.fileno()} 'science' AF_INET 127.0.0.1:{a.getsockname()[1]}, "
            f"{b.fileno()} 'science' AF_INET6 [::1]:{b.getsockname()[1]}, "
            f"{c.fileno()} 'x' AF_UNIX '{c.getsockname()}'",
        )

    def test_abstract(self) -> None:
        """A UNIX socket without a file listens like any other."""
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind("")
        made.listen()
        (given,) = inherit((made, "a")).claim()
        self.assertEqual(given.nature, f"AF_UNIX {made.getsockname()!r}")

    def wrong(self, file: Any, isStray: bool = False) -> str:
        """
        @param file: a file that cannot be adopted, beside a socket that can.
        @param isStray: whether a claim of everything must refuse it because no code can use it.
        @return: the refusal's description of it.
        """
        found = inherit((self.listening(), "a"), (file, "b"))
        prefix = "adopted:name=b: only listening stream sockets can be adopted; passed: "
        line = self.refused(found, "b")
        self.assertTrue(line.startswith(prefix), line)
        if isStray:
            self.assertIn("adopted: only listening stream sockets", self.refused(found))
            self.assertEqual(len(found.claim("a")), 1)
        else:
            self.assertEqual([each.name for each in found.claim()], ["a"])
        self.assertEqual([each.number for each in found.take("b")], [file.fileno()])
        return line.partition(f", {file.fileno()} 'b' ")[2]

    def test_datagram(self) -> None:
        """A datagram socket is described as one, and left for a claim of datagrams."""
        made = self.bound(kind=socket.SOCK_DGRAM)
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(self.wrong(made), f"{where} is a datagram socket")

    def test_sequentialPackets(self) -> None:
        """A listening socket of sequential packets is refused."""
        made = self.bound(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.listen()
        where = f"AF_UNIX {made.getsockname()!r}"
        self.assertEqual(self.wrong(made, isStray=True), f"{where} is not a stream socket")

    def test_notListening(self) -> None:
        """A stream socket that does not listen is refused."""
        made = self.bound()
        where = f"AF_INET 127.0.0.1:{made.getsockname()[1]}"
        self.assertEqual(self.wrong(made), f"{where} is not listening")

    def test_connected(self) -> None:
        """
        A connection, as C{Accept=yes} and the store pass it, is left for a caller that takes it by
        name.
        """
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.assertEqual(self.wrong(ours), "AF_UNIX '' is a connection")

    def test_file(self) -> None:
        """A file is left for a caller that takes it by name."""
        file = (self.folder() / "file").open("w")
        self.addCleanup(file.close)
        self.assertEqual(self.wrong(file), "is a file")

    def test_vsock(self) -> None:
        """
        A socket of virtual machines is left for a caller that takes it by name: Twisted has no
        addresses for it.
        """
        try:
            made = socket.socket(socket.AF_VSOCK)
        except OSError as why:
            raise SkipTest("the kernel has no AF_VSOCK") from why
        self.addCleanup(made.close)
        made.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        made.listen()
        where = f"AF_VSOCK {made.getsockname()}"
        fault = "is of a family that Twisted does not serve"
        self.assertEqual(self.wrong(made, isStray=True), f"{where} {fault}")

    def test_memory(self) -> None:
        """A memfd is left for a caller that takes it by name."""
        file = os.fdopen(os.memfd_create("state"), "wb")
        self.addCleanup(file.close)
        self.assertEqual(self.wrong(file), "is a file")

    def test_fifo(self) -> None:
        """A FIFO is refused and described as one."""
        path = self.folder() / "fifo"
        os.mkfifo(path)
        file = os.fdopen(os.open(path, os.O_RDWR))
        self.addCleanup(file.close)
        self.assertEqual(self.wrong(file, isStray=True), "is a FIFO")

    def test_special(self) -> None:
        """A special file is refused and described as one."""
        with open("/dev/null") as file:
            self.assertEqual(self.wrong(file, isStray=True), "is a special file")

    def test_strayTaken(self) -> None:
        """A descriptor already taken does not block a claim."""
        with open("/dev/null") as file:
            found = inherit((self.listening(), "a"), (file, "b"))
            found.take("b")
            self.assertEqual([each.name for each in found.claim()], ["a"])

    def test_kinds(self) -> None:
        """Sockets that share one name, as a DNS server's, are given out by kind."""
        tcp, udp = self.listening(), self.bound(kind=socket.SOCK_DGRAM)
        unix = self.bound(socket.AF_UNIX, socket.SOCK_DGRAM)
        found = inherit((udp, "dns"), (tcp, "dns"), (unix, "dns"))
        datagrams = found.claim("dns", socket.SOCK_DGRAM)
        self.assertEqual([each.number for each in datagrams], [udp.fileno(), unix.fileno()])
        self.assertEqual([each.number for each in found.claim("dns")], [tcp.fileno()])
        self.assertIn("given out already", self.refused(found, "dns"))

    def test_noDatagrams(self) -> None:
        """If only streams were passed, a claim of datagram sockets is refused with that reason."""
        found = inherit((self.listening(), "dns"))
        with self.assertRaises(AdoptError) as caught:
            found.claim("dns", socket.SOCK_DGRAM)
        self.assertIn("only datagram sockets can be adopted here", str(caught.exception))

    def test_facts(self) -> None:
        """The kind of each socket is known, whether it can be used or not."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        passed = [self.listening(socket.AF_INET6), self.bound(kind=socket.SOCK_DGRAM), ours]
        found = inherit(*((each, "a") for each in passed)).descriptors
        self.assertEqual(
            [(each.family, each.kind, each.listens) for each in found],
            [
                (socket.AF_INET6, socket.SOCK_STREAM, True),
                (socket.AF_INET, socket.SOCK_DGRAM, False),
                (socket.AF_UNIX, socket.SOCK_STREAM, False),
            ],
        )

    def test_take(self) -> None:
        """Any named descriptor can be taken, once."""
        with open("/dev/null") as file:
            found = inherit((self.listening(), "a"), (file, "a"), (self.listening(), "b"))
            self.assertEqual([len(found.take(name)) for name in ("a", "a", "c")], [2, 0, 0])
            self.assertEqual(len(found.claim()), 1)

    def test_release(self) -> None:
        """A released socket can be claimed by another caller; then it cannot be reclaimed."""
        found = inherit((self.listening(), "a"))
        given = found.claim("a")
        found.release(given)
        found.reclaim(given)
        self.assertIn("given out already", self.refused(found, "a"))
        found.release(given)
        self.assertEqual(found.claim("a"), given)
        with self.assertRaises(AdoptError) as caught:
            found.reclaim(given)
        self.assertIn("adopted:name=a: given out already; passed: ", str(caught.exception))

    def test_otherFamily(self) -> None:
        """A listening stream socket of a family unknown to Twisted is refused."""
        self.patch(descriptors, "_FAMILIES", {socket.AF_UNIX: "{!r}"})
        made = self.listening(socket.AF_INET)
        with self.assertRaises(AdoptError) as caught:
            inherit((made, "a")).claim()
        self.assertIn(
            f" AF_INET {made.getsockname()!r} is of a family that Twisted does not serve",
            str(caught.exception),
        )

    def test_hostilePath(self) -> None:
        """A socket's path cannot add a second line to a record."""
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(os.fsencode(self.folder()) + b"/\n\x1b[2J\xff")
        made.listen()
        line = self.refused(inherit((made, "a")), "b")
        self.assertTrue(line.isprintable())
        self.assertIn(r"/\n\x1b[2J\udcff'", line)

    @given(text(characters()), text(characters()))
    def test_hostileNames(self, passed: str, wanted: str) -> None:
        """Whatever the names contain, the refusal is one printable line."""
        with socket.create_server(("127.0.0.1", 0)) as made:
            found = inherit((made, passed))
            found.claim()
            self.assertTrue(self.refused(found, wanted).isprintable())


ASYNC = """
import asyncio
from fastpoetry.systemd.descriptors import inherited
async def main():
    try:
        inherited().claim("a")
    finally:
        print("tidied")
asyncio.run(main())
"""


class RefusalTests(SynchronousTestCase):
    """Tests for L{AdoptError}, which ends a program that has no reactor running."""

    def test_exits(self) -> None:
        """
        Without a running reactor an C{AdoptError} is a C{SystemExit} whose code is its line, and an
        C{Exception}.
        """
        error = refusal("no")
        self.assertIsInstance(error, AdoptError)
        self.assertIsInstance(error, SystemExit)
        self.assertEqual((str(error), getattr(error, "code", None)), ("no", "no"))

    def test_running(self) -> None:
        """With a running reactor an C{AdoptError} is an ordinary error."""

        class Reactor:
            running = True

        self.patch(sys, "modules", {**sys.modules, "twisted.internet.reactor": Reactor()})
        self.assertNotIsInstance(refusal("no"), SystemExit)

    def test_asyncio(self) -> None:
        """A plain asyncio program ends with the one line too."""
        done = subprocess.run([sys.executable, "-c", ASYNC], capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "tidied\n")
        self.assertTrue(done.stderr.startswith("adopted:name=a: no descriptor was passed"))
        self.assertEqual(done.stderr.count("\n"), 1)


MISSING = """
import sys
sys.modules["systemd"] = None
from fastpoetry.systemd.descriptors import inherited
print(inherited().descriptors)
"""


class MissingTests(SynchronousTestCase):
    """Tests for a machine without systemd-python."""

    def test_nothing(self) -> None:
        """Without passed descriptors, the package is not needed."""
        environ = {key: value for key, value in os.environ.items() if "LISTEN_" not in key}
        command = [sys.executable, "-c", MISSING]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("()\n", ""))

    def test_passed(self) -> None:
        """With passed descriptors, one line says what to install."""
        environ = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}
        command = [sys.executable, "-c", MISSING]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("Debian: python3-systemd", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1)
