"""
A program that imports the server once and forks a process for each start.

Importing takes most of a start; without it a test has time for hundreds. The program itself serves
no client: each server is a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys

import twisted.internet.endpoints
import twisted.internet.epollreactor  # noqa: F401
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.scripts import twistd

import fastpoetry.command.assembly  # tap imports it when twistd makes the service
import fastpoetry.systemd.journal
import fastpoetry.tap  # noqa: F401


def main() -> None:
    """
    Read the lines C{start}, C{kill} and C{wait} until the input ends. Answer each with a number:
    the server's process ID, or its exit status.
    """
    list(getPlugins(IServiceMaker))  # twistd imports these modules to list its commands
    server = 0
    for line in sys.stdin:
        if line == "start\n":
            server = os.fork()
            if not server:
                _serve()
            print(server, flush=True)
        else:
            if line == "kill\n":
                os.kill(server, signal.SIGKILL)
            print(os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]), flush=True)
            server = 0
    if server:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _serve() -> None:
    """Become the server, with the descriptors that this program was passed."""
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=os.environ["FAULTS_FDS"])
    log = os.open(os.environ["FAULTS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(descriptor, number)
    try:
        twistd.run()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
