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
        """
        An IPv4 client of an IPv6 socket is written as IPv4; an address that only resembles a mapped
        one is not.
        """
        self.assertEqual(formatPeer(MAPPED), "192.0.2.7:40000")
        self.assertEqual(formatPeer(("::ffff:c000", 40000, 0, 0)), "[::ffff:c000]:40000")

    def test_UNIX(self) -> None:
        """All clients of a UNIX socket have the same name."""
        self.assertEqual([formatPeer(each) for each in ("", b"", None)], ["unix"] * 3)  # type: ignore[arg-type]


class HostTests(SynchronousTestCase):
    """Tests for L{formatHost}."""

    def test_IP(self) -> None:
        """A listening address is written like a client's."""
        self.assertEqual(formatHost(IPv4Address("TCP", "127.0.0.1", 17)), "127.0.0.1:17")
        self.assertEqual(formatHost(IPv6Address("TCP", "::", 17)), "[::]:17")

    def test_UNIX(self) -> None:
        """A UNIX socket's name is its path, whatever its bytes; an unnamed socket is described."""
        self.assertEqual(formatHost(UNIXAddress(b"/run/\xff.sock")), "/run/\udcff.sock")
        self.assertEqual(formatHost(UNIXAddress(None)), "a UNIX socket without a name")


class SourceTests(SynchronousTestCase):
    """Tests for L{sourceOf}."""

    def isSame(self, first: Address, second: Address) -> bool:
        """@return: whether both addresses belong to one source."""
        return sourceOf(first) == sourceOf(second)

    def test_IPv4(self) -> None:
        """Each IPv4 address is one source, whatever the port."""
        self.assertTrue(self.isSame(("192.0.2.7", 1), ("192.0.2.7", 2)))
        self.assertFalse(self.isSame(("192.0.2.7", 1), ("192.0.2.8", 1)))

    def test_IPv6(self) -> None:
        """Each /64 of IPv6 is one source."""
        here: Address = ("2001:db8:0:1::1", 1, 0, 0)
        self.assertTrue(self.isSame(here, ("2001:db8:0:1:ffff::2", 1, 0, 0)))
        self.assertFalse(self.isSame(here, ("2001:db8:0:2::1", 1, 0, 0)))

    def test_linkLocal(self) -> None:
        """
        Each link-local /64 of an interface is one source; the address carries the interface's name.
        """
        self.assertTrue(self.isSame(("fe80::1%lo", 1, 0, 1), ("fe80::2%lo", 1, 0, 1)))

    def test_mapped(self) -> None:
        """Each IPv4 client of an IPv6 socket is a source of its own, though all share one /64."""
        self.assertTrue(self.isSame(MAPPED, ("::ffff:192.0.2.7", 2, 0, 0)))
        self.assertTrue(self.isSame(MAPPED, ("192.0.2.7", 3)))
        self.assertFalse(self.isSame(MAPPED, ("::ffff:192.0.2.8", 2, 0, 0)))

    def test_user(self) -> None:
        """An address that is the number of a user is one source."""
        self.assertTrue(self.isSame(1000, 1000))
        self.assertFalse(self.isSame(1000, 0))

    def test_UNIX(self) -> None:
        """The address of a UNIX client from accept(2) has no source."""
        self.assertEqual([sourceOf(each) for each in ("", None)], [None, None])


class TwistedTests(SynchronousTestCase):
    """Tests for Twisted's address objects."""

    def test_addressOf(self) -> None:
        """Addresses from accept(2) become Twisted's address objects."""
        self.assertEqual(addressOf(IPv4Address("TCP", "192.0.2.7", 1)), ("192.0.2.7", 1))
        self.assertIsNone(addressOf(UNIXAddress(b"/run/s")))

    def test_normalise(self) -> None:
        """An address from a PROXY header is normalised to the kernel's form."""
        self.assertEqual(
            normalise(IPv6Address("TCP", "2001:DB8:0:0:0:0:0:7", 1)),
            IPv6Address("TCP", "2001:db8::7", 1),
        )
        self.assertEqual(normalise(UNIXAddress(b"/run/s")), UNIXAddress(b"/run/s"))

    def test_ports(self) -> None:
        """Every valid port number is accepted, the first and the last too."""
        for port in (0, 65535):
            peer = IPv4Address("TCP", "192.0.2.7", port)
            self.assertEqual(normalise(peer), peer)

    def test_port(self) -> None:
        """An impossible port is refused."""
        for port in (-5, 65536, 10**60):
            self.assertRaises(ValueError, normalise, IPv4Address("TCP", "192.0.2.7", port))

    def test_none(self) -> None:
        """Text that is not an address is refused; it may be meant to forge a record."""
        for host in ("192.0.2.7\nMESSAGE=x", "192.0.2", "a\0b", "::1"):
            self.assertRaises((OSError, ValueError), normalise, IPv4Address("TCP", host, 1))
