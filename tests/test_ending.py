"""
Tests for L{fastpoetry.systemd.ending}: how a program ends when the journal is slow or stands still.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from select import select
from signal import SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU
from socket import AF_UNIX, SOCK_DGRAM, socket
from tempfile import TemporaryDirectory
from typing import Any

from entries import parsed
from messages import DROPPED
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]

RECORDS = 300
"""More than the journal's socket holds."""

BEGIN = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from fastpoetry.systemd.journal import observer
from twisted.logger import Logger, globalLogBeginner, globalLogPublisher
def say():
    for number in range({RECORDS}):
        Logger().info("last word {{number}}", number=number)
    os.write(1, b"said")
    os.read(0, 1)
def kill(number):
    os.kill(os.getpid(), number)
journal = observer({{}}, PATH)
"""
"""What each program begins with. It says its last words, and goes on when it is told to."""

SERVICE = """
from twisted.application.service import Application, Service
globalLogPublisher.addObserver(journal)
class Speaking(Service):
    def startService(self):
        from twisted.internet import reactor
        reactor.callWhenRunning(lambda: END)
    def stopService(self):
        say()
application = Application("x")
Speaking().setServiceParent(application)
"""

TWISTD = """
import sys
sys.argv = ["twistd", "--pidfile=", "--no_save", "--python=app.tac", *sys.argv[1:]]
from twisted.scripts.twistd import run
run()
"""

TWIST = (
    SERVICE
    + """
from twisted.application.twist._twist import Twist
Twist.service = staticmethod(lambda **_: Speaking())
Twist.main(["twist", "web"])
"""
)

PLAIN = """
globalLogBeginner.beginLoggingTo([journal], redirectStandardIO=False)
"""

REACTOR = (
    PLAIN
    + """
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react
reactor.callWhenRunning(lambda: END)
reactor.addSystemEventTrigger("before", "shutdown", say)
"""
)


class EndingTests(SynchronousTestCase):
    """Programs of all kinds, and a journal that only lacks a journald behind it."""

    def setUp(self) -> None:
        """Make the journal's socket, and a folder for the program."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = f"{self.folder}/socket"
        self.journal = socket(AF_UNIX, SOCK_DGRAM)
        self.addCleanup(self.journal.close)
        self.journal.bind(self.path)

    def runProgram(self, program: str, *arguments: str, isStuck: bool = False) -> tuple[int, str]:
        """
        Run a program to its end. The journal takes nothing until it has said its last words.

        @param program: what follows L{BEGIN}.
        @param arguments: of twistd, if twistd is to run it.
        @param isStuck: whether the journal takes nothing until the program has ended.
        @return: how it ended, and what it wrote to stderr.
        """
        program = BEGIN.replace("PATH", repr(self.path)) + program
        if arguments:
            Path(self.folder, "app.tac").write_text(program)
            program = TWISTD
        with subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            while b"said" not in (said := os.read(process.stdout.fileno(), 1 << 16)):
                self.assertTrue(said, "it ended before it had said anything")
            process.stdin.close()
            self.found: list[dict[str, bytes]] = []
            errors = b""
            while not errors.endswith(b"\0"):
                sources: list[Any] = [process.stderr] if isStuck else [process.stderr, self.journal]
                ready, _, _ = select(sources, [], [])
                if self.journal in ready:
                    self.take()
                if process.stderr in ready:
                    errors += os.read(process.stderr.fileno(), 1 << 16) or b"\0"
        self.take()
        return process.returncode, errors[:-1].decode()

    def take(self) -> None:
        """Take the records that have come."""
        while select([self.journal], [], [], 0)[0]:
            self.found.append(dict(parsed(self.journal.recv(1 << 20))))

    def numbers(self) -> list[int]:
        """@return: which of the last words are in the journal, in their order there."""
        return [int(each["NUMBER"]) for each in self.found if "NUMBER" in each]

    def test_twistd(self) -> None:
        """Under twistd all arrives, to its own last line, by whatever it is stopped."""
        for end, status in (
            ("kill(signal.SIGTERM)", -SIGTERM),
            ("kill(signal.SIGINT)", -SIGINT),
            ("reactor.stop()", 0),
        ):
            ended, _ = self.runProgram(SERVICE.replace("END", end), "--nodaemon")
            self.assertEqual((ended, self.numbers()), (status, list(range(RECORDS))))
            self.assertEqual(self.found[-1]["MESSAGE"], b"Server Shut Down.")

    def test_daemon(self) -> None:
        """What was logged before twistd becomes a daemon arrives, though that process ends then."""
        program = SERVICE.replace("END", "reactor.stop()").replace("        say()", "        pass")
        ended, _ = self.runProgram(f"{program}\nsay()\n", "--logfile=log")
        # As it begins to log, Twisted repeats what it has kept from before.
        self.assertEqual((ended, self.numbers()[:RECORDS]), (0, list(range(RECORDS))))

    def test_twist(self) -> None:
        """Under twist all arrives."""
        ended, _ = self.runProgram(TWIST.replace("END", "kill(signal.SIGTERM)"))
        self.assertEqual((ended, self.numbers()), (-SIGTERM, list(range(RECORDS))))

    def test_react(self) -> None:
        """So it does in a program that C{react} runs."""
        program = REACTOR.replace("END", "kill(signal.SIGTERM)")
        ended, _ = self.runProgram(f"{program}react(lambda reactor: Deferred())")
        self.assertEqual((ended, self.numbers()), (0, list(range(RECORDS))))

    def test_reactor(self) -> None:
        """So it does in one that runs the reactor, and goes by C{os._exit} after that."""
        program = REACTOR.replace("END", "reactor.stop()")
        ended, _ = self.runProgram(f"{program}reactor.run(); os._exit(3)")
        self.assertEqual((ended, self.numbers()), (3, list(range(RECORDS))))

    def test_plain(self) -> None:
        """A program without a reactor can end by itself, by an exception and by any signal."""
        for end, status in (
            ("", 0),
            ("sys.exit(3)", 3),
            ("1 / 0", 1),
            *((f"kill({number})", -number) for number in (SIGABRT, SIGHUP, SIGINT, SIGQUIT)),
            *((f"kill({number})", -number) for number in (SIGTERM, SIGXCPU)),
        ):
            ended, _ = self.runProgram(f"{PLAIN}say()\n{end}")
            self.assertEqual((ended, self.numbers()), (status, list(range(RECORDS))), end)

    def test_runningReactor(self) -> None:
        """A signal that nobody handles ends a running reactor, and nothing is lost."""
        program = REACTOR.replace("END", "(say(), kill(signal.SIGABRT))")
        ended, _ = self.runProgram(f"{program}reactor.run()")
        self.assertEqual((ended, self.numbers()), (-SIGABRT, list(range(RECORDS))))

    def test_handled(self) -> None:
        """A signal that the program handles is the program's."""
        handling = "signal.signal(signal.SIGHUP, lambda *_: os._exit(3))"
        begin = BEGIN.replace("PATH", repr(self.path))
        program = begin.replace("journal =", f"{handling}\njournal =") + "kill(signal.SIGHUP)"
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
        self.assertEqual(done.returncode, 3)

    def test_stuck(self) -> None:
        """
        While the journal stands still to the end, each record is there or is counted as lost, on
        stderr. What is logged after the last wait is there as text.
        """
        program = SERVICE.replace("END", "kill(signal.SIGTERM)")
        ended, errors = self.runProgram(program, "--nodaemon", isStuck=True)
        self.assertEqual(ended, -SIGTERM)
        lost = sum(
            int(line.rpartition(": ")[2]) for line in errors.splitlines() if "records lost" in line
        )
        words = len(self.numbers())
        self.assertLess(words, RECORDS)
        self.assertEqual(words + lost, RECORDS)
        self.assertTrue(errors.endswith("Server Shut Down.\n"), errors)

    def test_goesOn(self) -> None:
        """A program may go on after its reactor. Without a journal, its records are on stderr."""
        os.unlink(self.path)
        program = REACTOR.replace("END", "reactor.stop()")
        later = "reactor.run()\njournal._endsAt -= 1\nLogger().info('later')\nos._exit(0)"
        _, errors = self.runProgram(program + later)
        self.assertTrue(errors.endswith("later\n"), errors)

    def test_dropped(self) -> None:
        """What the backlog could not hold is counted in the journal's last record."""
        big = PLAIN + "journal._backlogBytes = 10_000\nsay()\nkill(signal.SIGTERM)"
        self.runProgram(big)
        self.assertEqual(self.found[-1]["MESSAGE_ID"], DROPPED.encode())
        self.assertEqual(len(self.numbers()) + int(self.found[-1]["DROPPED"]), RECORDS)

    def test_noJournal(self) -> None:
        """Without a journal the last words are on stderr, however slowly that is read."""
        os.unlink(self.path)
        slow = "import fcntl; fcntl.fcntl(2, fcntl.F_SETPIPE_SZ, 4096)\n"
        for program, *arguments in (
            (SERVICE.replace("END", "kill(signal.SIGTERM)"), "--nodaemon"),
            (f"{PLAIN}say()\nkill(signal.SIGTERM)",),
        ):
            ended, errors = self.runProgram(slow + program, *arguments)
            self.assertEqual(ended, -SIGTERM)
            words = [line.split()[-1] for line in errors.splitlines() if "last word" in line]
            self.assertEqual(words, list(map(str, range(RECORDS))))
