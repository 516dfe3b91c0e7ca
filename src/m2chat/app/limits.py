"""How many requests are served at a time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class Doors:
    """How many are served at a time, and how many may wait.

    Args:
        at_once: Replies that are made at a time; they take turns, a token or a denoising step each.
        waiting: Requests that may wait; more are turned away.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self.at_once, self.waiting, self.inside = at_once, waiting, 0
        self._free = asyncio.Semaphore(at_once)

    def check(self) -> None:
        """Turns away who would have to wait too long."""
        if self.inside >= self.at_once + self.waiting:
            raise HTTPException(429, "too many requests wait already: try again later", {"Retry-After": "5"})

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Waits for a place, and holds it."""
        self.inside += 1
        try:
            async with self._free:
                yield
        finally:
            self.inside -= 1


class Timer:
    """The time that a request may take.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, asyncio.get_running_loop().time() + seconds

    async def within(self, work: Awaitable[T], status: int = 504) -> T:
        """Waits for some work.

        Args:
            work: What it is.
            status: Of the error.

        Raises:
            HTTPException: If the time is over first.
        """
        try:
            async with asyncio.timeout_at(self._end):
                return await work
        except TimeoutError as error:
            what = "no place came free" if status == 503 else "the reply was not ready"
            message = f"{what} within {self.seconds:g} s: try again later, or ask for less"
            raise HTTPException(status, message, {"Retry-After": "5"}) from error

    async def each(self, items: Iterator[T]) -> AsyncIterator[T]:
        """Items that take their time, made on another thread, until the time is over."""
        coming = iterate_in_threadpool(items)
        while True:
            # The clock runs while an item is made, never while somebody takes it: a timeout would end him, not us.
            try:
                item = await self.within(anext(coming))
            except StopAsyncIteration:
                return
            yield item


class Streamed(StreamingResponse):
    """A streamed answer that gives its place back in the end, even if nobody ever listened to it.

    Args:
        place: What it holds.
        args: As for `StreamingResponse`.
        kwargs: The same.
    """

    def __init__(self, place: AsyncExitStack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        async with self.place:
            await super().__call__(scope, receive, send)
