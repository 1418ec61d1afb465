"""
C{make lives}: random lives of servers and proxies with new seeds, until it is stopped or a life
breaks a promise.

PYTHONPATH=tests python -m lives.run [SEED]

Prints the seed, the number of lives a second, and the number of each event. A life that breaks a
promise is reduced to the smallest one that does, printed as a program, and ends the run.
"""

from __future__ import annotations

import random
import sys
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from twisted.logger import globalLogBeginner

from lives.machine import EVENTS, Life, ProxyLife

_LIVES = 200


def main() -> None:
    """Run lives by the hundred, until interrupted."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    fixed = [int(word) for word in sys.argv[1:]]
    lives = 0
    began = time.monotonic()
    try:
        while True:
            number = fixed.pop() if fixed else random.randrange(2**32)
            print(f"seed {number}", flush=True)
            for life in (Life, ProxyLife):
                run_state_machine_as_test(seed(number)(life), settings=_SETTINGS)
                lives += _LIVES
                rate = lives / (time.monotonic() - began)
                print(f"{rate:.0f} lives/s, {lives} in all", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        for event, count in sorted(EVENTS.items()):
            print(f"{count:10,} {event}")


_SETTINGS = settings(
    max_examples=_LIVES,
    stateful_step_count=40,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


if __name__ == "__main__":
    main()
