"""A policy whose readers take what a test says."""

from __future__ import annotations

from fakes import POEM, FakePort, FakeReader
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.poem import Poem

HERE = ("192.0.2.7", 40000)
THERE = ("192.0.2.8", 40000)

WHOLE = len(POEM.text)


class PolicyCase(SynchronousTestCase):
    """A test case with a policy, a clock and a port."""

    limits = Limits()

    def setUp(self) -> None:
        self.clock = Clock()
        self.policy = Policy(self.limits, self.clock)
        self.port = FakePort()
        self.policy.gate.add(self.port)

    def sending(self, address: Address = HERE, poem: Poem = POEM) -> FakeReader:
        """@return: a reader whose poem is under way."""
        reader = FakeReader(self.policy, address, poem)
        self.policy.begin(reader)
        return reader

    def finish(self, reader: FakeReader) -> None:
        """Pass the rest of a reader's poem to the system."""
        self.policy.finish(reader)

    def lingering(self, taken: int = WHOLE, address: Address = HERE) -> FakeReader:
        """
        @return: a reader whose poem was sent at once, of which so many bytes are acknowledged.
        """
        reader = FakeReader(self.policy, address)
        reader.taken = taken
        self.policy.addServed([reader])
        return reader

    def countRoom(self) -> int:
        """@return: the number of free places; without any, the ports wait."""
        self.policy.pauseIfFull()
        return self.policy.room

    def wait(self, seconds: int) -> None:
        """Let time pass, a second at a time."""
        self.clock.pump([1.0] * seconds)
