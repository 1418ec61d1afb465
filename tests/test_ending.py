"""
Tests for L{fastpoetry.systemd.ending}: the end of a program whose journal is slow or hangs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from select import select
from signal import SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGRTMIN, SIGTERM, SIGUSR2, SIGXCPU
from socket import AF_UNIX, SOCK_DGRAM, socket
from tempfile import TemporaryDirectory
from typing import Any

from entries import parsed
from messages import DROPPED
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]

RECORDS = 300
"""More records than the journal's socket holds."""

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
"""The beginning of each program. It logs its last records, and goes on when it is told to."""

PATIENT = """
from fastpoetry.systemd import journal as module
module._END_SECONDS = 60.0
module.JournalObserver.flush.__defaults__ = (60.0,)
"""
"""The end waits a second for the journal. A test that reads it may need more on a busy machine."""

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
    """Tests with programs of all kinds, and a journal socket without journald."""

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
        Run a program to its end. The journal reads nothing until the program has logged its last
        records.

        @param program: the code that follows L{BEGIN}.
        @param arguments: twistd's arguments, if twistd runs the program.
        @param isStuck: whether the journal reads nothing until the program has ended.
        @return: its exit status and its stderr.
        """
        begin = BEGIN if isStuck else BEGIN + PATIENT
        program = begin.replace("PATH", repr(self.path)) + program
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
        """Read the records that have arrived."""
        while select([self.journal], [], [], 0)[0]:
            self.found.append(dict(parsed(self.journal.recv(1 << 20))))

    def numbers(self) -> list[int]:
        """@return: the numbers of the last records in the journal, in their order."""
        return [int(each["NUMBER"]) for each in self.found if "NUMBER" in each]

    def test_twistd(self) -> None:
        """
        Under twistd every record arrives, up to twistd's own last line, however it is stopped.
        """
        for end, status in (
            ("kill(signal.SIGTERM)", -SIGTERM),
            ("kill(signal.SIGINT)", -SIGINT),
            ("reactor.stop()", 0),
        ):
            ended, _ = self.runProgram(SERVICE.replace("END", end), "--nodaemon")
            self.assertEqual((ended, self.numbers()), (status, list(range(RECORDS))))
            self.assertEqual(self.found[-1]["MESSAGE"], b"Server Shut Down.")

    def test_daemon(self) -> None:
        """Records from before twistd becomes a daemon arrive, although that process ends then."""
        program = SERVICE.replace("END", "reactor.stop()").replace("        say()", "        pass")
        ended, _ = self.runProgram(f"{program}\nsay()\n", "--logfile=log")
        # When logging begins, Twisted repeats earlier events from its buffer.
        self.assertEqual((ended, self.numbers()[:RECORDS]), (0, list(range(RECORDS))))

    def test_twist(self) -> None:
        """Under twist every record arrives."""
        ended, _ = self.runProgram(TWIST.replace("END", "kill(signal.SIGTERM)"))
        self.assertEqual((ended, self.numbers()), (-SIGTERM, list(range(RECORDS))))

    def test_react(self) -> None:
        """Every record of a program that C{react} runs arrives."""
        program = REACTOR.replace("END", "kill(signal.SIGTERM)")
        ended, _ = self.runProgram(f"{program}react(lambda reactor: Deferred())")
        self.assertEqual((ended, self.numbers()), (0, list(range(RECORDS))))

    def test_reactor(self) -> None:
        """Every record of a program that runs the reactor and then calls C{os._exit} arrives."""
        program = REACTOR.replace("END", "reactor.stop()")
        ended, _ = self.runProgram(f"{program}reactor.run(); os._exit(3)")
        self.assertEqual((ended, self.numbers()), (3, list(range(RECORDS))))

    def test_plain(self) -> None:
        """A program without a reactor may end normally, by an exception or by any signal."""
        for end, status in (
            ("", 0),
            ("sys.exit(3)", 3),
            ("1 / 0", 1),
            *((f"kill({number})", -number) for number in (SIGABRT, SIGHUP, SIGINT, SIGQUIT)),
            *((f"kill({number})", -number) for number in (SIGTERM, SIGXCPU, SIGUSR2, SIGRTMIN)),
        ):
            ended, _ = self.runProgram(f"{PLAIN}say()\n{end}")
            self.assertEqual((ended, self.numbers()), (status, list(range(RECORDS))), end)

    def test_worker(self) -> None:
        """Every record of a process that C{multiprocessing} has forked arrives."""
        program = "import multiprocessing\n"
        fork = "worker = multiprocessing.get_context('fork').Process(target=say)\n"
        for whole in (f"{program}{PLAIN}{fork}", f"{PLAIN}{program}{fork}"):
            self.runProgram(f"{whole}worker.start(); worker.join()")
            self.assertEqual(self.numbers(), list(range(RECORDS)))

    def test_runningReactor(self) -> None:
        """An unhandled signal ends a running reactor, and every record arrives."""
        program = REACTOR.replace("END", "(say(), kill(signal.SIGABRT))")
        ended, _ = self.runProgram(f"{program}reactor.run()")
        self.assertEqual((ended, self.numbers()), (-SIGABRT, list(range(RECORDS))))

    def test_faultHandler(self) -> None:
        """Python's fault handler still prints where the program was aborted."""
        begin = BEGIN.replace("PATH", repr(self.path))
        program = f"import faulthandler; faulthandler.enable()\n{begin}os.abort()"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, check=False, timeout=60, capture_output=True)
        self.assertIn(b"Fatal Python error: Aborted", done.stderr)

    def test_handled(self) -> None:
        """Signals that the program handles stay with the program."""
        handling = "signal.signal(signal.SIGHUP, lambda *_: os._exit(3))"
        begin = BEGIN.replace("PATH", repr(self.path))
        program = begin.replace("journal =", f"{handling}\njournal =") + "kill(signal.SIGHUP)"
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
        self.assertEqual(done.returncode, 3)

    def test_stuck(self) -> None:
        """
        If the journal hangs to the end, each record is in its socket, or counted as lost on stderr.
        Records after the last wait are on stderr as text.
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
        later = "reactor.run()\njournal._endsAt = 0\nLogger().info('later')\nos._exit(0)"
        _, errors = self.runProgram(program + later)
        self.assertTrue(errors.endswith("later\n"), errors)

    def test_dropped(self) -> None:
        """The journal's last record counts the records that did not fit the backlog."""
        big = PLAIN + "journal._backlogBytes = 10_000\nsay()\nkill(signal.SIGTERM)"
        self.runProgram(big)
        self.assertEqual(self.found[-1]["MESSAGE_ID"], DROPPED.encode())
        self.assertEqual(len(self.numbers()) + int(self.found[-1]["DROPPED"]), RECORDS)

    def test_noJournal(self) -> None:
        """Without a journal the last records are on stderr, however slowly it is read."""
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

    def test_finalizing(self) -> None:
        """Without a journal, stderr has what is logged while Python ends, and the end comes."""
        program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from fastpoetry.systemd.journal import observer
from twisted.internet.defer import fail
from twisted.logger import globalLogBeginner
observers = [observer({{}}, "/nonexistent")]
globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False)
left = fail(LookupError("a last error"))
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60
        )
        self.assertEqual(ended.returncode, 0)
        self.assertIn("a last error", ended.stderr)

    def test_handlerInC(self) -> None:
        """A signal that C code handles, as faulthandler does, is left to it."""
        program = f"""
import faulthandler, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from fastpoetry.systemd.journal import observer
faulthandler.register(signal.SIGUSR2)
kept = observer({{}}, "/nonexistent")
os.kill(os.getpid(), signal.SIGUSR2)
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60
        )
        self.assertEqual(ended.returncode, 0)
        self.assertIn("most recent call first", ended.stderr)
