"""Tests for L{fastpoetry.command.preflight}: whether Twisted's endpoints could listen."""

from __future__ import annotations

import errno
import gc
import os
import socket

from fakes import FakeEndpoint, asNobody, countDescriptors, makeFolder, write
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.command.preflight import Preflight


class PreflightCase(SynchronousTestCase):
    """A test case with a check, and ports in use."""

    def setUp(self) -> None:
        gc.collect()  # or sockets that earlier tests left open close during this test
        before = countDescriptors()
        self.addCleanup(lambda: self.assertEqual(countDescriptors(), before))
        self.preflight = Preflight()
        self.addCleanup(self.preflight.close)

    def endpoint(self, description: str) -> IStreamServerEndpoint:
        """@return: an endpoint of Twisted."""
        endpoint: IStreamServerEndpoint = serverFromString(MemoryReactor(), description)
        return endpoint

    def check(self, *descriptions: str) -> None:
        """Check that the endpoints can listen."""
        for each in descriptions:
            self.preflight.check(self.endpoint(each))

    def refusal(self, description: str) -> str:
        """@return: the refusal of an endpoint."""
        why = self.assertRaises(OSError, self.check, description)
        return str(why.strerror)

    def taken(self, family: int = socket.AF_INET) -> tuple[socket.socket, int]:
        """@return: a listening socket, and its port."""
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as every server does
        listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()
        return listening, listening.getsockname()[1]

    def free(self) -> str:
        """@return: the description of a free port."""
        listening, port = self.taken()
        listening.close()
        return f"tcp:{port}:interface=127.0.0.1"


class PortTests(PreflightCase):
    """Tests for TCP ports."""

    def test_taken(self) -> None:
        """A port in use is refused, even for a wrapped endpoint."""
        _, port = self.taken()
        own = f"tcp:{port}:interface=127.0.0.1"
        for description in (own, f"haproxy:{own}", f"haproxy:haproxy:{own}"):
            self.assertEqual(self.refusal(description), "Address already in use")

    def test_takenTLS(self) -> None:
        """A port in use is refused for TLS."""
        _, port = self.taken()
        endpoint = SSL4ServerEndpoint(MemoryReactor(), port, None, interface="127.0.0.1")
        why = self.assertRaises(OSError, self.preflight.check, endpoint)
        self.assertEqual(why.errno, errno.EADDRINUSE)

    def test_takenIPv6(self) -> None:
        """A port in use is refused for IPv6."""
        _, port = self.taken(socket.AF_INET6)
        refusal = self.refusal(rf"tcp6:{port}:interface=\:\:1")
        self.assertEqual(refusal, "Address already in use")

    def test_twice(self) -> None:
        """A free port is held until the check is over, so that two endpoints cannot have it."""
        own = self.free()
        self.check(own)
        self.assertEqual(self.refusal(own), "Address already in use")

    def test_notHeld(self) -> None:
        """After the check the port is free for the service."""
        own = self.free()
        self.check(own)
        self.preflight.close()
        self.check(own)

    def test_justLeft(self) -> None:
        """A port whose listener has just ended is free, whatever connections linger."""
        listening, port = self.taken()
        with socket.create_connection(listening.getsockname()) as client:
            listening.accept()[0].close()
            client.recv(1)
        listening.close()
        self.check(f"tcp:{port}:interface=127.0.0.1")

    def test_any(self) -> None:
        """Port 0 may be used any number of times."""
        self.check(*["tcp:0:interface=127.0.0.1"] * 3)

    def test_notOurs(self) -> None:
        """An interface of another machine is refused."""
        refusal = self.refusal("tcp:0:interface=192.0.2.1")
        self.assertEqual(refusal, "Cannot assign requested address")

    def test_outOfRange(self) -> None:
        """An invalid port number is refused."""
        refusal = self.refusal("tcp:65536:interface=127.0.0.1")
        self.assertEqual(refusal, "not a port from 0 to 65535")


class PathTests(PreflightCase):
    """Tests for the paths of UNIX sockets."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = makeFolder(self)
        self.path = os.path.join(self.folder, "s")

    def test_noFolder(self) -> None:
        """A path into a missing folder is refused."""
        self.assertEqual(self.refusal("unix:/nowhere/s"), "No such file or directory")

    def test_file(self) -> None:
        """A path with a regular file is refused, and the file stays."""
        path = write(self.folder, "ecstasy.txt")
        self.assertEqual(self.refusal(f"unix:{path}"), "File exists")
        self.assertTrue(os.path.exists(path))

    def test_closedFolder(self) -> None:
        """A path into a folder without write permission is refused."""
        with asNobody(self.folder, 0o555):
            self.assertEqual(self.refusal(f"unix:{self.path}"), "Permission denied")

    def test_taken(self) -> None:
        """A path with a listening socket is refused."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            self.assertEqual(self.refusal(f"unix:{self.path}"), "Address already in use")

    def test_full(self) -> None:
        """A path is refused in the same way while no more clients can wait there."""
        with (
            socket.socket(socket.AF_UNIX) as listening,
            socket.socket(socket.AF_UNIX) as first,
        ):
            listening.bind(self.path)
            listening.listen(0)
            first.connect(self.path)
            self.assertEqual(self.refusal(f"unix:{self.path}"), "Address already in use")

    def test_twice(self) -> None:
        """A path that is asked for twice is refused, however it is written."""
        self.check(f"unix:{self.path}")
        same = os.path.relpath(self.path)
        self.assertEqual(self.refusal(f"unix:{same}"), "Address already in use")

    def test_long(self) -> None:
        """A path that is too long for a socket is refused."""
        self.assertEqual(self.refusal(f"unix:{self.path}{'x' * 107}"), "File name too long")

    def leave(self, owner: str = "") -> None:
        """
        Leave a socket behind.

        @param owner: the content of its lock, if there is one.
        """
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
        if owner:
            os.symlink(owner, f"{self.path}.lock")

    def test_leftover(self) -> None:
        """A leftover socket does not count as in use, and is removed."""
        self.leave()
        self.check(f"unix:{self.path}")
        self.assertEqual(os.listdir(self.folder), [])

    def test_lock(self) -> None:
        """
        The lock of a leftover socket is removed too, even if its process ID now belongs to another
        process or to ours, or is invalid.
        """
        for owner in ("1", str(os.getpid()), "twistd"):
            self.leave(owner)
            Preflight().check(self.endpoint(f"unix:{self.path}"))
            self.assertEqual(os.listdir(self.folder), [])

    def test_lockAlone(self) -> None:
        """A lock without a socket is removed."""
        os.symlink("1", f"{self.path}.lock")
        self.check(f"unix:{self.path}")
        self.assertEqual(os.listdir(self.folder), [])

    def test_lockOfListener(self) -> None:
        """The lock of a listening process stays."""
        os.symlink("1", f"{self.path}.lock")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            self.assertEqual(self.refusal(f"unix:{self.path}"), "Address already in use")
        self.assertEqual(len(os.listdir(self.folder)), 2)

    def test_free(self) -> None:
        """A free path is not created yet."""
        self.check(f"unix:{self.path}")
        self.assertFalse(os.path.exists(self.path))


class KindTests(PreflightCase):
    """Tests for the kinds of endpoints that are checked."""

    def test_unknown(self) -> None:
        """An endpoint of an unknown kind passes unchecked."""
        endpoint = FakeEndpoint()
        self.preflight.check(endpoint)
        self.assertEqual(endpoint.factories, [])

    def test_partsMissing(self) -> None:
        """An endpoint of a known kind is refused if this version of Twisted has moved its parts."""
        for description, name in (
            ("tcp:0", "_port"),
            ("tcp:0", "_interface"),
            ("tcp6:0", "_port"),
            ("unix:/run/x", "_address"),
            ("haproxy:tcp:0", "_wrappedEndpoint"),
        ):
            endpoint = self.endpoint(description)
            delattr(endpoint, name)
            why = self.assertRaises(AttributeError, self.preflight.check, endpoint)
            self.assertIn(name, str(why))
