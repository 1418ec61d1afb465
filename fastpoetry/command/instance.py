"""
Checks that an instance of our units has a poem to serve, before its socket listens.

Looks for the file with the name of the instance, and suggests the nearest name if it is missing.
The service checks the content. Only systemd runs this. It imports no Twisted, since each boot
waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from fastpoetry.apart.poems import DEFAULT_POETRY_PATH, PoemError, findFolder, listNames

PROXY_FOLDER = "/etc/fastpoetry/proxy"


def findPoem(name: str, options: Sequence[str]) -> None:
    """
    Find the poem of a server.

    @param options: the rest of its command line, which may set another poetry path.
    @raise PoemError: if there is no poem with that name.
    """
    path = DEFAULT_POETRY_PATH
    if options:
        from argparse import ArgumentError, ArgumentParser

        parser = ArgumentParser(add_help=False, exit_on_error=False)
        parser.add_argument("--poetry-path")
        with suppress(ArgumentError):  # the service reports a wrong option
            path = parser.parse_known_args(options)[0].poetry_path or path
    hint = f"put the file into {path.split(':')[0]}, and use its name without .txt"
    findFolder(name, [folder for folder in path.split(":") if folder], hint)


def findProxy(name: str, folder: str = PROXY_FOLDER) -> None:
    """
    Find the file of a proxy.

    @raise PoemError: if it is missing.
    """
    if not os.path.lexists(f"{folder}/{name}.env"):
        entries = os.listdir(folder) if os.path.isdir(folder) else []
        there = [each.removesuffix(".env") for each in entries if each.endswith(".env")]
        raise PoemError(
            f"no {folder}/{name}.env, where UPSTREAM= says whose poem to serve; "
            + listNames(name, there)
        )


def main(unit: str, name: str, *options: str) -> None:
    """
    Find what an instance serves. If it is missing, log the cause under the name of its service.

    People start the service. systemd tells them only that a dependency failed.

    @param unit: C{fastpoetry} or C{fastpoetry-proxy}.
    @param name: of the instance, from systemd.
    @raise SystemExit: if it is missing.
    """
    try:
        if unit == "fastpoetry":
            findPoem(name, options)
        else:
            findProxy(name)
    except PoemError as why:
        line = f"fastpoetry: {why}"
        if "JOURNAL_STREAM" not in os.environ:
            raise SystemExit(line) from None
        from systemd import journal

        # journalctl and systemctl status then show the line for the service, too. They believe
        # this field only from root (systemd.journal-fields(7)).
        journal.send(
            line,
            MESSAGE_ID="b83c73a7a3594e89a9dbc2e1756b7d16",
            PRIORITY=3,
            SYSLOG_IDENTIFIER="fastpoetry",
            SYSLOG_FACILITY=3,
            OBJECT_SYSTEMD_UNIT=f"{unit}@{name}.service",
        )
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
