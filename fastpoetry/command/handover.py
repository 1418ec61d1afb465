"""
Readers in mid-poem, handed over to the next process through systemd's descriptor store.

Joins L{fastpoetry.delivery.handover} and L{fastpoetry.systemd.store}. At a stop without a restart,
systemd closes the stored descriptors, and readers in mid-poem see a reset.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from fastpoetry.delivery.handover import describe, restore
from fastpoetry.delivery.ledger import countOf
from fastpoetry.delivery.limits import Progress
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Reader
from fastpoetry.systemd.store import Store, StoreError, makeMemory, pack, unpack

_NAME = ".handover"
"""The name in the store. No C{FileDescriptorName=} of a poem begins with a dot."""

_STORE_SECONDS = 2.0
"""How long a stop waits for the store. Descriptors that are packed as one take milliseconds."""


class HandOverService(Service):
    """
    Takes readers over at the start, and hands readers over at a stop.

    @ivar reactor: sends to the readers; provides C{IReactorCore}, and what L{Home} needs.
    @ivar takenOver: how many readers were taken over from the process before this one.
    """

    _log = Logger()
    takenOver = 0

    def __init__(
        self,
        store: Store,
        policy: Policy,
        reactor: Any,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """@param environ: from systemd. Without C{NOTIFY_SOCKET} there is no store."""
        self._store = store
        self._environ = environ
        self.policy = policy
        self.reactor = reactor

    def startService(self) -> None:
        """Take over readers of the process before this one, if it handed any over."""
        super().startService()
        if "NOTIFY_SOCKET" not in self._environ:
            return
        packed = [each.number for each in self._store.take(_NAME)]
        if packed:
            # Until the reactor runs, SIGTERM would end the program and lose what it took over.
            self.reactor.callWhenRunning(self._takeOver, packed)
        self.policy.handOver = self.handOver

    @property
    def description(self) -> str:
        """The number of readers that were taken over, for the status line; empty if it is 0."""
        count = self.takenOver
        return f"; took over {countOf(count, 'reader')}" if count else ""

    def handOver(self, readers: Mapping[Reader, Progress]) -> bool:
        """Put readers into the store, and return whether it took them. If not, go on sending."""
        for reader in readers:
            self.reactor.removeWriter(reader)
        try:
            self._put(readers)
        except (StoreError, OSError) as why:
            self.policy.handOver = None
            self._takeBack(readers, why)
            return False
        return True

    def _put(self, readers: Mapping[Any, Progress]) -> None:
        """
        Store readers, their poems and their description as one descriptor, so all or none.

        @raise StoreError: if the store refuses.
        @raise OSError: if memory or descriptors run out.
        """
        with ExitStack() as stack:

            def keep(number: int) -> int:
                stack.callback(os.close, number)
                return number

            poems = {poem: keep(makeMemory(poem.text)) for poem in {each.poem for each in readers}}
            state = keep(makeMemory(describe(readers, poems)))
            packed = keep(pack([state, *poems.values(), *readers]))
            self._store.putNow({_NAME: [packed]}, poll=False, seconds=_STORE_SECONDS)

    def _takeBack(self, readers: Collection[Any], why: Exception) -> None:
        """Go on sending to readers that could not be stored."""
        # If clearing fails, the store may still describe them. The next process then resets each
        # reader to which this process has sent more.
        self._clear()
        self._log.warn(
            "cannot hand over readers ({readers}): {cause}",
            readers=len(readers),
            cause=str(why),
            message_id="211c64da4e404641899567ad9db46522",
        )
        for reader in readers:
            reader.sendRest()

    def _takeOver(self, packed: list[int]) -> None:
        """Go on sending to the readers of the process before this one."""
        # Clear the store before anything is sent. After a crash, the next process would find the
        # description in the store out of date.
        self._clear()
        numbers = [number for each in packed for number in unpack(each)]
        for each in packed:
            os.close(each)
        readers, lost, faults = restore(numbers, self.policy, self.reactor)
        for reader, progress in readers.items():
            self.policy.begin(reader, progress)
            reader.sendRest()
        self.takenOver = len(readers)
        self.policy.ledger.countLost(lost)
        self._tell(lost, faults)

    def _clear(self) -> None:
        with suppress(StoreError, OSError):  # OSError: memory or descriptors have run out
            self._store.removeNow(_NAME, seconds=_STORE_SECONDS)

    def _tell(self, lost: int, faults: Sequence[str]) -> None:
        if not faults:
            self._log.info(
                "readers taken over: {readers}",
                readers=self.takenOver,
                message_id="2439ffc2fe1e4e2a9320762c90721e57",
            )
        else:
            self._log.warn(
                "readers taken over: {readers}; reset: {lost}: {cause}",
                readers=self.takenOver,
                lost=lost,
                cause=faults[0],
                message_id="135be9b276f1418086abe61315355e14",
            )
