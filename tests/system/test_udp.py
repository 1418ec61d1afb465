"""Tests for C{packaging/tac/poetry-udp.tac} with a unit's sockets, of both kinds."""

from __future__ import annotations

from system.conftest import SOURCE
from system.machine import Machine
from system.test_serving import read

_SOCKET = """
[Socket]
ListenStream=127.0.0.1:1017
ListenDatagram=127.0.0.1:1017
IPAddressDeny=any
IPAddressAllow=localhost
"""

_SERVICE = f"""
[Service]
Type=notify
ExecStart=/usr/bin/twistd3 --nodaemon --pidfile= --python {SOURCE}/packaging/tac/poetry-udp.tac
DynamicUser=yes
PrivateNetwork=yes
"""

_ASK = """
import socket
with socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(30)
    client.sendto(b"", ("127.0.0.1", 1017))
    print(client.recv(1000).decode(), end="")
"""


def test_bothKinds(machine: Machine) -> None:
    """A datagram or a connection starts the service, and is answered."""
    units = machine.path("/run/systemd/system")
    units.joinpath("fastpoetry-udp.socket").write_text(_SOCKET)
    units.joinpath("fastpoetry-udp.service").write_text(_SERVICE)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "fastpoetry-udp.socket")
    answer = machine.run("python3", "-c", _ASK).stdout.encode()
    poem = read("ecstasy")
    assert poem.startswith(answer)
    assert 400 < len(answer) <= 512
    assert answer.endswith(b"\n")
    assert machine.fetch("127.0.0.1", "1017") == poem
    assert machine.journal("--unit=fastpoetry-udp", "--priority=warning") == []
