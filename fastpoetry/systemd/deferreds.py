"""Deferreds for results of any kind: Deferreds, coroutines, other values."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, FirstError, succeed
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from asyncio import Future


def asDeferred(awaited: Any) -> Deferred[Any]:
    """
    Return a Deferred with the value, or with the result of an awaitable one. A given Deferred keeps
    its result, but not its failure.
    """
    if isinstance(awaited, Awaitable):
        return watch(toDeferred(awaited))
    return succeed(awaited)


def toDeferred(awaited: Awaitable[Any]) -> Deferred[Any]:
    """Return the Deferred itself, or a Deferred with the awaitable's result."""
    if isinstance(awaited, Deferred):
        return awaited
    if hasattr(awaited, "add_done_callback"):  # only asyncio can await its futures and tasks
        return Deferred.fromFuture(cast("Future[Any]", awaited))

    async def ending() -> object:
        return await awaited

    return Deferred.fromCoroutine(ending())


def watch(other: Deferred[Any], keepsFailure: bool = False) -> Deferred[Any]:
    """
    Give the result of a Deferred to a second one.

    @param other: callbacks that are added to it later still get its result.
    @param keepsFailure: whether errbacks that are added later also get its failure.
    @return: a Deferred with the same result. Cancelling it cancels the other.
    """
    watching: Deferred[Any] = Deferred(lambda _: other.cancel())

    def tell(result: Any) -> Any:
        isFailure = isinstance(result, Failure)
        if not watching.called:  # otherwise it was cancelled, and the other has ended later
            (watching.errback if isFailure else watching.callback)(result)
        return None if isFailure and not keepsFailure else result

    other.addBoth(tell)
    return watching


def findCause(failure: Failure) -> Failure:
    """Return the failure that C{gatherResults} reports, or this one itself."""
    while isinstance(failure.value, FirstError):
        failure = failure.value.subFailure
    return failure
