"""
Pages that print files and commands, followed as they are printed.

A file is printed behind a line with its path; a command as root in a C{console} block behind C{# },
with what comes of it below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from system.machine import Machine


class Step(NamedTuple):
    """
    A command that a page prints.

    @ivar command: for a shell.
    @ivar printed: what comes of it; an ellipsis stands for anything.
    """

    command: str
    printed: str


def readSections(page: Path) -> dict[str, str]:
    """The parts of a page, by their headings."""
    parts = re.split(r"^## (.*)\n", page.read_text("utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def readFiles(text: str) -> dict[str, str]:
    """The files that a text prints, by their paths."""
    found = re.findall(r"^`(/\S+)`[^\n]*:\n\n```\w*\n(.*?)^```", text, re.M | re.S)
    return dict(found)


def readSteps(text: str) -> list[Step]:
    """The commands that it prints, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    steps = re.findall(r"^# (.*)\n((?:(?!# ).*\n)*)", "".join(blocks), re.M)
    return [Step(*step) for step in steps]


def writeFiles(machine: Machine, text: str) -> None:
    """Write what a text prints, and have systemd read its units."""
    for path, content in readFiles(text).items():
        file = machine.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    machine.systemctl("daemon-reload")


def follow(machine: Machine, text: str) -> None:
    """Run each command, and see that what comes of it is what is printed."""
    for command, printed in readSteps(text):
        machine.run("journalctl", "--sync")
        ran = machine.run("bash", "-c", command, check=False)
        assert matches(ran.stdout, printed), (
            f"# {command}\n{ran.stdout}{ran.stderr}instead of\n{printed}"
        )


def matches(seen: str, printed: str) -> bool:
    """Whether a command printed what the page says."""
    pattern = ".*".join(map(re.escape, printed.split("…")))
    return re.fullmatch(pattern, seen.replace("\r\n", "\n"), re.S) is not None
