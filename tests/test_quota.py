"""Tests for L{fastpoetry.delivery.quota}."""

from __future__ import annotations

from fakes import POEM, Receipt
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.quota import Quota

HERE = ("192.0.2.7", 40000)
THERE = ("192.0.2.8", 40000)


class QuotaTests(SynchronousTestCase):
    """Tests for L{Quota}."""

    def setUp(self) -> None:
        self.quota = Quota(2)

    def add(self, *addresses: Address) -> list[Receipt]:
        """@return: readers from there, which are counted."""
        readers = [Receipt(POEM, address) for address in addresses]
        for reader in readers:
            self.quota.add(reader)
        return readers

    def test_full(self) -> None:
        """A source may have as many readers as it is said; another has its own."""
        self.add(HERE)
        self.assertFalse(self.quota.isFull(HERE))
        self.add(("192.0.2.7", 40001))
        self.assertTrue(self.quota.isFull(("192.0.2.7", 40002)))
        self.assertFalse(self.quota.isFull(THERE))

    def test_remove(self) -> None:
        """One that is removed makes room, once, however often it is."""
        first, *_ = self.add(HERE, HERE, HERE)
        self.quota.remove(first)
        self.quota.remove(first)
        self.assertTrue(self.quota.isFull(HERE))

    def test_contains(self) -> None:
        """It can be asked who is counted; to remove who is not does nothing."""
        (reader,) = self.add(HERE)
        other = Receipt(POEM, HERE)
        self.quota.remove(other)
        self.assertIn(reader, self.quota)
        self.assertNotIn(other, self.quota)

    def test_network(self) -> None:
        """A /64 of IPv6 is one source, however many addresses of it somebody uses."""
        self.add(("2001:db8:0:1::1", 1, 0, 0), ("2001:db8:0:1:ffff::2", 1, 0, 0))
        self.assertTrue(self.quota.isFull(("2001:db8:0:1::3", 1, 0, 0)))
        self.assertFalse(self.quota.isFull(("2001:db8:0:2::3", 1, 0, 0)))

    def test_UNIX(self) -> None:
        """The readers of a UNIX socket are no source, and not counted."""
        readers = self.add("", "", "", None, None, None)
        self.assertFalse(self.quota.isFull("") or self.quota.isFull(None))
        self.assertNotIn(readers[0], self.quota)
        self.quota.remove(readers[0])

    def test_nothingIsKept(self) -> None:
        """Of a source without readers nothing is left: there are more of them than memory."""
        for number in range(1000):
            (reader,) = self.add((f"192.0.2.{number % 256}", number))
            self.quota.remove(reader)
        self.assertEqual((self.quota._sources, dict(self.quota._counts)), ({}, {}))
