"""
The program that L{fastpoetry.apart.process} starts: does one piece of work, and ends.

It and the module of the work import next to nothing: each import delays each reload.
"""

from __future__ import annotations

import marshal
import sys

VERSION = 4
"""The version of C{marshal}'s format. Python may be upgraded while a server runs."""


class WorkError(Exception):
    """Work that failed: one line for the person who can mend it."""


def main() -> None:
    """
    Do the work that stdin describes, and write what comes of it to stdout.

    stdin has the module, the name and the arguments of a function. stdout gets whether it returned,
    and its result or one line that says why it failed.
    """
    module, name, arguments = marshal.load(sys.stdin.buffer)
    try:
        answer = True, getattr(__import__(module, fromlist=[name]), name)(*arguments)
    except WorkError as why:
        answer = False, str(why)
    except Exception as why:
        answer = False, repr(why)
    sys.stdout.buffer.write(marshal.dumps(answer, VERSION))
