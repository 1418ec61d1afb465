"""
What a Twisted program tells systemd about itself, by sd_notify(3).

Knows nothing of what the program does, asks for no longer timeouts and stores no descriptors.
Outside systemd it sends nothing and runs no timer.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from signal import SIGHUP, signal
from socket import AF_UNIX, SOCK_DGRAM, socket
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from fastpoetry.systemd.clock import MonotonicClock


class NotifyService(Service):
    """
    Tells systemd that the program is ready, reloads, stops and is alive, and how it is doing.

    Add it last. Services start in the order in which they were added, so that READY means that all
    of them have started; one that fails ends twistd before. They stop in the reverse order, so that
    STOPPING is said before any of them begins to. A program that is ready only later adds it then:
    a parent that already runs starts it at once.
    """

    _log = Logger()
    _manager: _Manager | None = None
    _told = ""
    _asked = False
    _reloading = False

    def __init__(
        self,
        reactor: Any,
        *,
        status: Callable[[], str] | None = None,
        reload: Callable[[], Awaitable[object] | None] | None = None,
        clock: Any = None,
        environ: Mapping[str, str] = os.environ,
        setHandler: Callable[[int, Callable[..., None]], object] = signal,
    ) -> None:
        """
        @param reactor: provides C{IReactorCore}, C{IReactorFDSet} and C{IReactorFromThreads}.
        @param status: how the program is doing, in a person's words; asked once a second.
        @param reload: what SIGHUP does; the reload ends when what this returns does. Without it
            SIGHUP is left as it was.
        @param clock: provides C{IReactorTime}. Without it, a L{MonotonicClock}: no step of the wall
            clock holds up a sign of life.
        @param environ: where systemd leaves C{NOTIFY_SOCKET}, C{WATCHDOG_USEC}, C{WATCHDOG_PID}.
        @param setHandler: sets the handler of a signal, as C{signal.signal} does.
        """
        self._reactor = reactor
        self._status = status
        self._hook = reload
        self._clock = MonotonicClock(reactor) if clock is None else clock
        self._environ = environ
        self._setHandler = setHandler

    def startService(self) -> None:
        """
        Say READY once the reactor runs. From now on SIGHUP reloads.
        """
        super().startService()
        if self._hook is not None:
            # Outside systemd too, and for good: with no handler SIGHUP ends the program, even one
            # that is already stopping and has clients to see off.
            self._setHandler(SIGHUP, self._hungUp)
        address = self._environ.get("NOTIFY_SOCKET")
        if address:
            self._manager = _Manager(address)
            self._reactor.addSystemEventTrigger("after", "shutdown", self._manager.close)
            self._reactor.callWhenRunning(self._ready, self._manager)

    def stopService(self) -> None:
        """
        Say STOPPING. Status and watchdog go on for as long as the reactor runs.
        """
        super().stopService()
        self._declare("STOPPING=1")

    def _ready(self, manager: _Manager) -> None:
        self._every(1, self._tellStatus, now=True)
        self._every(1, manager.catchUp, now=False)
        watchdog = _watchdogSeconds(self._environ)
        if watchdog:
            # To the very end: systemd lets the watchdog rest when the service begins to stop, but a
            # ping that it reads after that wakes it, and a drain without pings is then aborted.
            self._every(watchdog / 3, manager.offer, "WATCHDOG=1", now=False)
        self._declare("READY=1")

    def _every(self, seconds: float, f: Callable[..., object], *args: object, now: bool) -> None:
        loop = LoopingCall(f, *args)
        loop.clock = self._clock
        loop.start(seconds, now)

    def _hungUp(self, *_signalAndFrame: object) -> None:
        # All that a signal handler may ask of a reactor.
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        self._asked = True
        if not self._reloading:
            Deferred.fromCoroutine(self._reloadWhileAsked())

    async def _reloadWhileAsked(self) -> None:
        self._reloading = True
        while self._asked and self.running:
            self._asked = False
            # The time tells systemd whether this is the reload it asked for, or one before.
            self._declare(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                ending = self._hook and self._hook()
                if ending is not None:
                    await ending
            except Exception:
                self._log.failure(
                    "the reload failed and the program goes on",
                    message_id="c4b198664625443390c32223558e6b37",
                )
            if self.running:
                self._tellStatus()
                self._declare("READY=1")
        self._reloading = False

    def _declare(self, state: str) -> None:
        if self._manager is not None:
            self._manager.declare(state)

    def _tellStatus(self) -> None:
        if self._manager is None or self._status is None:
            return
        try:
            status = _oneLine(self._status())
        except Exception:
            self._status = None
            self._log.failure(
                "the status cannot be told and is no longer asked for",
                message_id="4c6937de67404cecbd417d7e76eb1226",
            )
            return
        if status != self._told and self._manager.offer(f"STATUS={status}"):
            self._told = status


class _Manager:
    """
    The service manager, at the other end of C{NOTIFY_SOCKET}.

    C{systemd.daemon.notify} would block for as long as the manager does not read, raise where there
    is none, and need a new descriptor each time, when the program may just have run out of them.
    The protocol is a public and stable one; sd_notify(3) has examples of doing without the library.
    """

    _log = Logger()
    _complained = False

    def __init__(self, address: str) -> None:
        """
        @param address: a path, or an abstract name with C{@} in place of its NUL.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._undeclared: deque[str] = deque()
        self._socket = socket(AF_UNIX, SOCK_DGRAM)
        self._socket.setblocking(False)
        self.close = self._socket.close

    def offer(self, message: str) -> bool:
        """
        Send what may get lost, since the like of it follows soon.

        @return: whether there was room for it; there always is where nobody listens.
        """
        try:
            self._socket.sendto(message.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError as why:
            if not self._complained:
                self._complained = True
                self._log.warn(
                    "systemd cannot be told how this program is doing: {address}: {cause}",
                    address=self._address.replace("\0", "@"),
                    cause=why.strerror or str(why),
                    message_id="ac0571782f8c46f194b4564c401e12c5",
                )
        return True

    def declare(self, message: str) -> None:
        """
        Send what must arrive, after all that was declared before; if there is no room, later.
        """
        self._undeclared.append(message)
        self.catchUp()

    def catchUp(self) -> None:
        """
        Send what there was no room for.
        """
        while self._undeclared and self.offer(self._undeclared[0]):
            self._undeclared.popleft()


def _oneLine(text: str) -> str:
    """
    @return: what systemd takes for one value and a terminal for text: datagrams are split at line
        breaks, and dropped with a NUL in them or above 4,096 bytes (a character has up to 4).
    """
    return "".join(c if c.isprintable() else " " for c in text[:1000])


def _watchdogSeconds(environ: Mapping[str, str]) -> float:
    """
    @return: how long systemd waits for a sign of life from this process; 0 where it does not
        (sd_watchdog_enabled(3)), and for a time that is none.
    """
    pid = str(os.getpid())
    if environ.get("WATCHDOG_PID", pid) != pid:
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0")) / 1e6)
    except (ValueError, OverflowError):
        return 0
