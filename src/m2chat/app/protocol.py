"""From the messages of a request to a session, and from the events of a reply to parts of the response."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from m2chat.app.requests import ChatMessage, ChatRequest, ImageContent, TextContent
from m2chat.data.images import save_png
from m2chat.errors import UserError
from m2chat.pipeline import Drawn, M2ChatPipeline, Session, Usage
from m2chat.pipeline.state import SessionState
from m2chat.schema import Conversation, Image, Picture, Role, Turn

MAX_PICTURES = 32
ReadURL = Callable[[str], Picture]


def conversation(request: ChatRequest, pipe: M2ChatPipeline, read_url: ReadURL) -> tuple[Session, str, list[Picture]]:
    """The conversation of a request.

    The model knows two roles: texts and pictures of system messages are put before those of the user's next message,
    and behind those of the last one if none follows. Pictures in ``images`` stand where
    their ``offset`` says, else behind the content of their message.

    Args:
        request: Body of the request.
        pipe: Pipeline.
        read_url: Function that reads the picture of a URL.

    Returns:
        A session with all messages but the last, and text and pictures of the last.

    Raises:
        UserError: If the last message is not the user's or is empty, or a picture cannot be read.
    """
    session = request.session(pipe)
    contents: list[tuple[Role, list[str | Image]]] = []
    rules: list[str | Image] = []
    count = 0
    for message in request.messages:
        pictures = sum(not isinstance(part, TextContent) for part in message.content) + len(message.images)
        if (count := count + pictures) > MAX_PICTURES:
            raise UserError(f"messages: more than {MAX_PICTURES} pictures")
        parts = _parts(message, read_url)
        if message.role in ("system", "developer"):
            rules += parts
        elif message.role == "assistant":
            if not contents:
                raise UserError("messages: the first one must be the user's")
            contents.append(("assistant", parts))
        else:
            contents.append(("user", [*rules, *parts]))
            rules = []
    if not contents or contents[-1][0] != "user":
        raise UserError("messages: the last one must be the user's")
    contents[-1][1].extend(rules)
    if not any(not isinstance(part, str) or part.strip() for part in contents[-1][1]):
        raise UserError("messages: the content of the last one is empty: send a text, or a picture")
    turns: list[Turn] = []
    images: list[Image] = []
    for role, parts in contents:
        numbered: list[str | int] = []
        for part in parts:
            numbered.append(part if isinstance(part, str) else len(images))
            images += [] if isinstance(part, str) else [part]
        turns.append(Turn(role, tuple(numbered)))
    # The session adds the last message itself, with its pictures.
    before, asked = len(turns) - 1, turns[-1]
    whole = SessionState(Conversation("session", tuple(turns), tuple(images)), ({},) * len(turns))
    session.state = whole.until(before)
    return session, asked.text, [image.pixels for image in images[len(session.images) :]]


def _parts(message: ChatMessage, read_url: ReadURL) -> list[str | Image]:
    """Texts and pictures of a message in their order."""
    parts: list[str | Image] = []
    for part in _in_order(message):
        if isinstance(part, TextContent):
            parts += [part.text] if part.text else []
        else:
            caption_by = "model" if part.caption else ""
            parts.append(Image(read_url(part.image_url.url), part.caption, caption_by=caption_by))
    return parts


def _in_order(message: ChatMessage) -> Iterator[TextContent | ImageContent]:
    """Content and ``images`` in their order: those with an ``offset`` divide a content that is one text."""
    placed = sorted((image for image in message.images if image.offset is not None), key=lambda item: item.offset or 0)
    match message.content:
        case [TextContent(text=text)]:
            begin = 0
            for image in placed:
                end = max(begin, min(image.offset or 0, len(text)))
                yield TextContent(type="text", text=text[begin:end].strip())
                yield image
                begin = end
            yield TextContent(type="text", text=text[begin:].strip() if placed else text)
        case content:
            yield from (*content, *placed)
    yield from (image for image in message.images if image.offset is None)


def usage_of(event: Usage) -> dict[str, int]:
    """The ``usage`` of a completion."""
    return {**asdict(event), "total_tokens": event.prompt_tokens + event.completion_tokens}


def image_part(event: Drawn) -> dict[str, Any]:
    """A picture as a part of a message, with its caption and g of Eq. 3."""
    url = "data:image/png;base64," + base64.b64encode(save_png(event.picture)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}, "caption": event.caption, "gate": round(event.gate, 4)}
