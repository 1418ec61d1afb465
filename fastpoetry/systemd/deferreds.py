"""Waiting for what others return: Deferreds, coroutines, or anything else."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred, FirstError, maybeDeferred
from twisted.python.failure import Failure


def asDeferred(awaited: Any) -> Deferred[Any]:
    """
    @param awaited: a Deferred, which keeps its result, a coroutine, or anything else.
    @return: ends as that does.
    """
    if isinstance(awaited, Awaitable):
        return watch(toDeferred(awaited))
    return maybeDeferred(lambda: awaited)


def toDeferred(awaited: Awaitable[Any]) -> Deferred[Any]:
    """
    @param awaited: a Deferred, a coroutine, or its like.
    @return: the Deferred itself, or one for the coroutine.
    """
    if isinstance(awaited, Deferred):
        return awaited

    async def ending() -> object:
        return await awaited

    return Deferred.fromCoroutine(ending())


def watch(other: Deferred[Any], keepsFailure: bool = False) -> Deferred[Any]:
    """
    @param other: it keeps its result.
    @param keepsFailure: whether it keeps a failure too.
    @return: ends as the other does, and cancels it.
    """
    watching: Deferred[Any] = Deferred(lambda _: other.cancel())

    def tell(result: Any) -> Any:
        if isinstance(result, Failure):
            watching.errback(result)
            return result if keepsFailure else None
        watching.callback(result)
        return result

    other.addBoth(tell)
    return watching


def findCause(failure: Failure) -> Failure:
    """
    @param failure: of one Deferred, or of several.
    @return: the first that failed.
    """
    while isinstance(failure.value, FirstError):
        failure = failure.value.subFailure
    return failure
