"""Tests for L{fastpoetry.proxy.cache}."""

from __future__ import annotations

import os
import resource
import sys
from hashlib import sha256
from subprocess import run
from unittest import mock

from fakes import Reactor, Threads, asNobody, makeFolder, records, said, write
from hypothesis import given
from hypothesis import strategies as st
from messages import NO_COPY
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.poem import Poem
from fastpoetry.proxy import save
from fastpoetry.proxy.cache import Copy, CopyError, CopyFile, Keeper
from fastpoetry.threads import ThreadError

UPSTREAM = "tcp:host=poems.example:port=10000"

texts = st.binary(min_size=1)
arguments = st.binary().map(os.fsdecode)
times = st.integers(0, 2**52).map(lambda milliseconds: milliseconds / 1000)


class CopyCase(SynchronousTestCase):
    """A folder for copies."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.file = CopyFile(self.folder, UPSTREAM)

    def copy(self, text: bytes = b"a poem\n", fetchedAt: float = 1234.5) -> Copy:
        """@return: a copy of such a poem, as L{CopyFile.load} gives it."""
        return Copy(Poem(UPSTREAM, text, self.file.path), fetchedAt)

    def put(self, content: bytes) -> None:
        """Have some content where the copy is kept."""
        with open(self.file.path, "wb") as file:
            file.write(content)

    def content(self) -> bytes:
        """@return: what is there."""
        with open(self.file.path, "rb") as file:
            return file.read()

    def damage(self) -> str:
        """@return: why the copy cannot be loaded."""
        return str(self.assertRaises(CopyError, self.file.load))


class SaveTests(CopyCase):
    """Tests for what is saved and loaded again."""

    @given(texts, times)
    def test_loadsWhatWasSaved(self, text: bytes, fetchedAt: float) -> None:
        """A copy is loaded as it was saved: any bytes, and the time to the millisecond."""
        self.file.save(self.copy(text, fetchedAt))
        self.assertEqual(self.file.load(), self.copy(text, fetchedAt))

    def test_none(self) -> None:
        """Before anything was saved there is no copy, and that is no error."""
        self.assertIsNone(self.file.load())

    def test_replaces(self) -> None:
        """
        The last copy takes the place of the one before, and nothing else is left in the folder.
        """
        self.file.save(self.copy(b"a long old poem\n"))
        self.file.save(self.copy(b"new\n"))
        self.assertEqual(self.file.load(), self.copy(b"new\n"))
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])

    def test_private(self) -> None:
        """Nobody else may write to a copy."""
        self.file.save(self.copy())
        self.assertEqual(os.stat(self.file.path).st_mode & 0o022, 0)

    @given(arguments, arguments)
    def test_upstreams(self, one: str, other: str) -> None:
        """Each upstream has a file of its own in the folder, whatever it is called."""
        paths = [CopyFile(self.folder, each).path for each in (one, other)]
        self.assertEqual(paths[0] == paths[1], one == other)
        for path in paths:
            self.assertEqual(os.path.dirname(path), self.folder)
            self.assertRegex(os.path.basename(path), r"\A[0-9a-f]+\.poem\Z")


class DamageTests(CopyCase):
    """Tests for files that are not what was saved."""

    def setUp(self) -> None:
        super().setUp()
        self.file.save(self.copy())
        self.whole = self.content()

    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """A byte that is another than was written, wherever it is, makes a damaged copy."""
        at = data.draw(st.integers(0, len(self.whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != self.whole[at]))
        self.put(self.whole[:at] + bytes([byte]) + self.whole[at + 1 :])
        self.assertEqual(self.damage(), f"{self.file.path}: is damaged, and will be replaced")

    def test_truncated(self) -> None:
        """A copy that lost its end, however much of it, is damaged."""
        for size in range(len(self.whole)):
            self.put(self.whole[:size])
            self.assertIn("is damaged", self.damage())

    @given(st.binary(min_size=1))
    def test_appended(self, more: bytes) -> None:
        """A copy with something after its end is damaged."""
        self.put(self.whole + more)
        self.assertIn("is damaged", self.damage())

    @given(st.binary())
    def test_strange(self, content: bytes) -> None:
        """A file of anybody else's is damaged."""
        self.put(content)
        self.assertIn("is damaged", self.damage())

    @given(st.binary() | st.sampled_from([b"nan\nx", b"-1.000\nx", b"1.000\n", b"1.0\nx"]))
    def test_strangeWithGoodDigest(self, rest: bytes) -> None:
        """A file whose digest is right is damaged too, if it has no time or no poem."""
        self.put(sha256(rest).hexdigest().encode() + b"\n" + rest)
        self.assertIn("is damaged", self.damage())

    def test_mended(self) -> None:
        """The next copy takes the place of a damaged one."""
        self.put(b"damaged")
        self.file.save(self.copy())
        self.assertEqual(self.file.load(), self.copy())


class StrangeTests(CopyCase):
    """Tests for what somebody put in the copy's place: it is refused at once, and replaced."""

    def assertReplaced(self, why: str) -> None:
        """Assert that there is no copy, for that reason, and that the next takes its place."""
        self.assertEqual(self.damage(), f"{self.file.path}: {why}")
        self.file.save(self.copy())
        self.assertEqual(self.file.load(), self.copy())

    def test_FIFO(self) -> None:
        """A FIFO is not waited for."""
        os.mkfifo(self.file.path)
        self.assertReplaced("is a FIFO; a copy is a regular file")

    def test_link(self) -> None:
        """A link is not followed, neither to load nor to save."""
        elsewhere = write(self.folder, "elsewhere", b"precious")
        os.symlink(elsewhere, self.file.path)
        self.assertReplaced("Too many levels of symbolic links")
        with open(elsewhere, "rb") as file:
            self.assertEqual(file.read(), b"precious")

    def test_device(self) -> None:
        """Nor is one to a device, which has no end."""
        os.symlink("/dev/zero", self.file.path)
        self.assertReplaced("Too many levels of symbolic links")

    def test_sparse(self) -> None:
        """A file that is larger than any copy is not read."""
        self.put(b"")
        os.truncate(self.file.path, 8 << 30)
        self.assertReplaced(
            "has 8589934592 bytes; a copy has 67108964 (64 MiB) at most",
        )

    def test_mostBytes(self) -> None:
        """Nor is a copy of a poem that is larger than the upstream's may be by now."""
        self.file.save(self.copy(b"a" * 500))
        self.file = CopyFile(self.folder, UPSTREAM, 300)
        self.assertReplaced("has 574 bytes; a copy has 400 at most")
        self.file.save(self.copy(b"a" * 301))
        self.assertReplaced("has 301 bytes of poetry, more than may be")
        self.file.save(self.copy(b"a" * 300))
        self.assertEqual(self.file.load(), self.copy(b"a" * 300))

    def test_leftover(self) -> None:
        """What a save has left behind that was killed is gone with the next, whatever it is."""
        write(self.folder, os.path.basename(self.file.path) + ".new", b"half a poem")
        self.file.save(self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])
        os.mkfifo(f"{self.file.path}.new")
        self.file.save(self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])


class WriterTests(CopyCase):
    """Tests for the process that writes."""

    def write(self, size: int, parent: int) -> list[str]:
        """
        Have six bytes written.

        @param size: how many were to come.
        @param parent: who wants them.
        @return: what is in the folder afterwards.
        """
        command = [
            sys.executable,
            "-I",
            "-S",
            save.__file__,
            self.file.path,
            str(size),
            str(parent),
        ]
        run(command, input=b"a poem", check=True)
        return os.listdir(self.folder)

    def test_whole(self) -> None:
        """What comes is put in place."""
        self.assertEqual(self.write(6, os.getpid()), [os.path.basename(self.file.path)])
        self.assertEqual(self.content(), b"a poem")

    def test_cut(self) -> None:
        """
        What is not all that was to come, since the proxy has ended meanwhile, is not, and leaves
        nothing behind.
        """
        self.assertEqual(self.write(7, os.getpid()), [])

    def test_orphan(self) -> None:
        """
        Nor is what comes from a proxy that has ended: one that came later may have saved its own.
        """
        self.assertEqual(self.write(6, os.getpid() + 1), [])

    def test_killed(self) -> None:
        """A writer that is killed is no copy, and the error says so."""
        program = write(self.folder, "program", b"import os\nos.kill(os.getpid(), 9)\n")
        self.patch(save, "__file__", program)
        why = self.assertRaises(CopyError, self.file.save, self.copy())
        self.assertEqual(str(why), f"{self.file.path}: its writer was ended by signal 9")

    def test_noProcess(self) -> None:
        """So is one that cannot be started."""
        self.patch(sys, "executable", f"{self.folder}/gone")
        why = self.assertRaises(CopyError, self.file.save, self.copy())
        self.assertEqual(str(why), f"{self.file.path}: No such file or directory")


class KeeperTests(CopyCase):
    """Tests for L{Keeper}: threads work, and the time passes, when a test says so."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        self.threads = Threads(self)
        self.keeper = Keeper(self.file, self.reactor)
        self.addCleanup(lambda: self.assertEqual(self.reactor.getDelayedCalls(), []))

    def said(self) -> list[str]:
        """@return: what is said when the threads work."""
        with capturedLogs() as events:
            self.threads.work()
        return said(events)

    def test_load(self) -> None:
        """The copy is read in a thread."""
        self.file.save(self.copy())
        loaded = self.keeper.load()
        self.assertNoResult(loaded)
        self.threads.work()
        self.assertEqual(self.successResultOf(loaded), self.copy())

    def test_loadFails(self) -> None:
        """One that cannot be used is none, and has a warning."""
        self.put(b"damaged")
        loaded = self.keeper.load()
        with capturedLogs() as events:
            self.threads.work()
        self.assertIsNone(self.successResultOf(loaded))
        cause = f"{self.file.path}: is damaged, and will be replaced"
        self.assertEqual(
            records(events),
            [
                {
                    "text": f"the copy on disk cannot be used: {cause}",
                    "level": "warn",
                    "cause": cause,
                    "upstream": UPSTREAM,
                    "message_id": NO_COPY,
                }
            ],
        )

    def test_oneAtATime(self) -> None:
        """
        However many copies there are while one is written, the last of them follows, and no other.
        """
        saved: list[bytes] = []
        self.patch(self.file, "save", lambda copy: saved.append(copy.poem.text))
        for text in (b"1", b"2", b"3", b"4"):
            self.keeper.save(self.copy(text))
        self.threads.work()
        self.assertEqual(saved, [b"1"])
        self.threads.work()
        self.assertEqual(saved, [b"1", b"4"])
        self.threads.work()
        self.assertEqual(saved, [b"1", b"4"])

    def test_fails(self) -> None:
        """One that fails has a warning, and does not keep the next from being written."""
        file, self.file.path = self.file.path, "/nowhere/x"
        self.keeper.save(self.copy(b"1"))
        self.keeper.save(self.copy(b"2"))
        self.assertEqual(
            self.said(),
            ["the copy on disk cannot be used: /nowhere/x: No such file or directory"],
        )
        self.file.path = file
        self.assertEqual(self.said(), [])
        self.assertEqual(self.file.load(), self.copy(b"2"))

    def test_failsOtherwise(self) -> None:
        """Whatever keeps it from being written is said, and does not keep the next."""
        self.patch(self.file, "save", mock.Mock(side_effect=MemoryError))
        for _ in range(2):
            self.keeper.save(self.copy())
            self.assertEqual(self.said(), ["the copy on disk cannot be used: MemoryError()"])

    def test_slow(self) -> None:
        """One that takes its time has one warning that says for how long."""
        self.keeper.save(self.copy())
        with capturedLogs() as events:
            for _ in range(100):
                self.reactor.advance(1)
        self.assertEqual(
            said(events),
            [f"the copy on disk cannot be used: {self.file.path}: has not been written for 10 s"],
        )
        self.assertEqual(self.said(), [])

    def test_noThread(self) -> None:
        """Where no thread can be had a warning says so, and the next copy is written if one can."""
        self.threads.why = ThreadError("no thread can be had: none is left")
        with capturedLogs() as events:
            self.keeper.save(self.copy(b"1"))
            loaded = self.keeper.load()
        self.assertEqual(
            said(events),
            ["the copy on disk cannot be used: no thread can be had: none is left"] * 2,
        )
        self.assertIsNone(self.successResultOf(loaded))
        self.threads.why = None
        self.keeper.save(self.copy(b"2"))
        self.threads.work()
        self.assertEqual(self.file.load(), self.copy(b"2"))

    def test_finish(self) -> None:
        """The end comes when what is being written is, and what was to follow it."""
        self.successResultOf(self.keeper.finish())
        self.keeper.save(self.copy(b"1"))
        self.keeper.save(self.copy(b"2"))
        finished = [self.keeper.finish() for _ in range(2)]
        self.threads.work()
        for each in finished:
            self.assertNoResult(each)
        self.threads.work()
        for each in finished:
            self.successResultOf(each)

    def test_finishLate(self) -> None:
        """It comes after a moment in any case."""
        self.keeper.save(self.copy())
        finished = self.keeper.finish()
        self.reactor.advance(1)
        self.successResultOf(finished)
        self.threads.work()


class UnusableTests(CopyCase):
    """Tests for folders and disks that take or give no copy."""

    def test_unreadable(self) -> None:
        """A copy that may not be read is an error with its path and the cause."""
        self.file.save(self.copy())
        os.chmod(self.file.path, 0)
        with asNobody():
            self.assertEqual(self.damage(), f"{self.file.path}: Permission denied")

    def test_folder(self) -> None:
        """
        A folder where the copy should be is such an error as well, for loading and for saving.
        """
        os.mkdir(self.file.path)
        self.assertEqual(self.damage(), f"{self.file.path}: Is a directory")
        self.assertRaises(CopyError, self.file.save, self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])

    def test_unwritable(self) -> None:
        """A folder that may not be written to is an error with the path, and the old copy stays."""
        self.file.save(self.copy())
        os.chmod(self.file.path, 0o644)
        with asNobody(self.folder, 0o555):
            why = self.assertRaises(CopyError, self.file.save, self.copy(b"another\n"))
            self.assertEqual(self.file.load(), self.copy())
        self.assertEqual(str(why), f"{self.file.path}: Permission denied")

    def test_tooLarge(self) -> None:
        """What does not fit is such an error too: the old copy stays, and no part of the new."""
        self.file.save(self.copy())

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        why = self.assertRaises(CopyError, self.file.save, self.copy(b"another\n"))
        self.assertEqual(str(why), f"{self.file.path}: File too large")
        self.assertEqual(self.file.load(), self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])

    def test_noFolder(self) -> None:
        """A folder that is gone gives no copy, and takes none."""
        file = CopyFile(f"{self.folder}/gone", UPSTREAM)
        self.assertIsNone(file.load())
        why = self.assertRaises(CopyError, file.save, self.copy())
        self.assertEqual(str(why), f"{file.path}: No such file or directory")
