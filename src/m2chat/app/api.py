"""The HTTP server: OpenAI's chat completions and image generations."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from threading import Event
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from m2chat import __version__
from m2chat.app.about import about
from m2chat.app.entrance import PARSED, RELEASE, Admission, Entrance, FrugalRoute, NamedHosts
from m2chat.app.image_requests import ImagesRequest
from m2chat.app.limits import Budget, Deadline, SlotResponse, Slots
from m2chat.app.protocol import conversation, image_part, usage_of
from m2chat.app.requests import ChatRequest, encodable, faults_of
from m2chat.app.uploads import read_url
from m2chat.errors import UserError
from m2chat.pipeline import Drawn, Finished, M2ChatPipeline, Notice, Progress, Session, Usage, Words
from m2chat.pipeline import Event as ReplyEvent
from m2chat.schema import Picture

T = TypeVar("T")
MODEL = "m2chat"
TIME_LIMIT = 300.0
"""Default time limit of a request, in seconds."""
_LOOK = 0.2
"""Seconds between two looks whether the client of a reply that is not streamed is still there."""


def build_api(
    pipe: M2ChatPipeline,
    picture_hosts: Collection[str] = (),
    at_once: int = 4,
    waiting: int = 32,
    time_limit: float = TIME_LIMIT,
    allowed_hosts: Collection[str] | None = None,
) -> FastAPI:
    """Builds the server.

    Args:
        pipe: Pipeline.
        picture_hosts: Hosts from which pictures may be fetched; without any, requests must contain their pictures.
        at_once: Replies that are generated at a time.
        waiting: Requests that may wait; further ones get 429.
        time_limit: Seconds for a whole request: one that waits longer gets 503, one whose reply takes longer gets 504.
        allowed_hosts: Names by which the server may be addressed, besides ``localhost`` and numbers; None for any.
    """
    # FastAPI's documentation pages would load scripts from other hosts.
    api = FastAPI(title="M²Chat", version=__version__, docs_url=None, redoc_url=None)
    api.router.route_class = FrugalRoute
    gate = Admission(at_once + waiting)
    api.add_middleware(Entrance, gate=gate, refuse=refusal, seconds=time_limit)
    api.add_middleware(NamedHosts, refuse=refusal, hosts=allowed_hosts)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(UserError, _refused)
    api.add_exception_handler(AnyHTTPException, _failed)
    slots, since = Slots(at_once), int(time.time())
    which = about(pipe)
    model = {"id": MODEL, "object": "model", "created": since, "owned_by": "m2chat", "description": which}
    # A pool of its own: pictures that come slowly, or take long to decode, hold no thread that a reply needs.
    readers = ThreadPoolExecutor(max(1, at_once), thread_name_prefix="m2chat-read")
    hosts = frozenset(picture_hosts)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        state = {"status": "ok", "version": __version__, "stage": pipe.origin.stage, "requests": gate.requests}
        return {**state, "model": which}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @api.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        _check_model(name)
        return model

    @api.post("/v1/chat/completions", response_model=None)
    async def complete(body: ChatRequest, request: Request) -> Response | dict[str, Any]:
        request.scope[PARSED]()
        _check_model(body.model)
        deadline, slot = Deadline(time_limit), AsyncExitStack()
        async with AsyncExitStack() as entering:
            entering.push_async_exit(slot)  # until the reply has it
            notices = body.notices()
            session, text, pictures = await _read(body, request, deadline, slot)
            events = _after(notices, deadline.each(session.stream(text, pictures)))
            entering.pop_all()
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": MODEL}
        slot.callback(session.stop)  # the reply ends with the request, also if the client disconnects
        # A streamed response notices it only when it sends something, which may be long after.
        slot.callback(asyncio.create_task(_without_client(request, session.stop)).cancel)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return SlotResponse(slot, _stream(events, head, usage), media_type="text/event-stream")
        async with slot:
            received = [event async for event in events]
        return whole(received, head)

    @api.post("/v1/images/generations", response_model=None)
    async def generate(body: ImagesRequest, request: Request) -> dict[str, Any]:
        request.scope[PARSED]()
        _check_model(body.model)
        deadline, stop = Deadline(time_limit), Event()
        async with AsyncExitStack() as slot:
            slot.callback(stop.set)
            await deadline.within(slot.enter_async_context(slots.enter()), 503)
            slot.callback(asyncio.create_task(_without_client(request, stop.set)).cancel)
            data = [picture async for picture in deadline.each(body.outputs(pipe, stop))]
        return {"created": int(time.time()), "data": data, "notices": body.notices()}

    async def _read(
        body: ChatRequest, request: Request, deadline: Deadline, slot: AsyncExitStack
    ) -> tuple[Session, str, list[Picture]]:
        """Waits for a slot, then reads the conversation within it; ends when the client is gone."""
        gone, budget = asyncio.Event(), Budget()
        watch = asyncio.create_task(_without_client(request, gone.set))
        try:
            await _unless(gone, deadline.within(slot.enter_async_context(slots.enter()), 503))
            reader = partial(read_url, hosts=hosts, budget=budget)
            work = asyncio.get_running_loop().run_in_executor(readers, conversation, body, pipe, reader)
            read = await _unless(gone, deadline.within(work))
        finally:
            budget.stopped.set()
            watch.cancel()
        request._body = b""  # the session has what it needs of it
        body.messages.clear()
        request.scope[RELEASE]()
        return read

    return api


async def _unless(gone: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Waits for work, unless the client is gone first.

    Raises:
        HTTPException: 499, which nobody will read.
    """
    task, left = asyncio.create_task(work), asyncio.create_task(gone.wait())
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client is gone")
        return await task
    finally:
        task.cancel()
        left.cancel()


async def _after(notices: Sequence[str], events: AsyncIterator[ReplyEvent]) -> AsyncIterator[ReplyEvent]:
    """The events of a reply behind notices about its request."""
    for text in notices:
        yield Notice(text)
    async for event in events:
        yield event


async def _without_client(request: Request, end: Callable[[], object]) -> None:
    """Ends a request's work when its client is gone, also before the first event of a reply."""
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK)
    end()


class GrowingMessage:
    """The message of a reply: its text, and its pictures with their places in it."""

    def __init__(self) -> None:
        self.content = ""
        self.images: list[dict[str, Any]] = []
        self._segment = 0

    def text(self, event: Words) -> str:
        """Adds new text of an answer; returns what is new in `content`. Texts of two segments stand in two lines."""
        new = event.text
        if event.segment != self._segment or not self.content:
            new = new.lstrip()
            if new and self.content:
                new = "\n" + new
        if new:
            self._segment = event.segment
        self.content += new
        return new

    def picture(self, event: Drawn) -> dict[str, Any]:
        """Adds a picture; ``offset`` is the number of characters of `content` before it."""
        part = {**image_part(event), "index": len(self.images), "offset": len(self.content)}
        self.images.append(part)
        return part


def whole(events: list[ReplyEvent], head: Mapping[str, Any]) -> dict[str, Any]:
    """A completion: its content is always a text, and its pictures stand beside it in ``images``."""
    growing = GrowingMessage()
    for event in events:
        if isinstance(event, Words) and event.of == "answer":
            growing.text(event)
        elif isinstance(event, Drawn):
            growing.picture(event)
    message: dict[str, Any] = {"role": "assistant", "content": growing.content.rstrip()}
    if growing.images:
        message["images"] = growing.images
    reason = next((event.finish_reason for event in events if isinstance(event, Finished)), "stop")
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    notices = [event.text for event in events if isinstance(event, Notice)]
    usage = next((usage_of(event) for event in events if isinstance(event, Usage)), None)
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage, "notices": notices}


async def _stream(events: AsyncIterator[ReplyEvent], head: Mapping[str, Any], usage: bool) -> AsyncIterator[str]:
    """A completion as server-sent events; with usage, the last chunk has it and no choice, as OpenAI's."""

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**common, "choices": [choice], **more})

    common = {**head, "object": "chat.completion.chunk", **({"usage": None} if usage else {})}
    used: dict[str, int] | None = None
    growing = GrowingMessage()
    try:
        yield chunk({"role": "assistant", "content": ""})
        async for event in events:
            if isinstance(event, Words) and event.of == "answer":
                if new := growing.text(event):
                    yield chunk({"content": new})
            elif isinstance(event, Progress):
                done = {"image": len(growing.images), "step": event.step, "steps": event.steps}
                yield chunk({}, progress=done)
            elif isinstance(event, Drawn):
                yield chunk({"images": [growing.picture(event)]})
            elif isinstance(event, Notice):
                yield chunk({}, notices=[event.text])
            elif isinstance(event, Usage):
                used = usage_of(event)
            elif isinstance(event, Finished):
                yield chunk({}, finish=event.finish_reason)
        if usage:
            yield _data({**common, "choices": [], "usage": used})
        yield "data: [DONE]\n\n"
    except HTTPException as error:  # the time limit; the status line is sent already
        yield _data(_error_body(error.status_code, str(error.detail)))


def _data(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _check_model(name: str) -> None:
    if name != MODEL:
        raise HTTPException(404, f"there is no model {name[:100]!r}: choose {MODEL!r}")


def refusal(
    status: int, message: str, headers: Mapping[str, str] | None = None, field: str | None = None
) -> JSONResponse:
    """An answer with an error."""
    return JSONResponse(_error_body(status, message, field), status, headers)


def _error_body(status: int, message: str, field: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = field and encodable(field[:200])
    return {"error": {"message": encodable(message[:2000]), "type": kind, "param": param, "code": None}}


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """Answers 400 with the faults of a body, without echoing it."""
    assert isinstance(error, RequestValidationError)
    message, field = faults_of(error.errors())
    return refusal(400, message, field=field or None)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return refusal(400, str(error))


async def _failed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    # FastAPI's words for a body that it cannot parse name no reason.
    if error.status_code == 400 and isinstance(error.__cause__, UnicodeDecodeError):
        return refusal(400, "the body is not UTF-8, as JSON must be")
    if error.status_code == 400 and isinstance(error.__cause__, RecursionError | ValueError):
        return refusal(
            400, "the body cannot be read as JSON: it is broken or nested too deeply, or a number has too many digits"
        )
    return refusal(error.status_code, str(error.detail), error.headers)
