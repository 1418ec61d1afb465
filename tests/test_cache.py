"""
Tests for L{fastpoetry.proxy.cache}.
"""

from __future__ import annotations

import errno
import os
from hashlib import sha256

from fakes import asNobody, makeFolder
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Copy, CopyError, CopyFile

UPSTREAM = "tcp:host=poems.example:port=10000"

texts = st.binary(min_size=1)
arguments = st.binary().map(os.fsdecode)
times = st.integers(0, 2**52).map(lambda milliseconds: milliseconds / 1000)


class CopyCase(SynchronousTestCase):
    """
    A folder for copies.
    """

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.file = CopyFile(self.folder, UPSTREAM)

    def copy(self, text: bytes = b"a poem\n", fetchedAt: float = 1234.5) -> Copy:
        """
        @return: a copy of such a poem, as L{CopyFile.load} gives it.
        """
        return Copy(Poem(UPSTREAM, text, self.file.path), fetchedAt)

    def put(self, content: bytes) -> None:
        """
        Have some content where the copy is kept.
        """
        with open(self.file.path, "wb") as file:
            file.write(content)

    def content(self) -> bytes:
        """
        @return: what is there.
        """
        with open(self.file.path, "rb") as file:
            return file.read()

    def damage(self) -> str:
        """
        @return: why the copy cannot be loaded.
        """
        return str(self.assertRaises(CopyError, self.file.load))


class SaveTests(CopyCase):
    """
    Tests for what is saved and loaded again.
    """

    @given(texts, times)
    def test_loadsWhatWasSaved(self, text: bytes, fetchedAt: float) -> None:
        """
        A copy is loaded as it was saved: any bytes, and the time to the millisecond.
        """
        self.file.save(self.copy(text, fetchedAt))
        self.assertEqual(self.file.load(), self.copy(text, fetchedAt))

    def test_none(self) -> None:
        """
        Before anything was saved there is no copy, and that is no error.
        """
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
        """
        Nobody else may write to a copy.
        """
        self.file.save(self.copy())
        self.assertEqual(os.stat(self.file.path).st_mode & 0o022, 0)

    @given(arguments, arguments)
    def test_upstreams(self, one: str, other: str) -> None:
        """
        Each upstream has a file of its own in the folder, whatever it is called.
        """
        paths = [CopyFile(self.folder, each).path for each in (one, other)]
        self.assertEqual(paths[0] == paths[1], one == other)
        for path in paths:
            self.assertEqual(os.path.dirname(path), self.folder)
            self.assertRegex(os.path.basename(path), r"\A[0-9a-f]+\.poem\Z")


class DamageTests(CopyCase):
    """
    Tests for files that are not what was saved.
    """

    def setUp(self) -> None:
        super().setUp()
        self.file.save(self.copy())
        self.whole = self.content()

    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """
        A byte that is another than was written, wherever it is, makes a damaged copy.
        """
        at = data.draw(st.integers(0, len(self.whole) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != self.whole[at]))
        self.put(self.whole[:at] + bytes([byte]) + self.whole[at + 1 :])
        self.assertEqual(self.damage(), f"{self.file.path}: is damaged, and will be replaced")

    def test_truncated(self) -> None:
        """
        A copy that lost its end, however much of it, is damaged.
        """
        for size in range(len(self.whole)):
            self.put(self.whole[:size])
            self.assertIn("is damaged", self.damage())

    @given(st.binary(min_size=1))
    def test_appended(self, more: bytes) -> None:
        """
        A copy with something after its end is damaged.
        """
        self.put(self.whole + more)
        self.assertIn("is damaged", self.damage())

    @given(st.binary())
    def test_strange(self, content: bytes) -> None:
        """
        A file of anybody else's is damaged.
        """
        self.put(content)
        self.assertIn("is damaged", self.damage())

    @given(st.binary() | st.sampled_from([b"nan\nx", b"-1.000\nx", b"1.000\n", b"1.0\nx"]))
    def test_strangeWithGoodDigest(self, rest: bytes) -> None:
        """
        A file whose digest is right is damaged too, if it has no time or no poem.
        """
        self.put(sha256(rest).hexdigest().encode() + b"\n" + rest)
        self.assertIn("is damaged", self.damage())

    def test_mended(self) -> None:
        """
        The next copy takes the place of a damaged one.
        """
        self.put(b"damaged")
        self.file.save(self.copy())
        self.assertEqual(self.file.load(), self.copy())


class UnusableTests(CopyCase):
    """
    Tests for folders and disks that take or give no copy.
    """

    def test_unreadable(self) -> None:
        """
        A copy that may not be read is an error with its path and the cause.
        """
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
        """
        A folder that may not be written to is an error with the path, and the old copy stays.
        """
        self.file.save(self.copy())
        os.chmod(self.file.path, 0o644)
        with asNobody(self.folder, 0o555):
            why = self.assertRaises(CopyError, self.file.save, self.copy(b"another\n"))
            self.assertEqual(self.file.load(), self.copy())
        self.assertEqual(str(why), f"{self.file.path}: Permission denied")

    def test_fullDisk(self) -> None:
        """
        A disk that has no room is such an error too: the old copy stays, and no part of the new.
        """
        self.file.save(self.copy())

        def fsync(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "fsync", fsync)
        why = self.assertRaises(CopyError, self.file.save, self.copy(b"another\n"))
        self.assertEqual(str(why), f"{self.file.path}: No space left on device")
        self.assertEqual(self.file.load(), self.copy())
        self.assertEqual(os.listdir(self.folder), [os.path.basename(self.file.path)])

    def test_noFolder(self) -> None:
        """
        A folder that is gone gives no copy, and takes none.
        """
        file = CopyFile(f"{self.folder}/gone", UPSTREAM)
        self.assertIsNone(file.load())
        why = self.assertRaises(CopyError, file.save, self.copy())
        self.assertEqual(str(why), f"{file.path}: No such file or directory")
