"""Tests for L{fastpoetry.proxy.upstream}."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from queue import SimpleQueue
from typing import Any
from unittest import mock

from fakes import SECONDS, Reactor, Threads
from hypothesis import given
from hypothesis import strategies as st
from processes import ROOT
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.proxy.upstream import Resolver, ThreadError, parseUpstream

_STANDS_STILL = """
import threading
from unittest.mock import Mock
from twisted.internet import reactor
from fastpoetry.proxy.upstream import Resolver

begun = threading.Event()

def getaddrinfo(*_, **how):
    begun.set()
    threading.Event().wait()

Resolver(reactor, getaddrinfo).resolveHostName(Mock(), "poems", 17)
begun.wait()
reactor.callWhenRunning(reactor.stop)
reactor.run()
print("ended")
"""

FORM = "; the right form is tcp:host=poems.example:port=10000"


class FakeNames:
    """
    Names as C{getaddrinfo} knows them.

    @ivar asked: the names that were looked up.
    """

    def __init__(self, **names: list[str]) -> None:
        self._names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **how: Any) -> list[Any]:
        """Look a name up."""
        self.asked.append(host)
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            each
            for address in self._names[host]
            for each in socket.getaddrinfo(address, port, **how, flags=socket.AI_NUMERICHOST)
        ]


class ParseTests(SynchronousTestCase):
    """Tests for L{parseUpstream}: the addresses connected to."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.threads = Threads(self)
        self.names = FakeNames(poems=["::1", "127.0.0.1"], six=["::1"])
        self.reactor.installNameResolver(Resolver(self.reactor, self.names))

    def connect(self, description: str) -> list[tuple[Any, ...]]:
        """@return: each connection attempt while no upstream answers."""
        endpoint = parseUpstream(description, self.reactor)
        verifyObject(IStreamClientEndpoint, endpoint)
        connecting = endpoint.connect(Factory.forProtocol(Protocol))
        self.threads.work()
        self.reactor.advance(1)
        connecting.addErrback(lambda _: None).cancel()
        tried = [
            (host, port, timeout, source)
            for host, port, _, timeout, source in self.reactor.tcpClients
        ]
        self.reactor.tcpClients.clear()
        return tried

    def test_address(self) -> None:
        """
        An IPv4 address and a port, given by name or by position, are connected to without a thread,
        with the caller's timeout.
        """
        for description in (
            "tcp:host=127.0.0.1:port=10000",
            "tcp:port=10000:host=127.0.0.1",
            "tcp:127.0.0.1:10000",
            "tcp:127.0.0.1:port=10000",
        ):
            self.assertEqual(self.connect(description), [("127.0.0.1", 10000, None, None)])
        self.assertEqual(self.names.asked, [])

    def test_IPv6(self) -> None:
        """An IPv6 address in any form is connected to."""
        for description in (
            "tcp:host=::1:port=10011",
            "tcp:port=10011:host=::1",
            "tcp:host=[::1]:port=10011",
            "tcp:[::1]:10011",
            "tcp:::1:10011",
            r"tcp:host=\:\:1:port=10011",
            r"tcp:\:\:1:10011",
        ):
            self.assertEqual(self.connect(description), [("::1", 10011, None, None)])
        for address in ("fe80::1%lo", "2001:db8::", "::ffff:192.0.2.1", "2001:db8:1:2:3:4:5:6"):
            self.assertEqual(self.connect(f"tcp:host={address}:port=1"), [(address, 1, None, None)])

    def test_name(self) -> None:
        """
        All addresses of a name are tried, one after the other (RFC 8305), in the resolver's order.
        """
        self.assertEqual(
            [host for host, _, _, _ in self.connect("tcp:host=poems:port=10000")],
            ["::1", "127.0.0.1"],
        )
        self.assertEqual(self.connect("tcp:six:10000"), [("::1", 10000, None, None)])

    def test_source(self) -> None:
        """An option sets the address to connect from."""
        self.assertEqual(
            self.connect("tcp:127.0.0.1:10000:bindAddress=127.0.0.2"),
            [("127.0.0.1", 10000, None, ("127.0.0.2", 0))],
        )

    def test_unix(self) -> None:
        """A UNIX socket is connected to by its path."""
        endpoint = parseUpstream("unix:path=/run/x[a].sock", self.reactor)
        endpoint.connect(Factory.forProtocol(Protocol)).addErrback(lambda _: None)
        ((path, *_),) = self.reactor.unixClients
        self.assertEqual(path, "/run/x[a].sock")

    def test_noThread(self) -> None:
        """If no thread can start to look a name up, connecting fails with that error."""
        self.threads.why = RuntimeError("none is left")
        endpoint = parseUpstream("tcp:poems:10000", self.reactor)
        self.assertRaises(ThreadError, endpoint.connect, Factory.forProtocol(Protocol))

    def refusal(self, description: str) -> str:
        """@return: the refusal."""
        return str(self.assertRaises(ValueError, parseUpstream, description, self.reactor))

    def test_mistakes(self) -> None:
        """A missing or invalid part is named, with the right form."""
        for description, why in {
            "": "names no upstream",
            "tcp": "has no host",
            "tcp:": "has no host",
            "tcp:port=10000": "has no host",
            "tcp:host=:port=10000": "has no host",
            "tcp:host=poems": "port '' is not from 1 to 65535",
            "tcp:poems:": "port '' is not from 1 to 65535",
            "tcp:poems:0": "port '0' is not from 1 to 65535",
            "tcp:poems:65536": "port '65536' is not from 1 to 65535",
            "tcp:poems:daytime": "port 'daytime' is not from 1 to 65535",
            "tcp:poems:1:2": "'2' is more than was expected",
            "tcp:host=poems:port=1:port=2": "'port=2' is more than was expected",
            "tcp:host=poems:prot=1": "'prot=1' is more than was expected",
            "tcp:host=2001:db8:port=10": "'db8' is more than was expected",
            "poems.example:10000": "not a Twisted client endpoint: Unknown endpoint type",
            "unix": "not a Twisted client endpoint: ",
            "tls:x": "not a Twisted client endpoint: ",
        }.items():
            refusal = self.refusal(description)
            self.assertTrue(why in refusal and refusal.endswith(FORM), (description, refusal))

    def test_timeout(self) -> None:
        """A timeout in the description is refused: an option already sets it."""
        for description in ("tcp:host=poems:port=1:timeout=3", "unix:/x:timeout=3"):
            why = self.refusal(description)
            self.assertEqual(why, "timeout= is not supported; use --connect-timeout")

    @given(st.text(alphabet="tcphost=por:[]\\1.\n\0 é").map("tcp:".__add__))
    def test_any(self, description: str) -> None:
        """Any text is either an endpoint or refused in one line."""
        try:
            endpoint = parseUpstream(description, self.reactor)
        except ValueError as why:
            self.assertTrue(str(why).isprintable(), why)
        else:
            self.assertIsInstance(endpoint, HostnameEndpoint)


@implementer(IResolutionReceiver)
class FakeReceiver:
    """
    A receiver of addresses.

    @ivar found: the addresses, once the lookup is complete.
    """

    def __init__(self) -> None:
        self.found: list[Any] | None = None
        self._found: list[Any] = []
        self.began: Any = None

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Do nothing."""
        self.began = resolutionInProgress

    def addressResolved(self, address: Any) -> None:
        """Store an address."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """Complete the lookup."""
        self.found = self._found


class ResolverTests(SynchronousTestCase):
    """Tests for L{Resolver}."""

    def setUp(self) -> None:
        self.threads = Threads(self)
        self.names = FakeNames(poems=["::1", "127.0.0.1"])
        self.resolver = Resolver(Reactor(), self.names)

    def look(self, name: str, **how: Any) -> FakeReceiver:
        """@return: the receiver of a name's addresses."""
        receiver = FakeReceiver()
        lookup = self.resolver.resolveHostName(receiver, name, 17, **how)
        self.assertIs(receiver.began, lookup)
        verifyObject(IHostResolution, lookup)
        self.assertEqual(lookup.name, name)
        lookup.cancel()
        return receiver

    def test_interface(self) -> None:
        """The resolver is a name resolver."""
        verifyObject(IHostnameResolver, self.resolver)
        verifyObject(IResolutionReceiver, FakeReceiver())

    def test_found(self) -> None:
        """A name is looked up in a thread, and has addresses of both families."""
        receiver = self.look("poems")
        self.assertIsNone(receiver.found)
        self.threads.work()
        self.assertEqual(
            receiver.found, [IPv6Address("TCP", "::1", 17), IPv4Address("TCP", "127.0.0.1", 17)]
        )

    def test_kind(self) -> None:
        """A lookup of one family returns only that family."""
        receiver = self.look("poems", addressTypes=[IPv4Address])
        self.threads.work()
        self.assertEqual(receiver.found, [IPv4Address("TCP", "127.0.0.1", 17)])

    def test_unknown(self) -> None:
        """An unknown or impossible name has no address."""
        self.names = FakeNames()
        for resolver, name in (
            (self.resolver, "nobody"),
            (Resolver(Reactor(), partial(socket.getaddrinfo)), "a" * 64 + "."),
        ):
            self.resolver = resolver
            receiver = self.look(name)
            self.threads.work()
            self.assertEqual(receiver.found, [])

    def test_together(self) -> None:
        """
        All lookups of a name that is being looked up share one thread: a resolver that does not
        answer has one thread, and not one for each attempt.
        """
        receivers = [self.look("poems") for _ in range(10)]
        self.threads.work()
        self.assertEqual([len(each.found or ()) for each in receivers], [2] * 10)
        self.assertEqual(self.names.asked, ["poems"])
        self.look("poems")
        self.threads.work()
        self.assertEqual(self.names.asked, ["poems"] * 2)

    def test_noThread(self) -> None:
        """If no thread can start that is an error; the next lookup tries again."""
        self.threads.why = RuntimeError("none is left")
        self.assertRaises(ThreadError, self.resolver.resolveHostName, FakeReceiver(), "poems")
        self.threads.why = None
        receiver = self.look("poems")
        self.threads.work()
        self.assertEqual(len(receiver.found or ()), 2)

    def test_failsOtherwise(self) -> None:
        """After any failed lookup the name is looked up again the next time."""
        names = self.resolver._getaddrinfo
        for why in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):
            self.resolver._getaddrinfo = mock.Mock(side_effect=why)
            receiver = self.look("poems")
            self.threads.work()
            self.assertEqual(receiver.found, [])
        self.resolver._getaddrinfo = names
        receiver = self.look("poems")
        self.threads.work()
        self.assertEqual(len(receiver.found or ()), 2)


class ThreadTests(SynchronousTestCase):
    """Tests for the threads of L{Resolver}."""

    def test_elsewhere(self) -> None:
        """A lookup has a thread of its own, and its result comes through the reactor."""
        calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        reactor = mock.Mock(callFromThread=lambda *call: calls.put(call))
        threads: list[threading.Thread] = []

        def getaddrinfo(*_: object, **how: object) -> list[Any]:
            threads.append(threading.current_thread())
            return []

        receiver = FakeReceiver()
        Resolver(reactor, getaddrinfo).resolveHostName(receiver, "poems", 17)
        f, *args = calls.get(timeout=SECONDS)
        self.assertIsNone(receiver.found)
        f(*args)
        self.assertEqual(receiver.found, [])
        self.assertIsNot(threads[0], threading.current_thread())
        self.assertTrue(threads[0].daemon)

    def test_none(self) -> None:
        """If no thread can start, the error is one line."""
        start = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        self.patch(threading.Thread, "start", start)
        look = Resolver(Reactor()).resolveHostName
        why = self.assertRaises(ThreadError, look, FakeReceiver(), "poems", 17)
        self.assertEqual(str(why), "no thread can be started: can't start new thread")

    def test_end(self) -> None:
        """A process whose lookup hangs ends all the same."""
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        ended = subprocess.run(
            [sys.executable, "-c", _STANDS_STILL], env=environ, capture_output=True, timeout=60
        )
        self.assertEqual((ended.returncode, ended.stdout, ended.stderr), (0, b"ended\n", b""))
