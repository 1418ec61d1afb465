"""A policy with readers that take what a test says."""

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
    """A policy, a clock and a port."""

    limits = Limits()

    def setUp(self) -> None:
        self.clock = Clock()
        self.policy = Policy(self.limits, self.clock)
        self.port = FakePort()
        self.policy.gate.add(self.port)

    def sending(self, address: Address = HERE, poem: Poem = POEM) -> FakeReader:
        """@return: a reader whose poem is under way."""
        reader = FakeReader(self.policy, address, poem)
        self.policy.begin(reader, self.clock.seconds())
        return reader

    def finish(self, reader: FakeReader) -> None:
        """Have the rest of a reader's poem go to the system."""
        self.policy.finish(reader)

    def lingering(self, taken: int = WHOLE, address: Address = HERE) -> FakeReader:
        """@return: a reader whose poem went out at once, of which so much is acknowledged."""
        reader = FakeReader(self.policy, address)
        reader.taken = taken
        self.policy.addServed([reader], self.clock.seconds())
        return reader

    def countRoom(self) -> int:
        """@return: how many more may be here, once the ports wait if there are none."""
        self.policy.pauseIfFull()
        return self.policy.room

    def wait(self, seconds: int) -> None:
        """Let time pass, a second at a time."""
        self.clock.pump([1.0] * seconds)
