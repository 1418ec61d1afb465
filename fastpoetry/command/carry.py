"""
Readers in mid-poem, left to the next process in systemd's descriptor store and taken up from it.

Only joins the two: what a reader is L{fastpoetry.delivery.carried} knows, and the store is
L{fastpoetry.systemd.store}'s. A stop that is no half of a restart leaves nobody behind: systemd
closes what it holds then, which to a reader in mid-poem is a reset.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from fastpoetry.delivery.carried import mayCarry, pack, pick, unpack
from fastpoetry.delivery.policy import Policy
from fastpoetry.delivery.readers import Progress, Reader
from fastpoetry.poem import Poem
from fastpoetry.systemd.store import Store, StoreError, makeMemory, readMemory

_READER, _POEM, _STATE = ".r", ".poem", ".state"
"""
Names in the store that no C{FileDescriptorName=} of a poem can be; the first is short, since all
names together are one variable of the environment, and of no more than 128 KiB (execve(2)).
"""

_MOST_STATE_BYTES = 64 * 1024 * 1024

_STORE_SECONDS = 2.0
"""How long a stop waits for systemd to have them all: 1,000 took some milliseconds."""


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
        states = self._store.take(_STATE)
        files = [each.number for each in self._store.take(_POEM)]
        connections = [each.number for each in self._store.take(_READER)]
        if states or files or connections:
            self._takeUp([each.number for each in states], files, connections)
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
        Have the store hold readers, their poems and what is to be known of them, in this order: who
        comes without is no reader to the next process.

        @raise StoreError: if it does not.
        @raise OSError: if there is no memory or descriptor for that.
        """
        poems: dict[Poem, int] = {}
        state = None
        try:
            for poem in {reader.poem for reader in readers}:
                poems[poem] = makeMemory(poem.text)
            state = makeMemory(pack(readers, poems))
            descriptors: dict[str, Iterable[Any]] = {
                _READER: readers.keys(),
                _POEM: poems.values(),
                _STATE: [state],
            }
            self._store.putNow(descriptors, poll=False, seconds=_STORE_SECONDS)
        finally:
            for number in [*poems.values(), *([] if state is None else [state])]:
                os.close(number)

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

    def _takeUp(self, states: list[int], files: list[int], connections: list[int]) -> None:
        """Go on where the process before us was, as far as that can be believed."""
        # First of all, or a crash would leave to the next what we have changed.
        self._clear()
        data = b""
        with suppress(OSError, ValueError):
            (state,) = states
            data = readMemory(state, _MOST_STATE_BYTES)
        readers, faults = unpack(data, files, connections, self, self.policy.seconds())
        for number in [*states, *files]:
            os.close(number)
        for reader, progress in readers.items():
            self.policy.resume(reader, progress)
            self.reactor.addWriter(reader)
        self.carriedReaders = len(readers)
        lost = len(connections) - len(readers)
        self.policy.ledger.lost(lost)
        self._tell(lost, faults)

    def _clear(self) -> None:
        """Have the store let go of all that is ours."""
        with suppress(StoreError):
            self._store.removeNow(_STATE, _POEM, _READER, seconds=_STORE_SECONDS)

    def _tell(self, lost: int, faults: list[str]) -> None:
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
