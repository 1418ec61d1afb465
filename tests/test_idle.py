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
    """Tests for L{IdleService} with an idle time of 60 s."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ends = 0
        self.leftAt = 0.0
        self.service = IdleService(self.clock, 60.0, self.idleSeconds, self.end)

    def idleSeconds(self) -> float:
        """@return: the seconds since the last reader left."""
        return self.clock.seconds() - self.leftAt

    def end(self) -> None:
        """Record the end."""
        self.ends += 1

    def test_interface(self) -> None:
        """The idle exit is a service."""
        verifyObject(IService, self.service)

    def test_nobody(self) -> None:
        """Without readers the program ends after the idle time, once."""
        self.service.startService()
        self.clock.advance(59.9)
        self.assertEqual(self.ends, 0)
        self.clock.advance(0.1)
        self.assertEqual(self.ends, 1)
        self.clock.advance(600)
        self.assertEqual(self.ends, 1)

    def test_somebody(self) -> None:
        """The idle time begins anew when the last reader leaves."""
        self.service.startService()
        self.clock.advance(50)
        self.leftAt = 50.0
        self.clock.pump([1.0] * 59 + [0.9])
        self.assertEqual(self.ends, 0)
        self.clock.advance(0.1)
        self.assertEqual(self.ends, 1)

    def test_somebodyStays(self) -> None:
        """
        While there is a reader, the service checks no more often than needed, and does not end the
        program.
        """
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
                    "text": "no client was connected for 60 s: stopping until one connects",
                    "level": "info",
                    "seconds": 60.0,
                    "message_id": IDLE,
                }
            ],
        )

    def test_stop(self) -> None:
        """After a stop the service checks no more."""
        self.service.startService()
        self.service.stopService()
        self.clock.advance(600)
        self.assertEqual(self.ends, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopByItself(self) -> None:
        """A stop that the service causes is like any other stop."""
        self.service.startService()
        self.clock.advance(60)
        self.service.stopService()
        self.assertFalse(self.service.running)

    def test_stopBeforeStart(self) -> None:
        """Stopping a service that has not started has no effect."""
        self.service.stopService()
