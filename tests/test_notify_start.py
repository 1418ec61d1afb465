"""
Tests for when L{fastpoetry.systemd.notify} sends READY, and for a second start.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import Any

from test_notify import EXTENDED, NotifyCase
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import MultiService, Service
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from fastpoetry.systemd import notify, starting
from fastpoetry.systemd.notify import NotifyService, StartingService

reactor: Any = _reactor


class Endpoint:
    """An endpoint that listens when the test says so."""

    def __init__(self, listening: Deferred[Any]) -> None:
        self._listening = listening

    def __repr__(self) -> str:
        return "<endpoint>"

    def listen(self, factory: object) -> Deferred[Any]:
        """Wait for the test."""
        return self._listening


class Slow(Service):
    """A service that starts when the test says so."""

    def __init__(self, started: Any) -> None:
        self._started = started

    def startService(self) -> Any:
        """Return the test's Deferred."""
        super().startService()
        return self._started


class ReadyTests(NotifyCase):
    """Tests for what READY waits for."""

    def setUp(self) -> None:
        super().setUp()
        self.exits: list[int] = []
        self.patch(starting, "failAtExit", lambda: self.exits.append(1))

    def begin(self, *others: Service, ready: Any = None, parent: Any = None) -> None:
        """Start services, and then the notifying one."""
        parent = parent or MultiService()
        for other in others:
            other.setServiceParent(parent)
        NotifyService(
            self.reactor, ready=ready, clock=self.reactor, environ=self.systemd.environ
        ).setServiceParent(parent)
        parent.privilegedStartService()
        parent.startService()
        self.reactor.run()

    def failed(self) -> list[str]:
        """
        @return: the messages after a failed start, which ended the program with a record. Only its
            end sets the status: a test of a program does not end the test's process.
        """
        self.assertEqual((self.exits, self.reactor.hasStopped), ([], True))
        heard = self.systemd.heard()
        self.reactor.shutDown("after")
        self.assertEqual(self.exits, [1])
        return heard

    def test_deferred(self) -> None:
        """READY waits for a Deferred, and leaves its result to other callers."""
        ready: Deferred[str] = Deferred()
        self.begin(ready=ready)
        self.assertEqual(self.systemd.heard(), [])
        ready.callback("result")
        self.assertEqual(self.systemd.heard(), ["READY=1"])
        self.assertEqual(self.successResultOf(ready), "result")

    def test_function(self) -> None:
        """
        READY waits for what a function returns, such as a coroutine; a plain value needs no wait.
        """
        waiting: Deferred[None] = Deferred()

        async def wait() -> None:
            await waiting

        self.begin(ready=wait)
        self.assertEqual(self.systemd.heard(), [])
        waiting.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_functionLast(self) -> None:
        """
        A function that READY waits for is called when all services have started, so that it can
        check how they started.
        """
        slow: Deferred[None] = Deferred()
        calls: list[int] = []
        self.begin(Slow(slow), ready=lambda: calls.append(1))
        self.assertEqual(calls, [])
        slow.callback(None)
        self.assertEqual((calls, self.systemd.heard()), ([1], ["READY=1"]))

    def test_deferredFailsFirst(self) -> None:
        """A Deferred that fails ends a start that waits for services."""
        self.begin(Slow(Deferred()), ready=fail(LookupError()))
        self.assertEqual(self.failed(), [])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_atOnce(self) -> None:
        """A function that returns L{None} is not waited for."""
        self.begin(ready=lambda: None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_fails(self) -> None:
        """A failure makes a record, a stop and a nonzero exit; READY is not sent."""
        self.begin(ready=fail(LookupError()))
        self.assertEqual(self.failed(), [])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_raises(self) -> None:
        """An exception makes a record, a stop and a nonzero exit; READY is not sent."""

        def broken() -> None:
            raise LookupError

        self.begin(ready=broken)
        self.assertEqual(self.failed(), [])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_endpoint(self) -> None:
        """READY waits until each endpoint service of the program listens."""
        listening: Deferred[Any] = Deferred()
        inner = MultiService()
        StreamServerEndpointService(Endpoint(listening), Factory()).setServiceParent(inner)
        self.begin(inner)
        self.assertEqual(self.systemd.heard(), [])
        listening.callback(object())
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_deaf(self) -> None:
        """
        An endpoint service that cannot listen, for which Twisted only makes a record, ends the
        program.
        """
        service = StreamServerEndpointService(Endpoint(fail(OSError())), Factory())
        self.begin(service)
        self.assertEqual(self.failed(), [])
        self.flushLoggedErrors(OSError)
        (error,) = self.flushLoggedErrors(notify.NotReady)
        self.assertEqual(str(error.value), "the program does not listen on <endpoint>")

    def test_removed(self) -> None:
        """An endpoint service that the program removes before it listens is no failure."""
        listening: Deferred[Any] = Deferred()
        service = StreamServerEndpointService(Endpoint(listening), Factory())
        parent = MultiService()
        self.begin(service, parent=parent)
        service.disownServiceParent()
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_future(self) -> None:
        """READY waits for a future of asyncio, too."""
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        future: Any = loop.create_future()
        self.begin(ready=future)
        self.assertEqual(self.systemd.heard(), [])
        future.set_result(None)
        loop.run_until_complete(asyncio.sleep(0))
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_parent(self) -> None:
        """READY waits for services that start slowly, if their parent returns a Deferred."""
        slow: Deferred[None] = Deferred()
        self.begin(Slow(slow), Slow(succeed(None)), parent=StartingService())
        self.assertEqual(self.systemd.heard(), [])
        slow.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_parentFails(self) -> None:
        """A start that fails later ends the program."""
        self.begin(Slow(fail(LookupError())), parent=StartingService())
        self.assertEqual(self.failed(), [])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_nested(self) -> None:
        """READY waits for a parent that returns a Deferred, at any depth of the program."""
        slow: Deferred[None] = Deferred()
        inner, middle = StartingService(), MultiService()
        Slow(slow).setServiceParent(inner)
        inner.setServiceParent(middle)
        self.begin(middle)
        self.assertEqual(self.systemd.heard(), [])
        slow.errback(LookupError())
        self.assertEqual(self.failed(), [])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_whileRunning(self) -> None:
        """READY also waits if the reactor already runs, or the parent is started again."""
        slow: Deferred[None] = Deferred()
        parent = StartingService()
        self.reactor.run()
        self.begin(Slow(slow), parent=parent)
        self.assertEqual(self.systemd.heard(), [])
        slow.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])
        again: Deferred[None] = Deferred()
        next(iter(parent))._started = again
        parent.stopService()
        parent.startService()
        self.assertEqual(self.systemd.heard(), [])
        again.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_addedLater(self) -> None:
        """
        A service added to a L{StartingService} after its start is started once, also if it starts
        in a coroutine.
        """
        starts: list[str] = []

        class Late(Service):
            def privilegedStartService(self) -> None:
                starts.append("privileged")

            async def startService(self) -> None:
                starts.append("started")

        parent = StartingService()
        self.begin(parent=parent)
        Late().setServiceParent(parent)
        self.assertEqual((starts, parent.running), (["privileged", "started"], 1))

    def test_addedBefore(self) -> None:
        """A service added to a L{StartingService} before its start does not start yet."""
        started = Slow(None)
        started.setServiceParent(StartingService())
        self.assertFalse(started.running)

    def test_plain(self) -> None:
        """READY waits for what services return, at any depth of plain parents."""
        slow: Deferred[str] = Deferred()
        inner, middle = MultiService(), MultiService()
        Slow(slow).setServiceParent(inner)
        inner.setServiceParent(middle)
        self.begin(middle)
        self.assertEqual(self.systemd.heard(), [])
        slow.callback("result")
        self.assertEqual(self.systemd.heard(), ["READY=1"])
        self.assertEqual(self.successResultOf(slow), "result")

    def test_plainCoroutine(self) -> None:
        """A service whose C{startService} is a coroutine is started in a plain parent too."""
        waiting: Deferred[None] = Deferred()

        class Asynchronous(Service):
            async def startService(self) -> None:
                await waiting

        self.begin(Asynchronous())
        self.assertEqual(self.systemd.heard(), [])
        waiting.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_plainFails(self) -> None:
        """A start that fails later, at any depth, makes one record and ends the program."""
        slow: Deferred[None] = Deferred()
        inner = MultiService()
        Slow(slow).setServiceParent(inner)
        self.begin(inner)
        slow.errback(LookupError())
        del slow
        self.assertEqual(self.failed(), [])
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_putAbove(self) -> None:
        """READY waits for services of a higher parent too, if twistd starts that parent."""
        slow: Deferred[None] = Deferred()
        root, parent = MultiService(), MultiService()
        NotifyService(
            self.reactor, clock=self.reactor, environ=self.systemd.environ
        ).setServiceParent(parent)
        parent.setServiceParent(root)
        Slow(slow).setServiceParent(root)
        root.privilegedStartService()
        root.startService()
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), [])
        slow.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_parentWaits(self) -> None:
        """A parent that itself waits sees a child's failure, as without our service."""
        seen: list[Failure] = []

        class Waiting(MultiService):
            def startService(self) -> None:
                for child in self:
                    child.startService().addErrback(seen.append)

        inner = Waiting()
        Slow(fail(LookupError())).setServiceParent(inner)
        self.begin(inner)
        self.assertEqual(len(seen), 1)
        self.failed()
        self.flushLoggedErrors(LookupError)

    def test_addedMeanwhile(self) -> None:
        """
        A service that another one adds during its start is started once and waited for, whether the
        parent waits or not.
        """
        self.addMeanwhile(MultiService())

    def test_addedMeanwhileToStarting(self) -> None:
        """
        A service added during the start of a parent that waits is started once and waited for too.
        """
        self.addMeanwhile(StartingService())

    def addMeanwhile(self, parent: MultiService) -> None:
        """Start a service that adds another one, with a slow start, to its parent."""
        slow: Deferred[None] = Deferred()
        starts: list[object] = []

        class Added(Slow):
            def startService(self) -> Any:
                starts.append(self)
                return super().startService()

        class Adding(Service):
            def startService(self) -> None:
                super().startService()
                Added(slow).setServiceParent(self.parent)

        self.begin(Adding(), parent=parent)
        self.assertEqual((len(starts), self.systemd.heard()), (1, []))
        slow.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_addedWhileWaiting(self) -> None:
        """A service added before READY is waited for too."""
        first: Deferred[None] = Deferred()
        second: Deferred[None] = Deferred()
        parent = MultiService()
        self.begin(Slow(first), parent=parent)
        Slow(second).setServiceParent(parent)
        first.callback(None)
        self.assertEqual(self.systemd.heard(), [])
        second.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_untouched(self) -> None:
        """After the start all services are unchanged."""
        service, parent = Service(), MultiService()
        self.begin(service, parent=parent)
        for each in (service, parent):
            self.assertEqual({"startService", "addService"} & vars(each).keys(), set())

    def test_restarted(self) -> None:
        """A service that another one stops and starts before READY is started again."""
        slow: Deferred[None] = Deferred()
        service = Service()
        self.begin(service, ready=slow)
        service.stopService()
        service.startService()
        self.assertTrue(service.running)
        slow.callback(None)

    def test_unwatchable(self) -> None:
        """A service whose attributes cannot be set starts as usual."""

        class Closed(Service):
            def __setattr__(self, name: str, value: object) -> None:
                if name not in ("name", "parent", "running"):
                    raise AttributeError(name)
                super().__setattr__(name, value)

        service = Closed()
        self.begin(service)
        self.assertTrue(service.running)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_strangers(self) -> None:
        """Services that keep something else under C{services} are left alone."""
        stranger: Any = Service()
        stranger.services = 5
        self.begin(stranger)
        self.assertEqual(self.systemd.heard(), ["READY=1"])

    def test_extended(self) -> None:
        """A slow start extends its timeout, for ten minutes at most."""
        ready: Deferred[None] = Deferred()
        self.begin(ready=ready)
        self.reactor.pump([1] * 10)
        self.assertEqual(self.systemd.heard(), [EXTENDED] * 10)
        self.reactor.pump([10] * 70)
        self.systemd.heard()
        self.reactor.pump([10] * 3)
        self.assertEqual(self.systemd.heard(), [])
        ready.callback(None)
        self.assertEqual(self.systemd.heard(), ["READY=1"])
        self.reactor.pump([10] * 3)
        self.assertEqual(self.systemd.heard(), [])

    def test_stopExtended(self) -> None:
        """A slow stop extends its timeout too."""
        service = self.started()
        self.stop(service)
        self.reactor.pump([1] * 10)
        self.assertEqual(self.systemd.heard(), ["STOPPING=1", *[EXTENDED] * 10])

    def test_stoppedMeanwhile(self) -> None:
        """A program that is stopped before READY never sends it, and that is not a failure."""
        ready: Deferred[None] = Deferred()
        parent = MultiService()
        self.begin(ready=ready, parent=parent)
        self.reactor.shutDown("before")
        parent.stopService()
        ready.errback(LookupError())
        self.assertEqual((self.systemd.heard(), self.exits), (["STOPPING=1"], []))


class AgainTests(NotifyCase):
    """Tests for a service that is stopped and started while the program runs."""

    def test_again(self) -> None:
        """
        A service started again sends one READY and one set of pings. It sends no STOPPING: systemd
        would wait for the program's end, and then kill it.
        """
        service = self.started(status=lambda: "fine", WATCHDOG_USEC="3000000")
        for _ in range(3):
            service.stopService()
            self.assertEqual(self.systemd.heard(), [])
            service.startService()
            self.assertEqual(self.systemd.heard(), ["STATUS=fine", "READY=1"])
        self.reactor.advance(1)
        self.assertEqual(self.systemd.heard(), ["WATCHDOG=1"])

    def test_clean(self) -> None:
        """A stopped service leaves no timer, descriptor or signal handler."""
        before = os.listdir("/proc/self/fd")
        handler = signal.getsignal(signal.SIGHUP)
        service = self.started(reload=lambda: None, WATCHDOG_USEC="3000000", INVOCATION_ID="1")
        self.assertTrue(self.reactor.getDelayedCalls())
        service.stopService()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual((list(self.reactor.readers), os.listdir("/proc/self/fd")), ([], before))
        self.assertEqual(self.handlers[signal.SIGHUP], handler)

    def test_notBegun(self) -> None:
        """A service stopped before the reactor runs has no effect afterwards."""
        service = self.service()
        service.startService()
        service.stopService()
        self.reactor.run()
        self.assertEqual(self.systemd.heard(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_thread(self) -> None:
        """In a thread that cannot set handlers, the service makes a record and goes on."""

        def start() -> None:
            NotifyService(
                self.reactor, reload=lambda: None, clock=self.reactor, environ={}
            ).startService()

        with capturedLogs() as events:
            thread = threading.Thread(target=start)
            thread.start()
            thread.join()
        self.assertEqual({event["log_level"] for event in events}, {LogLevel.warn})
        self.assertEqual({event["signal"] for event in events}, {"SIGHUP"})


class TellTests(NotifyCase):
    """Tests for other fields."""

    def test_fields(self) -> None:
        """Fields are sent in one message, each on a line."""
        self.started().tell(ERRNO=2, X_TEXT="a\nREADY=0")
        self.assertEqual(self.systemd.heard(), ["ERRNO=2\nX_TEXT=a READY=0"])

    def test_text(self) -> None:
        """Fields may be text in the form of sd_notify(3), sent in one message with others."""
        service = self.started()
        service.tell("READY=1\nSTATUS=a\0b\n\n", ERRNO=2)
        service.tell("")
        self.assertEqual(self.systemd.heard(), ["READY=1\nSTATUS=a b\nERRNO=2"])

    def test_nobody(self) -> None:
        """Outside systemd, and after the stop, no message is sent."""
        NotifyService(self.reactor, clock=self.reactor, environ={}).tell(ERRNO=2)
        service = self.started()
        service.stopService()
        self.systemd.heard()
        service.tell(ERRNO=2)
        self.assertEqual(self.systemd.heard(), [])


class TrialTests(TestCase):
    """Tests like a user's, with the real reactor, which is clean afterwards."""

    async def startAndStop(self, environ: dict[str, str]) -> None:
        """Start a service, wait one turn, and stop it."""
        service = NotifyService(
            reactor, status=lambda: "fine", reload=lambda: None, environ=environ
        )
        service.startService()
        await deferLater(reactor, 0, lambda: None)
        service.stopService()

    def test_outside(self) -> Deferred[None]:
        """The reactor is clean outside systemd."""
        return Deferred.fromCoroutine(self.startAndStop({}))

    def test_under(self) -> Deferred[None]:
        """The reactor is clean under systemd."""
        environ = {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "3000000", "INVOCATION_ID": "1"}
        return Deferred.fromCoroutine(self.startAndStop(environ))
