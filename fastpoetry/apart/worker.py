"""
The program that L{fastpoetry.apart.process} starts. It does one piece of work, and ends.

This module and the work's module import very little, since each import delays each reload.
"""

from __future__ import annotations

import marshal
import sys

VERSION = 4
"""The version of C{marshal}'s format. Python may be upgraded while a server runs."""


class WorkError(Exception):
    """Work that failed: one line that tells an administrator the cause."""


def main() -> None:
    """
    Do the work that stdin describes, and write its result to stdout.

    stdin has the module, the name and the arguments of a function. stdout gets whether the function
    returned, and its result or one line with its error.
    """
    module, name, arguments = marshal.load(sys.stdin.buffer)
    try:
        answer = True, getattr(__import__(module, fromlist=[name]), name)(*arguments)
    except WorkError as why:
        answer = False, str(why)
    except Exception as why:
        answer = False, repr(why)
    # Standard error is the same file. The loader (LD_PRELOAD) or Python may have written there.
    sys.stdout.buffer.seek(0)
    sys.stdout.buffer.truncate()
    sys.stdout.buffer.write(marshal.dumps(answer, VERSION))
