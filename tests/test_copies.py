"""Tests for L{fastpoetry.apart.copies}, on real files."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable
from hashlib import sha256
from unittest.mock import Mock

from fakes import asNobody, makeFolder, write
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart import copies
from fastpoetry.apart.copies import CopyError, readCopy, writeCopy
from fastpoetry.apart.poems import MAX_POEM_BYTES

texts = st.binary(min_size=1)
times = st.integers(0, 2**52).map(lambda milliseconds: milliseconds / 1000)


class CopyCase(SynchronousTestCase):
    """A test case with a folder for copies."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.path = os.path.join(self.folder, "x.poem")
        self.mostBytes = MAX_POEM_BYTES

    def copy(self, text: bytes = b"a poem\n", fetchedAt: float = 1234.5) -> tuple[bytes, float]:
        """@return: a copy of such a poem, as L{load} returns it."""
        return text, fetchedAt

    def save(self, copy: tuple[bytes, float]) -> None:
        """Write a copy."""
        writeCopy(self.path, *copy, os.getppid())

    def load(self) -> tuple[bytes, float] | None:
        """@return: the poem in the copy, and when it was fetched."""
        found = readCopy(self.path, self.mostBytes)
        return None if found is None else found[:2]

    def put(self, content: bytes) -> None:
        """Write content to the copy's place."""
        with open(self.path, "wb") as file:
            file.write(content)

    def content(self) -> bytes:
        """@return: the copy's content."""
        with open(self.path, "rb") as file:
            return file.read()

    def damage(self) -> str:
        """@return: the reason why the copy cannot be loaded."""
        return str(self.assertRaises(CopyError, self.load))


class SaveTests(CopyCase):
    """Tests for saving and loading again."""

    @given(texts, times)
    def test_loadsWhatWasSaved(self, text: bytes, fetchedAt: float) -> None:
        """A copy is loaded as it was saved: any bytes, and the time to the millisecond."""
        self.save(self.copy(text, fetchedAt))
        self.assertEqual(self.load(), self.copy(text, fetchedAt))

    def test_none(self) -> None:
        """Before the first save there is no copy, and no error."""
        self.assertIsNone(self.load())

    def test_replaces(self) -> None:
        """A new copy replaces the old one, and leaves no other file in the folder."""
        self.save(self.copy(b"a long old poem\n"))
        self.save(self.copy(b"new\n"))
        self.assertEqual(self.load(), self.copy(b"new\n"))
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.path)])

    def test_private(self) -> None:
        """Other users cannot write to a copy."""
        self.save(self.copy())
        self.assertEqual(os.stat(self.path).st_mode & 0o022, 0)


class DamageTests(CopyCase):
    """Tests for files that differ from what was saved."""

    def setUp(self) -> None:
        super().setUp()
        self.save(self.copy())
        self.whole = self.content()

    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """One changed byte, wherever it is, makes a damaged copy."""
        at = data.draw(st.integers(0, len(self.whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != self.whole[at]))
        self.put(self.whole[:at] + bytes([byte]) + self.whole[at + 1 :])
        self.assertEqual(self.damage(), f"{self.path}: is damaged, and will be replaced")

    def test_truncated(self) -> None:
        """A truncated copy, of any length, is damaged."""
        for size in range(len(self.whole)):
            self.put(self.whole[:size])
            self.assertIn("is damaged", self.damage())

    @given(st.binary(min_size=1))
    def test_appended(self, more: bytes) -> None:
        """A copy with extra bytes at its end is damaged."""
        self.put(self.whole + more)
        self.assertIn("is damaged", self.damage())

    @given(st.binary())
    def test_strange(self, content: bytes) -> None:
        """A file from another program is damaged."""
        self.put(content)
        self.assertIn("is damaged", self.damage())

    @given(st.binary() | st.sampled_from([b"nan\nx", b"-1.000\nx", b"1.000\n", b"1.0\nx"]))
    def test_strangeWithGoodDigest(self, rest: bytes) -> None:
        """A file with a correct digest but without a time or a poem is damaged."""
        self.put(sha256(rest).hexdigest().encode() + b"\n" + rest)
        self.assertIn("is damaged", self.damage())

    def test_mended(self) -> None:
        """The next copy replaces a damaged one."""
        self.put(b"damaged")
        self.save(self.copy())
        self.assertEqual(self.load(), self.copy())


class StrangeTests(CopyCase):
    """Tests for other things in the copy's place: they are refused at once, and replaced."""

    def assertReplaced(self, why: str) -> None:
        """Assert that there is no copy, for that reason, and that the next one replaces it."""
        self.assertEqual(self.damage(), f"{self.path}: {why}")
        self.save(self.copy())
        self.assertEqual(self.load(), self.copy())

    def test_FIFO(self) -> None:
        """A FIFO in the copy's place does not block."""
        os.mkfifo(self.path)
        self.assertReplaced("is a FIFO; a copy is a regular file")

    def test_link(self) -> None:
        """A link is not followed, neither to load nor to save."""
        elsewhere = write(self.folder, "elsewhere", b"precious")
        os.symlink(elsewhere, self.path)
        self.assertReplaced("Too many levels of symbolic links")
        with open(elsewhere, "rb") as file:
            self.assertEqual(file.read(), b"precious")

    def test_device(self) -> None:
        """A link to a device, which has no end, is not followed."""
        os.symlink("/dev/zero", self.path)
        self.assertReplaced("Too many levels of symbolic links")

    def test_sparse(self) -> None:
        """A file larger than any copy is not read."""
        self.put(b"")
        os.truncate(self.path, 8 << 30)
        self.assertReplaced(
            "has 8589934592 bytes; a copy has 67108964 (64 MiB) at most",
        )

    def test_mostBytes(self) -> None:
        """A copy of a poem larger than the upstream's present limit is not read."""
        self.save(self.copy(b"a" * 500))
        self.mostBytes = 300
        self.assertReplaced("has 574 bytes; a copy has 400 at most")
        self.save(self.copy(b"a" * 301))
        self.assertReplaced("has 301 bytes of poetry, more than the limit")
        self.save(self.copy(b"a" * 300))
        self.assertEqual(self.load(), self.copy(b"a" * 300))

    def test_leftover(self) -> None:
        """The leftover of a killed writer is removed by the next copy."""
        for leftover in (f"{self.path}.new", f"{self.path}.0123456789abcdef.new"):
            write(self.folder, os.path.basename(leftover), b"half a poem")
            self.save(self.copy())
            self.assertEqual(os.listdir(self.folder), ["x.poem"])
            os.mkfifo(leftover)
            self.save(self.copy())
            self.assertEqual(os.listdir(self.folder), ["x.poem"])


class SharedTests(CopyCase):
    """Tests for two proxies that keep the copies of one upstream in one folder."""

    def whenSynced(self, do: Callable[[], None]) -> None:
        """Call a function once, while a copy is written and not yet in place."""
        fsync = os.fsync

        def doAndSync(descriptor: int) -> None:
            self.patch(os, "fsync", fsync)
            do()
            fsync(descriptor)

        self.patch(os, "fsync", doAndSync)

    def test_meanwhile(self) -> None:
        """Two copies written at the same time are both whole."""

        def saveAnother() -> None:
            self.save(self.copy(b"another\n"))
            self.assertEqual(self.load(), self.copy(b"another\n"))

        self.whenSynced(saveAnother)
        self.save(self.copy())
        self.assertEqual(self.load(), self.copy())
        self.assertEqual(os.listdir(self.folder), ["x.poem"])

    def test_takenForALeftover(self) -> None:
        """A file that the other proxy removes before it is locked is made again."""
        flock = fcntl.flock

        def removeAndLock(descriptor: int, how: int) -> None:
            self.patch(copies, "flock", flock)
            os.unlink(os.readlink(f"/proc/self/fd/{descriptor}"))
            flock(descriptor, how)

        self.patch(copies, "flock", removeAndLock)
        self.save(self.copy())
        self.assertEqual(self.load(), self.copy())
        self.assertEqual(os.listdir(self.folder), ["x.poem"])

    def test_noLocks(self) -> None:
        """On a file system without locks, a copy is written and no leftover is removed."""
        write(self.folder, "x.poem.1.new")
        self.patch(copies, "flock", Mock(side_effect=OSError(errno.ENOLCK, "none")))
        self.save(self.copy())
        self.assertEqual(self.load(), self.copy())
        self.assertEqual(sorted(os.listdir(self.folder)), ["x.poem", "x.poem.1.new"])

    def test_orphan(self) -> None:
        """
        A writer whose proxy has ended writes nothing: a later proxy may have saved its own copy.
        """
        writeCopy(self.path, *self.copy(), os.getppid() + 1)
        self.assertEqual(os.listdir(self.folder), [])


class UnusableTests(CopyCase):
    """Tests for folders and disks that cannot be read or written."""

    def test_unreadable(self) -> None:
        """An unreadable copy is an error with its path and the cause."""
        self.save(self.copy())
        os.chmod(self.path, 0)
        with asNobody():
            self.assertEqual(self.damage(), f"{self.path}: Permission denied")

    def test_folder(self) -> None:
        """A folder in the copy's place is an error for loading and for saving."""
        os.mkdir(self.path)
        self.assertEqual(self.damage(), f"{self.path}: Is a directory")
        self.assertRaises(CopyError, self.save, self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.path)])

    def test_unwritable(self) -> None:
        """A folder without write permission is an error with the path; the old copy stays."""
        self.save(self.copy())
        os.chmod(self.path, 0o644)
        with asNobody(self.folder, 0o555):
            why = self.assertRaises(CopyError, self.save, self.copy(b"another\n"))
            self.assertEqual(self.load(), self.copy())
        self.assertEqual(str(why), f"{self.path}: Permission denied")

    def test_tooLarge(self) -> None:
        """
        A copy that does not fit is an error; the old copy stays, without a part of the new one.
        """
        self.save(self.copy())

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        why = self.assertRaises(CopyError, self.save, self.copy(b"another\n"))
        self.assertEqual(str(why), f"{self.path}: File too large")
        self.assertEqual(self.load(), self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.path)])

    def test_noFolder(self) -> None:
        """A missing folder is an error for loading and for saving."""
        self.path = f"{self.folder}/gone/x.poem"
        self.assertIsNone(self.load())
        why = self.assertRaises(CopyError, self.save, self.copy())
        self.assertEqual(str(why), f"{self.path}: No such file or directory")
