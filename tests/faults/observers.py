"""
Log observers for C{twistd --logger}, so that a test reads what a server logs.

Imported by the servers, never by the tests.
"""

from __future__ import annotations

import os
import sys

from twisted.logger import ILogObserver, jsonFileLogObserver

from fastpoetry.systemd.journal import JournalObserver


def records() -> ILogObserver:
    """Each event as a line of JSON on the standard output, which the test has made a file."""
    assert sys.__stdout__ is not None
    observer: ILogObserver = jsonFileLogObserver(sys.__stdout__, recordSeparator="")
    return observer


def journal() -> ILogObserver:
    """The journal's observer, with a socket of the test's in the place of journald's."""
    return JournalObserver("fastpoetry", os.environ["FAULTS_JOURNAL"])
