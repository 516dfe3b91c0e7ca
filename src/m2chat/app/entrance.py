"""The entrance of the HTTP server: a request is counted before anything of it is read."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2chat.host_memory import return_free_memory

MAX_BODY = 32 * 2**20
"""Maximum size of a body, in bytes: that of the largest picture in base64, and some more."""
MAX_HELD = 64 * 2**20
"""Maximum size of all bodies that the server holds at a time; each is held until its conversation is read."""
MAX_VALUES = 200_000
"""Maximum number of values in the JSON of a body, roughly: each takes 50 to 100 bytes of memory, and one of it."""
FIRST_SECONDS = 10.0
"""Seconds that a body may take to arrive, besides those that its size takes at `SLOWEST`."""
SLOWEST = 50_000
"""Bytes per second below which a body is given up."""
WIDE = 2**20
"""Size of a body in bytes from which it is not made one text before its values are: that takes four bytes a letter."""
GRACE = 60.0
"""Seconds after its time limit at which the connection of a client that does not read its reply is closed."""

Refusal = Callable[[int, str, Mapping[str, str]], Response]
"""Makes the answer to a request that is refused: status, message, headers."""


class Admission:
    """What the requests inside the server take together.

    Args:
        most: Requests that may be inside at a time, those that wait included.
        max_held: Bytes of their bodies.
    """

    def __init__(self, most: int, max_held: int = MAX_HELD) -> None:
        self.most, self.max_held = most, max_held
        self.requests = self.held = 0


class NamedHosts:
    """Middleware that refuses requests to names of hosts that are not the server's.

    A page elsewhere, whose name was pointed at this machine, sends such requests from the browser of a user here.

    Args:
        app: Application behind it.
        refuse: Makes an answer.
        hosts: Names by which the server may be addressed, besides ``localhost`` and numbers; None for any name.
    """

    def __init__(self, app: ASGIApp, refuse: Refusal, hosts: Collection[str] | None) -> None:
        self.app, self.refuse = app, refuse
        self.hosts = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 400."""
        if scope["type"] != "http" or self._is_ours(_headers(scope).get(b"host", "")):
            await self.app(scope, receive, send)
            return
        text = (
            "the Host header names another server than this one: address it by its number, or allow the name with "
            "--allowed-hosts"
        )
        await self.refuse(400, text, {"Connection": "close"})(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server."""
        if self.hosts is None:
            return True
        name = host.strip().lower()
        name = name.partition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
        if name == "localhost" or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _headers(scope: Scope) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in scope.get("headers", ())}


class Entrance:
    """Middleware that lets a request in, or refuses it, before it costs anything.

    In this order: 429 beyond the number of requests; 413 and 415 by the headers; 408 to bodies that come too slowly;
    413 and 429 by what has come. The body is read here, so that a request whose client hangs up meanwhile is over.

    Args:
        app: Application behind it.
        gate: What is counted.
        refuse: Makes an answer.
        seconds: Time limit of a request, for clients that do not read their reply.
    """

    def __init__(self, app: ASGIApp, gate: Admission, refuse: Refusal, seconds: float) -> None:
        self.app, self.gate, self.refuse, self.seconds = app, gate, refuse, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        if self.gate.requests >= self.gate.most:
            return await self._refuse(scope, receive, send, 429, "too many requests wait already: try again later")
        claimed = headers.get(b"content-length", "")[:20]
        if claimed.isdecimal() and int(claimed) > MAX_BODY:
            return await self._refuse(scope, receive, send, 413, _TOO_LARGE)
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a web page elsewhere cannot send without asking first
            return await self._refuse(scope, receive, send, 415, "send the body as Content-Type: application/json")
        self.gate.requests += 1
        held = _Held(self.gate)
        try:
            async with asyncio.timeout(self.seconds + GRACE):
                await self._let_in(scope, receive, send, held)
        except TimeoutError:  # the client does not read its reply, and the server closes the connection
            return
        finally:
            held.release()
            self.gate.requests -= 1
            if not self.gate.requests:
                return_free_memory()

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, held: _Held) -> None:
        """Reads the body, and passes the request on."""
        loop = asyncio.get_running_loop()
        start, chunks = loop.time(), list[bytes]()
        while True:
            late = start + FIRST_SECONDS + held.bytes / SLOWEST
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                return await self._refuse(scope, receive, send, 408, "the body did not arrive in time")
            if message["type"] == "http.disconnect":
                return
            chunk = message.get("body", b"")
            if held.bytes + len(chunk) > MAX_BODY:
                return await self._refuse(scope, receive, send, 413, _TOO_LARGE)
            if not held.add(len(chunk)):
                text = "the server holds too many bytes of other requests: try again later"
                return await self._refuse(scope, receive, send, 429, text)
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
        body = b"".join(chunks)
        chunks.clear()
        if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
            return await self._refuse(scope, receive, send, 413, f"the body holds more than {MAX_VALUES:,} values")
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body
        scope[RELEASE] = held.release
        await self.app(scope, lambda: _next(whole, receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
        headers = {"Connection": "close"} | ({"Retry-After": "5"} if status == 429 else {})
        await self.refuse(status, message, headers)(scope, receive, send)


RELEASE, PARSED = "m2chat.release", "m2chat.parsed"
"""Keys of a request's scope: functions to call when the body is not needed any more, and when it has been read."""
_TOO_LARGE = f"at most {MAX_BODY // 2**20} MiB are accepted"


class _Held:
    """The bytes that one request holds."""

    def __init__(self, gate: Admission) -> None:
        self.gate, self.bytes = gate, 0

    def add(self, size: int) -> bool:
        """Takes some more, if there is room."""
        if self.gate.held + size > self.gate.max_held:
            return False
        self.gate.held += size
        self.bytes += size
        return True

    def release(self) -> None:
        """Gives them back."""
        self.gate.held -= self.bytes
        self.bytes = 0


async def _next(whole: list[Message], receive: Receive) -> Any:
    """The body, once, and then what the connection says: that the client is gone."""
    return whole.pop() if whole else await receive()


class FrugalRoute(APIRoute):
    """A route that reads one body at a time, so that others get their turn in between, and large ones value by value.

    An endpoint calls what stands at `PARSED` in the scope first.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Handles a request."""
        handle: Callable[[Request], Coroutine[Any, Any, Response]] = super().get_route_handler()
        if "POST" not in (self.methods or ()):
            return handle
        turn = asyncio.Lock()

        async def handler(request: Request) -> Response:
            waits = turn.locked()
            await turn.acquire()
            with ExitStack() as reading:
                reading.callback(turn.release)
                if waits:  # an answer to others takes several rounds of the loop, each of which would read a body
                    await asyncio.sleep(_PAUSE)
                request.scope[PARSED] = reading.close
                return await handle(_Frugal(request.scope, request.receive))

        return handler


_PAUSE = 0.01
"""Seconds between two bodies."""


class _Frugal(Request):
    async def json(self) -> Any:
        body = await self.body()
        return await super().json() if len(body) < WIDE or body.isascii() else from_json(body)
