"""Tests for L{fastpoetry.command.idle}."""

from __future__ import annotations

from fakes import records
from messages import IDLE
from twisted.application.service import IService
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.command.idle import IdleService


class IdleTests(SynchronousTestCase):
    """Tests for L{IdleService}: for 60 s nobody may be there."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ends = 0
        self.leftAt = 0.0
        self.service = IdleService(self.clock, 60.0, self.idleSeconds, self.end)

    def idleSeconds(self) -> float:
        """@return: for how long nobody has been there."""
        return self.clock.seconds() - self.leftAt

    def end(self) -> None:
        """Be ended."""
        self.ends += 1

    def test_interface(self) -> None:
        """It is a service."""
        verifyObject(IService, self.service)

    def test_nobody(self) -> None:
        """If nobody comes it ends the program after that time, once."""
        self.service.startService()
        self.clock.advance(59.9)
        self.assertEqual(self.ends, 0)
        self.clock.advance(0.1)
        self.assertEqual(self.ends, 1)
        self.clock.advance(600)
        self.assertEqual(self.ends, 1)

    def test_somebody(self) -> None:
        """The time begins anew when the last one leaves."""
        self.service.startService()
        self.clock.advance(50)
        self.leftAt = 50.0
        self.clock.pump([1.0] * 59 + [0.9])
        self.assertEqual(self.ends, 0)
        self.clock.advance(0.1)
        self.assertEqual(self.ends, 1)

    def test_somebodyStays(self) -> None:
        """While somebody is there it looks no oftener than it must, and does not end."""
        looks: list[float] = []

        def idleSeconds() -> float:
            looks.append(self.clock.seconds())
            return 0.0

        service = IdleService(self.clock, 60.0, idleSeconds, self.end)
        service.startService()
        self.clock.pump([1.0] * 600)
        self.assertEqual((self.ends, looks), (0, [60.0 * n for n in range(1, 11)]))

    def test_record(self) -> None:
        """One record says why the program ends."""
        self.service.startService()
        with capturedLogs() as events:
            self.clock.advance(60)
        self.assertEqual(
            records(events),
            [
                {
                    "text": "nobody was connected for 60 s: stopping until somebody is",
                    "level": "info",
                    "seconds": 60.0,
                    "message_id": IDLE,
                }
            ],
        )

    def test_stop(self) -> None:
        """After a stop it looks no more."""
        self.service.startService()
        self.service.stopService()
        self.clock.advance(600)
        self.assertEqual(self.ends, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopByItself(self) -> None:
        """The stop that it has brought about is a stop like any other."""
        self.service.startService()
        self.clock.advance(60)
        self.service.stopService()
        self.assertFalse(self.service.running)

    def test_stopBeforeStart(self) -> None:
        """Where nothing was started there is nothing to stop."""
        self.service.stopService()
