"""
Which releases of Debian can be booted here, asked once for all tests of a run.

    python -m system.bootable RELEASE ...

Prints the names on one line. Says on standard error, in one line each, why it leaves some out. In
CI, where nobody would read that, it fails instead; there it leaves out Debian's next release alone,
if no mirror has that.
"""

from __future__ import annotations

import os
import sys

from system.machine import MachineError
from system.roots import findObstacle, findRoot

NEXT = "sid"


def main(*releases: str) -> int:
    """
    Print which can be booted.

    @return: the exit status.
    """
    obstacle = findObstacle()
    if obstacle is not None:
        print(f"Without the tests on {' and '.join(releases)}: {obstacle}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    print(*(each for each in releases if each != NEXT or isThere(each)))
    return 0


def isThere(release: str) -> bool:
    """Whether a mirror has a release; if not, it says so."""
    try:
        findRoot(release, "minimal")
    except MachineError as why:
        print(f"Without the tests on {release}: {why}".replace("\n", "; "), file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
