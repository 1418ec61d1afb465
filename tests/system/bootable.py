"""
Which releases of Debian can be booted here, asked once for all tests of a run.

    python -m system.bootable RELEASE ...

Prints the names on one line. Says in another, on standard error, why it leaves some out. In CI,
where nobody would read that, it fails.
"""

from __future__ import annotations

import os
import sys

from system.roots import findObstacle


def main(*releases: str) -> int:
    """
    Print which can be booted.

    @return: the exit status.
    """
    obstacle = findObstacle()
    if obstacle is None:
        print(*releases)
        return 0
    print(f"Without the tests on {' and '.join(releases)}: {obstacle}", file=sys.stderr)
    return 1 if os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
