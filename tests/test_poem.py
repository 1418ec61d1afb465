"""Tests for L{fastpoetry.poem}, on real files."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from shutil import rmtree
from typing import Any
from unittest import mock
from unittest.mock import Mock

from fakes import POEM, asNobody, countDescriptors, makeFolder, write
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.apart import poems
from fastpoetry.poem import Anthology, Loaded, Poem, PoemAt, PoemError, PoemNamed, Selection


class FolderCase(SynchronousTestCase):
    """A test case with a folder of poems, inside another folder with a private file."""

    def setUp(self) -> None:
        self.outside = makeFolder(self)
        self.folder = os.path.join(self.outside, "poetry")
        os.mkdir(self.folder)

    def write(self, entry: str, text: bytes = POEM.text) -> str:
        """@return: the path of a new file in the folder."""
        return write(self.folder, entry, text)

    def refusal(self, selection: Selection) -> str:
        """@return: the refusal."""
        return str(self.assertRaises(PoemError, selection.load))


class PoemTests(SynchronousTestCase):
    """Tests for L{Poem}."""

    def test_digest(self) -> None:
        """The digest is the SHA-256 of the text, as sha256sum(1) prints it."""
        self.assertEqual(POEM.digest, sha256(POEM.text).hexdigest())

    def test_strangeAtPieces(self) -> None:
        """A long poem is checked for UTF-8 in pieces, whose boundaries do not matter."""
        self.patch(poems, "_PIECE_BYTES", 4)
        good = "a\u00ef\u20ac\U0001f600".encode()
        for shift in range(4):
            text = b"a" * shift + good * 3
            self.assertIsNone(Poem("x", text, "").invalidAt)
            for end in (b"\xff", b"\xc3", b"\xf0\x9f\x98", b"\xed\xa0\x80"):
                self.assertEqual(Poem("x", text + end, "").invalidAt, len(text))
                self.assertEqual(Poem("x", text + end + b"a", "").invalidAt, len(text))

    def test_strangeAt(self) -> None:
        """
        A poem that is not UTF-8 knows the position of its first invalid byte; the text stays
        unchanged.
        """
        strange = Poem("x", b"qu\xc3\xafete, qu\xefete", "")
        self.assertEqual((strange.invalidAt, strange.text[11:12]), (11, b"\xef"))
        self.assertEqual(Poem("x", "quïete".encode(), "").invalidAt, None)


class PoemAtTests(FolderCase):
    """Tests for L{PoemAt}."""

    def test_whole(self) -> None:
        """The text is the file's content, and the name is the file's without its suffix."""
        path = self.write("ecstasy.txt")
        self.assertEqual(PoemAt(path).load(), Loaded([Poem("ecstasy", POEM.text, path)], [], []))

    def test_anyName(self) -> None:
        """A path may name a file of any name."""
        path = self.write("An ode. To a {0}")
        self.assertEqual(PoemAt(path).load().poems[0].name, "An ode")

    def test_anyBytes(self) -> None:
        """No byte is decoded, translated or left out."""
        text = bytes(range(256)) + b"\r\n\0\xff\xfe"
        self.assertEqual(PoemAt(self.write("x", text)).load().poems[0].text, text)

    def test_link(self) -> None:
        """A given path may contain links."""
        path = os.path.join(self.outside, "link")
        os.symlink(self.write("ecstasy.txt"), path)
        self.assertEqual(PoemAt(path).load().poems, [Poem("link", POEM.text, path)])

    def test_again(self) -> None:
        """Each load reads the file anew."""
        selection = PoemAt(self.write("x", b"old"))
        selection.load()
        self.write("x", b"new")
        self.assertEqual(selection.load().poems[0].text, b"new")


class BadInputTests(FolderCase):
    """
    Tests for files that are not poems: each is refused at once, in one line with path and cause.
    """

    def assertRefused(self, path: str, cause: str) -> None:
        """Assert that the poem of that path is refused for that cause."""
        self.assertEqual(self.refusal(PoemAt(path)), f"{path}: {cause}")

    def test_missing(self) -> None:
        """A missing file is refused."""
        self.assertRefused(f"{self.folder}/x.txt", "No such file or directory")

    def test_missingFolder(self) -> None:
        """A path with a file in place of a folder is refused."""
        self.assertRefused(self.write("x.txt") + "/x.txt", "Not a directory")

    def test_unreadable(self) -> None:
        """An unreadable file is refused, and the refusal says how to fix it."""
        path = self.write("x.txt")
        os.chmod(path, 0)
        with asNobody():
            self.assertRefused(
                path,
                f"Permission denied (uid {os.geteuid()}); "
                f"mend it with: chmod a+r {path}, and a+x for its folders",
            )

    def test_hidden(self) -> None:
        """If a path is one that the units hide, the refusal says so."""
        barred = OSError(errno.EACCES, "Permission denied")
        with mock.patch("os.open", side_effect=barred):
            why = self.refusal(PoemAt("/home/ada/poem.txt"))
        self.assertTrue(why.endswith("; the units see no files there (ProtectHome=yes)"), why)

    def test_empty(self) -> None:
        """An empty file is refused."""
        self.assertRefused(self.write("x.txt", b""), "is empty; a poem has at least one byte")

    def test_folder(self) -> None:
        """A folder is refused."""
        self.assertRefused(self.folder, "is a folder; a poem is a regular file")

    def test_FIFO(self) -> None:
        """A FIFO is refused, with a writer or without."""
        path = f"{self.folder}/x.txt"
        os.mkfifo(path)
        self.assertRefused(path, "is a FIFO; a poem is a regular file")

    def test_device(self) -> None:
        """A device is refused without reading from it."""
        self.assertRefused("/dev/zero", "is a device; a poem is a regular file")

    def test_socket(self) -> None:
        """A socket is refused."""
        path = f"{self.folder}/x.txt"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            self.assertTrue(self.refusal(PoemAt(path)).startswith(f"{path}: "))

    def test_huge(self) -> None:
        """A file larger than 64 MiB is refused before it is read."""
        path = self.write("x.txt")
        os.truncate(path, 64 * 1024 * 1024 + 1)
        self.assertRefused(path, "has 67108865 bytes; a poem has 67108864 (64 MiB) at most")

    def test_asLargeAsMayBe(self) -> None:
        """A file of exactly the maximum size is served."""
        self.patch(poems, "MAX_POEM_BYTES", 5)
        self.assertEqual(PoemAt(self.write("x", b"12345")).load().poems[0].text, b"12345")
        self.assertIn("has 6 bytes", self.refusal(PoemAt(self.write("x", b"123456"))))

    def test_NUL(self) -> None:
        """A path with a NUL, which no file can have, is refused in one line, too."""
        self.refusal(PoemAt(f"{self.folder}/\0.txt"))

    def test_noDescriptorLeaks(self) -> None:
        """Every refusal closes its descriptor: a broken poem is opened again at each reload."""
        os.mkfifo(f"{self.folder}/fifo")
        before = countDescriptors()
        for path in (self.folder, f"{self.folder}/fifo", "/dev/null", self.write("x", b"")):
            self.refusal(PoemAt(path))
        self.assertEqual(countDescriptors(), before)


class TornTests(FolderCase):
    """Tests for a file that changes while it is read: half a poem is never served."""

    def refusalAfter(self, path: str, text: bytes, **times: Any) -> str:
        """
        @return: the refusal of a poem that is overwritten after its reading began.

        @param times: the file's new times, as C{os.utime} takes them.
        """
        waitForTick = poems._waitForTick

        def waitAndWrite(descriptor: int) -> os.stat_result:
            status = waitForTick(descriptor)
            with open(path, "wb") as file:
                file.write(text)
            if times:
                os.utime(path, **times)
            return status

        self.patch(poems, "_waitForTick", waitAndWrite)
        return self.refusal(PoemAt(path))

    def test_grows(self) -> None:
        """A file that grew is refused, and the refusal says how to replace a file safely."""
        path = self.write("x", b"short")
        refusal = self.refusalAfter(path, b"no more")
        self.assertTrue(refusal.startswith(f"{path}: was written to while it was read; "), refusal)
        self.assertIn("(mv)", refusal)

    def test_shrinks(self) -> None:
        """A file that shrank is refused."""
        refusal = self.refusalAfter(self.write("x", b"long"), b"sh")
        self.assertIn("was written to while it was read", refusal)

    def test_sameSize(self) -> None:
        """A file that changed and kept its size is refused."""
        refusal = self.refusalAfter(self.write("x", b"one"), b"two")
        self.assertIn("was written to while it was read", refusal)

    def test_sameTime(self) -> None:
        """
        A file that changed and kept its size and modification time, as rsync(1) makes it, is
        refused: its change time differs.
        """
        path = self.write("x", b"one")
        os.utime(path, ns=(0, 10**18))
        refusal = self.refusalAfter(path, b"two", ns=(0, 10**18))
        self.assertIn("was written to while it was read", refusal)

    def test_mode(self) -> None:
        """A file whose mode changed during the reading is read: its content is unchanged."""
        path, waitForTick = self.write("x"), poems._waitForTick

        def waitAndChange(descriptor: int) -> os.stat_result:
            status = waitForTick(descriptor)
            self.patch(poems, "_waitForTick", waitForTick)
            os.chmod(path, 0o600)
            return status

        self.patch(poems, "_waitForTick", waitAndChange)
        self.assertEqual(PoemAt(path).load().poems[0].text, POEM.text)

    def clock(self, *sleeps: Callable[[], object]) -> None:
        """
        Make the file as new as possible until some sleeps are over.

        @param sleeps: what happens during each.
        """
        left, path = list(sleeps), f"{self.folder}/x"

        def now() -> int:
            return os.stat(path).st_ctime_ns if left else time.time_ns() + 10**9

        self.patch(poems, "time", Mock(time_ns=now, sleep=lambda _: left.pop(0)()))

    def test_justWritten(self) -> None:
        """
        A file written a moment ago is read a moment later: another change right after the first
        would leave its times the same.
        """
        path = self.write("x", b"half a p")
        self.clock(lambda: self.write("x", b"half a poem is none"))
        self.assertEqual(PoemAt(path).load().poems[0].text, b"half a poem is none")

    def test_writtenOnAndOn(self) -> None:
        """The wait for a file that is written again and again is limited."""
        path = self.write("x", b"0")
        self.clock(*(partial(self.write, "x", b"%d" % number) for number in range(100)))
        self.assertIn("was written to while it was read", self.refusal(PoemAt(path)))

    def test_fromTheFuture(self) -> None:
        """
        A file whose time lies in the future, because the clock was set back, is read without a
        wait.
        """
        path = self.write("x")
        self.patch(poems, "time", Mock(time_ns=lambda: 0, sleep=self.fail))
        self.assertEqual(PoemAt(path).load().poems[0].text, POEM.text)

    def test_replaced(self) -> None:
        """A poem moved to the place of one that is being read does not affect the reading."""
        path, waitForTick = self.write("x", b"old"), poems._waitForTick

        def waitAndMove(descriptor: int) -> os.stat_result:
            status = waitForTick(descriptor)
            self.patch(poems, "_waitForTick", waitForTick)
            os.replace(self.write("y", b"a new one"), path)
            return status

        self.patch(poems, "_waitForTick", waitAndMove)
        self.assertEqual(PoemAt(path).load().poems[0].text, b"old")


class PoemNamedTests(FolderCase):
    """Tests for L{PoemNamed}."""

    def setUp(self) -> None:
        super().setUp()
        self.later = os.path.join(self.outside, "later")
        os.mkdir(self.later)
        self.folders = [self.folder, self.later]

    def test_found(self) -> None:
        """A name means the file of that name with the suffix C{.txt}."""
        path = self.write("ecstasy.txt")
        loaded = PoemNamed("ecstasy", self.folders).load()
        self.assertEqual(loaded, Loaded([Poem("ecstasy", POEM.text, path)], [], []))

    def test_foundLater(self) -> None:
        """Folders without the poem, and missing folders, are passed over."""
        path = write(self.later, "x.txt")
        folders = [f"{self.outside}/none", path, *self.folders]
        self.assertEqual(PoemNamed("x", folders).load().poems, [Poem("x", POEM.text, path)])

    def test_shadows(self) -> None:
        """An earlier folder's poem takes precedence over a later one's."""
        write(self.later, "x.txt", b"theirs")
        self.write("x.txt", b"ours")
        self.assertEqual(PoemNamed("x", self.folders).load().poems[0].text, b"ours")

    def test_brokenShadows(self) -> None:
        """
        An unusable poem in an earlier folder is refused; a later one's is not served in its place.
        """
        write(self.later, "x.txt")
        path = self.write("x.txt", b"")
        self.assertIn(f"{path}: is empty", self.refusal(PoemNamed("x", self.folders)))

    def test_closedFolder(self) -> None:
        """A folder without search permission is not passed over."""
        self.write("x.txt")
        write(self.later, "x.txt")
        with asNobody(self.folder):
            refusal = self.refusal(PoemNamed("x", self.folders))
        self.assertIn(f"{self.folder}/x.txt: Permission denied", refusal)

    def test_takesOver(self) -> None:
        """A poem put into an earlier folder is found at the next load."""
        write(self.later, "x.txt", b"theirs")
        selection = PoemNamed("x", self.folders)
        selection.load()
        self.write("x.txt", b"ours")
        self.assertEqual(selection.load().poems[0].text, b"ours")

    def test_unknown(self) -> None:
        """
        An unknown name is refused in one line with the folders, the poems there, and the nearest
        name.
        """
        self.write("ecstasy.txt")
        self.write("notes.md")
        write(self.later, "science.txt")
        self.assertEqual(
            self.refusal(PoemNamed("extasy", self.folders)),
            f"no poem extasy in {self.folder}:{self.later}; "
            "available: ecstasy, science; did you mean ecstasy?",
        )

    def test_many(self) -> None:
        """
        If there are very many poems, the refusal lists some, counts the others, and still has the
        nearest name.
        """
        for number in range(1, 1001):
            self.write(f"{number:04}-ode.txt")
        refusal = self.refusal(PoemNamed("0512-od", [self.folder]))
        self.assertTrue(
            refusal.endswith(", 0020-ode and 980 more; did you mean 0512-ode?"), refusal
        )

    def test_nothingNear(self) -> None:
        """Without a similar name the refusal suggests none."""
        self.write("ecstasy.txt")
        refusal = self.refusal(PoemNamed("qqq", [self.folder]))
        self.assertEqual(refusal, f"no poem qqq in {self.folder}; available: ecstasy")

    def test_nothingAtAll(self) -> None:
        """The refusal says if the folders have no poem."""
        refusal = self.refusal(PoemNamed("x", [self.folder]))
        self.assertEqual(refusal, f"no poem x in {self.folder}; available: none")

    def test_fileTakenForAName(self) -> None:
        """
        A file's name is not a poem's; the refusal says how to give a path, and lists the poems.
        """
        self.assertEqual(
            self.refusal(PoemNamed("ecstasy.txt", [self.folder])),
            "'ecstasy.txt' is no name of a poem (letters, digits, _ and -); "
            "a path has a slash in it, as in ./ecstasy.txt; available: none",
        )


class LinkTests(FolderCase):
    """Tests for links in a poetry folder."""

    def load(self, name: str = "x") -> Poem:
        """@return: the poem of that name."""
        return PoemNamed(name, [self.folder]).load().poems[0]

    def assertLeadsOut(self, target: str) -> None:
        """Assert that a link to that target is refused without reading it."""
        path = f"{self.folder}/x.txt"
        os.symlink(target, path)
        self.assertEqual(
            self.refusal(PoemNamed("x", [self.folder])),
            f"{path}: leads out of its folder, to {os.path.realpath(path)!a}; "
            "copy the poem instead",
        )

    def test_secondName(self) -> None:
        """A link to another file in the folder is a second name, and the poem has that name."""
        self.write("ecstasy.txt")
        os.symlink("ecstasy.txt", f"{self.folder}/x.txt")
        self.assertEqual(self.load(), Poem("x", POEM.text, f"{self.folder}/x.txt"))

    def test_absolute(self) -> None:
        """The target of such a link may be written in any way."""
        os.symlink(self.write("ecstasy.txt"), f"{self.folder}/x.txt")
        self.assertEqual(self.load().text, POEM.text)

    def test_folderIsALink(self) -> None:
        """The folder itself may be a link."""
        self.write("x.txt")
        os.symlink(self.folder, f"{self.outside}/link")
        found = PoemNamed("x", [f"{self.outside}/link"]).load().poems[0]
        self.assertEqual(found, Poem("x", POEM.text, f"{self.outside}/link/x.txt"))

    def test_outside(self) -> None:
        """A link out of the folder is refused, even if the file is readable."""
        write(self.outside, "secret")
        self.assertLeadsOut("../secret")

    def test_absoluteOutside(self) -> None:
        """A link to an unrelated place is refused."""
        self.assertLeadsOut("/etc/passwd")

    def test_subfolder(self) -> None:
        """A link to a file in a subfolder is allowed."""
        os.mkdir(f"{self.folder}/sub")
        write(f"{self.folder}/sub", "x.txt")
        os.symlink("sub/x.txt", f"{self.folder}/x.txt")
        self.assertEqual(self.load(), Poem("x", POEM.text, f"{self.folder}/x.txt"))

    def configMap(self, version: str, text: bytes) -> None:
        """
        Lay the folder out as Kubernetes does: a link to a link to one folder for each version.
        """
        os.mkdir(f"{self.folder}/..{version}")
        write(f"{self.folder}/..{version}", "x.txt", text)
        os.symlink(f"..{version}", f"{self.folder}/..data_tmp")
        os.replace(f"{self.folder}/..data_tmp", f"{self.folder}/..data")

    def test_configMap(self) -> None:
        """A folder that Kubernetes fills is read, and read again after an update."""
        os.symlink("..data/x.txt", f"{self.folder}/x.txt")
        for version in ("2026_11_27", "2026_11_28"):
            self.configMap(version, version.encode())
            self.assertEqual(self.load().text, version.encode())
        self.assertEqual([each.name for each in Anthology([self.folder]).load().poems], ["x"])

    def test_configMapMeanwhile(self) -> None:
        """A version that disappears before it is opened is not an error: there is a new one."""
        os.symlink("..data/x.txt", f"{self.folder}/x.txt")
        self.configMap("old", b"old")
        openBeneath = poems._openBeneath

        def replaceAndOpen(path: str, inner: str) -> int:
            self.patch(poems, "_openBeneath", openBeneath)
            self.configMap("new", b"new")
            rmtree(f"{self.folder}/..old")
            return openBeneath(path, inner)

        self.patch(poems, "_openBeneath", replaceAndOpen)
        self.assertEqual(self.load().text, b"new")

    def test_twice(self) -> None:
        """A link to a link that leads out is refused."""
        write(self.outside, "secret")
        os.symlink("../secret", f"{self.folder}/y.txt")
        self.assertLeadsOut("y.txt")

    def test_dangling(self) -> None:
        """A dangling link is refused under its own name."""
        os.symlink("y.txt", f"{self.folder}/x.txt")
        refusal = self.refusal(PoemNamed("x", [self.folder]))
        self.assertEqual(refusal, f"{self.folder}/x.txt: No such file or directory")

    def test_loop(self) -> None:
        """A link to itself is refused."""
        os.symlink("x.txt", f"{self.folder}/x.txt")
        self.assertIn(f"{self.folder}/x.txt: Too many", self.refusal(PoemNamed("x", [self.folder])))

    def test_putThereMeanwhile(self) -> None:
        """A link that replaces the file after it was checked is not followed."""
        path, realpath = self.write("x.txt"), os.path.realpath
        secret = write(self.outside, "secret", b"secret")

        def realpathAndLink(asked: str) -> str:
            found = realpath(asked)
            if asked == path:
                os.remove(path)
                os.symlink(secret, path)
            return found

        self.patch(os.path, "realpath", realpathAndLink)
        refusal = self.refusal(PoemNamed("x", [self.folder]))
        self.assertIn(f"{path}: leads out of its folder", refusal)

    def test_folderPutThereMeanwhile(self) -> None:
        """A link that replaces a folder of the path after the check is not followed."""
        os.mkdir(f"{self.folder}/sub")
        write(f"{self.folder}/sub", "x.txt")
        os.symlink("sub/x.txt", f"{self.folder}/x.txt")
        write(self.outside, "x.txt", b"secret")
        openBeneath = poems._openBeneath

        def replaceAndOpen(path: str, inner: str) -> int:
            self.patch(poems, "_openBeneath", openBeneath)
            rmtree(f"{self.folder}/sub")
            os.symlink(self.outside, f"{self.folder}/sub")
            return openBeneath(path, inner)

        self.patch(poems, "_openBeneath", replaceAndOpen)
        self.assertIn("leads out of its folder", self.refusal(PoemNamed("x", [self.folder])))


class AnthologyTests(FolderCase):
    """Tests for L{Anthology}."""

    def test_all(self) -> None:
        """An anthology contains every poem in the folders, by name."""
        other = makeFolder(self)
        paths = [write(other, "a.txt"), self.write("b.txt"), write(other, "c.txt")]
        poems = [Poem(name, POEM.text, path) for name, path in zip("abc", paths, strict=True)]
        loaded = Anthology([self.folder, other]).load()
        self.assertEqual((loaded.poems, list(loaded.unreadable)), (poems, []))

    def test_onlyPoems(self) -> None:
        """
        Only files of poems are part of an anthology. A file with the suffix of poems but an
        invalid name is reported.
        """
        self.write("x.txt")
        for entry in ("x", "x.txt~", ".x.txt", "x.y.txt", "x.TXT", "é.txt", "-.txt", ".txt", "\n"):
            self.write(entry)
        loaded = Anthology([self.folder]).load()
        self.assertEqual([each.name for each in loaded.poems], ["x"])
        misnamed = [f"{self.folder}/{entry}" for entry in ("-.txt", "x.y.txt", "é.txt")]
        self.assertEqual(loaded.misnamed, misnamed)

    def test_shadows(self) -> None:
        """An earlier folder's poem takes precedence over a later one's of the same name."""
        other = makeFolder(self)
        self.write("x.txt", b"ours")
        write(other, "x.txt", b"theirs")
        loaded = Anthology([self.folder, other]).load()
        self.assertEqual([each.text for each in loaded.poems], [b"ours"])

    def test_leftOut(self) -> None:
        """
        An unreadable poem is left out, with the cause; a later folder's poem does not replace it.
        """
        other = makeFolder(self)
        self.write("x.txt")
        path = self.write("y.txt", b"")
        write(other, "y.txt")
        loaded = Anthology([self.folder, other]).load()
        self.assertEqual([each.name for each in loaded.poems], ["x"])
        self.assertEqual(
            [str(each) for each in loaded.unreadable],
            [f"{path}: is empty; a poem has at least one byte"],
        )

    def test_linkOutside(self) -> None:
        """A link out of its folder is not part of an anthology."""
        self.write("x.txt")
        os.symlink("/etc/passwd", f"{self.folder}/y.txt")
        (why,) = Anthology([self.folder]).load().unreadable
        self.assertIn("leads out of its folder", str(why))

    def test_none(self) -> None:
        """Folders without a poem are refused."""
        folders = [self.folder, "/nowhere"]
        self.assertEqual(
            self.refusal(Anthology(folders)), f"no poem to read in {self.folder}:/nowhere"
        )

    def test_noneThatCanBeRead(self) -> None:
        """If no poem is readable, all are refused, each with its cause."""
        self.write("x.txt", b"")
        os.mkdir(f"{self.folder}/y.txt")
        refusal = self.refusal(Anthology([self.folder]))
        self.assertTrue(refusal.startswith(f"no poem to read in {self.folder}: "), refusal)
        self.assertIn(f"{self.folder}/x.txt: is empty", refusal)
        self.assertIn(f"; {self.folder}/y.txt: ", refusal)

    def test_closedFolder(self) -> None:
        """
        An existing folder that cannot be listed is refused: the other folders' poems are not served
        alone.
        """
        other = makeFolder(self)
        write(other, "x.txt")
        with asNobody(self.folder):
            refusal = self.refusal(Anthology([self.folder, other]))
        self.assertIn(f"{self.folder}: Permission denied", refusal)

    def test_again(self) -> None:
        """Each load lists the folders anew."""
        anthology = Anthology([self.folder])
        path = self.write("x.txt")
        anthology.load()
        os.remove(path)
        self.write("y.txt")
        self.assertEqual([each.name for each in anthology.load().poems], ["y"])


letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
names = st.builds(
    str.__add__, st.sampled_from(letters), st.text(st.sampled_from(letters + "-"), max_size=99)
)
hostile = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["..", "/", ".", "secret", "poetry", "\0", "\n", "%s", "{}", "\x1b", "é"])
    ).map("".join),
    st.builds("{}{}".format, names, st.sampled_from(["\n", "\0", " ", "/", ".", ".txt", "\u0661"])),
    st.text(st.sampled_from(letters), min_size=101),
    names.map("-".__add__),
)


class NameTests(FolderCase):
    """Tests for arbitrary names."""

    def setUp(self) -> None:
        super().setUp()
        write(self.outside, "secret.txt")
        write(self.folder, ".txt")
        write(self.folder, "-.txt")

    @given(name=hostile)
    def test_hostile(self, name: str) -> None:
        """A text that is not a name finds no poem, and its refusal is one line of plain text."""
        if set(name) <= set(letters + "-") and 0 < len(name) <= 100 and name[0] != "-":
            return
        refusal = self.refusal(PoemNamed(name, [self.folder]))
        self.assertIn("is no name of a poem", refusal)
        self.assertTrue(refusal.isascii() and refusal.isprintable(), refusal)

    @given(name=names)
    def test_good(self, name: str) -> None:
        """A name finds its own file."""
        path = self.write(f"{name}.txt", name.encode())
        loaded = PoemNamed(name, [self.folder]).load()
        self.assertEqual(loaded.poems, [Poem(name, name.encode(), path)])
