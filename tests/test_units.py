"""Tests that the units' settings agree with each other and with the program."""

from __future__ import annotations

from system.roots import CLONE

from fastpoetry.apart.poems import MAX_POEM_BYTES
from fastpoetry.delivery.limits import Limits

UNITS = CLONE / "packaging/systemd"


def test_limits() -> None:
    """The limits in the units leave room for the program's own limits."""
    limits = Limits()
    unit = readSettings("fastpoetry@")
    assert int(unit["LimitNOFILE"]) >= 2 * limits.maxReaders + 100
    assert float(unit["TimeoutStopSec"]) >= limits.drainSeconds + 5
    program, stopped = 50 * 1024**2, 320 * 1024
    most = program + 3 * MAX_POEM_BYTES + limits.maxReaders * stopped
    assert int(unit["MemoryMax"].removesuffix("G")) * 1024**3 >= most


def test_sameSettings() -> None:
    """
    The two services differ only in their names and in what they serve; the proxy also in its
    network and its copy. All share their drop-ins.
    """
    poem, quote, proxy = map(readSettings, ("fastpoetry@", "fastpoetry", "fastpoetry-proxy@"))
    named = {"Description", "Requires", "After", "Also", "ExecStart"}
    assert listDiffering(poem, quote) == named
    network = {"PrivateNetwork", "RestrictAddressFamilies", "IPAddressDeny"}
    copy = {"CacheDirectory", "CacheDirectoryMode"}
    source = {"Documentation", "Environment", "EnvironmentFile"}
    assert listDiffering(poem, proxy) == named | network | copy | source
    for name in ("fastpoetry", "fastpoetry-proxy@"):
        for drop in ("10-sandbox.conf", "20-service.conf"):
            ours, shared = (UNITS / f"{each}.service.d" / drop for each in (name, "fastpoetry@"))
            assert ours.read_bytes() == shared.read_bytes()
    announce = [each.read_bytes() for each in UNITS.glob("*.service.d/40-announce.conf")]
    assert (len(announce), len(set(announce))) == (2, 1)


def listDiffering(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """@return: the settings that two units do not share."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def readSettings(name: str) -> dict[str, str]:
    """@return: the settings of a service and of the drop-in for its running, grouped by name."""
    settings: dict[str, str] = {}
    parts = (f"{name}.service", f"{name}.service.d/20-service.conf")
    text = "".join((UNITS / part).read_text() for part in parts)
    for line in text.replace("\\\n", "").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[key] = f"{settings[key]}\n{value}" if key in settings else value
    return settings


def test_sockets() -> None:
    """No number of stops fails a socket, and neither does one that ends its check of the name."""
    sockets = [each.read_text() for each in UNITS.glob("fastpoetry*.socket")]
    assert len(sockets) == 4
    for text in sockets:
        assert "\nTriggerLimitBurst=200\n" in text
        signals = "\nKillSignal=SIGCONT\nFinalKillSignal=SIGCONT\n"
        assert (signals in text) == ("\nExecStartPre=" in text)


def test_waits() -> None:
    """The longest waits of a person or a reader are the shipped ones: other tests lower them."""
    pause = (UNITS / "fastpoetry-pause@.service").read_text()
    assert "exit-code|protocol) exec sleep 5 ;;" in pause
    shipped = {"WatchdogSec": "10", "TimeoutAbortSec": "5", "TimeoutStopSec": "30"}
    for name in ("fastpoetry@", "fastpoetry", "fastpoetry-proxy@"):
        unit = readSettings(name)
        assert {key: unit[key] for key in shipped} == shipped
        assert unit["RestartSec"] == "250ms"
