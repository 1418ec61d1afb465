"""
The contracts between sources of poems, readers' connections, ports and the policy.

They have no logic: they state what each must do, and what each may rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from twisted.application.service import IService
from twisted.internet.defer import Deferred

from fastpoetry.delivery.addresses import Address
from fastpoetry.delivery.limits import Progress
from fastpoetry.poem import Poem


class Source(Protocol):
    """A service that provides poems for readers."""

    @property
    def poem(self) -> Poem | None:
        """The poem for the next reader, if there is one yet."""

    @property
    def description(self) -> str:
        """The poems, for a person: C{ecstasy (3003 bytes)}."""

    @property
    def freshAt(self) -> float | None:
        """When its poem was read or fetched, in seconds since the epoch."""

    def whenPoem(self) -> Deferred[Poem]:
        """@return: fires with a poem; fails if no poem will come for the clients that wait now."""

    def reload(self) -> Deferred[None]:
        """
        Read or fetch the poem anew.

        @return: fires when the source has the new poem. If a source expects an error, it logs the
            cause, and its Deferred fails with C{PoemError}.
        """

    def setServiceParent(self, parent: IService) -> object:
        """Become part of a service, as in C{IService}."""


class Reader(Protocol):
    """
    A connection that gets a poem, from accepting it to closing it.

    The policy decides when to close it, calls C{closeAfterClient}, C{end} or C{reset}, and forgets
    the reader. If the connection closes for another reason, for example because the client leaves,
    the reader calls L{Policy.remove}.

    @ivar poem: the reader's poem.
    @ivar address: the client's address.
    @ivar mayHandOver: whether it can be handed over: its state is a socket and a few numbers.
    """

    poem: Poem
    address: Address
    mayHandOver: bool

    def closeAfterClient(self) -> bool:
        """
        Close a connection if its client has closed its side and its system has everything.

        @return: whether the connection is closed.
        """

    def countTaken(self) -> int:
        """Return how many bytes of the poem the client has by now."""

    def isSent(self) -> bool:
        """Whether the kernel has all of the poem. It sends the rest even after our exit."""

    def end(self) -> None:
        """Close a connection whose client has everything, or will get it from the kernel."""

    def reset(self) -> None:
        """Close a connection so that the client can tell that bytes are missing."""


HandOver = Callable[[Mapping[Reader, Progress]], bool]
"""
Hands all readers in mid-poem over to the next process, or none, and returns whether it did. This
process then stops sending to them. Their connections stay open.
"""


class Arrival(Protocol):
    """
    A connection without a poem yet. It has to identify its client, or waits for a place or a poem.

    @ivar address: the client's address, if it is known.
    """

    address: Address

    def dismiss(self, cause: str) -> None:
        """Reset the connection, and count it. It gets no poem."""

    def drain(self) -> None:
        """Prepare for the stop: wait no longer for a poem, and for the client only a moment."""


class Pausable(Protocol):
    """A port that can leave connections in its backlog, as all stream ports of Twisted can."""

    def stopReading(self) -> None:
        """Stop accepting for now."""

    def startReading(self) -> None:
        """Accept again."""
