"""Limits of the servers: replies at a time, seconds per request, pixels of its pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool
from starlette.types import Receive, Scope, Send

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
    """Limits the requests that are served at a time; the others wait.

    Args:
        at_once: Replies that are generated at a time; they alternate by tokens and denoising steps.
    """

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Waits for a free slot, and holds it."""
        async with self._free:
            yield


class Budget:
    """What the pictures of one request may take, all of them together.

    Args:
        pixels: Pixels that are decoded, as the files declare them: a file of 4 kB can declare 64 million.
        kept: Pixels that are kept at full size; further pictures are made small, which the vision encoder does anyway.
        seconds: Time for fetching, in seconds.
    """

    def __init__(self, pixels: int = 128_000_000, kept: int = 16_000_000, seconds: float = 10.0) -> None:
        self.pixels, self.kept, self.seconds = pixels, kept, seconds
        self.stopped = threading.Event()
        """Set when nobody waits for the request any more."""

    def check(self) -> None:
        """Ends the work for a request that is over.

        Raises:
            UserError: In that case.
        """
        if self.stopped.is_set():
            raise UserError("the request is over")

    def decode(self, pixels: int) -> None:
        """Takes a picture's share.

        Raises:
            UserError: If there is too little left.
        """
        self.check()
        if pixels > self.pixels:
            raise UserError("the pictures of the request have too many pixels together: send smaller ones")
        self.pixels -= pixels


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
