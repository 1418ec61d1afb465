"""
The reloads of a program: requests, time limit and result.

This module does not know which other parts of the program hear of a reload.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from signal import SIGHUP
from typing import Any, NoReturn

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from fastpoetry.systemd.deferreds import asDeferred, findCause
from fastpoetry.systemd.heartbeat import repeat
from fastpoetry.systemd.manager import oneLine
from fastpoetry.systemd.reload import NOTHING, RELOADED, STILL_RUNS, portPrefix, readCredentials
from fastpoetry.systemd.signals import Handlers

_SLOW_SECONDS = 10.0
"""After this time a record says that a reload still runs."""

Hook = Callable[[], Awaitable[object] | None]


class ReloadError(Exception):
    """
    A reload has failed and has logged the cause itself. No other record is logged.

    The message, one line, is the answer to the request.
    """


class Reloads:
    """
    Reloads the program, one reload at a time. All requests during a reload share the next one.

    SIGHUP gets no answer. L{fastpoetry.systemd.reload} gets the result.

    @ivar isOpen: whether a request reloads the program.
    """

    _log = Logger()
    isOpen = False
    _isReloading = False
    _port: ReloadPort | None = None

    def __init__(
        self,
        hook: Hook | None,
        limitSeconds: float,
        announce: Callable[[bool], AbstractContextManager[None]],
        reactor: Any,
        clock: Any,
    ) -> None:
        """
        @param limitSeconds: after this time a reload is cancelled and has failed.
        @param announce: returns a context manager, in which one reload runs. Its argument is
            whether systemd knows of that reload.
        """
        self._hook = hook
        self._limitSeconds = limitSeconds
        self._announce = announce
        self._reactor = reactor
        self._clock = clock
        self._waiters: list[tuple[Deferred[str], bool]] = []

    def handleHangup(self, handlers: Handlers) -> None:
        """Reload at SIGHUP, if the program has a reload."""
        if self._hook is not None:
            handlers.set(SIGHUP, self._hangUp)

    def listen(self, environ: Mapping[str, str]) -> None:
        """Open the port for C{systemctl reload}, if systemd has set C{INVOCATION_ID}."""
        if "INVOCATION_ID" not in environ:
            return
        try:
            self._port = ReloadPort(self._reactor, self._clock, self.ask, environ)
        except OSError as why:
            self._log.warn(
                "only SIGHUP can reload the program: {cause}",
                cause=why.strerror or str(why),
                message_id="5b9a7d2f6c1e4f0c8f3d1b7a9e2c4d60",
            )

    def close(self) -> None:
        """Close the port for C{systemctl reload}."""
        if self._port is not None:
            self._port.close()
            self._port = None

    def ask(self, isKnown: bool = True) -> Deferred[str]:
        """
        @param isKnown: whether systemd has asked for the reload, by C{ExecReload=}.
        @return: fires after the reload with the cause of its failure, or with an empty text.
        """
        if self._hook is None:
            return succeed(NOTHING.decode())
        waiter: Deferred[str] = Deferred()
        self._waiters.append((waiter, isKnown))
        if not self._isReloading:
            Deferred.fromCoroutine(self._reloadAll(self._hook))
        return waiter

    def _hangUp(self, *_signalAndFrame: object) -> None:
        # The only method of a reactor that a signal handler may call.
        self._reactor.callFromThread(self.ask, False)

    async def _reloadAll(self, hook: Hook) -> None:
        self._isReloading = True
        try:
            while self._waiters:
                waiters, self._waiters = self._waiters, []
                isKnown = any(known for _, known in waiters)
                why = await self._reload(hook, isKnown) if self.isOpen else "the program stops"
                for waiter, _ in waiters:
                    waiter.callback(why)
        finally:
            self._isReloading = False

    async def _reload(self, hook: Hook, isKnown: bool) -> str:
        """Return the cause of a failure, which was logged; or an empty text."""
        slow = self._clock.callLater(_SLOW_SECONDS, self._tellSlow)
        try:
            with self._announce(isKnown):
                ending = asDeferred(hook())  # a program's method may return anything
                ending.addTimeout(self._limitSeconds, self._clock, self._giveUp)
                await ending
        except GeneratorExit:  # the coroutine is dropped
            raise
        except BaseException:  # SystemExit, or CancelledError of asyncio
            return self._explain(findCause(Failure()))
        finally:
            if slow.active():
                slow.cancel()
        return ""

    def _tellSlow(self) -> None:
        self._log.warn(
            "a reload still runs after {seconds:.0f} s",
            seconds=_SLOW_SECONDS,
            message_id="ec3ebdf2cb4f458296b0cf19e1e2038e",
        )

    def _giveUp(self, result: object, seconds: float) -> NoReturn:
        cause = f"the reload has not ended after {seconds:g} s"
        self._log.error(
            "cancelled a reload: {cause}",
            cause=cause,
            message_id="7970f743c233414fa1575a2abf71059a",
        )
        raise ReloadError(cause)

    def _explain(self, failure: Failure) -> str:
        if not failure.check(ReloadError):
            self._log.failure(
                "the reload failed and the program goes on",
                failure,
                message_id="c4b198664625443390c32223558e6b37",
            )
        return oneLine(safe_str(failure.value)) or type(failure.value).__name__


class ReloadPort(FileDescriptor):
    """A port where root and the unit's user ask for reloads."""

    def __init__(
        self, reactor: Any, clock: Any, ask: Callable[[], Deferred[str]], environ: Mapping[str, str]
    ) -> None:
        """@raise OSError: if the port cannot listen."""
        super().__init__(reactor)
        self._ask = ask
        self._clients: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.bind(f"\0{portPrefix(environ)}{os.urandom(16).hex()}")
            self._socket.listen(16)
            self.startReading()
        except BaseException:
            self._socket.close()
            raise
        self._waking = repeat(clock, 1, self._wake)

    def close(self) -> None:
        """Accept no more requests."""
        self._waking.stop()
        self.stopReading()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> None:
        """Accept a client, and reload."""
        try:
            client, _ = self._socket.accept()
        except OSError:
            # The client is gone, or no descriptor is left. Pause: the reactor would retry at once.
            self.stopReading()
            return
        if readCredentials(client)[1] not in (0, os.geteuid()):
            client.close()
            return
        client.setblocking(False)
        self._clients.append(client)
        self._ask().addCallback(self._answer, client)

    def _wake(self) -> None:
        """Tell the clients that the reload still runs. Read the port again after a failure."""
        for client in self._clients:
            with suppress(OSError):  # the client is gone
                client.send(STILL_RUNS)
        self.startReading()

    def _answer(self, why: str, client: socket.socket) -> None:
        self._clients.remove(client)
        with client, suppress(OSError):
            client.send(why.encode() or RELOADED)
