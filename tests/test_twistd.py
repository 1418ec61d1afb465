"""
Tests for the real twistd with our commands and C{.tac} files, in processes of its own.

Options and modules have tests of their own; these show what only a process can.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import skipUnless

from processes import (
    ROOT,
    Workplace,
    fetch,
    fetchFrom,
    findFreePort,
    findTwistd,
    finish,
    isRunning,
    ownNetwork,
    statusOf,
    waitUntil,
)
from twisted.trial.unittest import SynchronousTestCase

TUTORIAL = "twistd fastpoetry --port 10000 --poem poetry/ecstasy.txt"
"""The command line of the Twisted introduction, part 16."""

NOBODY = 65534


def mayMount() -> bool:
    """Whether file systems can be mounted: a container's root may not be allowed to."""
    trial = ("unshare", "--mount", "true")
    return subprocess.run(trial, capture_output=True).returncode == 0


onlyRoot = skipUnless(os.geteuid() == 0, "only root may change users, roots and mounts")

# A bare container has no /dev/log, and ours must not affect other processes: mount a /dev for one
# process, with the devices it needs.
_WITH_OWN_DEV = """
for each in null urandom; do : >"$0/$each"; mount --bind "/dev/$each" "$0/$each"; done
mount --rbind "$0" /dev
exec "$@"
"""


def readPoem(name: str) -> bytes:
    """Return a shipped poem."""
    return (ROOT / "poetry" / f"{name}.txt").read_bytes()


class TwistdTestCase(SynchronousTestCase):
    """A test in a L{Workplace}."""

    def setUp(self) -> None:
        """Make the workplace, and find a free port."""
        self.place = Workplace(self)
        self.folder = self.place.folder
        self.port = findFreePort()
        self.address = ("127.0.0.1", self.port)
        self.ecstasy = readPoem("ecstasy")

    def stop(self, pid: int) -> None:
        """End a daemon, and wait for its end."""
        os.kill(pid, signal.SIGTERM)
        self.waitFor(lambda: not isRunning(pid))

    def waitFor(self, condition: Callable[[], object]) -> None:
        """Wait until something is true, and show the log if it never is."""
        try:
            waitUntil(condition, "see the log")
        except TimeoutError:
            self.fail(self.place.log)

    def waitForLog(self, text: str, times: int = 1) -> None:
        """Wait until a text has been logged so many times."""
        self.waitFor(lambda: self.place.log.count(text) >= times)

    def reload(self, pid: int, text: str, times: int = 1) -> None:
        """Reload a daemon, and wait until it has logged a text so many times."""
        os.kill(pid, signal.SIGHUP)
        self.waitForLog(text, times)


class TutorialTests(TwistdTestCase):
    """Tests for the tutorial's command line, unchanged."""

    def test_everythingTheTutorialShows(self) -> None:
        """
        The daemon serves the poem and logs what it loaded and sent. It ends on a signal to the
        process ID in its pid file, and removes that file.
        """
        with ownNetwork():
            pid = self.place.daemon(*TUTORIAL.split()[1:])
            self.assertEqual(fetch(("127.0.0.1", 10000)), self.ecstasy)
        self.assertIn(f"loaded a poem from: {self.folder}/poetry/ecstasy.txt\n", self.place.log)
        self.waitForLog(f"sending {len(self.ecstasy)} bytes of poetry to 127.0.0.1:")
        self.assertEqual(self.place.run("sh", "-c", "kill $(cat twistd.pid)"), (0, "", ""))
        self.waitFor(lambda: not isRunning(pid))
        self.assertFalse((self.folder / "twistd.pid").exists())
        self.assertIn("Server Shut Down.", self.place.log)
        self.assertNotIn("Traceback", self.place.log)

    def test_description(self) -> None:
        """C{twistd --help} lists the command with its description."""
        status, output, _ = self.place.run(*findTwistd(), "--help")
        self.assertEqual(status, 0)
        self.assertRegex(output, r"\n +fastpoetry +A fast poetry service\.\n")


class ServingTests(TwistdTestCase):
    """Tests for our own options."""

    def test_blocks(self) -> None:
        """Each block serves its own poem on its own port."""
        other = findFreePort()
        first = ("--poem", "poetry/ecstasy.txt", "--port", str(self.port))
        second = ("--poem", "poetry/science.txt", "--port", str(other))
        self.place.daemon("fastpoetry", *first, *second)
        self.assertEqual(fetch(self.address), self.ecstasy)
        self.assertEqual(fetch(("127.0.0.1", other)), readPoem("science"))

    def test_anthology(self) -> None:
        """Each poem of an anthology gets its turn, at random."""
        poems = {readPoem(name) for name in ("alla_sera", "ecstasy", "fascination", "science")}
        self.place.daemon("fastpoetry", "-p", f"{self.port}", "--anthology", "--poetry-path=poetry")
        # The probability that one of four poems stays away for so long is 1 in 10 ** 24.
        seen = {fetch(self.address) for _ in range(200)}
        self.assertEqual(seen, poems)

    def test_socket(self) -> None:
        """A UNIX socket is served as long as the daemon runs, and then removed."""
        path = str(self.folder / "poem.sock")
        arguments = ("--poem", "poetry/ecstasy.txt", "--listen", "unix:poem.sock")
        pid = self.place.daemon("--rundir", str(self.folder), "fastpoetry", *arguments)
        self.assertEqual(fetch(path), self.ecstasy)
        self.stop(pid)
        self.assertFalse(os.path.exists(path))

    def test_severalEndpoints(self) -> None:
        """One block serves on all endpoints that it lists."""
        path = str(self.folder / "poem.sock")
        listen = ("--listen", f"tcp:{self.port}:interface=127.0.0.1", "--listen", f"unix:{path}")
        self.place.daemon("fastpoetry", "--poem", "poetry/ecstasy.txt", *listen)
        self.assertEqual([fetch(self.address), fetch(path)], [self.ecstasy] * 2)


class OwnFeaturesTests(TwistdTestCase):
    """Tests for twistd's own features with our commands."""

    def setUp(self) -> None:
        """Set the arguments that most tests share."""
        super().setUp()
        self.command = ("fastpoetry", "--port", str(self.port), "--poem", "poetry/ecstasy.txt")

    def begin(self, *arguments: str) -> None:
        """Start in the foreground, and fetch the poem."""
        self.process = self.place.begin(*findTwistd(), "--nodaemon", *arguments)
        self.assertEqual(fetchFrom(self.process, self.address), self.ecstasy)

    def test_foreground(self) -> None:
        """
        In the foreground the log is on stdout. SIGTERM ends the program cleanly: twistd finally
        dies of the signal, which systemd and shells treat as a clean end.
        """
        self.begin(*self.command)
        self.process.terminate()
        status, output, errors = finish(self.process)
        self.assertEqual((status, errors), (-signal.SIGTERM, ""))
        self.assertIn(f"sending {len(self.ecstasy)} bytes of poetry to 127.0.0.1:", output)
        self.assertIn("Server Shut Down.", output)
        self.assertNotIn("Traceback", output)
        self.assertFalse((self.folder / "twistd.pid").exists())

    def test_interrupt(self) -> None:
        """Ctrl-C ends the program cleanly, too."""
        self.begin(*self.command)
        self.process.send_signal(signal.SIGINT)
        status, output, errors = finish(self.process)
        self.assertEqual((status, errors), (-signal.SIGINT, ""))
        self.assertIn("Server Shut Down.", output)
        self.assertNotIn("Traceback", output)

    def test_rotation(self) -> None:
        """SIGUSR1 rotates the log file."""
        pid = self.place.daemon("--logfile", "twistd.log", *self.command)
        fetch(self.address)
        self.waitForLog("bytes of poetry")
        os.kill(pid, signal.SIGUSR1)
        old = self.folder / "twistd.log.1"
        self.waitFor(old.exists)
        self.assertIn("loaded a poem from", old.read_text())
        self.assertEqual(fetch(self.address), self.ecstasy)
        self.waitForLog("bytes of poetry")
        self.assertNotIn("loaded a poem from", self.place.log)

    @skipUnless(mayMount(), "mounting takes root with CAP_SYS_ADMIN")
    def test_syslog(self) -> None:
        """With C{--syslog} every line goes to syslog."""
        device = self.folder / "dev"
        device.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
            log.settimeout(30)
            log.bind(str(device / "log"))
            alone = ("unshare", "--mount", "sh", "-ec", _WITH_OWN_DEV, str(device))
            twistd = (*findTwistd(), "--nodaemon", "--syslog", "--prefix=verse", *self.command)
            self.process = self.place.begin(*alone, *twistd)
            self.assertEqual(fetchFrom(self.process, self.address), self.ecstasy)
            line = b""
            while b"sending" not in line:
                line = log.recv(4096)
        # In angle brackets: facility daemon or user, and priority info (RFC 5424, 6.2.1).
        self.assertRegex(line, rb"^<(14|30)>.* verse: .*sending \d+ bytes of poetry to 127")
        self.process.terminate()
        self.assertEqual(finish(self.process), (-signal.SIGTERM, "", ""))

    @onlyRoot
    def test_otherUser(self) -> None:
        """
        With C{--uid} and C{--gid} a low port is bound before root privileges are dropped, and the
        poem is read and served as another user.
        """
        os.chown(self.folder, NOBODY, NOBODY)
        user = ("--uid", str(NOBODY), "--gid", str(NOBODY))
        command = ("fastpoetry", "--port", "17", "--poem", "poetry/ecstasy.txt")
        with ownNetwork():
            pid = self.place.daemon(*user, *command)
            self.assertEqual(fetch(("127.0.0.1", 17)), self.ecstasy)
        status = statusOf(pid)
        self.assertEqual(status["Uid"].split(), [str(NOBODY)] * 4)
        self.assertEqual(status["Gid"].split(), [str(NOBODY)] * 4)
        self.stop(pid)
        self.assertFalse((self.folder / "twistd.pid").exists())
        self.assertNotIn("Traceback", self.place.log)

    @onlyRoot
    def test_otherUserMayNotRead(self) -> None:
        """
        A poem that only root may read makes a start as another user fail, with exit status 1 and
        one line that says how to fix it.
        """
        (self.folder / "poetry/ecstasy.txt").chmod(0o600)
        user = ("--uid", str(NOBODY), "--gid", str(NOBODY))
        path = self.folder / "poetry/ecstasy.txt"
        status, output, errors = self.place.run(*findTwistd(), *user, *self.command)
        self.assertEqual((status, output), (1, ""))
        self.assertEqual(
            errors,
            f"fastpoetry: --poem poetry/ecstasy.txt: {path}: Permission denied (uid {NOBODY}); "
            f"mend it with: chmod a+r {path}, and a+x for its folders\n",
        )
        self.assertEqual(self.place.findProcesses(), [])

    def test_umask(self) -> None:
        """C{--umask} sets the daemon's umask."""
        pid = self.place.daemon("--umask", "027", *self.command)
        self.assertEqual(statusOf(pid)["Umask"], "0027")
        self.assertEqual((self.folder / "twistd.pid").stat().st_mode & 0o777, 0o640)
        self.assertEqual(fetch(self.address), self.ecstasy)

    def test_otherFolder(self) -> None:
        """
        A relative path is relative to the folder of the daemon's start, even after the daemon has
        changed its folder, and at a reload.
        """
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        pid = self.place.daemon("--rundir", "elsewhere", *self.command)
        self.assertEqual(os.readlink(f"/proc/{pid}/cwd"), str(elsewhere))
        self.assertEqual(fetch(self.address), self.ecstasy)
        self.reload(pid, "loaded a poem from", times=2)

    def startBeneath(self, *arguments: str) -> int:
        """Start a daemon under another root, which has its own poem at the same path."""
        inside = Path(f"{self.folder}/root{self.folder}")
        (inside / "poetry").mkdir(parents=True)
        (inside / "poetry/ecstasy.txt").write_bytes(b"Another ecstasy\n")
        # twistd opens it to reserve a descriptor.
        (self.folder / "root/dev").mkdir()
        (self.folder / "root/dev/null").touch()
        command = ("--chroot", "root", *self.command, *arguments)
        return self.place.daemon(*command, pidFile=str(inside / "twistd.pid"))

    @onlyRoot
    def test_otherRoot(self) -> None:
        """With C{--chroot} the poem at that path under the new root is served."""
        pid = self.startBeneath("--iface", "127.0.0.1")
        self.assertEqual(fetch(self.address), b"Another ecstasy\n")
        self.stop(pid)
        self.assertEqual([*self.folder.rglob("twistd.pid")], [])

    @onlyRoot
    def test_localhost(self) -> None:
        """The default interface works even if C{localhost} cannot be resolved (RFC 6761, 6.3)."""
        self.startBeneath()
        self.assertEqual(fetch(self.address), b"Another ecstasy\n")


class ReloadTests(TwistdTestCase):
    """Tests for SIGHUP."""

    def test_changedPoem(self) -> None:
        """The same process serves the file's new content."""
        command = ("fastpoetry", "-p", str(self.port), "--poem", "./poem.txt")
        (self.folder / "poem.txt").write_bytes(b"Once\n")
        pid = self.place.daemon(*command)
        self.assertEqual(fetch(self.address), b"Once\n")
        (self.folder / "poem.txt").write_bytes(b"Twice\n")
        self.assertEqual(fetch(self.address), b"Once\n")
        self.reload(pid, "loaded a poem from", times=2)
        self.assertEqual(fetch(self.address), b"Twice\n")
        self.assertTrue(isRunning(pid))

    def test_brokenPoem(self) -> None:
        """
        If the poem becomes unreadable the old one stays, with exactly one record of path and cause;
        once fixed, it is served.
        """
        poem = self.folder / "poetry/ecstasy.txt"
        pid = self.place.daemon("fastpoetry", "-p", str(self.port), "--poem", "poetry/ecstasy.txt")
        poem.write_bytes(b"")
        self.reload(pid, "kept the old poem")
        self.assertEqual(fetch(self.address), self.ecstasy)
        poem.write_bytes(b"Mended\n")
        self.reload(pid, "loaded a poem from", times=2)
        self.assertEqual(fetch(self.address), b"Mended\n")
        self.assertEqual(self.place.log.count("kept the old poem"), 1)
        self.assertRegex(self.place.log, rf"#error\] kept the old poem: {poem}: is empty;")
        self.assertEqual(re.findall("#error|#critical|Traceback", self.place.log), ["#error"])

    def test_administratorsPoem(self) -> None:
        """A name is looked up again at a reload, so that a poem in an earlier folder takes over."""
        own = self.folder / "own"
        own.mkdir()
        command = ("fastpoetry", "-p", f"{self.port}", "--poem=ecstasy", "--poetry-path=own:poetry")
        pid = self.place.daemon(*command)
        self.assertEqual(fetch(self.address), self.ecstasy)
        (own / "ecstasy.txt").write_bytes(b"My own ecstasy\n")
        self.reload(pid, f"loaded a poem from: {own}/ecstasy.txt")
        self.assertEqual(fetch(self.address), b"My own ecstasy\n")


class RefusalTestCase(TwistdTestCase):
    """A test case for refused starts."""

    def assertRefused(
        self,
        *arguments: str,
        says: str,
        before: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> None:
        """
        Assert that the command ends with exit status 1 and one line on stderr, and leaves no
        process, log or pid file.

        @param says: a text in the line.
        @param before: a command that runs twistd.
        @param options: of twistd, which is a daemon by default.
        """
        files = sorted(self.folder.rglob("*"))
        command = (*before, *findTwistd(), *options, "fastpoetry", *arguments)
        status, output, errors = self.place.run(*command)
        self.assertEqual((status, output), (1, ""), errors)
        self.assertRegex(errors, r"\Afastpoetry: .+\n\Z")
        self.assertTrue(errors[:-1].isprintable(), errors)
        self.assertIn(says, errors)
        self.assertEqual(self.place.findProcesses(), [])
        self.assertEqual(sorted(self.folder.rglob("*")), files)


class ForegroundTests(RefusalTestCase):
    """Tests for refusals in the foreground; all others are of a daemon."""

    def test_foreground(self) -> None:
        """An option, a poem and an endpoint are refused in the same way."""
        for arguments, says in (
            (("--pome", "ecstasy"), "option --pome not recognized"),
            (("--poem", "ecstacy"), "no poem ecstacy in "),
            (("--anthology", "--listen", "tpc:1"), "Unknown endpoint type"),
        ):
            self.assertRefused(*arguments, says=says, options=("-n", "--pidfile=own.pid"))


class PoemRefusalTests(RefusalTestCase):
    """Tests for poems that cannot be served."""

    def assertPoemRefused(self, cause: str, before: tuple[str, ...] = ()) -> None:
        """
        Assert that the path C{poetry/bad.txt} is refused with a line that has option, path and
        cause.
        """
        says = f"--poem poetry/bad.txt: {self.folder}/poetry/bad.txt: {cause}"
        arguments = ("--port", str(self.port), "--poem", "poetry/bad.txt")
        self.assertRefused(*arguments, says=says, before=before)

    @property
    def bad(self) -> Path:
        """The refused path."""
        return self.folder / "poetry/bad.txt"

    def test_missing(self) -> None:
        """A missing file is refused."""
        self.assertPoemRefused("No such file or directory")

    def test_unreadable(self) -> None:
        """An unreadable file is refused with a line that says how to fix it."""
        self.bad.write_bytes(b"For nobody's eyes\n")
        self.bad.chmod(0)
        # Root can read every file, unless it drops that capability.
        drop = "--bounding-set=-dac_override,-dac_read_search"
        before = ("setpriv", drop, "--inh-caps=-all") if os.geteuid() == 0 else ()
        mend = f"; mend it with: chmod a+r {self.bad}"
        self.assertPoemRefused(f"Permission denied (uid {os.geteuid()}){mend}", before)

    def test_empty(self) -> None:
        """An empty poem is refused."""
        self.bad.touch()
        self.assertPoemRefused("is empty")

    def test_folder(self) -> None:
        """A folder is refused."""
        self.bad.mkdir()
        self.assertPoemRefused("is a folder")

    def test_FIFO(self) -> None:
        """A FIFO without a writer is refused at once."""
        os.mkfifo(self.bad)
        self.assertPoemRefused("is a FIFO")

    def test_socket(self) -> None:
        """A socket is refused."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.bad))
            listener.listen()
            self.assertPoemRefused("No such device or address")

    def test_device(self) -> None:
        """A device without an end is refused."""
        says = "--poem /dev/zero: /dev/zero: is a device"
        self.assertRefused("--poem", "/dev/zero", says=says)

    def test_tooLarge(self) -> None:
        """A file one byte above 64 MiB is refused."""
        with open(self.bad, "wb") as file:
            file.truncate(64 * 1024 * 1024 + 1)
        self.assertPoemRefused("has 67108865 bytes; a poem has 67108864 (64 MiB) at most")

    def test_danglingLink(self) -> None:
        """A dangling link is refused as a missing poem."""
        self.bad.symlink_to("nowhere")
        self.assertPoemRefused("No such file or directory")

    def test_secondOfTwo(self) -> None:
        """One bad poem among good ones is refused."""
        good = ("--poem", "poetry/ecstasy.txt", "--port", str(self.port))
        bad = ("--poem", "./no.txt", "--port", str(findFreePort()))
        self.assertRefused(*good, *bad, says=f"--poem ./no.txt: {self.folder}/no.txt: No such file")

    def test_unknownName(self) -> None:
        """An unknown name is refused with the folders, their poems, and the nearest name."""
        self.assertRefused(
            "--poem=ecstacy",
            "--poetry-path=poetry:none",
            says=f"--poem ecstacy: no poem ecstacy in {self.folder}/poetry:{self.folder}/none; "
            "available: alla_sera, ecstasy, fascination, science; did you mean ecstasy?",
        )

    def test_emptyAnthology(self) -> None:
        """An empty anthology is refused."""
        says = f"--anthology: no poem to read in {self.folder}/none"
        self.assertRefused("--anthology", "--poetry-path=none", says=says)

    def test_invalidName(self) -> None:
        """A name that leads out of the folder is refused."""
        self.assertRefused("--poem", "..", says="--poem ..: '..' is no name of a poem")

    def test_hostileName(self) -> None:
        """Characters that would break the line or control the terminal are escaped."""
        name = "a\nb\x1b[2J\r\u2028\udcff"  # the last is a byte that is not UTF-8
        says = r"--poem a\nb\x1b[2J\r\u2028\udcff: "
        self.assertRefused("--poem", name, says=says)

    def test_hostilePath(self) -> None:
        """Characters in a path that would break the line are escaped too."""
        says = rf"--poem ./a\nb\x1b[2J: {self.folder}/a\nb\x1b[2J: No such file"
        self.assertRefused("--poem", "./a\nb\x1b[2J", says=says)


class OptionRefusalTests(RefusalTestCase):
    """Tests for invalid options and unavailable addresses."""

    poem = ("--poem", "poetry/ecstasy.txt")

    def test_nothing(self) -> None:
        """A command line without a poem is refused."""
        self.assertRefused(says="nothing to serve: say what with --poem or --anthology")

    def test_unknownOption(self) -> None:
        """An unknown option is refused with its name."""
        self.assertRefused("--pome", "ecstasy", says="option --pome not recognized")

    def test_hostileOption(self) -> None:
        """An unknown option with control characters is refused in one line."""
        self.assertRefused("--a\n\x1b[2J", says=r"option --a\n\x1b[2J not recognized")

    def test_strayArgument(self) -> None:
        """A stray argument is refused with its text."""
        self.assertRefused(*self.poem, "science", says="science: ")

    def test_missingValue(self) -> None:
        """An option without its value is refused."""
        self.assertRefused("--poem", says="option --poem requires argument")

    def test_twice(self) -> None:
        """A second port for a block is refused."""
        twice = ("--port", "10001", "--port", "10002")
        self.assertRefused(*twice, *self.poem, says="--port 10002: given already (10001)")

    def test_pathTwice(self) -> None:
        """A second poetry path is refused."""
        twice = ("--poetry-path", "one", "--poetry-path", "two")
        self.assertRefused(*twice, *self.poem, says="--poetry-path two: given already, as one")

    def test_pathOfNothing(self) -> None:
        """An empty poetry path is refused."""
        self.assertRefused("--poetry-path", ":", "--poem", "ecstasy", says="--poetry-path :")

    def test_secondBlockWithoutAPort(self) -> None:
        """A second block without its own address is refused."""
        says = "--poem science: each further block needs a --port or --listen of its own"
        self.assertRefused(*self.poem, "--poem", "science", says=says)

    def test_portOutOfRange(self) -> None:
        """Port 65536 is refused."""
        says = "--port 65536: not a port from 0 to 65535"
        self.assertRefused("--port", "65536", *self.poem, says=says)

    def test_portOfManyDigits(self) -> None:
        """A port with too many digits for Python is refused."""
        self.assertRefused("--port", "9" * 5000, *self.poem, says=": not a port from 0 to 65535")

    def test_countOfManyDigits(self) -> None:
        """A number of readers with too many digits is refused."""
        self.assertRefused("--max-readers", "9" * 5000, *self.poem, says="--max-readers 9999")

    def test_portTaken(self) -> None:
        """A port in use is refused."""
        with socket.create_server(self.address):
            says = f"--port {self.port} --iface localhost: Address already in use"
            self.assertRefused("--port", str(self.port), *self.poem, says=says)

    def test_portForTwo(self) -> None:
        """Two blocks cannot have the same port."""
        port = ("--port", str(self.port))
        says = f"--port {self.port} --iface localhost: Address already in use"
        self.assertRefused(*self.poem, *port, *self.poem, *port, says=says)

    def test_endpointTaken(self) -> None:
        """An endpoint in use is refused, with or without a layer above."""
        description = f"tcp:{self.port}:interface=127.0.0.1"
        with socket.create_server(self.address):
            for listen in (description, f"haproxy:{description}"):
                says = f"--listen {listen}: Address already in use"
                self.assertRefused(*self.poem, "--listen", listen, says=says)

    def test_endpointTwice(self) -> None:
        """An endpoint given twice is refused."""
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        twice = ("--listen", listen, "--listen", listen)
        self.assertRefused(*self.poem, *twice, says=f"--listen {listen}: ")

    def test_interface(self) -> None:
        """An address of another machine is refused."""
        arguments = ("--iface", "192.0.2.1", "--port", str(self.port))
        says = f"--port {self.port} --iface 192.0.2.1: Cannot assign requested address"
        self.assertRefused(*self.poem, *arguments, says=says)

    def test_endpointOfNoKind(self) -> None:
        """An endpoint of an unknown kind is refused."""
        says = "--listen tpc:1: not a Twisted endpoint description: Unknown endpoint type: 'tpc'"
        self.assertRefused(*self.poem, "--listen", "tpc:1", says=says)

    def test_endpointThatDoesNotParse(self) -> None:
        """An endpoint of a known kind with wrong arguments is refused."""
        says = "--listen tcp:ten: not a Twisted endpoint description: "
        self.assertRefused(*self.poem, "--listen", "tcp:ten", says=says)

    def test_hostileEndpoint(self) -> None:
        """A description with control characters is refused in one line."""
        says = r"--listen a\n\x1b[2J: not a Twisted endpoint description: "
        self.assertRefused(*self.poem, "--listen", "a\n\x1b[2J", says=says)

    def test_endpointAndPort(self) -> None:
        """An endpoint together with a port is refused."""
        arguments = ("--listen", "tcp:1", "--port", "2")
        says = "--poem poetry/ecstasy.txt: --listen tcp:1 excludes --port and --iface"
        self.assertRefused(*self.poem, *arguments, says=says)

    def test_nothingToAdopt(self) -> None:
        """Without passed sockets, adopting is refused."""
        says = "adopted: no descriptor was passed"
        self.assertRefused(*self.poem, "--listen", "adopted:", says=says)

    def test_noFolderForASocket(self) -> None:
        """A socket in a missing folder is refused."""
        listen = f"unix:{self.folder}/none/poem.sock"
        says = f"--listen {listen}: No such file or directory"
        self.assertRefused(*self.poem, "--listen", listen, says=says)

    def test_socketOnAFile(self) -> None:
        """A socket in the place of another file is refused."""
        listen = f"unix:{self.folder}/poetry/science.txt"
        self.assertRefused(*self.poem, "--listen", listen, says=f"--listen {listen}: File exists")

    def test_socketTaken(self) -> None:
        """A socket in use is refused."""
        path = str(self.folder / "poem.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            says = f"--listen unix:{path}: Address already in use"
            self.assertRefused(*self.poem, "--listen", f"unix:{path}", says=says)


class DeploymentTests(TwistdTestCase):
    """Tests for the C{.tac} files, from a clone."""

    deployments = {
        "fastpoetry.tac": {10000: "ecstasy"},
        "two-poems.tac": {10000: "ecstasy", 10001: "fascination"},
        "by-hand.tac": {10000: "ecstasy"},
        "poetry-udp.tac": {10000: "ecstasy"},
    }

    def setUp(self) -> None:
        """Change to the clone, and not to a folder with poems."""
        super().setUp()
        self.place.folder = ROOT
        self.pidFile = f"--pidfile={self.folder}/twistd.pid"

    def test_served(self) -> None:
        """twistd serves the poems of each file on their ports."""
        for name, poems in self.deployments.items():
            with ownNetwork():
                command = ("--nodaemon", self.pidFile, "--python", f"packaging/tac/{name}")
                process = self.place.begin(*findTwistd(), *command)
                for port, poem in poems.items():
                    self.assertEqual(fetchFrom(process, ("127.0.0.1", port)), readPoem(poem), name)
                process.terminate()
                status, output, errors = finish(process)
            self.assertEqual((status, errors), (-signal.SIGTERM, ""), output)
            self.assertIn(f"loaded a poem from: {ROOT}/poetry/ecstasy.txt\n", output)

    def test_elsewhere(self) -> None:
        """The clone's poems are found from any other folder, and by a daemon."""
        self.place.folder = self.folder
        for name, poems in self.deployments.items():
            with ownNetwork():
                pid = self.place.daemon("--python", f"{ROOT}/packaging/tac/{name}")
                for port, poem in poems.items():
                    self.assertEqual(fetch(("127.0.0.1", port)), readPoem(poem), name)
                self.stop(pid)

    def test_refused(self) -> None:
        """A poem that cannot be served is refused as on a command line."""
        for name in self.deployments:
            with ownNetwork(), socket.create_server(("127.0.0.1", 10000)):
                status, output, errors = self.place.run(
                    *findTwistd(), self.pidFile, "--python", f"packaging/tac/{name}"
                )
            self.assertEqual((status, output), (1, ""), name)
            self.assertRegex(errors, r"^fastpoetry: .*:?10000.*: Address already in use\n$")

    def test_plainPython(self) -> None:
        """Plain Python starts no server from a C{.tac} file, even if its ports are in use."""
        for name in self.deployments:
            with ownNetwork(), socket.create_server(("127.0.0.1", 10000)):
                ended = self.place.run(sys.executable, f"packaging/tac/{name}")
            self.assertEqual(ended, (0, "", ""), name)
