"""Tests for L{fastpoetry.command.options}, with a command that serves what it is told."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import sys
from collections.abc import Sequence
from unittest import skipUnless

from hypothesis import given
from hypothesis import strategies as st
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry import __version__
from fastpoetry.command.options import Block, CommandOptions, refuse
from fastpoetry.delivery.limits import Limits


class Command(CommandOptions):
    """The options of a command that serves odes."""

    command = "odes"
    opens = "--ode"

    def opt_ode(self, value: str) -> None:
        """Serve an ode."""
        self.openBlock(f"--ode {value}", value)


def parse(*line: str) -> Command:
    """@return: the options of a command line."""
    options = Command()
    options.parseOptions(list(line))
    return options


class OptionsCase(SynchronousTestCase):
    """A test case for refusals."""

    def refusal(self, *line: str) -> str:
        """@return: the refusal of a command line: one line on stderr and exit status 1."""
        why = self.assertRaises(SystemExit, parse, *line).code
        self.assertIsInstance(why, str)
        self.assertTrue(why.startswith("fastpoetry: ") and why.isprintable(), why)
        return str(why.removeprefix("fastpoetry: "))


class RefuseTests(SynchronousTestCase):
    """Tests for L{refuse}."""

    def test_line(self) -> None:
        """The refusal is one line that names the program."""
        why = self.assertRaises(SystemExit, refuse, "--port x: not a port")
        self.assertEqual(why.code, "fastpoetry: --port x: not a port")

    def test_error(self) -> None:
        """An error is refused with its text."""
        why = self.assertRaises(SystemExit, refuse, ValueError("no"))
        self.assertEqual(why.code, "fastpoetry: no")

    def test_hostile(self) -> None:
        """Characters that would break the line or act on the terminal are escaped."""
        why = self.assertRaises(SystemExit, refuse, "a\nb\x1b[2Jc\udcffd\u2028e\xe9")
        self.assertEqual(why.code, "fastpoetry: a\\nb\\x1b[2Jc\\udcffd\\u2028e\xe9")

    @given(text=st.text())
    def test_anything(self, text: str) -> None:
        """Whatever is refused, the refusal is one line."""
        why = self.assertRaises(SystemExit, refuse, text)
        self.assertTrue(why.code.isprintable())


class BlockTests(OptionsCase):
    """Tests for blocks."""

    def test_one(self) -> None:
        """The simplest command line has one block, without an address."""
        self.assertEqual(parse("--ode", "x").blocks, [Block("--ode x", "x")])

    def test_port(self) -> None:
        """Options after a port belong to its block."""
        self.assertEqual(
            parse("--ode", "x", "--port", "17", "--iface", "::1").blocks,
            [Block("--ode x", "x", 17, "::1")],
        )

    def test_before(self) -> None:
        """Options before the first block belong to the first block."""
        self.assertEqual(
            parse("-p", "17", "--iface=::1", "--ode", "x").blocks,
            [Block("--ode x", "x", 17, "::1")],
        )

    def test_several(self) -> None:
        """Each block has its own port."""
        self.assertEqual(
            parse("--port", "1", "--ode", "x", "--ode", "y", "-p2", "--ode", "z", "-p", "3").blocks,
            [Block("--ode x", "x", 1), Block("--ode y", "y", 2), Block("--ode z", "z", 3)],
        )

    def test_listen(self) -> None:
        """A block may have several endpoints."""
        self.assertEqual(
            parse("--ode", "x", "--listen", "tcp:1", "--listen", "unix:/s").blocks,
            [Block("--ode x", "x", listen=["tcp:1", "unix:/s"])],
        )

    def test_firstHasTheDefault(self) -> None:
        """Only the first block may omit its port."""
        first, second = parse("--ode", "x", "--ode", "y", "--listen", "tcp:1").blocks
        self.assertEqual((first.port, first.listen, second.listen), (None, [], ["tcp:1"]))

    def test_ownBlocks(self) -> None:
        """Two command lines share no state."""
        first = parse("--ode", "x", "--listen", "tcp:1")
        second = parse("--ode", "x")
        self.assertEqual((len(first.blocks[0].listen), second.blocks[0].listen), (1, []))

    def test_greatestPort(self) -> None:
        """Ports go from 0 to 65535."""
        self.assertEqual(parse("--ode", "x", "--port", "65535").blocks[0].port, 65535)
        self.assertEqual(parse("--ode", "x", "--port", "0").blocks[0].port, 0)


class TutorialTests(OptionsCase):
    """Tests for the keys of the tutorial's own options."""

    def test_default(self) -> None:
        """For a single block the keys have its address, even a default one."""
        options = parse("--ode", "x")
        self.assertEqual((options["port"], options["iface"]), (10000, "localhost"))

    def test_given(self) -> None:
        """For a single block with a given address the keys have that address."""
        options = parse("--ode", "x", "--port", "0", "--iface", "")
        self.assertEqual((options["port"], options["iface"]), (0, ""))

    def test_several(self) -> None:
        """For several blocks the keys are absent."""
        options = parse("--ode", "x", "--ode", "y", "--port", "1")
        self.assertEqual(options.keys() & {"port", "iface"}, set())


class LimitTests(OptionsCase):
    """Tests for the tunables."""

    def test_defaults(self) -> None:
        """Tunables have defaults, and by default the program does not exit when idle."""
        options = parse("--ode", "x")
        self.assertEqual(options.limits, Limits())
        self.assertNotIn("exitIdleSeconds", options)

    def test_all(self) -> None:
        """Each tunable sets its own limit, wherever it is on the command line."""
        options = parse(
            *("--drain-timeout", "1.5", "--stall-timeout=2", "--ode", "x", "--min-rate", "0"),
            *("--max-readers", "4", "--max-readers-per-source", "5", "--journal-budget", "0"),
            *("--exit-idle-time", "7"),
        )
        self.assertEqual(options.limits, Limits(1.5, 2.0, 0, 4, 5, 0))
        self.assertEqual(options["exitIdleSeconds"], 7.0)

    def test_help(self) -> None:
        """The help has every default that an administrator may rely on."""
        text = " ".join(str(Command()).split())
        for option, default in (
            ("drain-timeout", "20"),
            ("stall-timeout", "30"),
            ("min-rate", "64"),
            ("max-readers", "10000"),
            ("max-readers-per-source", "1000"),
            ("journal-budget", "200"),
            ("exit-idle-time", "never"),
            ("port", "10000"),
            ("iface", "localhost"),
        ):
            self.assertRegex(text, rf"--{option}= [^=]*\[default: {default}\b")


class VersionTests(OptionsCase):
    """Tests for the version."""

    def test_version(self) -> None:
        """C{--version} prints our version and Twisted's, and exits with 0."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            why = self.assertRaises(SystemExit, parse, "--version")
        self.assertIn(why.code, (0, None))
        ours, twisteds = output.getvalue().splitlines()
        self.assertEqual(ours, f"fastpoetry version: {__version__}")
        self.assertTrue(twisteds.startswith("Twisted version: "), twisteds)


class RefusalTests(OptionsCase):
    """Tests for refused command lines: each refusal is one line with the option and its value."""

    def test_nothing(self) -> None:
        """A command line without a poem is refused."""
        for line in ([], ["--port", "17"]):
            self.assertEqual(self.refusal(*line), "nothing to serve: say what with --ode")

    def test_unknown(self) -> None:
        """An unknown option is named; the refusal points to the help and does not print it."""
        self.patch(sys, "argv", ["/usr/bin/twistd3", "odes", "--ode", "x", "--prot", "17"])
        self.assertEqual(
            self.refusal(*sys.argv[2:]),
            "option --prot not recognized; twistd3 odes --help lists the options",
        )

    def test_noValue(self) -> None:
        """An option without its value is named."""
        self.assertIn("--port", self.refusal("--ode", "x", "--port"))

    def test_strayArgument(self) -> None:
        """An argument that belongs to no option is named."""
        self.assertIn("stray", self.refusal("--ode", "x", "stray"))

    def test_notAPort(self) -> None:
        """A port is a number from 0 to 65535, in plain digits."""
        for value in (
            "65536",
            "-1",
            "http",
            "",
            "1e3",
            "0x11",
            "1_7",
            " 17",
            "17\n",
            "\u0661",
            "²",
        ):
            refusal = self.refusal("--ode", "x", f"--port={value}")
            shown = value.replace("\n", "\\n")
            self.assertEqual(refusal, f"--port {shown}: not a port from 0 to 65535")

    def test_twoPorts(self) -> None:
        """A block has one port."""
        self.assertEqual(
            self.refusal("--ode", "x", "--port", "1", "--port", "2"),
            "--port 2: given already (1); --ode opens a new block",
        )
        self.assertIn("given already (0)", self.refusal("--ode", "x", "--port=0", "--port=0"))

    def test_twoInterfaces(self) -> None:
        """A block has one interface."""
        self.assertEqual(
            self.refusal("--ode", "x", "--iface", "::1", "--iface", "127.0.0.1"),
            "--iface 127.0.0.1: given already (::1)",
        )

    def test_listenAndPort(self) -> None:
        """An endpoint excludes port and interface in its block, in any order."""
        why = "--ode x: --listen tcp:2 excludes --port and --iface"
        for other in (["--port", "1"], ["--iface", "::1"], ["--port=0"]):
            self.assertEqual(self.refusal("--ode", "x", "--listen", "tcp:2", *other), why)
            self.assertEqual(self.refusal(*other, "--listen", "tcp:2", "--ode", "x"), why)

    def test_listenAndPortApart(self) -> None:
        """In different blocks endpoints and ports go together."""
        parse("--ode", "x", "--listen", "tcp:2", "--ode", "y", "--port", "1")

    def test_secondWithoutPort(self) -> None:
        """A second block needs a port or an endpoint of its own; an interface is not enough."""
        why = "--ode y: each further block needs a --port or --listen of its own"
        first = ("--ode", "x", "--port", "1")
        self.assertEqual(self.refusal(*first, "--ode", "y"), why)
        self.assertEqual(self.refusal(*first, "--ode", "y", "--iface", "::1"), why)
        self.assertEqual(self.refusal(*first, "--ode", "y", "--ode", "z", "--port", "2"), why)

    def test_tunableTwice(self) -> None:
        """A tunable, which concerns the whole process, may be given only once."""
        self.assertEqual(
            self.refusal("--ode", "x", "--max-readers", "5", "--ode", "y", "--max-readers", "6"),
            "--max-readers 6: given already, as 5",
        )

    def test_notSeconds(self) -> None:
        """A time is a number of seconds above 0."""
        for option in ("--drain-timeout", "--stall-timeout", "--exit-idle-time"):
            for value in ("0", "-1", "5min", "nan", "inf", "-inf", "1e999", "", "0x5"):
                self.assertEqual(
                    self.refusal("--ode", "x", f"{option}={value}"),
                    f"{option} {value}: not a number of seconds above 0",
                )

    def test_notACount(self) -> None:
        """A count is a whole number, and at least 1 where 0 makes no sense."""
        for option, least in (
            ("--min-rate", 0),
            ("--journal-budget", 0),
            ("--max-readers", 1),
            ("--max-readers-per-source", 1),
        ):
            for value in ("-1", "1.5", "1e3", "many", "", "\u0661", *["0"] * least):
                self.assertEqual(
                    self.refusal("--ode", "x", f"{option}={value}"),
                    f"{option} {value}: not a whole number of {least} or more",
                )

    def test_hugeNumber(self) -> None:
        """A number with more digits than int() takes is refused like any other."""
        huge = "9" * 5000
        for option in ("--port", "--max-readers", "--min-rate", "--journal-budget"):
            self.assertIn(f"{option} 999", self.refusal("--ode", "x", option, huge))

    def test_firstIsNamed(self) -> None:
        """Of several faults the first is named."""
        self.assertIn("--port a:", self.refusal("--port", "a", "--max-readers", "b"))


words = st.one_of(
    st.sampled_from(
        [
            "--ode",
            "--ode=x",
            "--port",
            "-p",
            "-p1",
            "--iface",
            "--listen",
            "--listen=",
            "--min-rate",
        ]
    ),
    st.sampled_from(["--max-readers=", "--stall-timeout", "17", "x", "--", "-", "--p", "-x"]),
    st.text(max_size=10).map(lambda text: text.replace("\0", "")),
)


@skipUnless(os.geteuid() == 0, "only root becomes somebody else")
class ServerTests(SynchronousTestCase):
    """Tests for L{CommandOptions.asServer}."""

    def who(self, **twistd: int | None) -> tuple[int, int, list[int]]:
        """@return: the user, group and further groups with these options of twistd."""
        options = Command()
        options.parent = usage.Options()
        options.parent.update(twistd)
        with options.asServer():
            return os.geteuid(), os.getegid(), os.getgroups()

    def test_nobody(self) -> None:
        """
        The check runs as the user that twistd will become, with the groups of that user only. It is
        root again afterwards.
        """
        user = pwd.getpwnam("nobody")
        before = self.who(uid=None, gid=None)
        self.assertEqual(
            self.who(uid=user.pw_uid, gid=None), (user.pw_uid, user.pw_gid, [user.pw_gid])
        )
        self.assertEqual(self.who(uid=user.pw_uid, gid=1), (user.pw_uid, 1, [1]))
        self.assertEqual(self.who(uid=None, gid=1), (0, 1, before[2]))
        self.assertEqual(self.who(uid=None, gid=None), before)

    def test_unknown(self) -> None:
        """A number without a user is refused in one line."""
        why = self.assertRaises(SystemExit, self.who, uid=12345678)
        self.assertEqual(str(why), "fastpoetry: --uid 12345678: no user has that number")

    def test_alone(self) -> None:
        """Options without a twistd have no effect."""
        before = os.geteuid(), os.getegid(), os.getgroups()
        with Command().asServer():
            self.assertEqual((os.geteuid(), os.getegid(), os.getgroups()), before)


class AnyLineTests(OptionsCase):
    """Tests for arbitrary command lines."""

    @given(line=st.lists(words, max_size=8))
    def test_anything(self, line: Sequence[str]) -> None:
        """Any command line is either understood or refused in one line."""
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                options = parse(*line)
            except SystemExit as why:
                refused = str(why.code)
                self.assertTrue(
                    why.code in (0, None)
                    or (refused.startswith("fastpoetry: ") and refused.isprintable()),
                    refused,
                )
            else:
                self.assertTrue(all(block.option for block in options.blocks))
