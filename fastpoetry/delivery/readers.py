"""
The contracts between those who have poems, those who send them, and the rules for both.

No logic: what each must be able to do, and what it may count on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from twisted.application.service import IService
from twisted.internet.defer import Deferred

from fastpoetry.delivery.addresses import Address
from fastpoetry.poem import Poem


class Source(Protocol):
    """Where readers get their poems: a service that holds some."""

    @property
    def poem(self) -> Poem | None:
        """The poem for the next reader, if there is one yet."""

    @property
    def description(self) -> str:
        """What is served, for a person: C{ecstasy (3003 bytes)}."""

    @property
    def freshAt(self) -> float | None:
        """When the poem that it has was read or fetched, in seconds since the epoch."""

    def whenPoem(self) -> Deferred[Poem]:
        """Wait for a poem; fails where there will be none for who waits now."""

    def reload(self) -> Deferred[None]:
        """
        Look for the poem anew; fires when there is one.

        It fails with C{PoemError} after a record that gives the cause, and with nothing else that
        the source foresees.
        """

    def setServiceParent(self, parent: IService) -> object:
        """Become part of a service, as C{IService} has it."""


class Reader(Protocol):
    """
    A connection that gets a poem, from when it is accepted until it is closed.

    The policy decides and the reader does: C{closeAfterClient}, C{end} and C{reset} close the
    connection, and none of them calls the policy back, which forgets the reader itself. What the
    policy did not decide (a client that leaves) the connection tells it by L{Policy.remove}.

    @ivar poem: what it is sent.
    @ivar address: whose it is.
    @ivar mayHandOver: whether all its state is a socket and a few numbers.
    """

    poem: Poem
    address: Address
    mayHandOver: bool

    def closeAfterClient(self) -> bool:
        """
        Close a connection that was sent everything, if its client has closed its side too.

        @return: whether it is closed.
        """

    def countTaken(self) -> int:
        """How many bytes of the poem the client has by now."""

    def isSent(self) -> bool:
        """Whether the system has all of the poem, so that closing the connection loses nothing."""

    def end(self) -> None:
        """Close a connection that L{isSent}."""

    def reset(self) -> None:
        """Close a connection so that the client can tell that it has not everything."""


@dataclass(slots=True)
class Progress:
    """
    How far a reader has come that did not take everything at once.

    @ivar startedAt: when it came, in the clock's seconds.
    @ivar movedAt: when it was last seen to take something.
    @ivar takenBytes: how much of the poem the client had when last asked.
    """

    startedAt: float
    movedAt: float
    takenBytes: int = 0


HandOver = Callable[[Mapping[Reader, Progress]], bool]
"""
Hands readers in mid-poem over to the next process, all or none, and says whether it has. Then they
are sent nothing any more; their connections stay open.
"""


class Arrival(Protocol):
    """
    A connection that has no poem yet: it has to say who it is, or to wait for a place or a poem.

    @ivar address: whose it is, if that is known.
    """

    address: Address

    def dismiss(self, cause: str) -> None:
        """Reset the connection, and count it. It gets no poem."""

    def drain(self) -> None:
        """The server stops: wait for no poem any more, and for nothing else but a moment."""


class Pausable(Protocol):
    """What can leave connections in its backlog: any of Twisted's stream ports."""

    def stopReading(self) -> None:
        """Accept nothing for now."""

    def startReading(self) -> None:
        """Accept again."""
