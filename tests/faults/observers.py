"""
Log observers for C{twistd --logger}, with which a test reads a server's log.

Servers import this module; tests do not.
"""

from __future__ import annotations

import os
import sys

from twisted.logger import ILogObserver, jsonFileLogObserver

from fastpoetry.systemd.journal import JournalObserver


def records() -> ILogObserver:
    """
    Write each event as a line of JSON to standard output, which the test has redirected to a file.
    """
    assert sys.__stdout__ is not None
    observer: ILogObserver = jsonFileLogObserver(sys.__stdout__, recordSeparator="")
    return observer


def journal() -> ILogObserver:
    """The journal observer, with the test's socket in place of journald's."""
    return JournalObserver("fastpoetry", os.environ["FAULTS_JOURNAL"])
