"""Tests for L{fastpoetry.delivery.addresses}."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.addresses import (
    Address,
    addressOf,
    formatHost,
    formatPeer,
    normalise,
    sourceOf,
)

MAPPED = ("::ffff:192.0.2.7", 40000, 0, 0)


class PeerTests(SynchronousTestCase):
    """Tests for L{formatPeer}."""

    def test_IPv4(self) -> None:
        """An IPv4 client is its host and port."""
        self.assertEqual(formatPeer(("192.0.2.7", 40000)), "192.0.2.7:40000")

    def test_IPv6(self) -> None:
        """An IPv6 client has brackets around its host, as in a URL."""
        self.assertEqual(formatPeer(("2001:db8::7", 40000, 0, 0)), "[2001:db8::7]:40000")

    def test_mapped(self) -> None:
        """An IPv4 client is itself on an IPv6 socket too; what only looks like one is not."""
        self.assertEqual(formatPeer(MAPPED), "192.0.2.7:40000")
        self.assertEqual(formatPeer(("::ffff:c000", 40000, 0, 0)), "[::ffff:c000]:40000")

    def test_UNIX(self) -> None:
        """The clients of a UNIX socket are all called the same."""
        self.assertEqual([formatPeer(each) for each in ("", b"", None)], ["unix"] * 3)  # type: ignore[arg-type]


class HostTests(SynchronousTestCase):
    """Tests for L{formatHost}."""

    def test_IP(self) -> None:
        """It is written as a client's address is."""
        self.assertEqual(formatHost(IPv4Address("TCP", "127.0.0.1", 17)), "127.0.0.1:17")
        self.assertEqual(formatHost(IPv6Address("TCP", "::", 17)), "[::]:17")

    def test_UNIX(self) -> None:
        """It is the path, of whatever bytes; or it has none."""
        self.assertEqual(formatHost(UNIXAddress(b"/run/\xff.sock")), "/run/\udcff.sock")
        self.assertEqual(formatHost(UNIXAddress(None)), "a UNIX socket without a name")


class SourceTests(SynchronousTestCase):
    """Tests for L{sourceOf}."""

    def isSame(self, first: Address, second: Address) -> bool:
        """@return: whether both are of one source."""
        return sourceOf(first) == sourceOf(second)

    def test_IPv4(self) -> None:
        """Each IPv4 address is one, whatever the port."""
        self.assertTrue(self.isSame(("192.0.2.7", 1), ("192.0.2.7", 2)))
        self.assertFalse(self.isSame(("192.0.2.7", 1), ("192.0.2.8", 1)))

    def test_IPv6(self) -> None:
        """Each /64 of IPv6 is one."""
        here: Address = ("2001:db8:0:1::1", 1, 0, 0)
        self.assertTrue(self.isSame(here, ("2001:db8:0:1:ffff::2", 1, 0, 0)))
        self.assertFalse(self.isSame(here, ("2001:db8:0:2::1", 1, 0, 0)))

    def test_linkLocal(self) -> None:
        """So is one of an interface, whose name comes with the address."""
        self.assertTrue(self.isSame(("fe80::1%lo", 1, 0, 1), ("fe80::2%lo", 1, 0, 1)))

    def test_mapped(self) -> None:
        """IPv4 clients of an IPv6 socket are one each, though all come from one /64."""
        self.assertTrue(self.isSame(MAPPED, ("::ffff:192.0.2.7", 2, 0, 0)))
        self.assertFalse(self.isSame(MAPPED, ("::ffff:192.0.2.8", 2, 0, 0)))

    def test_user(self) -> None:
        """On a UNIX socket it is a user, where that was asked for."""
        self.assertTrue(self.isSame(1000, 1000))
        self.assertFalse(self.isSame(1000, 0))

    def test_UNIX(self) -> None:
        """Elsewhere there is none."""
        self.assertEqual([sourceOf(each) for each in ("", None)], [None, None])


class TwistedTests(SynchronousTestCase):
    """Tests for the addresses that Twisted has."""

    def test_addressOf(self) -> None:
        """They are as accept(2) says them."""
        self.assertEqual(addressOf(IPv4Address("TCP", "192.0.2.7", 1)), ("192.0.2.7", 1))
        self.assertIsNone(addressOf(UNIXAddress(b"/run/s")))

    def test_normalise(self) -> None:
        """What a PROXY header says is an address as the kernel would write it."""
        self.assertEqual(
            normalise(IPv6Address("TCP", "2001:DB8:0:0:0:0:0:7", 1)),
            IPv6Address("TCP", "2001:db8::7", 1),
        )
        self.assertEqual(normalise(UNIXAddress(b"/run/s")), UNIXAddress(b"/run/s"))

    def test_ports(self) -> None:
        """Each number that a port may have is one, the first and the last too."""
        for port in (0, 65535):
            peer = IPv4Address("TCP", "192.0.2.7", port)
            self.assertEqual(normalise(peer), peer)

    def test_port(self) -> None:
        """What cannot be a port is refused."""
        for port in (-5, 65536, 10**60):
            self.assertRaises(ValueError, normalise, IPv4Address("TCP", "192.0.2.7", port))

    def test_none(self) -> None:
        """What is no address is refused, as what somebody would like to see in a record."""
        for host in ("192.0.2.7\nMESSAGE=x", "192.0.2", "a\0b", "::1"):
            self.assertRaises((OSError, ValueError), normalise, IPv4Address("TCP", host, 1))
