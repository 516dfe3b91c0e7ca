"""The conversation over HTTP, in the form of OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

from m2chat import __version__
from m2chat.app.protocol import ChatRequest, conversation, encodable, image_part
from m2chat.app.size_limit import SizeLimit
from m2chat.app.uploads import read_url
from m2chat.errors import UserError
from m2chat.pipeline import Drawn, Event, Finished, M2ChatPipeline, Notice, Session, Words

MODEL = "m2chat"
MAX_BODY = 64 * 2**20


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


def build_api(
    pipe: M2ChatPipeline, picture_hosts: Collection[str] = (), at_once: int = 4, waiting: int = 32
) -> FastAPI:
    """Builds the server.

    Args:
        pipe: Replies.
        picture_hosts: Hosts from which pictures may be fetched; without any, they must come inside the request.
        at_once: Replies that are made at a time.
        waiting: Requests that may wait; more get 429.
    """
    # Its own pages of documentation would load scripts from elsewhere.
    api = FastAPI(title="M²Chat", version=__version__, docs_url=None, redoc_url=None)
    api.add_middleware(SizeLimit, most=MAX_BODY)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(UserError, _refused)
    api.add_exception_handler(AnyHTTPException, _failed)
    doors, since = Doors(at_once, waiting), int(time.time())
    model = {"id": MODEL, "object": "model", "created": since, "owned_by": "m2chat"}
    reader = partial(read_url, hosts=frozenset(picture_hosts))

    @api.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "stage": pipe.origin.stage, "requests": doors.inside}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @api.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        _check_model(name)
        return model

    @api.post("/v1/chat/completions", response_model=None)
    async def complete(body: ChatRequest, request: Request) -> Response | dict[str, Any]:
        _check_model(body.model)
        doors.check()
        session, text, pictures = await run_in_threadpool(conversation, body, pipe, reader)
        events = session.stream(text, pictures)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": MODEL}
        if body.stream:
            return StreamingResponse(_stream(events, session, doors, head), media_type="text/event-stream")
        heard: list[Event] = []
        async with doors.enter():
            try:
                async for event in iterate_in_threadpool(events):
                    heard.append(event)
                    if await request.is_disconnected():
                        break
            finally:
                session.stop()
        return whole(heard, head)

    return api


def whole(events: list[Event], head: Mapping[str, Any]) -> dict[str, Any]:
    """A completion: its content is a string, or a list of parts where there are pictures."""
    drawn = {event.segment: event for event in events if isinstance(event, Drawn)}
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, Words) and event.of == "answer":
            said[event.segment] = said.get(event.segment, "") + event.text
    parts: list[dict[str, Any]] = []
    for segment in sorted({*said, *drawn}):
        if said.get(segment, "").strip():
            parts.append({"type": "text", "text": said[segment].strip()})
        if segment in drawn:
            parts.append(image_part(drawn[segment]))
    content: Any = parts if drawn else "".join(part["text"] for part in parts)
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    notices = [event.text for event in events if isinstance(event, Notice)]
    return {**head, "object": "chat.completion", "choices": [choice], "notices": notices}


async def _stream(
    events: Iterator[Event], session: Session, doors: Doors, head: Mapping[str, Any]
) -> AsyncIterator[str]:
    """A completion as it comes; who hangs up has stopped it."""
    try:
        async with doors.enter():
            yield _chunk(head, {"role": "assistant", "content": ""})
            async for event in iterate_in_threadpool(events):
                if isinstance(event, Words) and event.of == "answer" and event.text:
                    yield _chunk(head, {"content": event.text})
                elif isinstance(event, Drawn):
                    yield _chunk(head, {"images": [image_part(event)]})
                elif isinstance(event, Notice):
                    yield _chunk(head, {}, notices=[event.text])
                elif isinstance(event, Finished):
                    yield _chunk(head, {}, finish="stop")
            yield "data: [DONE]\n\n"
    finally:
        session.stop()


def _chunk(head: Mapping[str, Any], delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice], **more})}\n\n"


def _check_model(name: str) -> None:
    if name != MODEL:
        raise HTTPException(404, f"there is no model {name[:100]!r}: choose {MODEL!r}")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": encodable(message[:2000]), "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers)


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with a body, without repeating it."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:3]]
    return _error(400, "; ".join(faults))


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return _error(400, str(error))


async def _failed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return _error(error.status_code, str(error.detail), error.headers)
