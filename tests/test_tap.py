"""
Tests for L{fastpoetry.tap}: what a command line becomes, up to the ports in a reactor in memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from fakes import (
    POEM,
    FakeReader,
    Reactor,
    Receipt,
    asNobody,
    countDescriptors,
    makeFolder,
    said,
    write,
)
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.command import assembly
from fastpoetry.delivery.policy import Limits
from fastpoetry.poem import Anthology, PoemAt, PoemNamed
from fastpoetry.service import PoetryService
from fastpoetry.tap import Options, makeService


class FakeNotify(Service):
    """
    The service that tells systemd, which here is asked by the test.
    """

    def __init__(
        self, reactor: Any, *, status: Callable[[], str], reload: Callable[[], Deferred[Any]]
    ) -> None:
        self.status = status
        self.reload = reload


class FakePreflight:
    """
    A check that every endpoint passes: a test does not take ports for which others may wait.
    """

    def __enter__(self) -> FakePreflight:
        return self

    def __exit__(self, *why: object) -> None:
        """
        Be over.
        """

    def check(self, endpoint: IStreamServerEndpoint) -> None:
        """
        Let it pass, if it is one.
        """
        verifyObject(IStreamServerEndpoint, endpoint)


def parse(*line: str) -> Options:
    """
    @return: the options of a command line.
    """
    options = Options()
    options.parseOptions(list(line))
    return options


def tree(service: Any) -> Any:
    """
    @return: what a service consists of: a list for each C{MultiService}.
    """
    if isinstance(service, MultiService):
        return [tree(each) for each in service]
    return type(service).__name__


class TapCase(SynchronousTestCase):
    """
    A folder of poems, and a reactor.
    """

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.ecstasy = write(self.folder, "ecstasy.txt")
        self.science = write(self.folder, "science.txt", b"Science!\n")
        self.reactor = Reactor()
        self.patch(assembly, "NotifyService", FakeNotify)

    def make(self, *line: str) -> Any:
        """
        @return: the service of a command line.
        """
        return makeService(parse("--poetry-path", self.folder, *line), self.reactor)

    def start(self, *line: str) -> Any:
        """
        @return: the service of a command line, started as twistd does.
        """
        service = self.make(*line)
        service.privilegedStartService()
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def factories(self) -> list[Any]:
        """
        @return: what each port connects its clients to.
        """
        return [factory for _, factory, _, _ in self.reactor.tcpServers]

    def refusal(self, *line: str) -> str:
        """
        @return: why no service is made, which is one line on stderr and exit status 1.
        """
        before = countDescriptors()
        why = self.assertRaises(SystemExit, self.make, *line).code
        self.assertIsInstance(why, str)
        self.assertTrue(why.startswith("fastpoetry: ") and why.isprintable(), why)
        self.assertEqual(countDescriptors(), before)
        return str(why.removeprefix("fastpoetry: "))


class OptionsTests(TapCase):
    """
    Tests for L{Options}.
    """

    def test_name(self) -> None:
        """
        A poem without a slash is a name, looked up where a distribution and its administrator
        put poems.
        """
        (block,) = parse("--poem", "ecstasy").blocks
        self.assertEqual(
            block.what,
            PoemNamed("ecstasy", ["/etc/fastpoetry/poetry", "/usr/share/fastpoetry/poetry"]),
        )

    def test_poetryPath(self) -> None:
        """
        It is looked up along the folders that were said, wherever that was.
        """
        expected = PoemNamed("x", ["/a", os.path.abspath("b"), "/c"])
        for line in (
            ("--poetry-path=/a:b::/c/:", "--poem=x"),
            ("--poem=x", "--poetry-path=/a:b:/c"),
        ):
            self.assertEqual(parse(*line).blocks[0].what, expected)

    def test_path(self) -> None:
        """
        A poem with a slash is a path, and stays the same file when twistd changes its folder.
        """
        for path in ("poetry/ecstasy.txt", "./x", "/x/y.txt"):
            (block,) = parse("--poem", path).blocks
            self.assertEqual(block.what, PoemAt(os.path.abspath(path)))

    def test_anthology(self) -> None:
        """
        An anthology is all there is along the folders.
        """
        (block,) = parse("--anthology", "--poetry-path", "/a:/b").blocks
        self.assertEqual(block.what, Anthology(["/a", "/b"]))

    def test_blocks(self) -> None:
        """
        Each poem and each anthology opens a block.
        """
        blocks = parse("--poem", "x", "-p1", "--anthology", "-p2", "--poem", "y", "-p3").blocks
        self.assertEqual([block.asked for block in blocks], ["--poem x", "--anthology", "--poem y"])
        self.assertEqual([block.port for block in blocks], [1, 2, 3])

    def test_tutorial(self) -> None:
        """
        After the tutorial's line the options have what its own have.
        """
        options = parse("--port", "10001", "--poem", "poetry/ecstasy.txt")
        self.assertEqual(options["poem"], "poetry/ecstasy.txt")
        self.assertEqual((options["port"], options["iface"]), (10001, "localhost"))

    def test_help(self) -> None:
        """
        The help says where poems are looked for.
        """
        text = " ".join(str(Options()).split())
        self.assertIn("/etc/fastpoetry/poetry", text)
        self.assertIn("/usr/share/fastpoetry/poetry", text)
        self.assertIn("--poem", text)


class TreeTests(TapCase):
    """
    Tests for the service that a command line becomes.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def listening(self) -> list[tuple[int, str]]:
        """
        @return: the ports and interfaces that are listened on.
        """
        return [(port, interface) for port, _, _, interface in self.reactor.tcpServers]

    def poems(self) -> list[str]:
        """
        @return: what a client of each port would get.
        """
        return [factory.source.poem.name for factory in self.factories()]

    def test_tutorial(self) -> None:
        """
        The tutorial's line is a poem and a listener in a block, and what tells systemd.
        """
        service = self.start("--port", "10000", "--poem", self.ecstasy)
        verifyObject(IService, service)
        self.assertEqual(tree(service), [["PoetryService", "PoetryListener"], "FakeNotify"])
        self.assertEqual(self.listening(), [(10000, "127.0.0.1")])
        self.assertEqual(self.poems(), ["ecstasy"])

    def test_default(self) -> None:
        """
        Without a port it is port 10000 of localhost, which nobody is asked for.
        """
        self.start("--poem", "ecstasy")
        self.assertEqual(self.listening(), [(10000, "127.0.0.1")])

    def test_anyPort(self) -> None:
        """
        Port 0 is any port, not the default.
        """
        self.start("--poem", "ecstasy", "--port", "0", "--iface", "127.0.0.1")
        self.assertEqual(self.listening(), [(0, "127.0.0.1")])

    def test_backlog(self) -> None:
        """
        Many may wait for us.
        """
        self.start("--poem", "ecstasy")
        ((_, _, backlog, _),) = self.reactor.tcpServers
        self.assertEqual(backlog, 4096)

    def test_IPv6(self) -> None:
        """
        An interface may be an IPv6 address.
        """
        self.start("--poem", "ecstasy", "--iface", "::1")
        self.assertEqual(self.listening(), [(10000, "::1")])

    def test_blocks(self) -> None:
        """
        Each block is a service of its own, with its own poem on its own ports.
        """
        service = self.start(
            *("--poem", "ecstasy", "--port", "1"),
            *("--poem", "science", "--listen", "tcp:2", "--listen", "tcp:3:interface=127.0.0.1"),
        )
        self.assertEqual(
            tree(service),
            [
                ["PoetryService", "PoetryListener"],
                ["PoetryService", "PoetryListener", "PoetryListener"],
                "FakeNotify",
            ],
        )
        self.assertEqual(self.listening(), [(1, "127.0.0.1"), (2, ""), (3, "127.0.0.1")])
        self.assertEqual(self.poems(), ["ecstasy", "science", "science"])

    def test_UNIX(self) -> None:
        """
        An endpoint may be of any kind.
        """
        self.start("--poem", "ecstasy", "--listen", "unix:/run/x.sock")
        self.assertEqual([server[0] for server in self.reactor.unixServers], ["/run/x.sock"])
        self.assertEqual(self.listening(), [])

    def test_onePolicy(self) -> None:
        """
        All blocks are under the same rules, those that were asked for.
        """
        self.start("--poem=ecstasy", "--port=1", "--poem=science", "--port=2", "--max-readers=7")
        first, second = (factory.policy for factory in self.factories())
        self.assertIs(first, second)
        self.assertEqual(first.limits, Limits(maxReaders=7))

    def test_exitIdleTime(self) -> None:
        """
        If it was asked for, the program ends when nobody has been there for so long.
        """
        service = self.start("--poem", "ecstasy", "--exit-idle-time", "7")
        self.assertEqual(
            tree(service), [["PoetryService", "PoetryListener"], "IdleService", "FakeNotify"]
        )
        self.reactor.advance(6.9)
        self.assertFalse(self.reactor.hasStopped)
        self.reactor.advance(0.1)
        self.assertTrue(self.reactor.hasStopped)

    def test_notIdle(self) -> None:
        """
        Somebody who is there counts, whichever block has them.
        """
        self.start("--poem", "ecstasy", "--exit-idle-time", "7")
        policy = self.factories()[0].policy
        self.reactor.advance(6)
        reader = FakeReader(policy)
        policy.begin(reader, 0.0)
        policy.leave(reader)
        self.reactor.advance(6.9)
        self.assertFalse(self.reactor.hasStopped)

    def test_loadsAtStart(self) -> None:
        """
        The poems are loaded, with a record each, when the service starts.
        """
        service = self.make("--poem", "ecstasy", "--port=1", "--poem", "science", "--port=2")
        with capturedLogs() as events:
            service.startService()
        self.addCleanup(service.stopService)
        loaded = [text for text in said(events) if text.startswith("loaded")]
        self.assertEqual(
            loaded, [f"loaded a poem from: {path}" for path in (self.ecstasy, self.science)]
        )

    def test_stop(self) -> None:
        """
        When nobody is there a stop is over at once.
        """
        service = self.start("--poem", "ecstasy", "--port", "1", "--anthology", "--port", "2")
        self.successResultOf(service.stopService())


class StatusTests(TapCase):
    """
    Tests for what systemd is told.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def notify(self, service: Any) -> FakeNotify:
        """
        @return: what tells systemd, which is the last to start.
        """
        notify = list(service)[-1]
        assert isinstance(notify, FakeNotify)
        return notify

    def test_status(self) -> None:
        """
        The status says in a person's words what is served, how much was, and to how many now.
        """
        service = self.start("--poem", "ecstasy", "--journal-budget", "0")
        notify = self.notify(service)
        self.assertEqual(notify.status(), "Serving ecstasy (310 bytes): 0 poems sent, 0 readers")
        policy = self.factories()[0].policy
        for _ in range(1204):
            policy.ledger.sent([Receipt(POEM, None)])
        for _ in range(3):
            policy.begin(FakeReader(policy), 0.0)
        self.assertEqual(
            notify.status(), "Serving ecstasy (310 bytes): 1,204 poems sent, 3 readers"
        )

    def test_one(self) -> None:
        """
        One is no plural.
        """
        service = self.start("--poem", "science")
        policy = self.factories()[0].policy
        policy.ledger.sent([Receipt(POEM, None)])
        policy.begin(FakeReader(policy), 0.0)
        self.assertEqual(
            self.notify(service).status(), "Serving science (9 bytes): 1 poem sent, 1 reader"
        )

    def test_blocks(self) -> None:
        """
        It has every block.
        """
        service = self.start("--poem", "science", "--port", "1", "--anthology", "--port", "2")
        self.assertEqual(
            self.notify(service).status(),
            "Serving science (9 bytes), an anthology of 2 poems: 0 poems sent, 0 readers",
        )

    def test_reload(self) -> None:
        """
        A reload is over when every block has its new poem.
        """
        service = self.start("--poem", "ecstasy", "--port", "1", "--poem", "science", "--port", "2")
        write(self.folder, "ecstasy.txt", b"new ecstasy")
        write(self.folder, "science.txt", b"new science")
        reloaded = self.notify(service).reload()
        self.assertNoResult(reloaded)
        self.reactor.pool.work()
        self.successResultOf(reloaded)
        self.assertEqual(
            [factory.source.poem.text for factory in self.factories()],
            [b"new ecstasy", b"new science"],
        )

    def test_reloadFails(self) -> None:
        """
        A block whose poem is broken keeps the old one, and does not keep the others from theirs.
        """
        service = self.start("--poem", "ecstasy", "--port", "1", "--poem", "science", "--port", "2")
        os.remove(self.ecstasy)
        write(self.folder, "science.txt", b"new science")
        reloaded = self.notify(service).reload()
        with capturedLogs() as events:
            self.reactor.pool.work()
        self.successResultOf(reloaded)
        self.assertEqual(
            [factory.source.poem.text for factory in self.factories()],
            [POEM.text, b"new science"],
        )
        self.assertEqual(
            [text.split(":")[0] for text in said(events)],
            ["kept the old poem", "loaded a poem from"],
        )


class RefusalTests(TapCase):
    """
    Tests for what is refused before twistd becomes a daemon, with the option and its value.
    """

    def taken(self, family: int = socket.AF_INET) -> tuple[socket.socket, int]:
        """
        @return: a socket that listens, and its port.
        """
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server does
        listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()
        return listening, listening.getsockname()[1]

    def test_missingPoem(self) -> None:
        """
        A poem that is not there is refused with its path and the cause.
        """
        self.assertEqual(
            self.refusal("--poem", "/nowhere/x.txt"),
            "--poem /nowhere/x.txt: /nowhere/x.txt: No such file or directory",
        )

    def test_unknownPoem(self) -> None:
        """
        A name that stands for nothing is refused with those that do.
        """
        self.assertEqual(
            self.refusal("--poem", "extasy"),
            f"--poem extasy: no poem extasy in {self.folder}; "
            "there is ecstasy, science; did you mean ecstasy?",
        )

    def test_noName(self) -> None:
        """
        What is no name is refused, with a word on paths.
        """
        for name in ("", "..", "ecstasy.txt", "..-..-etc-shadow", ".", "\n", "{}"):
            refusal = self.refusal(f"--poem={name}", "--port=0")
            self.assertIn("--poem ", refusal)
            self.assertIn("no name of a poem", refusal)

    def test_emptyAnthology(self) -> None:
        """
        An anthology of nothing is refused.
        """
        self.assertIn(
            "--anthology: no poem to read in /nowhere",
            self.refusalOf("--anthology", "--poetry-path", "/nowhere"),
        )

    def refusalOf(self, *line: str) -> str:
        """
        @return: why a command line is refused that has a poetry path of its own.
        """
        return str(self.assertRaises(SystemExit, lambda: makeService(parse(*line), self.reactor)))

    def test_poetryPathOfNothing(self) -> None:
        """
        A poetry path without a folder is refused.
        """
        for path in ("", ":", "::"):
            refusal = self.refusalOf("--poem", "x", "--poetry-path", path)
            self.assertEqual(refusal, f"fastpoetry: --poetry-path {path}: names no folder")

    def test_twoPoetryPaths(self) -> None:
        """
        There is one poetry path.
        """
        refusal = self.refusal("--poem", "x", "--poetry-path", "/b")
        self.assertEqual(refusal, f"--poetry-path /b: given already, as {self.folder}")

    def test_laterPoem(self) -> None:
        """
        Every block is looked at.
        """
        refusal = self.refusal("--poem=ecstasy", "--port=0", "--poem=/nowhere/x", "--port=0")
        self.assertIn("--poem /nowhere/x: ", refusal)

    def test_portTaken(self) -> None:
        """
        A port that is taken is refused.
        """
        _, port = self.taken()
        self.assertEqual(
            self.refusal("--poem", "ecstasy", "--port", str(port), "--iface", "127.0.0.1"),
            f"--port {port} --iface 127.0.0.1: Address already in use",
        )

    def test_portTakenIPv6(self) -> None:
        """
        So is one of IPv6.
        """
        _, port = self.taken(socket.AF_INET6)
        refusal = self.refusal("--poem", "ecstasy", "--port", str(port), "--iface", "::1")
        self.assertEqual(refusal, f"--port {port} --iface ::1: Address already in use")

    def test_endpointTaken(self) -> None:
        """
        So is one of an endpoint, be it wrapped in another.
        """
        _, port = self.taken()
        for description in (
            f"tcp:{port}:interface=127.0.0.1",
            f"haproxy:tcp:{port}:interface=127.0.0.1",
        ):
            self.assertEqual(
                self.refusal("--poem", "ecstasy", "--listen", description),
                f"--listen {description}: Address already in use",
            )

    def test_onePortForTwoBlocks(self) -> None:
        """
        A port can be had once, not for two blocks or endpoints.
        """
        listening, port = self.taken()
        listening.close()
        for own in (
            ["--port", str(port), "--iface", "127.0.0.1"],
            ["--listen", f"tcp:{port}:interface=127.0.0.1"],
        ):
            self.assertIn("in use", self.refusal("--poem=ecstasy", *own, "--poem=science", *own))
        self.assertIn("in use", self.refusal("--poem=ecstasy", *own, *own))

    def test_portNotHeld(self) -> None:
        """
        A port that can be had is free again for the service to take.
        """
        listening, port = self.taken()
        listening.close()
        before = countDescriptors()
        self.make("--poem", "ecstasy", "--port", str(port), "--iface", "127.0.0.1")
        self.assertEqual(countDescriptors(), before)

    def test_portJustLeft(self) -> None:
        """
        A port where somebody listened until just now can be had, whatever lingers of that.
        """
        listening, port = self.taken()
        with socket.create_connection(listening.getsockname()) as client:
            listening.accept()[0].close()
            client.recv(1)
        listening.close()
        self.make("--poem", "ecstasy", "--port", str(port), "--iface", "127.0.0.1")

    def test_anyPortTwice(self) -> None:
        """
        Any port can be had as often as one likes.
        """
        own = ("--port", "0", "--iface", "127.0.0.1")
        self.make("--poem", "ecstasy", *own, "--poem", "science", *own)

    def test_notOurInterface(self) -> None:
        """
        An interface that is not this machine's is refused.
        """
        self.assertEqual(
            self.refusal("--poem", "ecstasy", "--port", "0", "--iface", "192.0.2.1"),
            "--port 0 --iface 192.0.2.1: Cannot assign requested address",
        )

    def test_interfaceThatIsNoName(self) -> None:
        """
        So is one that is no name of anything.
        """
        for interface in ("a..b", "." * 300, "x" * 300, "\xe9" * 70, "\udc80"):
            refusal = self.refusal("--poem", "ecstasy", "--port", "0", "--iface", interface)
            shown = interface.replace("\udc80", "\\udc80")
            self.assertTrue(refusal.startswith(f"--port 0 --iface {shown}: "), refusal)

    def test_endpointPortOutOfRange(self) -> None:
        """
        A port out of range is refused in an endpoint too.
        """
        refusal = self.refusal("--poem", "ecstasy", "--listen", "tcp:65536:interface=127.0.0.1")
        self.assertIn("--listen tcp:65536:interface=127.0.0.1: ", refusal)

    def test_notAnEndpoint(self) -> None:
        """
        A description that does not parse is refused.
        """
        for description in (
            "",
            "tcp",
            "10000",
            "nosuch:1",
            "tcp:http",
            "tcp:1:nosuch=2",
            "ssl:1",
            "\n",
            "tcp:x\u2028",
            "adopted:nosuch=1",
        ):
            refusal = self.refusal("--poem", "ecstasy", "--listen", description)
            head = repr(description)[1:-1] if not description.isprintable() else description
            self.assertIn(head, refusal)

    def test_nothingPassed(self) -> None:
        """
        Where no descriptor was passed none can be adopted.
        """
        refusal = self.refusal("--poem", "ecstasy", "--listen", "adopted:name=ecstasy")
        self.assertTrue(refusal.startswith("adopted:name=ecstasy: no descriptor was "), refusal)


class PathTests(TapCase):
    """
    Tests for the paths of UNIX sockets.
    """

    def refusalAt(self, path: str) -> str:
        """
        @return: why nobody can listen there.
        """
        refusal = self.refusal("--poem", "ecstasy", "--listen", f"unix:{path}")
        self.assertTrue(refusal.startswith(f"--listen unix:{path}: "), refusal)
        return refusal.removeprefix(f"--listen unix:{path}: ")

    def test_noFolder(self) -> None:
        """
        A path into a folder that is not there is refused.
        """
        self.assertEqual(self.refusalAt("/nowhere/s"), "No such file or directory")

    def test_file(self) -> None:
        """
        A path where a file is is refused, and the file stays.
        """
        self.assertEqual(self.refusalAt(self.ecstasy), "File exists")
        self.assertTrue(os.path.exists(self.ecstasy))

    def test_closedFolder(self) -> None:
        """
        A path into a folder that may not be written to is refused.
        """
        with asNobody():
            self.assertEqual(self.refusalAt(f"{self.folder}/s"), "Permission denied")

    def test_taken(self) -> None:
        """
        A path on which somebody listens is refused.
        """
        path = f"{self.folder}/s"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            self.assertEqual(self.refusalAt(path), "Address already in use")

    def test_leftover(self) -> None:
        """
        A socket that somebody left behind is none that is taken.
        """
        path = f"{self.folder}/s"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
        self.make("--poem", "ecstasy", "--listen", f"unix:{path}")

    def test_free(self) -> None:
        """
        A free path is not made yet.
        """
        self.make("--poem", "ecstasy", "--listen", f"unix:{self.folder}/s")
        self.assertFalse(os.path.exists(f"{self.folder}/s"))


class SourceTests(TapCase):
    """
    Tests for the sources.
    """

    def test_service(self) -> None:
        """
        The source of a block is a service that holds its poem and reads it anew at each start.
        """
        self.patch(assembly, "Preflight", FakePreflight)
        service = self.make("--poem", "science")
        write(self.folder, "science.txt", b"later")
        service.startService()
        self.addCleanup(service.stopService)
        source = next(iter(next(iter(service))))
        self.assertIsInstance(source, PoetryService)
        self.assertEqual(source.poem.text, b"later")
