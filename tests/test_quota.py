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
        """@return: counted readers from there."""
        readers = [Receipt(POEM, address) for address in addresses]
        for reader in readers:
            self.quota.add(reader)
        return readers

    def test_full(self) -> None:
        """A source may have as many readers as its limit; other sources have their own."""
        self.add(HERE)
        self.assertFalse(self.quota.isFull(HERE))
        self.add(("192.0.2.7", 40001))
        self.assertTrue(self.quota.isFull(("192.0.2.7", 40002)))
        self.assertFalse(self.quota.isFull(THERE))

    def test_remove(self) -> None:
        """A reader that is removed makes a place free once, even if it is removed twice."""
        first, *_ = self.add(HERE, HERE, HERE)
        self.quota.remove(first)
        self.quota.remove(first)
        self.assertTrue(self.quota.isFull(HERE))

    def test_contains(self) -> None:
        """The quota knows which readers it counts; removing another has no effect."""
        (reader,) = self.add(HERE)
        other = Receipt(POEM, HERE)
        self.quota.remove(other)
        self.assertIn(reader, self.quota)
        self.assertNotIn(other, self.quota)

    def test_network(self) -> None:
        """A /64 of IPv6 is one source, however many of its addresses are used."""
        self.add(("2001:db8:0:1::1", 1, 0, 0), ("2001:db8:0:1:ffff::2", 1, 0, 0))
        self.assertTrue(self.quota.isFull(("2001:db8:0:1::3", 1, 0, 0)))
        self.assertFalse(self.quota.isFull(("2001:db8:0:2::3", 1, 0, 0)))

    def test_UNIX(self) -> None:
        """Readers of a UNIX socket have no source, and are not counted."""
        readers = self.add("", "", "", None, None, None)
        self.assertFalse(self.quota.isFull("") or self.quota.isFull(None))
        self.assertNotIn(readers[0], self.quota)
        self.quota.remove(readers[0])

    def test_clear(self) -> None:
        """After all connections are forgotten, each can be counted again."""
        readers = self.add(HERE, HERE)
        self.quota.clear()
        self.assertFalse(self.quota.isFull(HERE))
        for reader in readers:
            self.quota.add(reader)
        self.assertTrue(self.quota.isFull(HERE))

    def test_nothingIsKept(self) -> None:
        """A source without readers uses no memory: there are more sources than memory."""
        for number in range(1000):
            (reader,) = self.add((f"192.0.2.{number % 256}", number))
            self.quota.remove(reader)
        self.assertEqual((self.quota._sources, dict(self.quota._counts)), ({}, {}))
