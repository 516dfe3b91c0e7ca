"""Limits of the servers: requests at a time, seconds per request, bytes per body, pixels per picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2chat.errors import UserError

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline

T = TypeVar("T")


def require_affordable(pipe: M2ChatPipeline, height: int | None, width: int | None) -> None:
    """Refuses pictures of sizes that one visitor of a server could halt all others with.

    Raises:
        UserError: If they have more than four times the pixels of those that the model was made for.
    """
    side = pipe.image_size
    if (height or side) * (width or side) > 4 * side**2:
        raise UserError(
            f"height={height or side}, width={width or side}: a server draws at most {4 * side**2:,} pixels, four "
            f"times those of {side} x {side}"
        )


class Slots:
    """Limits the requests that are served at a time, and those that wait.

    Args:
        at_once: Replies that are generated at a time; they alternate by tokens and denoising steps.
        waiting: Requests that may wait; further ones are refused.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self.at_once, self.waiting, self.requests = at_once, waiting, 0
        self._free = asyncio.Semaphore(at_once)

    def check(self) -> None:
        """Refuses a request if all slots are taken and too many requests wait.

        Raises:
            HTTPException: 429.
        """
        if self.requests >= self.at_once + self.waiting:
            raise HTTPException(429, "too many requests wait already: try again later", {"Retry-After": "5"})

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Waits for a free slot, and holds it."""
        self.requests += 1
        try:
            async with self._free:
                yield
        finally:
            self.requests -= 1


class Deadline:
    """Time limit of a request, which begins now.

    Args:
        seconds: Length.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, asyncio.get_running_loop().time() + seconds

    async def within(self, work: Awaitable[T], status: int = 504) -> T:
        """Waits for work.

        Args:
            work: Work.
            status: HTTP status of the error: 503 where the work is waiting for a slot, 504 otherwise.

        Raises:
            HTTPException: If the time limit is reached first.
        """
        try:
            async with asyncio.timeout_at(self._end):
                return await work
        except TimeoutError as error:
            reason = "no place came free" if status == 503 else "the reply was not ready"
            message = f"{reason} within {self.seconds:g} s: try again later, or ask for less"
            raise HTTPException(status, message, {"Retry-After": "5"}) from error

    async def each(self, items: Iterator[T]) -> AsyncIterator[T]:
        """Items that are computed on another thread, until the time limit."""
        coming = iterate_in_threadpool(items)
        while True:
            # Only the computation of an item is timed: a timeout around the yield would cancel the consumer instead.
            try:
                item = await self.within(anext(coming))
            except StopAsyncIteration:
                return
            yield item


class SlotResponse(StreamingResponse):
    """A streamed response that frees its slot in the end, even if the client never reads it.

    Args:
        slot: Exit stack that holds the slot.
        args: Arguments of `StreamingResponse`.
        kwargs: Keyword arguments of `StreamingResponse`.
    """

    def __init__(self, slot: AsyncExitStack, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        async with self.slot:
            await super().__call__(scope, receive, send)


class BodyLimit:
    """Middleware that answers 413 to large bodies while they are read, even if they claim to be small.

    Args:
        app: Application behind it; FastAPI passes on an `HTTPException` that is raised while it reads.
        max_bytes: Maximum size of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and counts the bytes of its body."""
        claimed = dict(scope.get("headers", ())).get(b"content-length", b"")[:20]
        read = 0

        async def counted() -> Message:
            nonlocal read
            if claimed.isdigit() and int(claimed) > self.max_bytes:
                raise HTTPException(413, f"at most {self.max_bytes // 2**20} MiB are accepted")
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise HTTPException(413, f"at most {self.max_bytes // 2**20} MiB are accepted")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
