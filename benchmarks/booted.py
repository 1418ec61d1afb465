"""
Measure starts and restarts on booted Debians, with the package installed.

    booted.py [RELEASE ...]

Prints the wait of the first reader when the service is down, from its connection to the last byte.
Prints the longest wait of a newcomer for its first byte while the service restarts, with and
without readers held in mid-poem. Prints the time of C{twistd3 --version} beside each.
Writes the figures to booted.json and to the public text. Needs what the system tests need, and
uses their machines.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import report
from peers import HERE
from system.machine import Machine
from system.package import buildPackage, installPackage
from system.roots import findRoot

_POEM = "/etc/fastpoetry/poetry/ecstasy.txt"

# Runs in the machine: a reader must not wait for us to get in there.
_MEASURE = f"""
import json, resource, socket, subprocess, threading, time
from statistics import median

SERVICE = "fastpoetry@ecstasy.service"
files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

def systemctl(verb, unit=SERVICE):
    subprocess.run(["systemctl", verb, unit], check=True)

def version():
    begin = time.monotonic()
    subprocess.run(["twistd3", "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin

def first():
    systemctl("stop")
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", 10000)) as reader:
        while reader.recv(65536):
            pass
    return time.monotonic() - begin

def hold(count):
    held = []
    for number in range(count):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        reader.bind(("127.0.1.%d" % (number % 100 + 1), 0))  # no more than a source may have
        reader.connect(("127.0.0.1", 10000))
        held.append(reader)
    for reader in held:
        reader.recv(1)  # each of them is under way
    return held

def restart(count):
    held = hold(count)
    over = threading.Event()
    waits = []

    def come():
        while not over.is_set():
            begin = time.monotonic()
            with socket.create_connection(("127.0.0.1", 10000)) as reader:
                if not reader.recv(1):
                    raise SystemExit("a newcomer got nothing")
            waits.append(time.monotonic() - begin)
            time.sleep(0.01)

    newcomers = threading.Thread(target=come)
    newcomers.start()
    systemctl("restart")
    over.set()
    newcomers.join()
    for reader in held:
        reader.close()
    return max(waits)

def typical(measure, *arguments, rounds):
    measure(*arguments)
    return median(measure(*arguments) for _ in range(rounds)) * 1000

systemctl("start", "fastpoetry@ecstasy.socket")
found = dict(version=typical(version, rounds=11), first=typical(first, rounds=11))
with open({_POEM!r}, "w") as poem:
    poem.write("a line of a poem that is long enough to be under way\\n" * 20000)
systemctl("reload")
for count in (0, 1000):
    found[f"restart {{count}}"] = typical(restart, count, rounds=3)
print(json.dumps(found))
"""


def main() -> None:
    """Measure each release in turn, so that they do not disturb each other."""
    results = HERE / "booted.json"
    figures = json.loads(results.read_text())
    with tempfile.TemporaryDirectory() as folder:
        package = buildPackage(Path(folder))
        for release in sys.argv[1:] or ("bookworm", "trixie"):
            machine = Machine(findRoot(release, "package"), f"bench-{release}")
            machine.start()
            with closing(machine):
                installPackage(machine, package)
                told = machine.run("python3", "-c", _MEASURE, seconds=300)
            found = json.loads(told.stdout)
            print(
                "{}: first reader {first:.0f} ms; longest wait of a newcomer over a restart "
                "{restart 0:.0f} ms, with 1,000 readers held {restart 1000:.0f} ms; "
                "twistd3 --version {version:.0f} ms".format(release, **found),
                flush=True,
            )
            figures[release] = found
    results.write_text(json.dumps(figures, indent=1) + "\n")
    report.write(HERE)


if __name__ == "__main__":
    main()
