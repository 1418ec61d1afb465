"""Tests for C{packaging/completion/fastpoetry}, in a real bash at a terminal."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from getopt import gnu_getopt
from pathlib import Path
from unittest import skipUnless

from fakes import makeFolder, write
from twisted.python.usage import Options
from twisted.scripts._twistd_unix import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry import proxytap, tap
from fastpoetry.command.options import CommandOptions

SCRIPT = Path(__file__).resolve().parent.parent / "packaging" / "completion" / "fastpoetry"
LIBRARY = Path("/usr/share/bash-completion/bash_completion")
POEMS = ["alla_sera.txt", "ecstasy.txt", "fascination.txt", "science.txt"]

# Ctrl-G prints the line between two characters that bash prints nowhere else, and clears the line.
_SETUP = r"""
PS1=
bind 'set bell-style none'
bind -x '"\C-g": printf "\002%s\003" "$READLINE_LINE"; READLINE_LINE='
printf '\002\003'
"""

_ANSWER_SECONDS = 20.0
"""A bash that hangs is an error after this time."""


class Bash:
    """A bash with keys typed to it."""

    def __init__(self, folder: str, setup: str) -> None:
        """
        @param folder: the current and the home directory.
        @param setup: commands to run first.
        """
        self._terminal, terminal = pty.openpty()
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=folder,
            env={"HOME": folder, "INPUTRC": "/dev/null", "PATH": os.defpath, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(terminal)
        self._seen = b""
        self._ask(f"{setup}\n{_SETUP}")

    def press(self, line: str, key: str) -> str:
        """
        Type a line, then a key.

        @return: the line after that.
        """
        return self._ask(f"{line}{key}\x07")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _ask(self, text: str) -> str:
        """
        Type text that makes bash print something between the two characters.

        @return: the printed text.
        """
        os.write(self._terminal, text.encode())
        while b"\3" not in self._seen:
            if not select.select([self._terminal], [], [], _ANSWER_SECONDS)[0]:
                raise AssertionError(f"bash does not answer, after {self._seen!r}")
            self._seen += os.read(self._terminal, 4096)
        answer, _, self._seen = self._seen.partition(b"\3")
        return answer.rpartition(b"\2")[2].decode()


@skipUnless(shutil.which("bash"), "there is no bash")
class BashCase(SynchronousTestCase):
    """A folder with poems and a file, and a bash in it."""

    setup = f"source '{SCRIPT}'"

    def setUp(self) -> None:
        self.folder = makeFolder(self)
        self.poetry = os.path.join(self.folder, "poetry")
        os.mkdir(self.poetry)
        for name in POEMS:
            write(self.poetry, name)
        write(self.folder, "README.md")
        self.bash = Bash(self.folder, self.setup)
        self.addCleanup(self.bash.close)

    def complete(self, line: str) -> str:
        """@return: the line after the Tab key."""
        return self.bash.press(line, "\t")

    def list(self, line: str) -> list[str]:
        """@return: the candidates for the last word of a line."""
        completed = self.bash.press(line, "\033*")  # Readline's insert-completions
        return completed.removeprefix(line[: line.rfind(" ") + 1]).split()


class OptionTests(BashCase):
    """Tests for the options that are offered."""

    def optionsOf(self, options: CommandOptions) -> list[str]:
        """@return: a command's options as they are typed."""
        return sorted("--" + name.rstrip("=") for name in options.longOpt)

    def test_server(self) -> None:
        """The offered options of C{fastpoetry} are those that the command has."""
        offered = self.list("twistd3 -n fastpoetry ")
        self.assertEqual(sorted(offered), self.optionsOf(tap.Options()))

    def test_proxy(self) -> None:
        """The offered options of C{fastpoetry-proxy} are those that the command has."""
        offered = self.list("twistd3 -n fastpoetry-proxy ")
        self.assertEqual(sorted(offered), self.optionsOf(proxytap.Options()))

    def test_one(self) -> None:
        """
        An option is completed when its beginning is unique, also after an option without a value.
        """
        completed = self.complete("twistd fastpoetry --anthology --lis")
        self.assertEqual(completed, "twistd fastpoetry --anthology --listen ")

    def test_afterColon(self) -> None:
        """A value that ends with a colon does not hide the following option."""
        completed = self.complete("twistd3 fastpoetry --listen adopted: --poet")
        self.assertEqual(completed, "twistd3 fastpoetry --listen adopted: --poetry-path ")

    def test_number(self) -> None:
        """For a number or an address nothing is offered, and no file either."""
        for option in ("--port", "-p", "--iface", "--max-readers"):
            self.assertEqual(self.list(f"twistd3 fastpoetry {option} "), [])


class CommandTests(BashCase):
    """Tests for our part of a twistd command line."""

    def test_names(self) -> None:
        """The names of both commands are offered in the place of a command."""
        self.assertEqual(self.list("twistd3 -n fast"), ["fastpoetry", "fastpoetry-proxy"])

    def test_twistdsOptions(self) -> None:
        """An option of twistd with a value takes the next word; one without a value does not."""
        for option in _spellings(ServerOptions()):
            takesValue = not gnu_getopt([option, "x"], *_declared(ServerOptions()))[1]
            line = f"twistd3 {option} fastpoetry --poetry-"
            expected = line if takesValue else f"{line}path "
            self.assertEqual(self.complete(line), expected)

    def test_twistdsLetters(self) -> None:
        """In a word of several option letters, the last may take the next word."""
        for letters, completed in (("-noy", "--poetry-"), ("-no", "--poetry-path ")):
            line = f"twistd3 {letters} fastpoetry "
            self.assertEqual(self.complete(f"{line}--poetry-"), f"{line}{completed}")

    def test_logger(self) -> None:
        """Our log observer is offered where twistd takes one, for any command."""
        for before in ("twistd3 --logger=", "twistd3 -n --logger "):
            completed = self.complete(f"{before}fast")
            self.assertEqual(completed, f"{before}fastpoetry.systemd.journal.observer ")
        self.assertEqual(self.complete("twistd3 --logger=else"), "twistd3 --logger=else")

    def test_others(self) -> None:
        """Other commands of twistd are completed with file names, as without our completion."""
        self.assertEqual(self.complete("twistd3 -ny READ"), "twistd3 -ny README.md ")
        self.assertEqual(self.complete("twistd3 web --path poe"), "twistd3 web --path poetry/")


class PoemTests(BashCase):
    """Tests for the poems that are offered."""

    def test_all(self) -> None:
        """Every poem along the poetry path is offered by its name."""
        offered = self.list(f"twistd3 fastpoetry --poetry-path {self.poetry} --poem ")
        self.assertEqual(offered, [name.removesuffix(".txt") for name in POEMS])

    def test_severalFolders(self) -> None:
        """A poem may be in any folder of the path; a missing folder does no harm."""
        other = os.path.join(self.folder, "other")
        os.mkdir(other)
        write(other, "elegy.txt")
        path = f"{self.poetry}:{other}:/nowhere"
        offered = self.list(f"twistd3 fastpoetry --poetry-path={path} --poem e")
        self.assertEqual(offered, ["ecstasy", "elegy"])

    def test_equalsSign(self) -> None:
        """The text before an equals sign stays."""
        line = "twistd3 fastpoetry --poetry-path=poetry --poem="
        self.assertEqual(self.complete(f"{line}ec"), f"{line}ecstasy ")

    def test_home(self) -> None:
        """A tilde in the path means the home folder."""
        offered = self.list("twistd3 fastpoetry --poetry-path ~/poetry --poem sc")
        self.assertEqual(offered, ["science"])

    def test_noNames(self) -> None:
        """A file whose name is no valid poem name is not offered, and never run."""
        for name in ("x.y.txt", "-x.txt", "x y.txt", "$(touch run).txt", "`touch run`.txt", "x"):
            write(self.poetry, name)
        line = "twistd3 fastpoetry --poetry-path poetry --poem "
        self.assertEqual(len(self.list(line)), len(POEMS))
        self.assertFalse(os.path.exists(os.path.join(self.folder, "run")))

    def test_path(self) -> None:
        """If no poem's name has that beginning, a path is completed."""
        for between in " =":
            line = f"twistd3 fastpoetry --poem{between}poetry/"
            self.assertEqual(self.complete(f"{line}ec"), f"{line}ecstasy.txt ")

    def test_folders(self) -> None:
        """A poetry path is completed folder by folder."""
        line = "twistd3 fastpoetry --poetry-path /etc:"
        self.assertEqual(self.complete(f"{line}poe"), f"{line}poetry/")


class CooperationTests(BashCase):
    """Tests for a completion that was installed before."""

    setup = f"""
        _theirs() {{ COMPREPLY=("theirs-$1-$2-$3"); compopt -o nospace; }}
        complete -o nosort -F _theirs twistd3
        source '{SCRIPT}'
        source '{SCRIPT}'
    """

    def test_others(self) -> None:
        """
        The other completion goes on completing other commands, with every request it may make to
        bash.
        """
        completed = self.complete("twistd3 web x")
        self.assertEqual(completed, "twistd3 web theirs-twistd3-x-web")

    def test_commands(self) -> None:
        """Our commands' names are offered beside the other completion's words."""
        offered = self.list("twistd3 fastpoetry-")
        self.assertEqual(offered, ["theirs-twistd3-fastpoetry--twistd3", "fastpoetry-proxy"])

    def test_ours(self) -> None:
        """After our commands' names the other completion is not called."""
        completed = self.complete("twistd3 fastpoetry --anth")
        self.assertEqual(completed, "twistd3 fastpoetry --anthology ")

    def test_path(self) -> None:
        """A poem may be a path, whatever the other completion has declared."""
        completed = self.complete("twistd3 fastpoetry --poem READ")
        self.assertEqual(completed, "twistd3 fastpoetry --poem README.md ")


@skipUnless(LIBRARY.exists(), "bash-completion is not installed")
class LibraryTests(BashCase):
    """Tests for finding our file with bash-completion."""

    setup = f"""
        mkdir completions
        for name in _twistd _twistd3; do ln -s '{SCRIPT}' completions/$name; done
        BASH_COMPLETION_USER_DIR=$PWD
        source {LIBRARY}
    """

    def test_found(self) -> None:
        """bash-completion loads our file when one of our commands' names is first completed."""
        for command in ("twistd", "twistd3"):
            completed = self.complete(f"{command} fastpoetry --poetry-path=poetry --poem sc")
            self.assertEqual(completed[-8:], "science ")


def _declared(options: Options) -> tuple[str, list[str]]:
    """@return: the options of a command in getopt's form."""
    return options.shortOpt, options.longOpt


def _spellings(options: Options) -> list[str]:
    """@return: the spellings of each option of a command."""
    short, long = _declared(options)
    return [f"-{c}" for c in short if c != ":"] + [f"--{name.rstrip('=')}" for name in long]
