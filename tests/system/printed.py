"""
Pages that print files and commands, followed as they are printed.

A file is printed below a line C{# /PATH}, as by C{systemctl cat}. A command for root is in a
C{console} block after C{# }, with its output below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from system.machine import Machine


class Step(NamedTuple):
    """
    A command from a page.

    @ivar command: for a shell.
    @ivar printed: its output; an ellipsis stands for any text.
    """

    command: str
    printed: str


def readSections(page: Path) -> dict[str, str]:
    """The sections of a page, by heading."""
    parts = re.split(r"^## (.*)\n", page.read_text("utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def readFiles(text: str) -> dict[str, str]:
    """The files in a text, by path."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    shown = "".join(block for block in blocks if re.match(r"# /\S+\n", block))
    found = re.findall(r"^# (/\S+)\n(.*?)\n*(?=^# /|\Z)", shown, re.M | re.S)
    return {path: f"{content}\n" for path, content in found}


def readSteps(text: str) -> list[Step]:
    """The commands in a text, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    steps = re.findall(r"^# (.*)\n((?:(?!# ).*\n)*)", "".join(blocks), re.M)
    return [Step(*step) for step in steps]


def writeFiles(machine: Machine, text: str) -> None:
    """Write the files in a text, and have systemd read the units."""
    for path, content in readFiles(text).items():
        file = machine.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    machine.systemctl("daemon-reload")


def follow(machine: Machine, text: str) -> None:
    """Run each command, and check that its output is as printed."""
    for command, printed in readSteps(text):
        machine.run("journalctl", "--sync")
        ran = machine.run("bash", "-c", command, check=False)
        assert matches(ran.stdout, printed), (
            f"# {command}\n{ran.stdout}{ran.stderr}instead of\n{printed}"
        )


def matches(seen: str, printed: str) -> bool:
    """Whether a command's output is as on the page."""
    pattern = ".*".join(map(re.escape, printed.split("…")))
    return re.fullmatch(pattern, seen.replace("\r\n", "\n"), re.S) is not None
