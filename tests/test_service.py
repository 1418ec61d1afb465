"""Tests for L{fastpoetry.service}."""

from __future__ import annotations

import os
from pathlib import Path

from fakes import POEM, FakeSelection, Reactor, Threads, awaited, makeFolder, records, said, write
from messages import KEPT, LOADED, LOADED_ALL, NOT_ALL_UTF8, NOT_UTF8, PASSED_OVER
from twisted.application.service import IService
from twisted.internet.interfaces import IReactorFDSet, IReactorTime
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from fastpoetry import service as serviceModule
from fastpoetry.apart.process import NoProcessError
from fastpoetry.apart.worker import WorkError
from fastpoetry.poem import Poem, PoemAt, PoemError, Selection
from fastpoetry.service import PoetryService

OLD = Poem("x", b"old", "/poetry/x.txt")
NEW = Poem("x", b"new", "/etc/poetry/x.txt")


class ServiceCase(SynchronousTestCase):
    """A test case with a service that has not started."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = Threads(self, self.reactor)
        self.selection = FakeSelection(OLD)
        self.service = self.make(self.selection)

    def make(self, selection: Selection) -> PoetryService:
        """@return: a service that has not started, with the test's threads and clock."""
        return PoetryService(
            selection,
            self.reactor,
            seconds=self.reactor.seconds,
        )


class StartTests(ServiceCase):
    """Tests for the start."""

    def test_interfaces(self) -> None:
        """
        The poetry service is a service, and the reactor of these tests provides its interfaces.
        """
        verifyObject(IService, self.service)
        for interface in (IReactorFDSet, IReactorTime):
            verifyObject(interface, self.reactor)

    def test_loads(self) -> None:
        """The service has its poem as soon as it has started."""
        self.service.startService()
        self.assertEqual(self.service.poem, OLD)
        self.assertIs(self.successResultOf(self.service.whenPoem()), self.service.poem)
        self.assertTrue(self.service.running)

    def test_fails(self) -> None:
        """Without a poem the service does not start."""
        self.selection.found = PoemError("x: is gone")
        self.assertRaises(PoemError, self.service.startService)
        self.assertFalse(self.service.running)

    def test_record(self) -> None:
        """One record has the poem's path, like the record of the tutorial's server."""
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(
            records(events),
            [
                {
                    "text": "loaded a poem from: /poetry/x.txt",
                    "level": "info",
                    "origin": "/poetry/x.txt",
                    "poem": "x",
                    "bytes": 3,
                    "digest": OLD.digest,
                    "message_id": LOADED,
                }
            ],
        )

    def test_notUTF8(self) -> None:
        """A poem that is not UTF-8 is served unchanged, with one warning that has the position."""
        poem = Poem("x", b"perch\xe9", "/x.txt")
        self.selection.find(poem)
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(self.service.poem, poem)
        self.assertEqual(
            records(events)[1:],
            [
                {
                    "text": "/x.txt is not UTF-8 (byte 5); it is served as it is",
                    "level": "warn",
                    "origin": "/x.txt",
                    "poem": "x",
                    "offset": 5,
                    "message_id": NOT_UTF8,
                }
            ],
        )

    def test_notUTF8FromTheStart(self) -> None:
        """The first invalid byte may be the first of the poem."""
        self.selection.find(Poem("x", b"\xe9", "/x.txt"))
        with capturedLogs() as events:
            self.service.startService()
        self.assertIn("(byte 0)", said(events)[-1])

    def test_UTF8(self) -> None:
        """A poem that is UTF-8 has no warning."""
        self.selection.find(Poem("x", "perché".encode(), "/x.txt"))
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(said(events), ["loaded a poem from: /x.txt"])

    def test_description(self) -> None:
        """The description says in plain words what is served."""
        self.selection.find(POEM)
        self.service.startService()
        self.assertEqual(self.service.description, "ecstasy (310 bytes)")

    def test_odd(self) -> None:
        """A path that is not UTF-8 makes records that every log can encode."""
        odd = "/po\udce9sie/x.txt"
        self.selection.find(Poem("x", b"\xe9", odd, invalidAt=0), Poem("y", b"y", odd))
        for _ in range(2):
            with capturedLogs() as events:
                self.make(self.selection).startService()
            for line in said(events):
                self.assertEqual(line.encode(), line.encode("utf-8", "backslashreplace"))
            self.selection.find(Poem("x", b"\xe9", odd))


class TutorialTests(TestCase):
    """Tests for a service made like the tutorial's, from a path only."""

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        write(self.folder, "x.txt", b"Where, like a pillow on a bed\n")

    def test_path(self) -> None:
        """
        A service made of a path serves that file, even after the program has changed its folder.
        """
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        service = PoetryService("x.txt")
        os.chdir("/")
        service.startService()
        self.assertEqual(service.poem.text, b"Where, like a pillow on a bed\n")
        self.assertEqual(service.poem.origin, f"{self.folder}/x.txt")

    def test_pathObject(self) -> None:
        """A path may be a path object."""
        service = PoetryService(Path(self.folder, "x.txt"))
        service.startService()
        self.assertEqual(service.description, "x (30 bytes)")

    @awaited
    async def test_reload(self) -> None:
        """A reload in a running reactor waits for another process to read the poem."""
        service = PoetryService(f"{self.folder}/x.txt")
        service.startService()
        write(self.folder, "x.txt", b"new\n")
        reloaded = service.reload()
        self.assertNoResult(reloaded)
        await reloaded
        self.assertEqual(service.poem.text, b"new\n")

    def test_notStarted(self) -> None:
        """Before the start, asking for the poem raises an error that says so."""
        service = PoetryService(f"{self.folder}/x.txt")
        with self.assertRaises(RuntimeError) as caught:
            service.poem  # noqa: B018
        self.assertIn("has not started", str(caught.exception))
        self.failureResultOf(service.whenPoem(), RuntimeError)


class AnthologyTests(ServiceCase):
    """Tests for a service with several poems."""

    def setUp(self) -> None:
        super().setUp()
        self.poems = [Poem(name, name.encode(), f"/{name}.txt") for name in "abc"]

    def test_random(self) -> None:
        """Each reader gets a poem at random."""
        self.selection.find(*self.poems)
        self.service.startService()
        self.patch(serviceModule, "choice", lambda poems: poems[2])
        self.assertEqual(self.service.poem, self.poems[2])
        self.patch(serviceModule, "choice", lambda poems: poems[0])
        self.assertEqual(self.service.poem, self.poems[0])

    def test_all(self) -> None:
        """Each poem gets its turn."""
        self.selection.find(*self.poems)
        self.service.startService()
        self.assertEqual({self.service.poem.name for _ in range(1000)}, set("abc"))

    def test_description(self) -> None:
        """The description has the number of poems."""
        self.selection.find(*self.poems)
        self.service.startService()
        self.assertEqual(self.service.description, "an anthology of 3 poems")

    def test_leftOut(self) -> None:
        """Each poem left out has one warning; the others together have one record."""
        self.selection.find(*self.poems[:2], unreadable=["/c.txt: is empty"])
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(
            said(events),
            [
                "left a poem out: /c.txt: is empty",
                "loaded 2 poems from: /",
            ],
        )
        warning, loaded = records(events)
        self.assertEqual((warning["level"], warning["cause"]), ("warn", "/c.txt: is empty"))
        self.assertEqual(
            loaded,
            {
                "text": "loaded 2 poems from: /",
                "level": "info",
                "count": 2,
                "folders": "/",
                "bytes": 2,
                "message_id": LOADED_ALL,
            },
        )

    def test_folders(self) -> None:
        """The record has each folder of a poem once."""
        self.selection.find(Poem("a", b"a", "/b/a.txt"), Poem("b", b"b", "/a/b.txt"), *self.poems)
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(said(events), ["loaded 5 poems from: /:/a:/b"])

    def test_notUTF8(self) -> None:
        """Poems that are not UTF-8 have one warning, which names the first ten."""
        self.selection.find(*(Poem("x", b"\xe9", f"/{number}") for number in range(12)))
        with capturedLogs() as events:
            self.service.startService()
        (_, warning) = records(events)
        files = ", ".join(f"'/{number}'" for number in range(10)) + " and 2 more"
        self.assertEqual(warning["text"], f"not UTF-8, and served as they are: {files}")
        self.assertEqual((warning["files"], warning["message_id"]), (files, NOT_ALL_UTF8))

    def passOver(self, *files: str) -> list[str]:
        """@return: the records of a reload that finds files with invalid names."""
        self.selection.find(*self.poems, misnamed=list(files))
        with capturedLogs() as events:
            reloaded = self.service.reload()
            self.threads.work()
        self.successResultOf(reloaded)
        return [each["files"] for each in records(events) if each["message_id"] == PASSED_OVER]

    def test_misnamed(self) -> None:
        """
        One warning names the files with invalid names, and repeats only when they change; any name
        is shown as plain text.
        """
        self.selection.find(*self.poems, misnamed=["/my poem.txt", "/\n.txt"])
        with capturedLogs() as events:
            self.service.startService()
        self.assertEqual(
            records(events)[0],
            {
                "text": "passed over '/my poem.txt', '/\\n.txt': "
                "a poem's name has letters, digits, _ and - only",
                "level": "warn",
                "files": "'/my poem.txt', '/\\n.txt'",
                "message_id": PASSED_OVER,
            },
        )
        self.assertEqual(self.passOver("/my poem.txt", "/\n.txt"), [])
        self.assertEqual(self.passOver("/my poem.txt"), ["'/my poem.txt'"])
        self.assertEqual(self.passOver(), [])
        self.assertEqual(self.passOver("/my poem.txt"), ["'/my poem.txt'"])


class ReloadTests(ServiceCase):
    """Tests for the reload."""

    def setUp(self) -> None:
        super().setUp()
        self.service.startService()

    def test_replaces(self) -> None:
        """When the new poem has been read it replaces the old one, with a record."""
        self.selection.find(NEW)
        reloaded = self.service.reload()
        with capturedLogs() as events:
            self.threads.work()
        self.successResultOf(reloaded)
        self.assertEqual(self.service.poem, NEW)
        self.assertEqual(said(events), ["loaded a poem from: /etc/poetry/x.txt"])

    def test_apart(self) -> None:
        """
        Until another process has read the new poem, the old one is served: a slow disk delays no
        reader.
        """
        self.selection.found = AssertionError("read in this process")
        reloaded = self.service.reload()
        self.selection.find(NEW)
        self.assertNoResult(reloaded)
        self.assertEqual(self.service.poem, OLD)
        self.threads.work()
        self.successResultOf(reloaded)

    def failReload(self, cause: str) -> None:
        """Make a reload fail."""
        self.selection.found = PoemError(cause)
        reloaded = self.service.reload()
        self.threads.work()
        self.failureResultOf(reloaded, PoemError)

    def test_keeps(self) -> None:
        """
        If the new poem cannot be read the old one stays. Exactly one error gives the cause, and the
        caller of the reload gets it.
        """
        self.selection.found = PoemError("/x.txt: is empty")
        reloaded = self.service.reload()
        with capturedLogs() as events:
            self.threads.work()
        why = self.failureResultOf(reloaded, PoemError)
        self.assertEqual(why.getErrorMessage(), "/x.txt: is empty")
        self.assertEqual(self.service.poem, OLD)
        self.assertEqual(
            records(events),
            [
                {
                    "text": "kept the old poem: /x.txt: is empty",
                    "level": "error",
                    "cause": "/x.txt: is empty",
                    "message_id": KEPT,
                }
            ],
        )

    def test_recovers(self) -> None:
        """A later reload finds a poem that an earlier one missed."""
        self.failReload("/x.txt: is empty")
        self.selection.find(NEW)
        reloaded = self.service.reload()
        self.threads.work()
        self.successResultOf(reloaded)
        self.assertEqual(self.service.poem, NEW)

    def test_description(self) -> None:
        """The description says how long ago the first reload failed, and why the last one did."""
        self.failReload("/x.txt: is empty")
        self.reactor.advance(300)
        self.failReload("/x.txt: No such file or directory")
        self.reactor.advance(12)
        self.assertEqual(
            self.service.description,
            "x (3 bytes). Stale for 312 s: /x.txt: No such file or directory",
        )
        self.selection.find(NEW)
        self.service.reload()
        self.threads.work()
        self.assertEqual(self.service.description, "x (3 bytes)")

    def test_noProcess(self) -> None:
        """If no process can start, this process reads the new poem."""
        self.threads.why = NoProcessError("/poetry: no process can be started: none is left")
        self.selection.find(NEW)
        self.successResultOf(self.service.reload())
        self.assertEqual(self.service.poem, NEW)

    def test_unforeseen(self) -> None:
        """Any failure of a reload has one record with its cause."""
        for why, cause in (
            (MemoryError(), "MemoryError()"),
            (WorkError("/poetry: its process was ended by signal 9"),) * 2,
        ):
            self.selection.found = why
            reloaded = self.service.reload()
            with capturedLogs() as events:
                self.threads.work()
            self.assertEqual(said(events), [f"kept the old poem: {cause}"])
            self.assertEqual(self.failureResultOf(reloaded).getErrorMessage(), str(cause))

    def test_still(self) -> None:
        """
        A process that does not end has a record after 10 s. After a minute the reload fails, and
        the next one reads anew.
        """
        with capturedLogs() as events:
            reloaded = self.service.reload()
            self.reactor.advance(10)
        self.assertEqual(said(events), ["/poetry: has not answered for 10 s"])
        self.assertNoResult(reloaded)
        with capturedLogs() as events:
            self.reactor.advance(50)
        self.assertEqual(said(events), ["kept the old poem: /poetry: has not answered for 60 s"])
        self.failureResultOf(reloaded, PoemError)
        stuck = self.reactor.getReaders()
        self.selection.find(NEW)
        reloaded = self.service.reload()
        (job,) = set(self.reactor.getReaders()).difference(stuck)
        job.doRead()
        self.successResultOf(reloaded)
        self.assertEqual(self.service.poem, NEW)
        self.threads.work()
        self.assertEqual(self.reactor.getReaders(), [])

    def test_oneAtATime(self) -> None:
        """A reload during another one reads after it, since the first may read an older file."""
        self.selection.find(NEW)
        first, second = self.service.reload(), self.service.reload()
        self.threads.work()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.selection.find(OLD)
        self.threads.work()
        self.successResultOf(second)
        self.assertEqual(self.service.poem, OLD)

    def test_unchanged(self) -> None:
        """An unchanged poem stays the same object, without a second copy in memory."""
        held = self.service.poem
        self.selection.find(Poem(OLD.name, bytes(bytearray(OLD.text)), OLD.origin))
        reloaded = self.service.reload()
        with capturedLogs() as events:
            self.threads.work()
        self.successResultOf(reloaded)
        self.assertIs(self.service.poem, held)
        self.assertEqual(said(events), ["loaded a poem from: /poetry/x.txt"])

    def test_wholePoems(self) -> None:
        """A reader that was given the old poem gets all of it."""
        folder = makeFolder(self)
        path = write(folder, "x", b"the old one")
        service = self.make(PoemAt(path))
        service.startService()
        old = service.poem
        write(folder, "x", b"another")
        service.reload()
        self.threads.work()
        self.assertEqual((old.text, service.poem.text), (b"the old one", b"another"))
