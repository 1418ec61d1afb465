"""
Cold starts where they count: on booted Debians, with the package installed.

    booted.py [RELEASE ...]

Prints how long the first reader waits when the service is down, from its connection to the last
byte, beside what C{twistd3 --version} takes there: medians of eleven each. Needs what the system
tests need, and uses their machines.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from system.machine import Machine
from system.package import buildPackage, findPackage, installPackage
from system.roots import findRoot

_PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3-twisted", "python3-systemd")

# Runs in the machine: a reader must not wait for us to get in there.
_READER = """
import json, socket, subprocess, time
from statistics import median

def stop():
    subprocess.run(["systemctl", "stop", "fastpoetry@ecstasy.service"], check=True)

def read():
    with socket.create_connection(("127.0.0.1", 10000)) as reader:
        while reader.recv(65536):
            pass

def version():
    subprocess.run(["twistd3", "--version"], check=True, stdout=subprocess.DEVNULL)

def time_(do, before=lambda: None):
    def once():
        before()
        begin = time.monotonic()
        do()
        return time.monotonic() - begin
    once()
    return median(once() for _ in range(11)) * 1000

subprocess.run(["systemctl", "start", "fastpoetry@ecstasy.socket"], check=True)
print(json.dumps([time_(read, stop), time_(version)]))
"""


def main() -> None:
    """
    Measure each release in turn, so that they do not disturb each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = findPackage(buildPackage(Path(folder)))
        for release in sys.argv[1:] or ("bookworm", "trixie"):
            machine = Machine(findRoot(release, _PACKAGES), f"cold-{release}")
            machine.start()
            with closing(machine):
                installPackage(machine, package)
                told = machine.run("python3", "-c", _READER, seconds=120)
            reader, version = json.loads(told.stdout)
            print(f"{release}: first reader {reader:.0f} ms, twistd3 --version {version:.0f} ms")


if __name__ == "__main__":
    main()
