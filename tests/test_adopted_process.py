"""
Tests for L{fastpoetry.systemd.adopted} in processes that inherit descriptors: the protocol of
sd_listen_fds(3) concerns a process's start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import SkipTest

from passing import Passing, fetch
from processes import SECONDS
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.systemd import adopted

_ROOT = str(Path(adopted.__file__).parents[2])

# As systemd does: put the descriptors at 3 and up, set the variables, exec the program.
LAUNCHER = """
import json, os, sys
numbers, variables, program = json.loads(sys.argv[1])
for index, number in enumerate(numbers):
    os.dup2(number, 100 + index, inheritable=False)
    os.close(number)
for index in range(len(numbers)):
    os.dup2(100 + index, 3 + index)
os.environ.update({"LISTEN_PID": str(os.getpid()), **variables})
os.execv(program[0], program)
"""

# A service that adopts the endpoints its arguments name, and forks before listening if one argument
# is "fork". Its first line lists what it adopted and what its own child process inherits.
PROGRAM = """
import json, os, subprocess, sys
if "endpoints" in sys.argv:
    import twisted.internet.endpoints
from fastpoetry.systemd.adopted import AdoptedParser
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

class Greeter(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
        self.transport.loseConnection()

names = [{"name": argument[5:]} for argument in sys.argv if argument.startswith("name=")]
endpoints = [AdoptedParser().parseStreamServer(reactor, **name) for name in names or [{}]]
if "fork" in sys.argv:
    child = os.fork()
    if child:
        os._exit(os.waitpid(child, 0)[1])
import twisted.internet.endpoints
for endpoint in endpoints:
    endpoint.listen(Factory.forProtocol(Greeter))
look = ["sh", "-c", "ls -l /proc/self/fd; env"]
child = subprocess.run(look, stdout=subprocess.PIPE, close_fds=False).stdout.decode()
adopted = [str(each) for endpoint in endpoints for each in endpoint.descriptors]
reactor.callWhenRunning(print, json.dumps([os.getpid(), adopted, child]), flush=True)
reactor.run()
"""


class ProcessTests(Passing, SynchronousTestCase):
    """Tests for a process that inherits descriptors."""

    def start(self, command: list[str], numbers: list[int]) -> Any:
        """
        @param command: a program and its arguments.
        @param numbers: the descriptors that it inherits.
        @return: the process.
        """
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=numbers,
            env={**os.environ, "PYTHONPATH": _ROOT, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.addCleanup(process.communicate, timeout=SECONDS)
        self.addCleanup(process.kill)
        return process

    def launch(self, passed: list[Any], *arguments: str, **variables: str) -> Any:
        """
        @param passed: the descriptors for L{PROGRAM}.
        @param arguments: its arguments.
        @param variables: variables of the protocol that differ from the rule.
        @return: the process.
        """
        numbers = [each.fileno() for each in passed]
        variables = {"LISTEN_FDS": str(len(passed)), **variables}
        program = [sys.executable, "-c", PROGRAM, *arguments]
        given = json.dumps([numbers, variables, program])
        return self.start([sys.executable, "-c", LAUNCHER, given], numbers)

    def serving(self, process: Any) -> tuple[list[str], str]:
        """
        @param process: a launched process.
        @return: the descriptors that it adopted, and what its own child process inherits.
        """
        line = process.stdout.readline()
        if not line:
            self.fail(process.communicate(timeout=SECONDS)[1])
        pid, descriptors, child = json.loads(line)
        self.addCleanup(self.end, pid)
        return descriptors, child

    def end(self, pid: int) -> None:
        """@param pid: a process that may have ended already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def refusal(self, process: Any) -> str:
        """
        @param process: a launched process.
        @return: its last line.
        """
        out, err = process.communicate(timeout=SECONDS)
        self.assertEqual((process.returncode, out, err.count("\n")), (1, "", 1), err)
        return str(err)

    def test_families(self) -> None:
        """UNIX, INET and INET6 sockets of one name listen together, repeatedly."""
        families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        passed = [self.listening(family) for family in families]
        descriptors, _ = self.serving(self.launch(passed, "name=a", LISTEN_FDNAMES="a:a:a"))
        self.assertEqual(
            [each.split()[2] for each in descriptors], ["AF_UNIX", "AF_INET", "AF_INET6"]
        )
        said = [fetch(each.family, each.getsockname()) for each in passed * 3]
        self.assertEqual(said, [b"hello"] * 9)

    def test_names(self) -> None:
        """Each of two endpoints gets the socket with its name."""
        passed = [self.listening(), self.listening()]
        process = self.launch(passed, "name=b", "name=a", LISTEN_FDNAMES="a:b")
        descriptors, _ = self.serving(process)
        self.assertEqual([each[:5] for each in descriptors], ["4 'b'", "3 'a'"])

    def test_withoutNames(self) -> None:
        """Where no names are passed, each socket is named C{unknown}."""
        descriptors, _ = self.serving(self.launch([self.listening()]))
        self.assertEqual(descriptors[0][:11], "3 'unknown'")

    def test_endpointsImported(self) -> None:
        """Sockets are found even after L{twisted.internet.endpoints} has removed the variables."""
        made = self.listening()
        process = self.launch([made], "endpoints", "name=a", LISTEN_FDNAMES="a")
        self.serving(process)
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_fork(self) -> None:
        """A process may fork between claiming and listening, as twistd does."""
        made = self.listening()
        self.serving(self.launch([made], "fork", "name=a", LISTEN_FDNAMES="a"))
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_childInheritsNothing(self) -> None:
        """A child process inherits neither the variables nor any socket, claimed or not."""
        passed = [self.listening(), self.listening()]
        _, child = self.serving(self.launch(passed, "name=a", LISTEN_FDNAMES="a:b"))
        self.assertNotIn("socket:", child)
        self.assertNotIn("LISTEN_", child)

    def test_end(self) -> None:
        """After the process has ended, its socket is unchanged for other processes that hold it."""
        made = self.listening(socket.AF_UNIX)
        os.chmod(made.getsockname(), 0o600)
        process = self.launch([made])
        self.serving(process)
        process.terminate()
        process.wait(timeout=SECONDS)
        self.assertEqual(stat.S_IMODE(os.stat(made.getsockname()).st_mode), 0o600)
        self.serving(self.launch([made]))
        self.assertEqual(fetch(made.family, made.getsockname()), b"hello")

    def test_nothing(self) -> None:
        """An uncaught refusal is one line and exit status 1."""
        self.assertEqual(
            self.refusal(self.start([sys.executable, "-c", PROGRAM, "name=a"], [])),
            "adopted:name=a: no descriptor was passed: "
            "a .socket unit or systemd-socket-activate must pass one; "
            "it may not have Accept=yes; if it has a new address, restart it; "
            "else=ENDPOINT needs no descriptor\n",
        )

    def test_otherProcess(self) -> None:
        """Descriptors passed to another process are refused."""
        process = self.launch([self.listening()], LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="a")
        self.assertEqual(
            self.refusal(process),
            f"adopted: LISTEN_PID='{os.getpid()}' LISTEN_FDS='1' LISTEN_FDNAMES='a' "
            f"is for another process, this is {process.pid}\n",
        )

    def test_contradictions(self) -> None:
        """
        A count that is invalid or differs from the names, a closed descriptor, and a name that is
        not UTF-8 are refused.
        """
        for variables in (
            {"LISTEN_FDNAMES": "a:b"},
            {"LISTEN_FDS": "x"},
            {"LISTEN_FDS": "40"},
            {"LISTEN_FDNAMES": "\udcff"},
        ):
            process = self.launch([self.listening()], "endpoints", **variables)
            ((key, value),) = variables.items()
            line = self.refusal(process)
            self.assertIn("adopted: count, names and open descriptors do not agree: ", line)
            self.assertIn(f"{key}={value!r}", line)

    def test_otherThings(self) -> None:
        """A descriptor that is not a listening stream socket is refused and described."""
        ours, theirs = os.pipe()
        self.addCleanup(os.close, theirs)
        pipe = os.fdopen(ours)
        self.addCleanup(pipe.close)
        datagram = self.bound(kind=socket.SOCK_DGRAM)
        process = self.launch([datagram, pipe], LISTEN_FDNAMES="a:b")
        self.assertEqual(
            self.refusal(process),
            "adopted: only listening stream sockets can be adopted; passed: 3 'a' AF_INET "
            f"127.0.0.1:{datagram.getsockname()[1]} is a datagram socket, 4 'b' is a FIFO\n",
        )

    def test_socketActivate(self) -> None:
        """A process started by systemd-socket-activate serves the client that caused its start."""
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            raise SkipTest("systemd-socket-activate is not installed")
        path = str(self.folder() / "s")
        command = [activate, "--listen", path, "--fdname=a", "--setenv=PYTHONPATH", sys.executable]
        process = self.start([*command, "-c", PROGRAM, "name=a"], [])
        self.assertIn("Listening on", process.stderr.readline())
        self.assertEqual(fetch(socket.AF_UNIX, path), b"hello")
        self.serving(process)
