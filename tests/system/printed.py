"""
Pages that print commands, and the examples that they link to. Tests run both as they are printed.

A command for root is in a C{console} block after C{# }, with its output below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from system.conftest import CLONE, SOURCE
from system.machine import Machine

EXAMPLES = CLONE / "docs/examples"
"""Folders that are laid out like a machine's root."""


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


def readExamples(text: str) -> list[str]:
    """The folders in L{EXAMPLES} that a text links to."""
    return re.findall(r"\]\(examples/([\w-]+)\)", text)


def readFiles(text: str) -> list[str]:
    """The files of the examples that a text links to, by their paths in a machine."""
    folders = [EXAMPLES / name for name in readExamples(text)]
    return [
        f"/{file.relative_to(folder)}"
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file()
    ]


def readSteps(text: str) -> list[Step]:
    """The commands in a text, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.M | re.S)
    steps = re.findall(r"^# (.*)\n((?:(?!# ).*\n)*)", "".join(blocks), re.M)
    return [Step(*step) for step in steps]


def copyExamples(machine: Machine, text: str) -> None:
    """Copy a text's examples to the machine's root, and have systemd read the units."""
    folders = [f"{SOURCE}/docs/examples/{name}/." for name in readExamples(text)]
    machine.run("cp", "--recursive", *folders, "/")
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
