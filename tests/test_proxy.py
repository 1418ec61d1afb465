"""
Tests for L{fastpoetry.proxy.service}: a clock, an upstream in memory, and readers who wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from fakes import FakeTransport, Reactor, ThreadPool, makeFolder, records, said
from hypothesis import given
from hypothesis import strategies as st
from messages import BACK, FAILED, FETCHED, NO_COPY
from twisted.application.service import IService
from twisted.internet import defer, error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.poem import Poem
from fastpoetry.proxy.cache import Copy, CopyFile
from fastpoetry.proxy.service import Freshness, PoetryProxyService

UPSTREAM = "tcp:host=poems.example:port=10000"

FRESHNESS = Freshness(
    maxAgeSeconds=60,
    revalidateSeconds=100,
    errorSeconds=1000,
    connectSeconds=5,
    idleSeconds=10,
    totalSeconds=30,
    mostBytes=1000,
)


class Pool(ThreadPool):
    """
    Threads whose work may have arguments.
    """

    def callInThreadWithCallback(
        self,
        onResult: Callable[[bool, object], object],
        func: Callable[..., object],
        *args: object,
    ) -> None:
        """
        Keep the work.
        """
        super().callInThreadWithCallback(onResult, partial(func, *args))


@implementer(IStreamClientEndpoint)
class FakeUpstream:
    """
    An upstream that does what a test says, and wants no second fetch while there is one.

    @ivar attempts: when somebody began to connect.
    @ivar failedAt: when it last did not give what was asked for.
    @ivar faults: what it should not have been asked for.
    @ivar transport: of the last connection.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self.attempts: list[float] = []
        self.failedAt = -1.0
        self.faults: list[str] = []
        self.transport = FakeTransport()
        self._connecting: Deferred[Any] | None = None
        self._protocol: Any = None

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """
        Wait for the test.
        """
        verifyObject(IProtocolFactory, protocolFactory)
        if self.isBusy:
            self.faults.append("two fetches at a time")
        if self._reactor.seconds() < self.failedAt + 1:
            self.faults.append("two attempts in a second")
        self.attempts.append(self._reactor.seconds())
        self._factory = protocolFactory
        self._connecting = Deferred(self._leave)
        return self._connecting

    @property
    def isBusy(self) -> bool:
        """
        Whether there is a fetch that has not ended.
        """
        return self._connecting is not None or (self._protocol is not None and not self.isAborted)

    @property
    def isAborted(self) -> bool:
        """
        Whether the other end has broken the connection off.
        """
        return "abortConnection" in self.transport.did

    def accept(self) -> None:
        """
        Be connected.
        """
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.transport = FakeTransport()
        self._protocol = self._factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 10000))
        self._protocol.makeConnection(self.transport)
        connecting.callback(self._protocol)

    def refuse(self, why: Exception | None = None) -> None:
        """
        Not be connected.
        """
        assert self._connecting is not None
        connecting, self._connecting = self._connecting, None
        self.failedAt = self._reactor.seconds()
        connecting.errback(why or error.ConnectionRefusedError())

    def send(self, text: bytes) -> None:
        """
        Send a piece.
        """
        self._protocol.dataReceived(text)

    def close(self, why: Exception | None = None) -> None:
        """
        End the connection: cleanly, or for a reason.
        """
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(Failure(why or ConnectionDone()))

    def _leave(self, _: object) -> None:
        self._connecting = None
        self.failedAt = self._reactor.seconds()


class ProxyCase(SynchronousTestCase):
    """
    A proxy that runs, with nothing fetched yet.
    """

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.reactor.pool = Pool()
        self.waiting: list[Deferred[Poem]] = []
        self.upstream = FakeUpstream(self.reactor)
        self.service = self.make()
        self.service.startService()
        self.addCleanup(self.end)

    def make(self, freshness: Freshness = FRESHNESS, **others: Any) -> PoetryProxyService:
        """
        @return: a proxy of this upstream.
        """
        return PoetryProxyService(UPSTREAM, self.upstream, freshness, self.reactor, **others)

    def restart(self, freshness: Freshness = FRESHNESS, **others: Any) -> None:
        """
        Have another proxy in the place of the one there was.
        """
        self.service.stopService()
        self.service = self.make(freshness, **others)
        self.service.startService()

    def end(self) -> None:
        """
        Stop; then nothing is left of the proxy in the reactor.
        """
        self.service.stopService()
        for each in self.waiting:
            each.addErrback(lambda _: None)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.upstream.faults, [])

    @property
    def served(self) -> bytes | None:
        """
        What the next reader gets, if there is something for it.
        """
        poem = self.service.poem
        return None if poem is None else poem.text

    def ask(self) -> None:
        """
        Want the poem, and not wait for it.
        """
        _ = self.service.poem

    def wait(self) -> Deferred[Poem]:
        """
        @return: what a reader waits for.
        """
        self.waiting.append(self.service.whenPoem())
        return self.waiting[-1]

    def give(self, *pieces: bytes) -> None:
        """
        Have the upstream answer the fetch that is under way.
        """
        self.upstream.accept()
        for piece in pieces:
            self.upstream.send(piece)
        self.upstream.close()
        self.reactor.pool.work()  # the digest
        self.reactor.pool.work()  # the file

    def fetch(self, text: bytes = b"a poem") -> None:
        """
        Have a poem fetched that is not fresh.
        """
        self.ask()
        self.give(text)

    def advanceTo(self, seconds: float) -> None:
        """
        Let time pass.
        """
        self.reactor.advance(seconds - self.reactor.seconds())


class FetchTests(ProxyCase):
    """
    Tests for one fetch and who waits for it.
    """

    def test_interfaces(self) -> None:
        """
        It is a service, and its upstream here is an endpoint.
        """
        verifyObject(IService, self.service)
        verifyObject(IStreamClientEndpoint, self.upstream)

    def test_nobody(self) -> None:
        """
        As long as nobody wants the poem it is not fetched.
        """
        self.reactor.advance(10_000)
        self.assertEqual(self.upstream.attempts, [])

    def test_whole(self) -> None:
        """
        What came, in how many pieces ever, is the poem when the upstream has closed cleanly, and
        not before.
        """
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"Where, like ")
        self.upstream.send(b"a pillow")
        self.assertNoResult(waiting)
        self.assertIsNone(self.served)
        self.upstream.close()
        self.reactor.pool.work()
        self.assertEqual(self.successResultOf(waiting).text, b"Where, like a pillow")
        self.assertEqual(self.served, b"Where, like a pillow")

    @given(st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=10))
    def test_exact(self, pieces: list[bytes]) -> None:
        """
        Whatever bytes there are, they are served as they came.
        """
        self.restart()
        waiting = self.wait()
        self.give(*pieces)
        self.assertEqual(self.successResultOf(waiting).text, b"".join(pieces))

    def test_digestInAThread(self) -> None:
        """
        A thread looks at the poem's bytes: a large one does not hold up the reactor.
        """
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"a poem")
        self.upstream.close()
        self.assertNoResult(waiting)
        self.reactor.pool.work()
        self.successResultOf(waiting)

    def test_coalesced(self) -> None:
        """
        There is one fetch for all who wait, and each gets what it brings.
        """
        waiting = [self.wait() for _ in range(1000)]
        self.give(b"a poem")
        self.assertEqual({self.successResultOf(each).text for each in waiting}, {b"a poem"})
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_atOnce(self) -> None:
        """
        Who comes when there is a poem does not wait.
        """
        self.fetch()
        self.assertEqual(self.successResultOf(self.wait()).text, b"a poem")

    def test_leaves(self) -> None:
        """
        One that leaves, even if it was the first, ends neither the fetch nor the others' waiting.
        """
        first, second = self.wait(), self.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(second).text, b"a poem")

    def test_allLeave(self) -> None:
        """
        When all have left, what was begun for them is there for the next.
        """
        self.ask()
        self.give(b"a poem")
        self.assertEqual(self.served, b"a poem")

    def test_comesBetween(self) -> None:
        """
        One that is called back and asks again gets the same poem, without another fetch.
        """
        again: list[Deferred[Poem]] = []
        self.wait().addCallback(lambda _: again.append(self.wait()))
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(again[0]).text, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_record(self) -> None:
        """
        One record says what was fetched and from where.
        """
        with capturedLogs() as events:
            self.fetch()
        poem = self.service.poem
        assert poem is not None
        self.assertEqual(
            records(events),
            [
                {
                    "text": f"fetched 6 bytes of poetry from {UPSTREAM}",
                    "level": "info",
                    "bytes": 6,
                    "upstream": UPSTREAM,
                    "digest": poem.digest,
                    "message_id": FETCHED,
                }
            ],
        )

    def test_description(self) -> None:
        """
        It says in a person's words what it has.
        """
        self.assertEqual(self.service.description, f"{UPSTREAM} (not fetched yet)")
        self.fetch()
        self.assertEqual(self.service.description, f"{UPSTREAM} (6 bytes)")


class FreshnessTests(ProxyCase):
    """
    Tests for how long a poem will do: 60 s fresh, then 100 s while it is revalidated, and from the
    first on 1000 s in an outage.
    """

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")

    def check(self, at: float, served: bytes | None, attempts: int) -> None:
        """
        Ask at some time, and see what is served and how many attempts were made since the first.
        """
        self.advanceTo(at)
        self.assertEqual((self.served, len(self.upstream.attempts) - 1), (served, attempts))

    def test_fresh(self) -> None:
        """
        A fresh poem is served, and its upstream is not asked.
        """
        self.check(0, b"old", 0)
        self.check(59, b"old", 0)

    def test_revalidated(self) -> None:
        """
        A stale one is served while one new one is fetched, which then takes its place.
        """
        self.check(60, b"old", 1)
        self.check(61, b"old", 1)
        self.give(b"new")
        self.check(62, b"new", 1)
        self.check(120, b"new", 1)
        self.check(121, b"new", 2)

    def test_revalidatedLate(self) -> None:
        """
        The last moment of that is as good as the first.
        """
        self.check(159, b"old", 1)

    def test_tooOld(self) -> None:
        """
        One that is older is not served, unless there is no other: readers wait for the new one.
        """
        self.check(160, None, 1)
        waiting = self.wait()
        self.give(b"new")
        self.assertEqual(self.successResultOf(waiting).text, b"new")

    def test_becomesTooOld(self) -> None:
        """
        It is not served any more when the fetch takes so long that it gets too old meanwhile.
        """
        self.check(159, b"old", 1)
        self.check(160, None, 1)

    def test_staleIfError(self) -> None:
        """
        In an outage it is served for as long as an old one may stand in, and then no longer.
        """
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(60, b"old", 1)
        self.check(1059, b"old", 2)
        self.upstream.refuse()
        self.check(1060, None, 2)

    def test_waitedForAnError(self) -> None:
        """
        Who waits because it is too old gets it all the same when there is none to be had.
        """
        self.advanceTo(500)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")

    def test_outageEnds(self) -> None:
        """
        After an outage the new poem is served, and is as fresh as any.
        """
        self.check(60, b"old", 1)
        self.upstream.refuse()
        self.check(70, b"old", 2)
        self.give(b"new")
        self.check(129, b"new", 2)
        self.check(130, b"new", 3)

    def test_unchanged(self) -> None:
        """
        The same poem fetched again is fresh again.
        """
        self.check(60, b"old", 1)
        self.give(b"old")
        self.check(119, b"old", 1)

    def test_noFreshness(self) -> None:
        """
        Without any freshness who has waited is served all the same: a poem is good for a second.
        """
        self.restart(Freshness(maxAgeSeconds=0, revalidateSeconds=0, errorSeconds=0))
        waiting = self.wait()
        self.give(b"new")
        self.successResultOf(waiting)
        self.assertEqual(self.served, b"new")
        self.reactor.advance(1)
        self.assertIsNone(self.served)


class TimeTests(ProxyCase):
    """
    Tests for how long a fetch and its readers may take.
    """

    def assertCause(self, cause: str) -> None:
        """
        Assert that the fetch has failed, and why.
        """
        self.assertFalse(self.upstream.isBusy)
        self.assertTrue(self.service.description.endswith(f" s: {cause}"), self.service.description)

    def test_connect(self) -> None:
        """
        An upstream that does not answer is left after the time for that.
        """
        self.ask()
        self.reactor.advance(4)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_idle(self) -> None:
        """
        One that accepts and is silent is left after the time between two pieces.
        """
        self.ask()
        self.upstream.accept()
        self.reactor.advance(9)
        self.upstream.send(b"a")
        self.reactor.advance(9)
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream sent nothing for 10 s")

    def test_total(self) -> None:
        """
        One that never pauses for long and never ends is left after the time for a whole poem.
        """
        self.ask()
        self.upstream.accept()
        for _ in range(29):
            self.reactor.advance(1)
            self.upstream.send(b"a")
        self.assertTrue(self.upstream.isBusy)
        self.reactor.advance(1)
        self.assertCause("upstream took too long")

    def test_endless(self) -> None:
        """
        One that sends more than a poem may have is left at once.
        """
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1000)
        self.assertTrue(self.upstream.isBusy)
        self.upstream.send(b"a")
        self.assertCause("upstream sends more than 1000 bytes")

    def test_nothingComesAfter(self) -> None:
        """
        How a connection ends that was left already makes no difference.
        """
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a" * 1001)
        self.upstream.close()
        self.assertCause("upstream sends more than 1000 bytes")
        self.assertIsNone(self.served)

    def test_readers(self) -> None:
        """
        Readers wait as long as a fetch may take, each from when it came, and then there is none.
        """
        first = self.wait()
        self.upstream.refuse()
        self.advanceTo(0.5)
        second = self.wait()
        self.advanceTo(29.5)
        self.assertNoResult(first)
        self.advanceTo(30)
        self.failureResultOf(first, defer.TimeoutError)
        self.assertNoResult(second)
        self.advanceTo(30.5)
        self.failureResultOf(second, defer.TimeoutError)

    def test_readersAreKeptThroughAttempts(self) -> None:
        """
        Readers who wait while the upstream is away get the poem as soon as it is back.
        """
        waiting = self.wait()
        self.upstream.refuse()
        self.reactor.advance(2)
        self.give(b"a poem")
        self.assertEqual(self.successResultOf(waiting).text, b"a poem")


class FailureTests(ProxyCase):
    """
    Tests for upstreams that give no whole poem.
    """

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")
        self.advanceTo(60)

    def assertKept(self, cause: str, fail: Callable[[], object]) -> None:
        """
        Assert that the old poem stays when a fetch fails, and what the cause is called.
        """
        self.ask()
        with capturedLogs() as events:
            fail()
            self.reactor.pool.work()
        self.assertEqual(said(events), [f"no poem from {UPSTREAM} for 0 s: {cause}"])
        self.assertFalse(self.upstream.isBusy)
        self.assertEqual(self.served, b"old")

    def connected(self, text: bytes, why: Exception | None) -> Callable[[], object]:
        """
        @return: what sends something and ends.
        """

        def fail() -> None:
            self.upstream.accept()
            if text:
                self.upstream.send(text)
            self.upstream.close(why)

        return fail

    def test_reset(self) -> None:
        """
        A connection that is reset half-way is no whole poem.
        """
        self.assertKept(
            "upstream broke off after 3 bytes", self.connected(b"new", ConnectionLost())
        )

    def test_empty(self) -> None:
        """
        Nothing and a clean end is no poem.
        """
        self.assertKept("upstream sent nothing and closed", self.connected(b"", None))

    def test_refused(self) -> None:
        """
        A connection that is refused has a short cause.
        """
        self.assertKept("upstream refused", self.refusing())

    def refusing(self, why: Exception | None = None) -> Callable[[], object]:
        """
        @return: what does not connect.
        """
        return lambda: self.upstream.refuse(why)

    def test_unknown(self) -> None:
        """
        So has a name without an address.
        """
        self.assertKept("upstream has no address", self.refusing(DNSLookupError()))

    def test_systemTimeout(self) -> None:
        """
        So has the system's own time for a connection.
        """
        self.assertKept("upstream took too long", self.refusing(error.TimeoutError()))

    def test_system(self) -> None:
        """
        So has a UNIX socket that is not there, and all else that the system has a word for.
        """
        self.assertKept(
            "upstream cannot be reached: No such file or directory",
            self.refusing(ConnectError(2, "gone")),
        )

    def test_other(self) -> None:
        """
        Anything else has the cause that it says itself.
        """
        self.assertKept("upstream failed: no luck", self.refusing(ValueError("no luck")))


class ExpectedTests(ProxyCase):
    """
    Tests for a poem whose digest is known.
    """

    def setUp(self) -> None:
        super().setUp()
        self.digest = Poem("", b"known", "").digest
        self.restart(expectedDigest=self.digest)

    def test_known(self) -> None:
        """
        The known poem is taken.
        """
        self.fetch(b"known")
        self.assertEqual(self.served, b"known")

    def test_another(self) -> None:
        """
        Another one, such as half of it, is not, and the cause has its digest.
        """
        self.fetch(b"kno")
        self.assertIsNone(self.served)
        digest = Poem("", b"kno", "").digest
        cause = f"upstream sent another poem, SHA-256 {digest}"
        self.assertIn(cause, self.service.description)


class OutageTests(ProxyCase):
    """
    Tests for an upstream that is away for long: how often it is asked, and what is said of it.
    """

    def failUntil(self, seconds: float) -> None:
        """
        Have every attempt refused until some time, while somebody asks ten times a second.
        """
        while self.reactor.seconds() < seconds:
            self.ask()
            if self.upstream.isBusy:
                self.upstream.refuse()
            self.reactor.advance(0.1)

    def test_pauses(self) -> None:
        """
        The pauses between attempts grow from a second to ten at most, and are never the same.
        """
        self.failUntil(300)
        attempts = self.upstream.attempts
        pauses = [after - before for before, after in pairwise(attempts)]
        # The clock here goes by tenths.
        self.assertTrue(all(0.99 <= each <= 10.2 for each in pauses), pauses)
        self.assertLess(pauses[0], 2.2)
        self.assertGreater(min(pauses[4:]), 4.9)
        self.assertGreater(len({round(each, 1) for each in pauses}), 5)

    def test_afterwards(self) -> None:
        """
        The next outage begins with a short pause again.
        """
        self.failUntil(100)
        self.reactor.advance(10)
        self.fetch(b"a poem")
        self.reactor.advance(60)
        before = self.reactor.seconds()
        self.failUntil(before + 3)
        self.assertEqual([each >= before for each in self.upstream.attempts[-2:]], [True] * 2)

    def test_records(self) -> None:
        """
        An outage has a record when it begins, one every ten minutes, and one when it ends.
        """
        with capturedLogs() as events:
            self.failUntil(1500)
            self.reactor.advance(10)
            self.fetch()
        ids = [each["message_id"] for each in records(events)]
        self.assertEqual(ids, [FAILED, FAILED, FAILED, FETCHED, BACK])
        first, second, third, _, last = records(events)
        self.assertEqual(
            first,
            {
                "text": f"no poem from {UPSTREAM} for 0 s: upstream refused",
                "level": "warn",
                "upstream": UPSTREAM,
                "seconds": 0,
                "cause": "upstream refused",
                "attempts": 1,
                "message_id": FAILED,
            },
        )
        self.assertTrue(600 <= second["seconds"] <= 611, second)
        self.assertTrue(1200 <= third["seconds"] <= 1222, third)
        self.assertEqual(last["level"], "info")
        self.assertTrue(1500 <= last["seconds"] <= 1520, last)
        self.assertEqual(last["attempts"], len(self.upstream.attempts) - 1)
        self.assertRegex(last["text"], r" is back after 15\d\d s and \d+ attempts$")

    def test_nobodyAsks(self) -> None:
        """
        Where nobody wants the poem, nobody asks for it either.
        """
        self.ask()
        self.upstream.refuse()
        self.reactor.advance(1000)
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_description(self) -> None:
        """
        It says for how long there has been nothing, and why, with a poem and without.
        """
        self.ask()
        self.upstream.refuse()
        self.reactor.advance(0.5)
        self.assertEqual(self.service.description, f"{UPSTREAM}. Stale for 0 s: upstream refused")
        self.failUntil(312)
        self.assertIn("Stale for 312 s: upstream refused", self.service.description)


class ReloadTests(ProxyCase):
    """
    Tests for the reload.
    """

    def setUp(self) -> None:
        super().setUp()
        self.fetch(b"old")
        self.upstream.attempts.clear()

    def test_anew(self) -> None:
        """
        However fresh the poem is, it is fetched anew, and served until the new one is whole.
        """
        reloaded = self.service.reload()
        self.assertEqual(self.upstream.attempts, [0])
        self.assertEqual(self.served, b"old")
        self.assertNoResult(reloaded)
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")
        self.assertEqual(self.upstream.attempts, [0])

    def test_fails(self) -> None:
        """
        Where that fails the reload has ended, the old poem stays, and it is tried again.
        """
        reloaded = self.service.reload()
        self.upstream.refuse()
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"old")
        self.reactor.advance(2)
        self.assertEqual(self.served, b"old")
        self.assertEqual(len(self.upstream.attempts), 2)
        self.give(b"new")
        self.assertEqual(self.served, b"new")

    def test_duringAFetch(self) -> None:
        """
        What a fetch brings that began before the reload may be older, so that another follows.
        """
        self.reactor.advance(60)
        self.assertEqual(self.served, b"old")
        reloaded = self.service.reload()
        self.assertEqual(len(self.upstream.attempts), 1)
        self.give(b"middle")
        self.assertNoResult(reloaded)
        self.assertEqual(self.served, b"middle")
        self.assertEqual(len(self.upstream.attempts), 2)
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")

    def test_inAnOutage(self) -> None:
        """
        In an outage it does not wait for the next attempt's time, but a second since the last.
        """
        for _ in range(8):
            self.service.reload()
            self.upstream.refuse()
            self.reactor.advance(1)
        reloaded = self.service.reload()
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.upstream.attempts, list(range(9)))

    def test_notTwiceASecond(self) -> None:
        """
        Reloads in quick succession ask an upstream that is away no more often than others.
        """
        self.service.reload()
        self.upstream.refuse()
        again = [self.service.reload() for _ in range(10)]
        self.assertEqual(self.upstream.attempts, [0])
        self.reactor.advance(1)
        self.assertEqual(self.upstream.attempts, [0, 1])
        self.give(b"new")
        for each in again:
            self.successResultOf(each)

    def test_cold(self) -> None:
        """
        Before there is any poem a reload fetches it.
        """
        self.restart()
        reloaded = self.service.reload()
        self.give(b"new")
        self.successResultOf(reloaded)
        self.assertEqual(self.served, b"new")


class StopTests(ProxyCase):
    """
    Tests for the end.
    """

    def test_connecting(self) -> None:
        """
        A connection that is being made is not made any more, and nobody calls that an outage.
        """
        self.ask()
        with capturedLogs() as events:
            self.service.stopService()
        self.assertFalse(self.upstream.isBusy)
        self.assertEqual(said(events), [])

    def test_fetching(self) -> None:
        """
        A fetch is broken off.
        """
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"a")
        self.service.stopService()
        self.assertTrue(self.upstream.isAborted)

    def test_waiting(self) -> None:
        """
        Who waits waits no longer.
        """
        waiting = self.wait()
        self.service.stopService()
        self.failureResultOf(waiting, CancelledError)

    def test_reloading(self) -> None:
        """
        A reload ends.
        """
        reloaded = self.service.reload()
        self.service.stopService()
        self.successResultOf(reloaded)

    def test_afterwards(self) -> None:
        """
        Who still asks gets the poem there is, and has no other fetched.
        """
        self.fetch()
        self.service.stopService()
        self.reactor.advance(100)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_cold(self) -> None:
        """
        Not even if there is none.
        """
        self.service.stopService()
        self.assertIsNone(self.served)
        self.assertEqual(self.upstream.attempts, [])


class CopyTests(ProxyCase):
    """
    Tests for the copy on disk.
    """

    def setUp(self) -> None:
        super().setUp()
        self.folder = makeFolder(self)
        self.file = CopyFile(self.folder, UPSTREAM)
        self.reactor.advance(10_000)
        self.restart(file=self.file)

    def restartWith(self, text: bytes, age: float, **others: Any) -> None:
        """
        Begin with a copy of some age.
        """
        self.file.save(Copy(Poem(UPSTREAM, text, ""), self.reactor.seconds() - age))
        self.restart(file=self.file, **others)

    def test_kept(self) -> None:
        """
        What was fetched is there after a restart, as fresh as before.
        """
        self.fetch()
        self.reactor.advance(59)
        self.restart(file=self.file)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 1)
        self.reactor.advance(1)
        self.assertEqual(self.served, b"a poem")
        self.assertEqual(len(self.upstream.attempts), 2)

    def test_onlyWhole(self) -> None:
        """
        What was not whole is not.
        """
        self.ask()
        self.upstream.accept()
        self.upstream.send(b"half a")
        self.upstream.close(ConnectionLost())
        self.reactor.pool.work()
        self.assertIsNone(self.file.load())

    def test_upstreamIsDown(self) -> None:
        """
        A stale copy is served when the upstream turns out to be down, to who waited for that too.
        """
        self.restartWith(b"old", 900)
        waiting = self.wait()
        self.assertNoResult(waiting)
        self.upstream.refuse()
        self.assertEqual(self.successResultOf(waiting).text, b"old")
        self.assertEqual(self.served, b"old")

    def test_tooOld(self) -> None:
        """
        One that is too old even for that is not.
        """
        self.restartWith(b"old", 1060)
        waiting = self.wait()
        self.upstream.refuse()
        self.assertNoResult(waiting)

    def test_fromTheFuture(self) -> None:
        """
        One from the future, as a clock that was wrong makes it, is taken for a new one.
        """
        self.restartWith(b"old", -1e9)
        self.assertEqual(self.served, b"old")
        self.reactor.advance(60)
        self.assertEqual(self.served, b"old")
        self.assertEqual(len(self.upstream.attempts), 1)

    def test_notExpected(self) -> None:
        """
        One that is not the poem that is expected by now is not served.
        """
        digest = Poem("", b"new", "").digest
        with capturedLogs() as events:
            self.restartWith(b"old", 0, expectedDigest=digest)
        self.assertIsNone(self.served)
        (record,) = records(events)
        self.assertEqual(record["message_id"], NO_COPY)
        self.assertIn("is another poem", record["cause"])

    def test_damaged(self) -> None:
        """
        A damaged one has one warning, and the next fetch replaces it.
        """
        with open(self.file.path, "wb") as file:
            file.write(b"damaged")
        with capturedLogs() as events:
            self.restart(file=self.file)
        cause = f"{self.file.path}: is damaged, and will be replaced"
        self.assertEqual(
            records(events),
            [
                {
                    "text": f"the copy on disk cannot be used: {cause}",
                    "level": "warn",
                    "cause": cause,
                    "upstream": UPSTREAM,
                    "message_id": NO_COPY,
                }
            ],
        )
        self.assertIsNone(self.served)
        self.fetch()
        copy = self.file.load()
        assert copy is not None
        self.assertEqual(copy.poem.text, b"a poem")

    def test_unwritable(self) -> None:
        """
        Where no copy can be written there is a warning, and readers are served all the same.
        """
        os.rmdir(self.folder)
        self.addCleanup(os.mkdir, self.folder)
        with capturedLogs() as events:
            self.fetch()
        self.assertEqual(self.served, b"a poem")
        (_, warning) = records(events)
        self.assertEqual(warning["message_id"], NO_COPY)
        self.assertEqual(warning["cause"], f"{self.file.path}: No such file or directory")

    def test_inAThread(self) -> None:
        """
        A thread writes it: the disk holds up nobody.
        """
        waiting = self.wait()
        self.upstream.accept()
        self.upstream.send(b"a poem")
        self.upstream.close()
        self.reactor.pool.work()
        self.successResultOf(waiting)
        self.assertIsNone(self.file.load())
        self.reactor.pool.work()
        self.assertIsNotNone(self.file.load())


class StoryTests(ProxyCase):
    """
    Tests for what holds whatever happens.
    """

    @given(
        st.lists(
            st.integers(1, 400)
            | st.sampled_from(["ask", "reload", "accept", "refuse", "break"])
            | st.binary(min_size=1, max_size=9),
            max_size=40,
        )
    )
    def test_anyStory(self, story: list[int | str | bytes]) -> None:
        """
        There is one fetch at a time, and none for a second after a failure; only whole poems are
        served; nobody waits for longer than is said; and nothing is left at the end.
        """
        upstream = self.upstream = FakeUpstream(self.reactor)
        self.restart()
        whole: set[bytes | None] = {None}
        self.waiting.clear()
        for step in story:
            isConnected = upstream._protocol is not None and not upstream.isAborted
            if isinstance(step, int):
                self.reactor.advance(step / 10)
            elif step == "ask":
                self.wait()
            elif step == "reload":
                self.service.reload()
            elif isConnected and isinstance(step, bytes):
                whole.add(step)
                upstream.send(step)
                upstream.close()
                self.reactor.pool.work()
            elif isConnected and step == "break":
                upstream.send(b"half a poem")
                upstream.close(ConnectionLost())
            elif upstream._connecting is not None and step == "accept":
                upstream.accept()
            elif upstream._connecting is not None and step == "refuse":
                upstream.refuse()
            self.assertIn(self.served, whole)
        self.reactor.advance(30)
        ended: list[bytes | None] = []

        def onlyTimeout(why: Failure) -> None:
            why.trap(defer.TimeoutError)
            ended.append(None)

        for each in self.waiting:
            each.addCallback(lambda poem: ended.append(poem.text))
            each.addErrback(onlyTimeout)
        self.assertEqual(len(ended), len(self.waiting))
        self.assertLessEqual(set(ended), whole)
        self.end()
