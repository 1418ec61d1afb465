"""Tests for L{fastpoetry.listen}."""

from __future__ import annotations

import os
from typing import Any

from fakes import (
    FakeEndpoint,
    FakePort,
    FakeReader,
    FakeSource,
    Reactor,
    makeFolder,
    records,
    said,
)
from messages import CANNOT_LISTEN, SERVING
from twisted.application.service import IService, MultiService
from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import ServerFactory
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from fastpoetry.delivery.fastport import BorrowedPort, FastPort
from fastpoetry.delivery.haproxy import PatientEndpoint, PatientFactory
from fastpoetry.delivery.limits import Limits
from fastpoetry.delivery.policy import Policy
from fastpoetry.listen import PoetryListener
from fastpoetry.protocol import PoetryFactory, PoetryProtocol


class Several:
    """A port made of several others, like an adopted one."""

    def __init__(self, *ports: Any) -> None:
        self.ports = ports


class ListenerCase(SynchronousTestCase):
    """A test case with a listener that has not started."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.policy = Policy(Limits(), self.reactor)
        self.factory = PoetryFactory(FakeSource(), self.policy)
        self.endpoint = FakeEndpoint()
        self.listener = PoetryListener(self.endpoint, self.factory, self.reactor)

    def plainPort(self, factory: Any = None) -> Any:
        """@return: a listening TCP port of Twisted."""
        port = tcp.Port(0, factory or self.factory, 50, "127.0.0.1", self.reactor)
        port.startListening()
        self.addCleanup(self.reactor.advance, 0)
        self.addCleanup(port.stopListening)
        return port

    def start(self, port: Any) -> list[str]:
        """
        Start, and let the endpoint listen.

        @return: the records made.
        """
        self.listener.startService()
        with capturedLogs() as events:
            self.endpoint.listening.callback(port)
        return said(events)


class AliveTests(ListenerCase):
    """Tests for whether a listener is alive."""

    def test_ports(self) -> None:
        """A listener is alive while each of our ports is; other ports cannot be checked."""
        self.assertTrue(self.listener.isAlive)
        self.start(Several(self.plainPort(), self.plainPort(), FakePort()))
        self.assertTrue(self.listener.isAlive)
        self.reactor.removeReader(self.reactor.getReaders()[0])
        self.assertFalse(self.listener.isAlive)

    def test_stopped(self) -> None:
        """A stopped listener is alive."""
        self.start(self.plainPort())
        self.listener.stopService()
        self.assertTrue(self.listener.isAlive)
        self.reactor.advance(0)


class StartTests(ListenerCase):
    """Tests for the start."""

    def test_interfaces(self) -> None:
        """
        A listener is a service; the endpoint and the port of these tests provide their interfaces.
        """
        verifyObject(IService, self.listener)
        verifyObject(IStreamServerEndpoint, self.endpoint)
        verifyObject(IListeningPort, FakePort())

    def test_privileged(self) -> None:
        """The listener listens while the process may still bind a low port, and only once."""
        self.listener.privilegedStartService()
        self.assertEqual(self.endpoint.factories, [self.factory])
        self.listener.startService()
        self.assertEqual(self.endpoint.factories, [self.factory])

    def test_started(self) -> None:
        """The start ends when the endpoint listens: READY waits for it."""
        started: Any = self.listener.startService()
        self.assertNoResult(started)
        self.endpoint.listening.callback(FakePort())
        self.successResultOf(started)

    def test_late(self) -> None:
        """A listener added to a running parent listens at once."""
        parent = MultiService()
        parent.startService()
        self.listener.setServiceParent(parent)
        self.assertEqual(self.endpoint.factories, [self.factory])

    def test_fast(self) -> None:
        """A plain TCP port is replaced by a fast one on the same socket."""
        plain = self.plainPort()
        self.start(plain)
        (fast,) = self.reactor.getReaders()
        self.assertIsInstance(fast, FastPort)
        self.assertEqual(fast.fileno(), plain.fileno())

    def test_fastUNIX(self) -> None:
        """A plain UNIX port is replaced by a fast one on the same socket."""
        path = os.path.join(makeFolder(self), "s")
        plain: Any = unix.Port(os.fsencode(path), self.factory, reactor=self.reactor)
        plain.startListening()
        self.addCleanup(self.reactor.advance, 0)
        self.addCleanup(plain.stopListening)
        said = self.start(plain)
        (fast,) = self.reactor.getReaders()
        self.assertIsInstance(fast, FastPort)
        self.assertEqual(said, [f"serving poetry on {path}"])

    def test_wrapped(self) -> None:
        """
        A port with a factory around ours, as for TLS, makes its own connections, but accepts only
        up to the limits.
        """
        plain = self.plainPort(ServerFactory())
        self.start(plain)
        (borrowed,) = self.reactor.getReaders()
        self.assertIs(type(borrowed), BorrowedPort)
        self.assertEqual(borrowed.fileno(), plain.fileno())

    def test_ownProtocol(self) -> None:
        """If the factory has a protocol of its own, connections use it."""

        class Mine(PoetryProtocol):
            pass

        self.factory.protocol = Mine
        self.start(self.plainPort())
        (borrowed,) = self.reactor.getReaders()
        self.assertIs(type(borrowed), BorrowedPort)

    def test_PROXY(self) -> None:
        """If a PROXY header is expected, the poem waits for the header."""
        endpoint = FakeEndpoint()
        listener = PoetryListener(PatientEndpoint(endpoint), self.factory, self.reactor)
        listener.startService()
        factory: Any = endpoint.factories[0]
        self.assertIsInstance(factory, PatientFactory)
        self.assertIs(factory.wrappedFactory, self.factory)

    def test_several(self) -> None:
        """Each part of a port made of several is served in the best way for that part."""
        plain, other = self.plainPort(), FakePort()
        self.start(Several(plain, other))
        (fast,) = self.reactor.getReaders()
        self.assertIsInstance(fast, FastPort)
        self.policy.pause("")
        self.assertEqual((self.reactor.getReaders(), other.reading), ([], False))

    def test_paused(self) -> None:
        """At a limit the port accepts no client."""
        port = FakePort()
        self.start(port)
        self.policy.pause("")
        self.assertFalse(port.reading)


class RecordTests(ListenerCase):
    """Tests for the record of the addresses."""

    def record(self, *addresses: Any) -> str:
        """@return: the record for ports at these addresses."""
        (text,) = self.start(Several(*map(FakePort, addresses)))
        self.assertTrue(text.startswith("serving poetry on "), text)
        return text.removeprefix("serving poetry on ")

    def test_everywhere(self) -> None:
        """One record names every address."""
        self.assertEqual(
            self.record(
                IPv4Address("TCP", "127.0.0.1", 10000),
                IPv6Address("TCP", "::1", 10000),
                UNIXAddress(b"/run/fastpoetry/ecstasy.sock"),
            ),
            "127.0.0.1:10000, [::1]:10000, /run/fastpoetry/ecstasy.sock",
        )

    def test_addresses(self) -> None:
        """The listener returns its addresses while it listens."""
        address = IPv4Address("TCP", "127.0.0.1", 17)
        self.assertEqual(self.listener.addresses, ())
        self.start(FakePort(address))
        self.assertEqual(self.listener.addresses, (address,))
        self.listener.stopService()
        self.assertEqual(self.listener.addresses, ())

    def test_noName(self) -> None:
        """A UNIX socket without a name is recorded as such."""
        self.assertEqual(self.record(UNIXAddress(None)), "a UNIX socket without a name")

    def test_anyName(self) -> None:
        """A path may have any bytes, which a log file can hold too."""
        self.assertEqual(self.record(UNIXAddress(b"/run/\xff.sock")), "/run/\\udcff.sock")

    def test_fields(self) -> None:
        """The record has the addresses in a field."""
        self.listener.startService()
        with capturedLogs() as events:
            self.endpoint.listening.callback(FakePort(IPv4Address("TCP", "192.0.2.1", 17)))
        (record,) = records(events)
        self.assertEqual(
            (record["addresses"], record["level"], record["message_id"]),
            ("192.0.2.1:17", "info", SERVING),
        )


class FailureTests(ListenerCase):
    """Tests for an endpoint that cannot listen."""

    def error(self) -> CannotListenError:
        """@return: an endpoint's error for a port in use."""
        return CannotListenError("127.0.0.1", 17, OSError(98, "Address already in use"))

    def test_atOnce(self) -> None:
        """An immediate error ends the start, as twistd expects."""
        self.endpoint.listening = fail(self.error())
        self.assertRaises(CannotListenError, self.listener.privilegedStartService)
        self.assertFalse(self.reactor.hasStopped)

    def test_tryAgain(self) -> None:
        """After an immediate error the listener can be started again, and then listens."""
        self.endpoint.listening = fail(self.error())
        self.assertRaises(CannotListenError, self.listener.startService)
        self.endpoint.listening = Deferred()
        started: Any = self.listener.startService()
        self.assertNoResult(started)
        self.endpoint.listening.callback(FakePort())
        self.successResultOf(started)

    def test_duringStop(self) -> None:
        """An error while the reactor stops already is logged, and stops nothing again."""

        def stop() -> None:
            raise ReactorNotRunning

        self.patch(self.reactor, "stop", stop)
        started: Any = self.listener.startService()
        self.endpoint.listening.errback(self.error())
        self.successResultOf(started)
        self.flushLoggedErrors(CannotListenError)

    def test_later(self) -> None:
        """A later error ends the program, with one record of the cause."""
        self.listener.privilegedStartService()
        started: Any = self.listener.startService()
        with capturedLogs() as events:
            self.endpoint.listening.errback(self.error())
        self.assertTrue(self.reactor.hasStopped)
        self.successResultOf(started)
        (record,) = records(events)
        self.assertEqual(
            (record["text"], record["level"], record["message_id"]),
            (
                "cannot listen, so the program ends",
                "critical",
                CANNOT_LISTEN,
            ),
        )
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)

    def test_beginFails(self) -> None:
        """An error in serving on a port is a failure like any other."""
        self.endpoint.listening = succeed(object())
        self.assertRaises(AttributeError, self.listener.privilegedStartService)

    def test_beginFailsLater(self) -> None:
        """A later error in serving on a port is a failure."""
        self.listener.startService()
        self.endpoint.listening.callback(object())
        self.assertTrue(self.reactor.hasStopped)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)


class StopTests(ListenerCase):
    """Tests for the stop."""

    def test_stops(self) -> None:
        """A stopped listener accepts no client, and the limits leave its port alone."""
        port = FakePort()
        self.start(port)
        self.successResultOf(self.listener.stopService())
        self.assertTrue(port.stopped)
        self.policy.pause("")
        self.assertEqual(port.turns, 0)

    def test_fast(self) -> None:
        """A fast port gives its socket back."""
        plain = self.plainPort()
        self.start(plain)
        stopped = self.listener.stopService()
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertNoResult(stopped)
        self.reactor.advance(0)
        self.successResultOf(stopped)
        self.assertFalse(plain.connected)

    def test_waits(self) -> None:
        """A stop waits for readers."""
        self.start(FakePort())
        reader = FakeReader(self.policy)
        self.policy.begin(reader)
        stopped = self.listener.stopService()
        self.assertNoResult(stopped)
        self.policy.remove(reader)
        self.successResultOf(stopped)

    def test_shared(self) -> None:
        """The stop of one listener leaves readers of the others alone: the last one drains."""
        endpoint = FakeEndpoint()
        other = PoetryListener(endpoint, self.factory, self.reactor)
        self.start(FakePort())
        other.startService()
        endpoint.listening.callback(FakePort())
        reader = FakeReader(self.policy)
        self.policy.begin(reader)
        self.successResultOf(self.listener.stopService())
        self.reactor.advance(1)
        self.assertEqual(reader.did, [])
        stopped = other.stopService()
        self.assertNoResult(stopped)
        self.policy.remove(reader)
        self.successResultOf(stopped)

    def test_adopted(self) -> None:
        """The sockets of an adopted port are returned at the end of its own stop."""
        inner, outer = FakePort(), FakePort()
        whole: Any = outer
        whole.ports = (inner,)
        self.start(whole)
        self.successResultOf(self.listener.stopService())
        self.assertTrue(inner.stopped)
        self.assertTrue(outer.stopped)

    def test_portsFirst(self) -> None:
        """
        Every port has stopped before the wait for readers begins, so that no client comes
        meanwhile.
        """
        port: Any = FakePort()
        stopping: Deferred[None] = Deferred()
        self.patch(port, "stopListening", lambda: stopping)
        self.start(port)
        stopped = self.listener.stopService()
        self.assertNoResult(stopped)
        stopping.callback(None)
        self.successResultOf(stopped)

    def test_beforeItListens(self) -> None:
        """An endpoint that does not listen yet is cancelled, which is not a failure."""
        self.listener.startService()
        with capturedLogs() as events:
            self.successResultOf(self.listener.stopService())
        self.assertTrue(self.endpoint.listening.called)
        self.assertEqual(said(events), [])
        self.assertFalse(self.reactor.hasStopped)

    def test_twice(self) -> None:
        """A second stop only waits."""
        self.start(FakePort())
        self.listener.stopService()
        self.successResultOf(self.listener.stopService())

    def test_beforeItStarts(self) -> None:
        """Stopping a listener that has not started has no effect."""
        self.successResultOf(self.listener.stopService())

    def test_again(self) -> None:
        """A stopped listener can start again."""
        self.start(FakePort())
        self.listener.stopService()
        self.endpoint.listening = Deferred()
        self.start(FakePort())
        self.assertEqual(len(self.endpoint.factories), 2)
