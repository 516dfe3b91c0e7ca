"""Requests that are too large end while they are read."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SizeLimit:
    """Answers 413 to bodies of too many bytes, whatever length they claim.

    Args:
        app: What it protects; FastAPI lets an `HTTPException` pass that comes while it reads.
        most: Bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and counts what is read of it."""
        claimed = dict(scope.get("headers", ())).get(b"content-length", b"")[:20]
        read = 0

        async def counted() -> Message:
            nonlocal read
            if claimed.isdigit() and int(claimed) > self.most:
                raise HTTPException(413, f"at most {self.most // 2**20} MiB are taken")
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise HTTPException(413, f"at most {self.most // 2**20} MiB are taken")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
