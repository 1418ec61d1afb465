"""
Readers in mid-poem, left to the next process in systemd's descriptor store and taken up from it.

Only joins the two: what a reader is L{fastpoetry.delivery.carried} knows, and the store is
L{fastpoetry.systemd.store}'s. A stop that is no half of a restart leaves nobody behind: systemd
closes what it holds then, which to a reader in mid-poem is a reset.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from fastpoetry.delivery.carried import mayCarry, pick
from fastpoetry.delivery.carried import pack as packState
from fastpoetry.delivery.carried import unpack as unpackReaders
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Progress, Reader
from fastpoetry.systemd.store import Store, StoreError, makeMemory, pack, unpack

_NAME = ".carried"
"""In the store, where no C{FileDescriptorName=} of a poem can be like it."""

_STORE_SECONDS = 2.0
"""How long a stop waits for systemd to have them: as one descriptor, some milliseconds."""


class CarryService(Service):
    """
    Takes readers up at the start, and gives them up at a stop.

    @ivar policy: has the readers.
    @ivar reactor: sends to them; provides C{IReactorFDSet}.
    @ivar carriedReaders: how many were taken up.
    """

    _log = Logger()
    carriedReaders = 0

    def __init__(
        self,
        store: Store,
        policy: Policy,
        reactor: Any,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        @param store: the unit's.
        @param environ: where systemd leaves C{NOTIFY_SOCKET}: without it there is no store.
        """
        self._store = store
        self._environ = environ
        self.policy = policy
        self.reactor = reactor

    def startService(self) -> None:
        """Take up who was left to us, if anybody was."""
        super().startService()
        if "NOTIFY_SOCKET" not in self._environ:
            return
        packed = [each.number for each in self._store.take(_NAME)]
        if packed:
            self._takeUp(packed)
        self.policy.carrier = self

    @property
    def description(self) -> str:
        """What a status says of readers that were taken up, if any were."""
        count = self.carriedReaders
        return f"; carried {count:,} {'reader' if count == 1 else 'readers'} over" if count else ""

    def carry(self, readers: Mapping[Reader, Progress]) -> Collection[Reader]:
        """
        Put readers into the store; who cannot be is sent to as before.

        @return: who was.
        """
        carried = pick(readers)
        for reader in carried:
            self.reactor.removeWriter(reader)
        try:
            self._put(carried)
        except (StoreError, OSError) as why:
            self.policy.carrier = None
            self._takeBack(carried, why)
            return []
        return carried.keys()

    def mayCarry(self, reader: Reader) -> bool:
        """Whether a reader is of the kind that can be carried."""
        return mayCarry(reader)

    def _put(self, readers: Mapping[Any, Progress]) -> None:
        """
        Have the store hold readers, their poems and what is to be known of them, as one descriptor:
        all or none.

        @raise StoreError: if it does not.
        @raise OSError: if there is no memory or descriptor for that.
        """
        with ExitStack() as stack:

            def keep(number: int) -> int:
                stack.callback(os.close, number)
                return number

            poems = {poem: keep(makeMemory(poem.text)) for poem in {each.poem for each in readers}}
            state = keep(makeMemory(packState(readers, poems)))
            packed = keep(pack([state, *poems.values(), *readers]))
            self._store.putNow({_NAME: [packed]}, poll=False, seconds=_STORE_SECONDS)

    def _takeBack(self, readers: Mapping[Any, Progress], why: Exception) -> None:
        """Go on sending to readers, of whom the store has some at the most."""
        # Where that fails: what comes back is not believed if more was sent by then.
        self._clear()
        self._log.warn(
            "{readers} readers cannot be carried over, and are waited for: {cause}",
            readers=len(readers),
            cause=str(why),
            message_id="211c64da4e404641899567ad9db46522",
        )
        for reader in readers:
            self.reactor.addWriter(reader)

    def _takeUp(self, packed: list[int]) -> None:
        """Go on where the process before us was, as far as that can be believed."""
        # First of all, or a crash would leave to the next what we have changed.
        self._clear()
        numbers = [number for each in packed for number in unpack(each)]
        for each in packed:
            os.close(each)
        readers, lost, faults = unpackReaders(numbers, self, self.policy.seconds())
        for reader, progress in readers.items():
            self.policy.resume(reader, progress)
            self.reactor.addWriter(reader)
        self.carriedReaders = len(readers)
        self.policy.ledger.lost(lost)
        self._tell(lost, faults)

    def _clear(self) -> None:
        """Have the store let go of all that is ours."""
        with suppress(StoreError):
            self._store.removeNow(_NAME, seconds=_STORE_SECONDS)

    def _tell(self, lost: int, faults: Sequence[str]) -> None:
        """One record, with the numbers."""
        if not faults:
            self._log.info(
                "carried {readers} readers over",
                readers=self.carriedReaders,
                message_id="2439ffc2fe1e4e2a9320762c90721e57",
            )
        else:
            self._log.warn(
                "carried {readers} readers over, and reset {lost} others: {cause}",
                readers=self.carriedReaders,
                lost=lost,
                cause=faults[0],
                message_id="135be9b276f1418086abe61315355e14",
            )
