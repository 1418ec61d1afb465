"""Tests for L{fastpoetry.command.assembly}: blocks and a kind of source become one service."""

from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import run
from typing import Any
from unittest import mock, skipUnless

from fakes import (
    POEM,
    FakeNotify,
    FakePreflight,
    FakeReader,
    FakeSource,
    Reactor,
    Receipt,
    countDescriptors,
    said,
    tree,
)
from passing import inherit
from processes import findFreePort
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.command import assembly
from fastpoetry.command.assembly import assemble, checkEndpoints
from fastpoetry.command.options import Block, CommandOptions
from fastpoetry.delivery.limits import Limits
from fastpoetry.listen import PoetryListener
from fastpoetry.poem import PoemError
from fastpoetry.systemd.notify import ReloadError

TESTS = Path(__file__).resolve().parent


class Odes(CommandOptions):
    """The options of a command that serves odes."""

    command = "odes"
    opens = "--ode"

    def opt_ode(self, value: str) -> None:
        """Serve an ode."""
        self.openBlock(f"--ode {value}", value)


class Ode(FakeSource, Service):
    """
    A source of one ode.

    @ivar reloading: its reloads, which end when a test says so.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.description = f"an ode {block.value}"
        self.reloading: list[Deferred[None]] = []

    def reload(self) -> Deferred[None]:
        """Begin to reload."""
        self.reloading.append(Deferred())
        return self.reloading[-1]


class AssemblyCase(SynchronousTestCase):
    """
    A reactor in memory, without systemd.

    @ivar odes: the sources that were made.
    """

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.odes: list[Ode] = []
        self.patch(assembly, "NotifyService", FakeNotify)

    def make(self, *line: str) -> Any:
        """@return: the service of a command line."""
        options = Odes()
        options.parseOptions(list(line))

        def makeSource(block: Block) -> Ode:
            self.odes.append(Ode(block))
            return self.odes[-1]

        return assemble(options, makeSource, self.reactor, self.reactor)

    def start(self, *line: str) -> Any:
        """@return: the service of a command line, started as twistd does."""
        service = self.make(*line)
        service.privilegedStartService()
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def factories(self) -> list[Any]:
        """@return: the factory of each port."""
        return [factory for _, factory, _, _ in self.reactor.tcpServers]


class TreeTests(AssemblyCase):
    """Tests for the service."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def listening(self) -> list[tuple[int, str]]:
        """@return: the ports and interfaces that listen."""
        return [(port, interface) for port, _, _, interface in self.reactor.tcpServers]

    def test_default(self) -> None:
        """The default is port 10000 of localhost."""
        service = self.start("--ode", "a")
        verifyObject(IService, service)
        self.assertEqual(
            tree(service), [["Ode", "PoetryListener"], "HandOverService", "FakeNotify"]
        )
        self.assertEqual(self.listening(), [(10000, "127.0.0.1")])

    def test_anyPort(self) -> None:
        """Port 0 is any free port, not the default."""
        self.start("--ode", "a", "--port", "0", "--iface", "127.0.0.1")
        self.assertEqual(self.listening(), [(0, "127.0.0.1")])

    def test_backlog(self) -> None:
        """The backlog is long."""
        self.start("--ode", "a")
        ((_, _, backlog, _),) = self.reactor.tcpServers
        self.assertEqual(backlog, 4096)

    def test_IPv6(self) -> None:
        """An interface may be an IPv6 address."""
        self.start("--ode", "a", "--iface", "::1")
        self.assertEqual(self.listening(), [(10000, "::1")])

    def test_blocks(self) -> None:
        """Each block is a service of its own, with its own source and ports."""
        service = self.start(
            *("--ode", "a", "--port", "1"),
            *("--ode", "b", "--listen", "tcp:2", "--listen", "tcp:3:interface=127.0.0.1"),
        )
        self.assertEqual(
            tree(service),
            [
                ["Ode", "PoetryListener"],
                ["Ode", "PoetryListener", "PoetryListener"],
                "HandOverService",
                "FakeNotify",
            ],
        )
        self.assertEqual(self.listening(), [(1, "127.0.0.1"), (2, ""), (3, "127.0.0.1")])
        a, b = self.odes
        self.assertEqual([each.source for each in self.factories()], [a, b, b])

    def test_UNIX(self) -> None:
        """An endpoint may be of any kind."""
        self.start("--ode", "a", "--listen", "unix:/run/x.sock")
        self.assertEqual([server[0] for server in self.reactor.unixServers], ["/run/x.sock"])
        self.assertEqual(self.listening(), [])

    def test_onePolicy(self) -> None:
        """All blocks share one policy, made from the options."""
        self.start("--ode=a", "--port=1", "--ode=b", "--port=2", "--max-readers=7")
        first, second = (factory.policy for factory in self.factories())
        self.assertIs(first, second)
        self.assertEqual(first.limits, Limits(maxReaders=7))

    def test_exitIdleTime(self) -> None:
        """With an exit idle time, the program ends after that long without a reader."""
        service = self.start("--ode", "a", "--exit-idle-time", "7")
        block = ["Ode", "PoetryListener"]
        self.assertEqual(tree(service), [block, "IdleService", "HandOverService", "FakeNotify"])
        self.reactor.advance(6.9)
        self.assertFalse(self.reactor.hasStopped)
        self.reactor.advance(0.1)
        self.assertTrue(self.reactor.hasStopped)

    def test_notIdle(self) -> None:
        """A reader of any block keeps the program from being idle."""
        self.start("--ode", "a", "--exit-idle-time", "7")
        policy = self.factories()[0].policy
        self.reactor.advance(6)
        reader = FakeReader(policy)
        policy.begin(reader)
        policy.remove(reader)
        self.reactor.advance(6.9)
        self.assertFalse(self.reactor.hasStopped)

    def test_stop(self) -> None:
        """Without readers a stop ends at once."""
        service = self.start("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        self.successResultOf(service.stopService())


class NotifyTests(AssemblyCase):
    """Tests for the messages to systemd."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def notify(self, *line: str) -> FakeNotify:
        """@return: the notifier in the service of a command line: the last part to start."""
        *_, notify = self.start(*line)
        assert isinstance(notify, FakeNotify)
        return notify

    def test_status(self) -> None:
        """
        The status says in plain words what is served, how many poems were sent, and how many
        readers there are.
        """
        notify = self.notify("--ode", "a", "--journal-budget", "0")
        self.assertEqual(notify.status(), "Serving an ode a: 0 poems sent, 0 readers")
        policy = self.factories()[0].policy
        for _ in range(1204):
            policy.ledger.countSent([Receipt(POEM, None)])
        for _ in range(3):
            policy.begin(FakeReader(policy))
        self.assertEqual(notify.status(), "Serving an ode a: 1,204 poems sent, 3 readers")

    def test_one(self) -> None:
        """A count of one has a singular noun."""
        notify = self.notify("--ode", "a")
        policy = self.factories()[0].policy
        policy.ledger.countSent([Receipt(POEM, None)])
        policy.begin(FakeReader(policy))
        self.assertEqual(notify.status(), "Serving an ode a: 1 poem sent, 1 reader")

    def test_blocks(self) -> None:
        """The status names every block."""
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        self.assertTrue(notify.status().startswith("Serving an ode a, an ode b: "))

    def test_alive(self) -> None:
        """The service is alive as long as each listener is."""
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        self.assertTrue(notify.alive())
        with mock.patch.object(
            PoetryListener, "isAlive", mock.PropertyMock(side_effect=[True, False])
        ):
            self.assertFalse(notify.alive())

    def test_reload(self) -> None:
        """A reload reaches every block, and ends when each block has finished."""
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        reloaded = notify.reload()
        for ode in self.odes:
            self.assertNoResult(reloaded)
            (reloading,) = ode.reloading
            reloading.callback(None)
        self.successResultOf(reloaded)

    def test_reloadFails(self) -> None:
        """
        A failed reload of one block does not end the others; the whole reload then fails with that
        block's message.
        """
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        reloaded = notify.reload()
        self.odes[0].reloading[0].errback(PoemError("is empty"))
        self.assertNoResult(reloaded)
        self.odes[1].reloading[0].callback(None)
        why = self.failureResultOf(reloaded, ReloadError)
        self.assertEqual(why.getErrorMessage(), "is empty")

    def test_reloadFailsUnforeseen(self) -> None:
        """An unexpected failure, which has no record yet, is passed on unchanged."""
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        reloaded = notify.reload()
        self.odes[0].reloading[0].errback(PoemError("is empty"))
        self.odes[1].reloading[0].errback(MemoryError())
        self.failureResultOf(reloaded, MemoryError)

    def test_reloadRaises(self) -> None:
        """A source that raises does not fail the others; the reload waits for them."""
        reload = Ode.reload
        self.patch(Ode, "reload", lambda ode: 1 // 0 if ode is self.odes[0] else reload(ode))
        notify = self.notify("--ode", "a", "--port", "1", "--ode", "b", "--port", "2")
        reloaded = notify.reload()
        self.assertNoResult(reloaded)
        self.odes[1].reloading[0].callback(None)
        self.failureResultOf(reloaded, ZeroDivisionError)


@skipUnless(find_spec("prometheus_client"), "prometheus_client is not installed")
class MetricsTests(AssemblyCase):
    """Tests for metrics."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(assembly, "Preflight", FakePreflight)

    def test_service(self) -> None:
        """If the option is given, metrics have a port of their own, and reloads are timed."""
        service = self.start("--ode", "a", "--metrics", "tcp:10017")
        self.assertEqual(
            tree(service),
            [
                ["Ode", "PoetryListener"],
                "StreamServerEndpointService",
                "HandOverService",
                "FakeNotify",
            ],
        )
        self.assertEqual([port for port, _, _, _ in self.reactor.tcpServers], [10000, 10017])
        *_, notify = service
        reloaded = notify.reload()
        self.odes[0].reloading[0].callback(None)
        self.successResultOf(reloaded)

    def test_notAskedFor(self) -> None:
        """Without the option, no module that metrics need is imported."""
        code = (
            "import sys\n"
            "from twisted.internet.testing import MemoryReactorClock as Reactor\n"
            "from test_assembly import Ode, Odes\n"
            "from fastpoetry.command.assembly import assemble\n"
            "options = Odes()\n"
            "options.parseOptions(['--ode', 'a', '--port', '0'])\n"
            "assemble(options, Ode, Reactor(), Reactor())\n"
            "print(*sorted({'twisted.web', 'prometheus_client'} & set(sys.modules)))\n"
        )
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        done = run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("\n", ""))


class RefusalTests(AssemblyCase):
    """Tests for refusals before twistd becomes a daemon; each names the option and its value."""

    def refusal(self, *line: str) -> str:
        """@return: the refusal, which is one line on stderr and exit status 1."""
        before = countDescriptors()
        why = self.assertRaises(SystemExit, self.make, *line).code
        self.assertIsInstance(why, str)
        self.assertTrue(why.startswith("fastpoetry: ") and why.isprintable(), why)
        self.assertEqual(countDescriptors(), before)
        return str(why.removeprefix("fastpoetry: "))

    def test_port(self) -> None:
        """A port in use is refused."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            self.assertEqual(
                self.refusal("--ode", "a", "--port", str(port), "--iface", "127.0.0.1"),
                f"--port {port} --iface 127.0.0.1: Address already in use",
            )

    def test_endpoint(self) -> None:
        """An endpoint that cannot listen is refused."""
        self.assertEqual(
            self.refusal("--ode", "a", "--listen", "unix:/nowhere/s"),
            "--listen unix:/nowhere/s: No such file or directory",
        )

    def test_twoBlocks(self) -> None:
        """Two blocks or endpoints cannot have the same port."""
        port = findFreePort()
        for own in (
            ["--port", str(port), "--iface", "127.0.0.1"],
            ["--listen", f"tcp:{port}:interface=127.0.0.1"],
        ):
            self.assertIn("in use", self.refusal("--ode=a", *own, "--ode=b", *own))
        self.assertIn("in use", self.refusal("--ode=a", *own, *own))

    def test_notHeld(self) -> None:
        """After the check the port is free again for the service."""
        before = countDescriptors()
        self.make("--ode", "a", "--port", str(findFreePort()), "--iface", "127.0.0.1")
        self.assertEqual(countDescriptors(), before)

    def test_interface(self) -> None:
        """An invalid interface name is refused."""
        for interface in ("a..b", "." * 300, "x" * 300, "\xe9" * 70, "\udc80"):
            refusal = self.refusal("--ode", "a", "--port", "0", "--iface", interface)
            shown = interface.replace("\udc80", "\\udc80")
            self.assertTrue(refusal.startswith(f"--port 0 --iface {shown}: "), refusal)

    def test_notAnEndpoint(self) -> None:
        """A description that does not parse is refused."""
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
            refusal = self.refusal("--ode", "a", "--listen", description)
            head = repr(description)[1:-1] if not description.isprintable() else description
            self.assertIn(head, refusal)

    def test_standardInput(self) -> None:
        """An endpoint without a port is refused."""
        refusal = self.refusal("--ode", "a", "--listen", "stdio:")
        self.assertEqual(refusal, "--listen stdio:: has no port, and one client only")

    @skipUnless(find_spec("prometheus_client"), "prometheus_client is not installed")
    def test_metrics(self) -> None:
        """A metrics address that is invalid or in use is refused."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            own = f"tcp:{listening.getsockname()[1]}:interface=127.0.0.1"
            refusal = self.refusal("--ode", "a", "--port", "0", "--metrics", own)
        self.assertEqual(refusal, f"--metrics {own}: Address already in use")
        refusal = self.refusal("--ode", "a", "--port", "0", "--metrics", "nosuch:1")
        self.assertIn("--metrics nosuch:1: not a Twisted endpoint description", refusal)

    def test_noPrometheus(self) -> None:
        """Without prometheus_client, the refusal of a metrics option names the missing package."""
        with mock.patch.dict(sys.modules):
            for name in list(sys.modules):
                if name.startswith(("prometheus_client", "fastpoetry.command.metrics")):
                    del sys.modules[name]
            sys.modules["prometheus_client"] = None  # type: ignore[assignment]
            refusal = self.refusal("--ode", "a", "--port", "0", "--metrics", "tcp:0")
        self.assertEqual(
            refusal,
            "--metrics tcp:0: needs prometheus_client (apt install python3-prometheus-client)",
        )

    def test_notServed(self) -> None:
        """A passed socket that nothing serves makes a record: its clients would wait for ever."""
        extra = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(extra.close)
        passed = inherit((extra, "extra"))
        self.patch(assembly, "inherited", lambda: passed)
        with capturedLogs() as events:
            self.make("--ode", "a", "--listen", "tcp:0")
        (text,) = said(events)
        self.assertIn("does not use the passed socket", text)
        self.assertIn("'extra' AF_INET 127.0.0.1:", text)
        self.assertTrue(text.endswith("; it asked for: tcp:0"), text)

    def test_nothingPassed(self) -> None:
        """Without passed descriptors, adopting is refused."""
        self.patch(os, "environ", {})
        refusal = self.refusal("--ode", "a", "--listen", "adopted:name=ecstasy")
        self.assertTrue(refusal.startswith("adopted:name=ecstasy: no descriptor was "), refusal)

    def test_byHand(self) -> None:
        """Services that a program assembles itself check their endpoints too."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            free = serverFromString(self.reactor, "tcp:0:interface=127.0.0.1")
            checkEndpoints({"free": free})
            endpoint = serverFromString(self.reactor, f"tcp:{port}:interface=127.0.0.1")
            why = self.assertRaises(SystemExit, checkEndpoints, {"free": free, "mine": endpoint})
        self.assertEqual(why.code, "fastpoetry: mine: Address already in use")
