"""Tests that the modules for any program serve a program without poetry or other dependencies."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "adopted": "stderr descriptors",
    "clock": "",
    "descriptors": "stderr",
    "ending": "",
    "journal": "ending records stderr",
    "manager": "steps",
    "notify": "clock steps manager heartbeat deferreds stderr reload signals reloading starting",
    "reload": "stderr",
    "store": "clock stderr descriptors steps manager",
}
"""The public modules, and which of them each needs."""

IMPORT = """
import sys
import {module}
print(*(each for each in sys.modules if each.split(".")[0] == "fastpoetry"))
print("twisted.internet.reactor" in sys.modules)
"""

# As systemd does between fork and exec: LISTEN_PID is known only there.
TWISTD = """
import os, sys
for number, descriptor in enumerate(sys.argv.pop(1).split(), 3):
    os.dup2(int(descriptor), number)
os.environ["LISTEN_PID"] = str(os.getpid())
twistd = "from twisted.scripts.twistd import run; run()"
os.execv(sys.executable, [sys.executable, "-c", twistd, *sys.argv[1:]])
"""

JOURNAL = """
from twisted.logger import Logger, globalLogBeginner
from fastpoetry.systemd.journal import observer
globalLogBeginner.beginLoggingTo([observer({}, "/nonexistent/socket")])
Logger().info("one {what}", what="record\\n[error] forged")
Logger().info("another")
"""

NOTIFY = """
import os, signal, sys
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from fastpoetry.systemd.notify import NotifyService
log = textFileLogObserver(sys.__stdout__, timeFormat=None)
globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
services = MultiService()
NotifyService(reactor, status=lambda: "fine", reload=reactor.stop).setServiceParent(services)
services.startService()
reactor.addSystemEventTrigger("before", "shutdown", services.stopService)
reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGHUP)
reactor.run()
"""


def run(
    program: str, *arguments: str, passed: Sequence[socket.socket] = (), **variables: str
) -> tuple[int, str, str]:
    """
    Run a Python program with only the tested package on its path, and only these variables of
    systemd's.

    @param passed: sockets that it inherits.
    @param variables: of its environment.
    @return: its exit status, stdout and stderr.
    """
    systemd = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(systemd)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables},
        pass_fds=[each.fileno() for each in passed],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class ImportTests(SynchronousTestCase):
    """Tests for what an import brings in."""

    def test_alone(self) -> None:
        """
        Importing a module brings in only what it needs of this package, and installs no reactor.
        """
        for module, others in MODULES.items():
            names = [f"fastpoetry.systemd.{each}" for each in [*others.split(), module]]
            said = run(IMPORT.format(module=names[-1]))
            ours = " ".join(["fastpoetry", "fastpoetry.systemd", *names])
            self.assertEqual(said, (0, f"{ours}\nFalse\n", ""))

    def test_plugin(self) -> None:
        """The drop-in, which every twistd on the machine imports, installs no reactor either."""
        _, said, _ = run(IMPORT.format(module="twisted.plugins.fastpoetry_plugin"))
        self.assertEqual(said, "\nFalse\n")


class AdoptedTests(SynchronousTestCase):
    """Tests for another program's C{twistd web} that is passed unsuitable sockets."""

    def refusal(self, endpoint: str, *passed: socket.socket, names: str = "") -> str:
        """
        @param endpoint: the endpoint that twistd listens on.
        @param passed: sockets that it inherits.
        @param names: their names.
        @return: its only line of output.
        """
        options = ("--nodaemon", "--pidfile=", "--logfile=-", "web", "--path=.")
        descriptors = " ".join(str(each.fileno()) for each in passed)
        variables = {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": names} if passed else {}
        status, said, refused = run(
            *(TWISTD, descriptors, *options, f"--listen={endpoint}"), passed=passed, **variables
        )
        self.assertEqual((status, said), (1, ""))
        (line,) = refused.splitlines()
        return line

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """@return: a bound socket, which listens if it is a stream socket."""
        made = socket.socket(socket.AF_INET, kind)
        self.addCleanup(made.close)
        made.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def test_nothing(self) -> None:
        """Without a socket, the refusal names the programs that pass one."""
        self.assertEqual(
            self.refusal("adopted:"),
            "adopted: no descriptor was passed: "
            "a .socket unit or systemd-socket-activate must pass one; "
            "it may not have Accept=yes; if it has a new address, restart it; "
            "else=ENDPOINT needs no descriptor",
        )

    def test_otherName(self) -> None:
        """If no socket has the wanted name, the refusal lists the names there are."""
        made = self.socket()
        port = made.getsockname()[1]
        self.assertEqual(
            self.refusal("adopted:name=admin", made, names="web"),
            "adopted:name=admin: no passed descriptor has that name; "
            f"its .socket must listen first; passed: 3 'web' AF_INET 127.0.0.1:{port}",
        )

    def test_otherKind(self) -> None:
        """The refusal describes a descriptor that cannot listen."""
        made = self.socket(socket.SOCK_DGRAM)
        port = made.getsockname()[1]
        self.assertEqual(
            self.refusal("adopted:", made, names="web"),
            "adopted: only listening stream sockets can be adopted; "
            f"passed: 3 'web' AF_INET 127.0.0.1:{port} is a datagram socket",
        )


class JournalTests(SynchronousTestCase):
    """Tests for a program on a machine without a journal."""

    def test_nothing(self) -> None:
        """The program reports the missing journal once on stderr, and writes its records there."""
        status, said, complaint = run(JOURNAL)
        self.assertEqual((status, said), (0, ""))
        self.assertEqual(
            [re.sub(r"^\d{4}-\S+ ", "", line) for line in complaint.splitlines()],
            [
                "[warn] -c: cannot write to the journal at /nonexistent/socket "
                "(No such file or directory); until that works, records are written here",
                "[info] one record",
                "    [error] forged",
                "[info] another",
            ],
        )


class NotifyTests(SynchronousTestCase):
    """Tests for a program that systemd did not start."""

    def test_nothing(self) -> None:
        """Outside systemd a program sends no notification, and SIGHUP reloads it all the same."""
        status, said, complaint = run(NOTIFY)
        self.assertEqual((status, complaint), (0, ""))
        self.assertNotIn("fastpoetry", said)

    def test_nobodyThere(self) -> None:
        """If no process reads the notify socket, the program reports that once and goes on."""
        status, said, complaint = run(NOTIFY, NOTIFY_SOCKET="/nonexistent/socket")
        self.assertEqual((status, complaint), (0, ""))
        ours = [line for line in said.splitlines() if "fastpoetry" in line]
        self.assertEqual(
            ours,
            [
                "- [fastpoetry.systemd.manager.Manager#warn] cannot send messages to systemd at "
                "/nonexistent/socket: No such file or directory"
            ],
        )

    def test_noWatchdog(self) -> None:
        """An invalid watchdog interval turns the watchdog off."""
        status, _, complaint = run(NOTIFY, NOTIFY_SOCKET="@nobody", WATCHDOG_USEC="soon")
        self.assertEqual((status, complaint), (0, ""))
