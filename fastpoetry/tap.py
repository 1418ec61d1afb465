"""The twistd command C{fastpoetry}: its options, and the service that they describe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService

from fastpoetry.apart.poems import DEFAULT_POETRY_PATH
from fastpoetry.apart.process import startInProcess
from fastpoetry.apart.worker import WorkError
from fastpoetry.command.options import CommandOptions, refuse
from fastpoetry.poem import Anthology, PoemAt, PoemNamed, Selection
from fastpoetry.service import PoetryService

_PACKAGE = Path(__file__).resolve().parent


class Options(CommandOptions):
    """
    The command line of C{twistd fastpoetry}.

    With a single block, C{self["poem"]} is the value of --poem, as in the tutorial.
    """

    synopsis = "[--poem NAME|PATH | --anthology] [--port PORT | --listen ENDPOINT] ..."
    longdesc = (
        "Sends a poem to each client and closes the connection. Each --poem or --anthology opens "
        "a block; the port and endpoints that follow belong to that block."
    )
    command = "fastpoetry"
    opens = "--poem or --anthology"

    def opt_poem(self, value: str) -> None:
        """Serve a poem: a value with a slash is a path, any other is a name along --poetry-path."""
        self.openBlock(f"--poem {value}", value)

    def opt_anthology(self) -> None:
        """Serve every poem along --poetry-path: each reader gets a random one."""
        self.openBlock("--anthology")

    def opt_poetry_path(self, value: str) -> None:
        """
        Search these folders for poems, in this order; a colon separates them [default:
        /etc/fastpoetry/poetry, /usr/share/fastpoetry/poetry, then the folder of pip or the clone].
        """
        self.setOnce("--poetry-path", "poetryPath", value)

    def postOptions(self) -> None:
        """Make each block's selection of poems from its option."""
        super().postOptions()
        if len(self.blocks) == 1:
            self["poem"] = self.blocks[0].value
        path = self.get("poetryPath", findPoetryPath())
        folders = [os.path.abspath(folder) for folder in path.split(":") if folder]
        if not folders:
            refuse(f"--poetry-path {path}: names no folder")
        for block in self.blocks:
            block.selection = _select(block.value, folders)


def findPoetryPath(deployment: str | None = None) -> str:
    """
    Return the poetry path that applies without --poetry-path.

    @param deployment: a file in C{packaging/tac} of a clone, whose poems then come first.
    """
    if deployment is not None:
        poems = os.path.abspath(os.path.join(deployment, "../../../poetry"))
        return f"{poems}:{findPoetryPath()}"
    isClone = (_PACKAGE.parent / "pyproject.toml").exists()
    poetry = (_PACKAGE.parent if isClone else _PACKAGE) / "poetry"  # a wheel has it in the package
    return f"{DEFAULT_POETRY_PATH}:{poetry}" if poetry.is_dir() else DEFAULT_POETRY_PATH


def makeService(options: Options, reactor: Any = None, clock: Any = None) -> MultiService:
    """
    Make the service that the options describe.

    @param options: parsed.
    @param reactor: for tests; by default twistd's.
    @param clock: for tests; by default one that ignores steps of the wall clock.
    @raise SystemExit: if a poem cannot be read, or an endpoint cannot listen.
    """
    # Other processes check that the poems can be read, while this one imports Twisted's sockets.
    # startService reads the poems, inside twistd's --chroot.
    with options.asServer():
        checks = [
            startInProcess(block.selection.reading, str(block.selection))
            for block in options.blocks
        ]
    from fastpoetry.command.assembly import assemble, withClock

    reactor, timed = withClock(reactor, clock)
    for block, finish in zip(options.blocks, checks, strict=True):
        try:
            with options.asServer():
                finish()
        except WorkError as why:
            refuse(f"{block.option}: {why}")
    return assemble(options, lambda block: PoetryService(block.selection, timed), reactor, timed)


def _select(value: str | None, folders: list[str]) -> Selection:
    if value is None:
        return Anthology(folders)
    if "/" in value:
        return PoemAt(os.path.abspath(value))
    return PoemNamed(value, folders)
