"""The body of a request to ``/v1/chat/completions``: what is read, what is refused by name, how faults are worded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from m2chat.app.limits import require_affordable
from m2chat.pipeline import M2ChatPipeline, Session, SessionSettings

MAX_CHARACTERS = 1_000_000
"""Maximum length of all texts together; the layout cuts the conversation to the model's context afterwards."""
MAX_MESSAGES = 4000
"""Maximum number of messages."""
MAX_PARTS = 8000
"""Maximum number of parts of all messages together, where their content is a list."""
MAX_SIDE = 8192
_NAMED = 5
"""Unknown fields that a notice names."""


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which UTF-8 cannot hold; for messages, which may name unknown fields."""
    return text.encode("utf-8", "replace").decode("utf-8")


Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class LenientBody(BaseModel):
    """A JSON object of which clients send more than is read here.

    ``null`` stands for a field that is left out. Fields that ask for what is not done are refused by name, unless their
    value asks for nothing; further fields are kept, so that the answer can name them.
    """

    model_config = ConfigDict(extra="allow")
    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that change nothing here and are passed over."""
    refused: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Fields that are not supported, each with the values that ask for nothing."""

    required: ClassVar[frozenset[str]] = frozenset()
    """Fields that must be there."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.required = frozenset(name for name, item in cls.model_fields.items() if item.is_required())

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_read(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None or name in cls.required}
        wrong = [name for name, nothing in cls.refused.items() if name in given and given[name] not in nothing]
        if wrong:
            raise ValueError("; ".join(f"{name}: not supported here: {cls._remedy(name)}" for name in wrong))
        return {name: value for name, value in given.items() if name not in cls.refused and name not in cls.harmless}

    @classmethod
    def _remedy(cls, name: str) -> str:
        values = " or ".join(json.dumps(value) for value in cls.refused[name])
        return f"leave it out{f', or send {values}' if values else ''}"

    def unknown(self, place: str = "") -> Iterator[str]:
        """Names of fields that are not known here, with their place in the body."""
        yield from (f"{place}{name[:40]}" for name in self.model_extra or {})

    def notices(self) -> list[str]:
        """What the answer states about fields that were ignored; empty if there are none."""
        names = list(self.unknown())
        if not names:
            return []
        known = [*type(self).model_fields, *self.refused]
        meant = {name: match for name in names[:_NAMED] for match in get_close_matches(name, known, 1, 0.8)}
        shown = [f"{name!r} (is {meant[name]!r} meant?)" if name in meant else repr(name) for name in names[:_NAMED]]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return [encodable(f"ignored, since they are not known here: {', '.join(shown)}{more}")]


class TextContent(LenientBody):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(LenientBody):
    """URL of a picture."""

    harmless = frozenset({"detail"})

    url: str


class ImageContent(LenientBody):
    """A picture of a message.

    ``caption`` is as this server sent it, so that the picture is not described again; ``offset`` is the number of
    characters of the content before it.
    """

    harmless = frozenset({"gate", "index"})

    type: Literal["image_url"]
    image_url: ImageURL
    caption: Text = ""
    offset: int | None = Field(default=None, ge=0)

    @field_validator("image_url", mode="before")
    @classmethod
    def _url_alone(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class ChatMessage(LenientBody):
    """A message; ``images`` stand in the content where their ``offset`` says, else behind it."""

    harmless = frozenset({"name", "annotations"})
    refused = {"tool_calls": ([],), "function_call": (), "audio": ()}

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Content] = []
    images: list[ImageContent] = []

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        if not isinstance(value, list):
            raise ValueError("must be a text, or a list of texts and pictures")
        return value

    def unknown(self, place: str = "") -> Iterator[str]:
        """As of every body, and of the parts."""
        yield from super().unknown(place)
        for name in ("content", "images"):
            for number, part in enumerate(getattr(self, name)):
                yield from part.unknown(f"{place}{name}.{number}.")


class StreamOptions(LenientBody):
    """Options of a stream."""

    harmless = frozenset({"include_obfuscation"})

    include_usage: bool = False


class ChatRequest(LenientBody):
    """The body of a request."""

    harmless = frozenset(
        {
            "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
            "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity",
        }
    )  # fmt: skip
    refused = {
        "response_format": ({"type": "text"},), "frequency_penalty": (0,), "presence_penalty": (0,),
        "repetition_penalty": (1,), "logit_bias": ({},), "functions": ([],), "function_call": ("none", "auto"),
        "tools": ([],), "tool_choice": ("none", "auto"), "n": (1,), "best_of": (1,), "stop": ([], ""),
        "stop_token_ids": ([],), "logprobs": (False,), "top_logprobs": (0,), "audio": (), "prediction": (),
        "web_search_options": (), "top_k": (0, -1), "min_p": (0,), "min_tokens": (0,), "echo": (False,),
        "suffix": ("",), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
        "structured_outputs": (),
    }  # fmt: skip

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=0.75, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_caption_tokens: int | None = Field(default=None, ge=1)
    modalities: list[Literal["text", "image"]] = ["text", "image"]
    image: Literal["auto", "force", "never"] = "auto"
    max_images: int = Field(default=4, ge=1, le=16)
    steps: int | None = Field(default=None, ge=1, le=100)
    guidance: float | None = Field(default=None, ge=0, le=30)
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE)

    @field_validator("messages", mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        """Counts before anything is made of them: sixty thousand parts would take a second, and all others wait."""
        parts = 0
        for message in value if isinstance(value, list) else ():
            if isinstance(message, dict):
                given = (message.get(name) for name in ("content", "images"))
                parts += sum(len(part) for part in given if isinstance(part, list))
        if parts > MAX_PARTS:
            raise ValueError(f"they have {parts:,} parts together: at most {MAX_PARTS:,} are read")
        return value

    @model_validator(mode="after")
    def _check_length(self) -> ChatRequest:
        parts = (part for message in self.messages for part in (*message.content, *message.images))
        length = sum(len(part.text if isinstance(part, TextContent) else part.caption) for part in parts)
        if length > MAX_CHARACTERS:
            raise ValueError(
                f"messages: their texts have {length:,} characters together: at most {MAX_CHARACTERS:,} are read"
            )
        return self

    @model_validator(mode="after")
    def _check_stream_options(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs a stream: set stream to true, or leave it out")
        return self

    def unknown(self, place: str = "") -> Iterator[str]:
        """As of every body, and of what it holds."""
        yield from super().unknown(place)
        if self.stream_options is not None:
            yield from self.stream_options.unknown(f"{place}stream_options.")
        for number, message in enumerate(self.messages):
            yield from message.unknown(f"{place}messages.{number}.")

    def session(self, pipe: M2ChatPipeline) -> Session:
        """An empty session with these settings.

        Raises:
            UserError: If the pictures would have more than four times the pixels of those that the model was made for.
        """
        require_affordable(pipe, self.height, self.width)
        limit = self.max_completion_tokens or self.max_tokens
        caption = self.max_caption_tokens or limit or SessionSettings.max_caption_tokens
        return pipe.session(
            image=self.image if "image" in self.modalities else "never",
            max_images=self.max_images,
            seed=self.seed,
            steps=self.steps,
            guidance=self.guidance,
            height=self.height,
            width=self.width,
            preview_every=0,
            max_new_tokens=min(limit or SessionSettings.max_new_tokens, 512),
            max_caption_tokens=min(caption, 512),
            temperature=self.temperature,
            top_p=self.top_p,
        )


_FAULTS = {
    "missing": "is missing",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a text",
    "string_unicode": "holds half of a character, a lone surrogate such as \\ud800: send whole characters",
    "union_tag_not_found": "needs a type: 'text' or 'image_url'",
}
"""Kind of a fault, in pydantic's words, to the text of the message."""
_WORDS = {
    "Value error, ": "", "Input should be": "must be", "List should have": "must have", "String should": "must",
    " after validation": "",
}  # fmt: skip


def faults_of(errors: Sequence[Mapping[str, Any]], most: int = 3) -> tuple[str, str]:
    """Faults of a body in a client's words, without echoing it.

    Args:
        errors: Errors as `pydantic.ValidationError.errors` gives them, their places beginning with ``body``.
        most: Greatest number of faults that are named.

    Returns:
        The message, and the name of the first field that is wrong; empty if it is the whole body.
    """
    texts, first = [], ""
    for error in errors[:most]:
        kind, context = str(error["type"]), error.get("ctx") or {}
        place = _place(error["loc"])
        if kind == "json_invalid":
            place, text = "", f"the body is not JSON ({context.get('error')})"
        elif kind == "union_tag_invalid":
            text = f"type {str(context.get('tag'))[:40]!r} is not supported: send 'text' or 'image_url'"
        else:
            text = _FAULTS.get(kind) or str(error["msg"]).partition(", unable")[0]
        for words, ours in _WORDS.items():
            text = text.replace(words, ours)
        first = first or place or (text.partition(": ")[0] if kind == "value_error" else "")
        texts.append(f"{place}: {text}" if place else f"the body {text}" if kind in _FAULTS else text)
    return "; ".join(texts), first


def _place(loc: Sequence[str | int]) -> str:
    """The place of a fault as a path, without ``body`` and without pydantic's name of a part's type."""
    path: list[str] = []
    for index, part in enumerate(loc[1:], 1):
        is_tag = index >= 2 and isinstance(loc[index - 1], int) and loc[index - 2] == "content"
        path += [] if is_tag else [str(part)]
    return ".".join(path)
