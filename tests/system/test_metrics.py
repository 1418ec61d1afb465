"""Tests for the metrics as the manual page sets them up, read by Debian's own Prometheus tools."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from system.conftest import SOURCE, Layers, startMachine
from system.machine import Machine, waitFor
from system.roots import runApt

SOCKET = "fastpoetry-metrics@ecstasy.socket"
ENVIRONMENT = "/etc/fastpoetry/fastpoetry@ecstasy.env"
PORT = "[Socket]\nListenStream=127.0.0.1:10017\n"
ASKS = "Accept: application/openmetrics-text; version=1.0.0"


@pytest.fixture(scope="module")
def metered(release: str, packageRoot: Layers) -> Iterator[Machine]:
    """A machine with Debian's Prometheus, which does not run."""
    with closing(startMachine(packageRoot, f"{release}-metered")) as machine:
        yield machine


def setUp(machine: Machine) -> None:
    """Follow the manual page."""
    machine.path(ENVIRONMENT).write_text("OPTIONS=--metrics=adopted:name=metrics\n")
    folder = machine.path(f"/etc/systemd/system/{SOCKET}.d")
    folder.mkdir(exist_ok=True)
    (folder / "override.conf").write_text(PORT)
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", SOCKET)
    machine.systemctl("restart", "fastpoetry@ecstasy")


def get(machine: Machine, *options: str) -> str:
    """curl's output for a request of the metrics."""
    return machine.run("curl", "-sS", *options, "http://127.0.0.1:10017/metrics").stdout


def readSamples(machine: Machine) -> dict[str, float]:
    """The metrics, as names and values."""
    lines = [each.rpartition(" ") for each in get(machine).splitlines() if each[0] != "#"]
    return {name: float(value) for name, _, value in lines}


def test_off(metered: Machine) -> None:
    """By default the metrics socket is not enabled, and starting a poem starts no metrics."""
    metered.systemctl("start", "fastpoetry@ecstasy")
    state = metered.run("systemctl", "is-enabled", SOCKET, check=False).stdout.strip()
    assert (state, metered.show(SOCKET, "ActiveState")) == ("disabled", "inactive")


def test_manual(metered: Machine) -> None:
    """
    After the setup on the page, a restart of the running service opens the metrics, on TCP and on
    the UNIX socket. promtool finds no fault in them.
    """
    metered.systemctl("start", "fastpoetry@ecstasy")
    setUp(metered)
    for _ in range(3):
        metered.fetch("127.0.0.1", "10000")
    for way in ((), ("--unix-socket", "/run/fastpoetry/ecstasy.metrics.sock")):
        assert "\nfastpoetry_poems_total 3.0\n" in get(metered, *way)
    look = "curl -sS http://127.0.0.1:10017/metrics | promtool check metrics"
    checked = metered.run("sh", "-c", look, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert get(metered, "-H", ASKS).endswith("\n# EOF\n")


SCRAPING = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: poems
    static_configs:
      - targets: ["127.0.0.1:10017"]
"""


def test_prometheus(metered: Machine) -> None:
    """A real Prometheus reads the counts, even with 100 silent clients."""
    setUp(metered)
    metered.fetch("127.0.0.1", "10000")
    metered.path("/run/scraping.yml").write_text(SCRAPING)
    silent = "for each in $(seq 100); do nc -d 127.0.0.1 10017 & done; wait"
    options = ("--config.file=/run/scraping.yml", "--storage.tsdb.path=/run/scraped")
    listen = "--web.listen-address=127.0.0.1:9091"
    metered.systemctl("reset-failed")
    metered.run("systemd-run", "--unit=silent", "sh", "-c", silent)
    metered.run("systemd-run", "--unit=scraping", "/usr/bin/prometheus", *options, listen)
    asked = "http://127.0.0.1:9091/api/v1/query?query=fastpoetry_poems_total"
    try:
        waitFor(
            lambda: ',"1"]' in metered.run("curl", "-sS", asked, check=False).stdout,
            "the count of one poem in Prometheus",
            60,
        )
    finally:
        metered.systemctl("stop", "scraping")


def test_reload(metered: Machine) -> None:
    """A reload is counted, and the poem has the time of the reload."""
    setUp(metered)
    name = 'fastpoetry_poem_timestamp_seconds{source="poem ecstasy"}'
    before = readSamples(metered)
    metered.systemctl("reload", "fastpoetry@ecstasy")
    after = readSamples(metered)
    assert after['fastpoetry_reloads_total{result="done",source="poem ecstasy"}'] == 1.0
    assert before[name] < after[name] <= after[name.replace("poem", "reload", 1)]


def test_notAsked(metered: Machine) -> None:
    """
    A metrics socket whose service lacks the option is refused, and the refusal names the option;
    the poem is served all the same.
    """
    setUp(metered)
    metered.systemctl("stop", "fastpoetry*.socket")
    metered.path(ENVIRONMENT).write_text("OPTIONS=--journal-budget=0\n")
    assert metered.run("systemctl", "start", SOCKET, check=False).returncode != 0
    said = [record["MESSAGE"] for record in metered.journal("--boot", f"--unit={SOCKET}")]
    assert f"fastpoetry: no --metrics=adopted:name=metrics in OPTIONS= of {ENVIRONMENT}" in said
    metered.systemctl("start", "fastpoetry@ecstasy")
    assert metered.fetch("127.0.0.1", "10000")


def test_running(metered: Machine) -> None:
    """
    While its service runs, a socket cannot be started. The refusal names the command that starts
    the socket. The same command is to be run after an edit.
    """
    setUp(metered)
    metered.systemctl("disable", "--now", SOCKET)
    metered.path(ENVIRONMENT).unlink()
    metered.systemctl("restart", "fastpoetry@ecstasy")
    metered.path(ENVIRONMENT).write_text("OPTIONS=--metrics=adopted:name=metrics\n")
    assert metered.run("systemctl", "enable", "--now", SOCKET, check=False).returncode != 0
    said = [record["MESSAGE"] for record in metered.journal("--boot", f"--unit={SOCKET}")]
    named = re.findall(r"^Failed .*\(opened by: systemctl (.*)\)", "\n".join(said), re.MULTILINE)
    metered.systemctl(*named[-1].split())
    assert "fastpoetry_poems_total" in get(metered)
    edit = metered.path(f"/etc/systemd/system/{SOCKET}.d/override.conf")
    edit.write_text(PORT.replace("10017", "10018"))
    metered.systemctl("daemon-reload")
    metered.systemctl("stop", SOCKET)
    metered.systemctl("restart", "fastpoetry@ecstasy")
    text = metered.run("curl", "-sS", "http://127.0.0.1:10018/metrics").stdout
    assert "fastpoetry_poems_total" in text


def test_users(metered: Machine) -> None:
    """Only root can use the UNIX socket."""
    setUp(metered)
    path = "/run/fastpoetry/ecstasy.metrics.sock"
    command = ("curl", "-sS", "--unix-socket", path, "http://x/metrics")
    assert "fastpoetry_poems_total" in metered.run(*command).stdout
    nobody = metered.run(
        "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command, check=False
    )
    assert nobody.returncode != 0


def test_alerts(metered: Machine) -> None:
    """Prometheus accepts the example's alerts, and each fires for the condition in its name."""
    rules = f"{SOURCE}/packaging/examples/prometheus/fastpoetry.rules.yml"
    assert "6 rules found" in metered.run("promtool", "check", "rules", rules).stdout
    metered.run("promtool", "test", "rules", f"{SOURCE}/tests/alerts.yml")


def test_missing(metered: Machine) -> None:
    """Without the needed package the service prints one line that names it, and ends."""
    setUp(metered)
    runApt(metered, "remove", "python3-prometheus-client")
    metered.run("systemctl", "restart", "fastpoetry@ecstasy", check=False)
    shown = metered.run("systemctl", "status", "fastpoetry@ecstasy", check=False).stdout
    assert "fastpoetry: --metrics adopted:name=metrics: needs prometheus_client" in shown
