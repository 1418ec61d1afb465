"""
Finds out which releases of Debian can be booted here, once for all tests of a run.

python -m system.bootable RELEASE ...

Prints their names on one line, and on standard error a line for each release that is left out. In
CI no person would read that line, so the command fails instead. Only Debian's next release is also
left out in CI, if no mirror has it.
"""

from __future__ import annotations

import os
import sys

from system.machine import MachineError
from system.roots import findObstacle, findRoot

NEXT = "sid"


def main(*releases: str) -> int:
    """
    Print the releases that can be booted.

    @return: the exit status.
    """
    obstacle = findObstacle()
    if obstacle is not None:
        print(f"Without the tests on {' and '.join(releases)}: {obstacle}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    print(*(each for each in releases if each != NEXT or isThere(each)))
    return 0


def isThere(release: str) -> bool:
    """Whether a mirror has a release; if not, print that."""
    try:
        findRoot(release, "minimal")
    except MachineError as why:
        print(f"Without the tests on {release}: {why}".replace("\n", "; "), file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
