"""Tests for one boot of a machine on which everything is enabled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from messages import TOOK_OVER

from system import test_handover, test_metrics
from system.conftest import Layers, startMachine
from system.machine import Machine, MachineError
from system.test_handover import copies, holding, text
from system.test_refusals import listLeft
from system.test_serving import ECSTASY, read


@pytest.fixture(scope="module")
def rebooted(release: str, packageRoot: Layers) -> Iterator[Machine]:
    """
    A machine after a boot. One enabled poem has metrics. The file of another enabled poem is gone.
    Readers of a third poem were handed over before the boot.
    """
    with closing(startMachine(packageRoot, f"{release}-rebooted")) as machine:
        machine.path("/etc/fastpoetry/poetry/mine.txt").write_text("mine\n")
        machine.systemctl("enable", "fastpoetry@mine", "fastpoetry@ecstasy.socket")
        machine.path("/etc/fastpoetry/poetry/mine.txt").unlink()
        test_metrics.setUp(machine)
        machine.path(test_handover.POEM).write_bytes(text(0))
        machine.systemctl("start", test_handover.SERVICE)
        with holding(machine, "stopped=5", *copies(machine, text(0))):
            machine.systemctl("restart", test_handover.SERVICE)
        with pytest.raises(MachineError, match=r"fastpoetry@mine\.socket"):
            machine.reboot()
        yield machine


def test_gone(rebooted: Machine) -> None:
    """An enabled poem whose file is gone has failed with a cause; no other unit of ours failed."""
    assert listLeft(rebooted) == {
        "fastpoetry@mine.socket",
        "fastpoetry@ecstasy.socket",
        test_metrics.SOCKET,
    }
    failed = rebooted.systemctl("--failed", "--plain", "--no-legend").splitlines()
    assert [line.split()[0] for line in failed] == ["fastpoetry@mine.socket"]
    status = rebooted.run("systemctl", "status", "--full", "fastpoetry@mine", check=False).stdout
    assert "fastpoetry: no poem mine in " in status


def test_metered(rebooted: Machine) -> None:
    """Metrics are served before the poem's first reader."""
    assert rebooted.show("fastpoetry@ecstasy.service", "ActiveState") == "inactive"
    assert "\nfastpoetry_poems_total 0.0\n" in test_metrics.get(rebooted)


def test_listens(rebooted: Machine) -> None:
    """An enabled socket listens again."""
    assert rebooted.show("fastpoetry@ecstasy.socket", "ActiveState") == "active"
    assert rebooted.fetch(*ECSTASY) == read("ecstasy")


def test_nobodyToTakeOver(rebooted: Machine) -> None:
    """No reader is taken over, and everything is as after any start."""
    rebooted.systemctl("start", test_handover.SERVICE)
    assert not rebooted.journal("--boot", f"MESSAGE_ID={TOOK_OVER}")
    assert "took over" not in rebooted.show(test_handover.SERVICE, "StatusText")
