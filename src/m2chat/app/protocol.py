"""Requests to ``/v1/chat/completions`` as OpenAI's clients send them, and parts of the responses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from m2chat.app.limits import require_affordable
from m2chat.data.images import save_png
from m2chat.errors import UserError
from m2chat.pipeline import Drawn, M2ChatPipeline, Session, Usage
from m2chat.pipeline.state import SessionState
from m2chat.schema import Conversation, Image, Picture, Role, Turn

MAX_CHARACTERS = 1_000_000
"""Maximum length of one text; the layout cuts the conversation to the model's context afterwards."""
MAX_PICTURES = 32
MAX_SIDE = 8192
ReadURL = Callable[[str], Picture]


def encodable(text: str) -> str:
    """The text with lone surrogates replaced: JSON can encode them, tokenizers cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(encodable)]


class TextContent(BaseModel):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(BaseModel):
    """URL of a picture."""

    url: str


class ImageContent(BaseModel):
    """A picture of a message; ``caption`` as this server sent it, so that the picture is not described again."""

    type: Literal["image_url"]
    image_url: ImageURL
    caption: Text = ""


class ChatMessage(BaseModel):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextContent | ImageContent, Field(discriminator="type")]] | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request. Unknown fields are ignored; unsupported values of OpenAI's fields are refused."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=0.75, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    modalities: list[Literal["text", "image"]] = ["text", "image"]
    n: Literal[1] | None = None
    stop: None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    image: Literal["auto", "force", "never"] = "auto"
    max_images: int = Field(default=4, ge=1, le=16)
    steps: int | None = Field(default=None, ge=1, le=100)
    guidance: float | None = Field(default=None, ge=0, le=30)
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE)

    @model_validator(mode="after")
    def _check_stream_options(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs a stream: set stream to true, or leave it out")
        return self

    def session(self, pipe: M2ChatPipeline) -> Session:
        """An empty session with these settings.

        Raises:
            UserError: If the pictures would have more than four times the pixels of those that the model was made for.
        """
        require_affordable(pipe, self.height, self.width)
        max_new_tokens = min(self.max_completion_tokens or self.max_tokens or 64, 512)
        return pipe.session(
            image=self.image if "image" in self.modalities else "never",
            max_images=self.max_images,
            seed=self.seed,
            steps=self.steps,
            guidance=self.guidance,
            height=self.height,
            width=self.width,
            preview_every=0,
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
        )


def conversation(request: ChatRequest, pipe: M2ChatPipeline, read_url: ReadURL) -> tuple[Session, str, list[Picture]]:
    """The conversation of a request.

    System messages are put before the text of the user's next message: the model knows two roles.

    Args:
        request: Body of the request.
        pipe: Pipeline.
        read_url: Function that reads the picture of a URL.

    Returns:
        A session with all messages but the last, and text and pictures of the last.

    Raises:
        UserError: If the last message is not the user's, or a picture cannot be read.
    """
    session, rules = request.session(pipe), ""
    turns: list[Turn] = []
    images: list[Image] = []
    for message in request.messages:
        texts, pictures = _parts(message, read_url)
        if message.role in ("system", "developer"):
            rules = " ".join([rules, *(part for part in texts if isinstance(part, str))]).strip()
            continue
        role: Role = "assistant" if message.role == "assistant" else "user"
        if role == "assistant" and not turns:
            raise UserError("messages: the first one must be the user's")
        first = len(images)
        if first + len(pictures) > MAX_PICTURES:
            raise UserError(f"messages: more than {MAX_PICTURES} pictures")
        parts: list[str | int] = [part if isinstance(part, str) else first + part for part in texts]
        if rules and role == "user":
            parts, rules = [rules, *parts], ""
        images += pictures
        turns.append(Turn(role, tuple(parts)))
    if not turns or turns[-1].role != "user":
        raise UserError("messages: the last one must be the user's")
    # The session adds the last message itself, with its pictures.
    before, asked = len(turns) - 1, turns[-1]
    whole = SessionState(Conversation("session", tuple(turns), tuple(images)), ({},) * len(turns))
    session.state = whole.until(before)
    return session, asked.text, [image.pixels for image in images[len(session.images) :]]


def _parts(message: ChatMessage, read_url: ReadURL) -> tuple[list[str | int], list[Image]]:
    """Texts and indices of pictures in their order, and the pictures."""
    if message.content is None or isinstance(message.content, str):
        return ([message.content] if message.content else []), []
    parts: list[str | int] = []
    pictures: list[Image] = []
    for part in message.content:
        if isinstance(part, TextContent):
            parts += [part.text] if part.text else []
            continue
        parts.append(len(pictures))
        caption_by = "model" if part.caption else ""
        pictures.append(Image(read_url(part.image_url.url), part.caption, caption_by=caption_by))
    return parts, pictures


def usage_of(event: Usage) -> dict[str, int]:
    """The ``usage`` of a completion."""
    return {**asdict(event), "total_tokens": event.prompt_tokens + event.completion_tokens}


def image_part(event: Drawn) -> dict[str, Any]:
    """A picture as a part of a message, with its caption and g of Eq. 3."""
    url = "data:image/png;base64," + base64.b64encode(save_png(event.picture)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}, "caption": event.caption, "gate": round(event.gate, 4)}
