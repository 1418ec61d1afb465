"""
Tests for L{fastpoetry.proxytap}: from a command line to the upstreams it would ask.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import fields
from typing import Any

from fakes import FakeTransport, Reactor, Threads, asNobody, makeFolder, write
from hypothesis import given
from hypothesis import strategies as st
from proxies import save
from test_man import UNITS, Page
from twisted.application.service import IService, MultiService
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.apart.poems import MAX_POEM_BYTES
from fastpoetry.command.instance import PROXY_FOLDER
from fastpoetry.command.options import CommandOptions
from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Keeper
from fastpoetry.proxy.freshness import Freshness
from fastpoetry.proxy.service import PoetryProxyService
from fastpoetry.proxy.upstream import Resolver
from fastpoetry.proxytap import Options, makeService

UPSTREAM = "unix:path=/run/poems.example.sock"
DIGEST = "0123456789abcdef" * 4

OPTIONS = {
    "--max-age": "maxAgeSeconds",
    "--stale-while-revalidate": "revalidateSeconds",
    "--stale-if-error": "errorSeconds",
    "--connect-timeout": "connectSeconds",
    "--idle-timeout": "idleSeconds",
    "--total-timeout": "totalSeconds",
    "--max-size": "mostBytes",
}
"""The options, and the field of L{Freshness} that each sets."""

SPANS = list(OPTIONS)[:3]


def parse(*line: str) -> Options:
    """@return: the options of a command line."""
    options = Options()
    options.parseOptions(list(line))
    return options


FORM = "the right form is tcp:host=poems.example:port=10000"


class ProxyTapCase(SynchronousTestCase):
    """A test case with a reactor, and without systemd."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = Threads(self, self.reactor)
        self.patch(os, "environ", {})

    def make(self, *line: str) -> MultiService:
        """@return: the service of a command line with an address to listen on."""
        return makeService(parse(*line, "--port=0"), self.reactor, self.reactor)

    def source(self, *line: str) -> PoetryProxyService:
        """@return: the source of that command line's only block."""
        block: Any = next(iter(self.make("--upstream", UPSTREAM, *line)))
        (source, _listener) = block
        assert isinstance(source, PoetryProxyService)
        return source

    def refusal(self, *line: str) -> str:
        """@return: the refusal, which is one line on stderr and exit status 1."""
        why = self.assertRaises(SystemExit, self.make, *line).code
        self.assertIsInstance(why, str)
        self.assertTrue(why.startswith("fastpoetry: ") and why.isprintable(), why)
        return str(why.removeprefix("fastpoetry: "))


class OptionsTests(ProxyTapCase):
    """Tests for L{Options}."""

    def test_defaults(self) -> None:
        """Without options every setting has the package's own default."""
        self.assertEqual(parse("--upstream", UPSTREAM).freshness, Freshness())
        self.assertEqual(Freshness().mostBytes, MAX_POEM_BYTES)

    def test_all(self) -> None:
        """Each time and the size has an option of its own."""
        self.assertEqual(list(OPTIONS.values()), [each.name for each in fields(Freshness)])
        values = {option: number for number, option in enumerate(OPTIONS, 1)}
        line = [f"{option}={value}" for option, value in values.items()]
        freshness = parse("--upstream", UPSTREAM, *line).freshness
        self.assertEqual(freshness, Freshness(*values.values()))

    def test_once(self) -> None:
        """Each option concerns the whole process, and may be given only once."""
        for option in (*OPTIONS, "--cache"):
            why = self.refusal("--upstream", UPSTREAM, f"{option}=10", f"{option}=20")
            self.assertIn(option, why)
            self.assertIn("given already", why)

    def test_strange(self) -> None:
        """An invalid or meaningless number is refused with the option and the value."""
        for option in OPTIONS:
            for value in ("", "x", "-1", "nan", "inf", "1e999", "1,5", "0x10"):
                why = self.refusal("--upstream", UPSTREAM, f"{option}={value}")
                self.assertTrue(why.startswith(f"{option} {value}: not a "), why)

    def test_zero(self) -> None:
        """Each span of freshness may be 0; a deadline or a size may not. Refusals say so."""
        line = [f"{option}=0.0" for option in SPANS]
        freshness = parse("--upstream", UPSTREAM, *line).freshness
        self.assertEqual(freshness, Freshness(0, 0, 0))
        for option in list(OPTIONS)[3:]:
            self.assertIn(f"{option} 0: ", self.refusal("--upstream", UPSTREAM, f"{option}=0"))
        for option in SPANS:
            why = self.refusal("--upstream", UPSTREAM, f"{option}=-1")
            self.assertEqual(why, f"{option} -1: not a number of seconds, 0 or more")

    def test_blocks(self) -> None:
        """Each upstream opens a block, with its own digest."""
        blocks = parse(
            *("--upstream=unix:x", "-p1", f"--expect-sha256={DIGEST.upper()}"),
            *("--upstream=unix:y", "-p2"),
        ).blocks
        self.assertEqual(
            [(block.option, block.value, block.port, block.digest) for block in blocks],
            [("--upstream unix:x", "unix:x", 1, DIGEST), ("--upstream unix:y", "unix:y", 2, None)],
        )

    def test_digest(self) -> None:
        """A value that is not a SHA-256, or a second digest, is refused."""
        option = "--expect-sha256"
        for value in ("", "0", DIGEST[1:], DIGEST + "0", "g" * 64, DIGEST[:-1] + "\n"):
            why = self.refusal("--upstream", UPSTREAM, f"{option}={value}")
            self.assertIn("not 64 hexadecimal digits", why)
        why = self.refusal("--upstream", UPSTREAM, f"{option}={DIGEST}", f"{option}={DIGEST}")
        self.assertIn("given already", why)

    def test_noUpstream(self) -> None:
        """A command line without an upstream is refused."""
        self.assertEqual(self.refusal(), "nothing to serve: say what with --upstream")

    def test_help(self) -> None:
        """The help has every option with its default."""
        text = " ".join(str(Options()).split())
        for option, field in OPTIONS.items():
            default = str(getattr(Freshness(), field)).removesuffix(".0")
            self.assertRegex(text, rf" {option}= [^\[]*\[default: {default}\b")


class ServiceTests(ProxyTapCase):
    """Tests for the service made from a command line."""

    def test_tree(self) -> None:
        """Each block is a proxy and a listener."""
        service = self.make("--upstream", UPSTREAM, "-p0", "--upstream", UPSTREAM)
        verifyObject(IService, service)
        *blocks, _handOver, _notify = service
        parts = [[type(part).__name__ for part in block] for block in blocks]
        self.assertEqual(parts, [["PoetryProxyService", "PoetryListener"]] * 2)

    def test_connects(self) -> None:
        """The upstream is asked when a reader wants the poem, and not before."""
        source = self.source()
        source.startService()
        self.addCleanup(source.stopService)
        self.assertEqual(self.reactor.unixClients, [])
        self.assertIsNone(source.poem)
        self.assertEqual(self.reactor.unixClients[0][0], "/run/poems.example.sock")

    def test_size(self) -> None:
        """The proxy has the freshness and the size limit from its options."""
        source = self.source("--max-size=5")
        source.startService()
        self.addCleanup(source.stopService)
        self.assertIsNone(source.poem)
        fetch = self.reactor.unixClients[0][1].buildProtocol(None)
        fetch.makeConnection(FakeTransport())
        fetch.dataReceived(b"a poem")
        self.assertIn("upstream sends more than 5 bytes", source.description)

    def test_endpoints(self) -> None:
        """An invalid upstream is refused with its description and the right form."""
        for upstream in ("", "x", "10000", "tcp", "tcp:host=x:port=y", "nothing:at:all", "tls:x"):
            why = self.refusal("--upstream", upstream)
            self.assertTrue(why.startswith(f"--upstream {upstream}: "), why)
            self.assertTrue(
                why.endswith("the right form is tcp:host=poems.example:port=10000"), why
            )

    def test_inAFile(self) -> None:
        """An invalid upstream from a unit is refused with the file that contains it."""
        os.environ["UPSTREAM_FILE"] = "/etc/fastpoetry/proxy/x.env"
        where = "(UPSTREAM= in /etc/fastpoetry/proxy/x.env)"
        self.assertEqual(
            self.refusal("--upstream="), f"--upstream : names no upstream; {FORM} {where}"
        )
        os.environ["UPSTREAM"] = "tcp:host=x"
        self.assertEqual(
            self.refusal("--upstream=tcp:host=x"),
            f"--upstream tcp:host=x: port '' is not from 1 to 65535; {FORM} {where}",
        )
        self.assertNotIn("x.env", self.refusal("--upstream=unix:/x", "-p1", "--upstream=tcp:y"))

    def test_names(self) -> None:
        """Names are resolved without blocking."""
        self.make("--upstream", UPSTREAM)
        self.assertIsInstance(self.reactor.nameResolver, Resolver)

    @given(st.text() | st.text().map("unix:{}".format) | st.text().map("ssl:{}".format))
    def test_anyEndpoint(self, upstream: str) -> None:
        """Any text is either an endpoint or refused in one line."""
        try:
            self.make("--upstream", upstream)
        except SystemExit as why:
            self.assertTrue(str(why.code).startswith("fastpoetry: "), why.code)
            self.assertTrue(str(why.code).isprintable(), why.code)


class CacheTests(ProxyTapCase):
    """Tests for the folder of copies."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = makeFolder(self)
        self.save(self.folder)

    def save(self, folder: str, text: bytes = b"a poem") -> None:
        """Put a copy into a folder."""
        save(Keeper(folder, UPSTREAM, self.reactor).path, text, time.time())

    def served(self, *line: str) -> bytes | None:
        """@return: the poem that a proxy serves without its upstream."""
        source = self.source(*line)
        source.startService()
        self.threads.work()
        poem = source.poem
        source.stopService()
        return None if poem is None else poem.text

    def test_none(self) -> None:
        """Without a folder there is no copy."""
        self.assertIsNone(self.served())

    def test_option(self) -> None:
        """An option names the folder."""
        self.assertEqual(self.served("--cache", self.folder), b"a poem")

    def test_environment(self) -> None:
        """systemd names the folder (systemd.exec(5), CacheDirectory=)."""
        os.environ["CACHE_DIRECTORY"] = self.folder
        self.assertEqual(self.served(), b"a poem")

    def test_optionFirst(self) -> None:
        """The option takes precedence over systemd's folder."""
        os.environ["CACHE_DIRECTORY"] = self.folder
        other = makeFolder(self)
        self.save(other, b"another")
        self.assertEqual(self.served("--cache", other), b"another")

    def test_relative(self) -> None:
        """A relative folder stays the same when twistd changes its current folder."""
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(os.path.dirname(self.folder))
        options = parse("--upstream", UPSTREAM, "--cache", os.path.basename(self.folder))
        self.assertEqual(options["cache"], self.folder)

    def test_unusable(self) -> None:
        """An unusable folder is refused, with the option or variable that named it."""
        cause = "not a folder"
        file = write(self.folder, "file")
        for path in (f"{self.folder}/gone", file):
            self.assertEqual(
                self.refusal("--upstream", UPSTREAM, "--cache", path), f"--cache {path}: {cause}"
            )
        os.environ["CACHE_DIRECTORY"] = file
        self.assertEqual(self.refusal("--upstream", UPSTREAM), f"CACHE_DIRECTORY={file}: {cause}")

    def test_shared(self) -> None:
        """Two blocks of one upstream share a copy, with one write at a time."""
        line = ("--cache", self.folder, "--upstream", UPSTREAM, "-p0", "--upstream", UPSTREAM)
        one, other = (next(iter(block))._keeper for block in [*self.make(*line)][:2])
        self.assertIs(one, other)

    def test_readOnly(self) -> None:
        """A copy in a folder without write permission is still served."""
        (copy,) = os.listdir(self.folder)
        os.chmod(f"{self.folder}/{copy}", 0o644)
        with asNobody(self.folder, 0o555):
            self.assertEqual(self.served("--cache", self.folder), b"a poem")

    def test_digest(self) -> None:
        """A copy is served only if it is the expected poem."""
        digest = Poem("", b"a poem", "").digest
        cache = ("--cache", self.folder)
        self.assertEqual(self.served(*cache, "--expect-sha256", digest), b"a poem")
        self.assertIsNone(self.served(*cache, "--expect-sha256", DIGEST))


class PageTests(SynchronousTestCase):
    """Tests for fastpoetry-proxy(8) and the program's options."""

    def setUp(self) -> None:
        self.options = Options()
        self.section = Page("fastpoetry-proxy.8").section("OPTIONS")
        self.entries = {
            re.findall("--([a-z0-9-]+)", tag)[0]: text
            for tag, text in Page("fastpoetry-proxy.8").entries("OPTIONS").items()
        }

    def test_names(self) -> None:
        """
        The page lists exactly the program's options: the proxy's own with an explanation, those
        shared with the server without one.
        """
        common = {name.rstrip("=") for name in CommandOptions().longOpt}
        names = {name.rstrip("=") for name in self.options.longOpt}
        self.assertEqual(set(self.entries), names - common)
        paragraph = self.section.partition(".SS")[0].replace("\\-", "-")
        self.assertEqual(set(re.findall("--([a-z-]+)", paragraph)) - {"upstream"}, common)

    def test_defaults(self) -> None:
        """The page has the same defaults as C{--help}."""
        inPage = {
            name: found[1]
            for name, text in self.entries.items()
            if (found := re.search(r"The default is (\S+?)[.,:]? ", text))
        }
        inHelp = {
            option.removeprefix("--"): found[1]
            for option in OPTIONS
            if (found := re.search(r"\[default: ([^],;]+)", self.options.docs[option[2:]]))
        }
        self.assertEqual(inPage, inHelp)


class UnitPageTests(SynchronousTestCase):
    """Tests for fastpoetry-proxy@.service(8) and the units."""

    def setUp(self) -> None:
        self.page = Page("fastpoetry-proxy@.service.8")
        service, socket = (UNITS / f"fastpoetry-proxy@.{kind}" for kind in ("service", "socket"))
        self.service, self.socket = service.read_text(), socket.read_text()

    def test_variables(self) -> None:
        """The variables in the page are those that the service uses."""
        used = re.findall(r"\$\{?([A-Z]+)", re.findall(r"ExecStart=(.*\n.*)", self.service)[0])
        self.assertEqual(list(self.page.entries("ENVIRONMENT FILE")), used)

    def test_files(self) -> None:
        """The paths in the page are those of the units."""
        files = [path.replace("NAME", "%i") for path in self.page.entries("FILES")]
        self.assertIn(f"\nEnvironmentFile=-{files[0]}\n", self.service)
        self.assertEqual(files[0], f"{PROXY_FOLDER}/%i.env")
        self.assertIn(f"\nListenStream={files[1]}\n", self.socket)
        self.assertIn(f"\nCacheDirectory={files[2].removeprefix('/var/cache/')}\n", self.service)
