"""A language model's own chat template, from the files beside its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from m2chat.errors import UserError
from m2chat.integrity import verify_listed
from m2chat.schema import Role

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE, CONFIG, MAP, TOKENIZER = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_TODAY = datetime(2024, 7, 26)
"""Date of templates that state today's: a prompt must not change from training to generation. Llama 3's default."""
_MARK = "\ue000{}\ue001"
"""What stands for a message while a template is rendered; code points of private use, which no template has."""
_MARKS = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the tokens that it may write.

    Args:
        source: Jinja source.
        names: Text of the named tokens, ``bos_token`` to its text and so on.
        special: Number of each token that is recognised in the template's text.
        greedy: Those of them that take blanks before (``lstrip``) or behind (``rstrip``) them along: two flags each.
        where: File of the template, for messages.
    """

    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, int] = field(default_factory=dict)
    greedy: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)
    where: str = CONFIG

    def render(self, roles: Sequence[Role], generate: bool) -> list[str | int]:
        """A conversation as the template writes it, its messages left open.

        A template sees marks instead of messages, so that what people write can neither steer it nor be taken for a
        part of it.

        Args:
            roles: Role of each message.
            generate: Whether the beginning of the assistant's next message follows.

        Returns:
            Text of the template, and numbers of the messages at their places.

        Raises:
            UserError: If the template refuses the conversation.
        """
        from jinja2 import TemplateError

        messages = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
        try:
            text = self._compiled.render(messages=messages, add_generation_prompt=generate, **self.names)
        except (TemplateError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.where}: the chat template cannot write a conversation of user and assistant ({error}): set "
                "data.prompt to alpaca, or mend the template"
            ) from error
        pieces = _MARKS.split(text)  # text and numbers in turns
        return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces) if index % 2 or piece]

    def split(self, text: str) -> Iterator[str | int]:
        """Text of the template in pieces: plain text, and the numbers of special tokens."""
        if self._pattern is None:
            yield text
            return
        for index, piece in enumerate(self._pattern.split(text)):
            if index % 2:
                yield self.special[piece if piece in self.special else piece.strip()]
            elif piece:
                yield piece

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """The special tokens, longest first."""
        shapes = []
        for token in sorted(self.special, key=len, reverse=True):
            before, behind = self.greedy.get(token, (False, False))
            shapes.append((r"\s*" if before else "") + re.escape(token) + (r"\s*" if behind else ""))
        return re.compile(f"({'|'.join(shapes)})") if shapes else None

    @cached_property
    def _compiled(self) -> Template:
        """The template, in the sandbox and with the functions that transformers gives to templates."""
        from jinja2 import TemplateError, TemplateSyntaxError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` marks an assistant's text; it writes what is in it."""

            tags: ClassVar[set[str]] = {"generation"}

            def parse(self, parser: Parser) -> list[nodes.Node]:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = to_json  # Jinja's own would escape for HTML
        environment.globals |= {"raise_exception": refuse, "strftime_now": _TODAY.strftime}
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{self.where}: the chat template is not valid Jinja ({error}): set data.prompt to alpaca"
            ) from error

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[Any, ...]]:
        # What is compiled cannot be sent to another process.
        return type(self), (self.source, self.names, self.special, self.greedy, self.where)


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a language model's folder with its special tokens.

    Args:
        folder: Folder with ``chat_template.jinja``, or ``tokenizer_config.json`` with a ``chat_template``.

    Returns:
        The template; None if the folder has none.

    Raises:
        UserError: If a file is no JSON, or a list says that it is damaged.
    """
    config = _read(folder / CONFIG)
    source = template_source(folder)
    if source is None:
        return None
    named = {**_read(folder / MAP), **config}
    names = {name: text for name in _NAMES if (text := _text(named.get(name)))}
    added = [*_read(folder / TOKENIZER).get("added_tokens", ())]
    added += [{"id": int(number), **token} for number, token in config.get("added_tokens_decoder", {}).items()]
    special = {token["content"]: int(token["id"]) for token in added}
    greedy = {token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip"))) for token in added}
    where = TEMPLATE if (folder / TEMPLATE).is_file() else CONFIG
    return ChatTemplate(source, names, special, greedy, str(folder / where))


def template_source(folder: Path) -> str | None:
    """Jinja source of a language model's chat template; None if its folder has none.

    Raises:
        UserError: As `read_chat_template`.
    """
    path = folder / TEMPLATE
    if path.is_file():
        verify_listed([path])
        source: Any = path.read_text(encoding="utf-8")
    else:
        source = _read(folder / CONFIG).get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((item.get("template") for item in source if item.get("name") == "default"), None)
    return source if isinstance(source, str) and source.strip() else None


def _text(token: Any) -> str:
    """Text of a token, which files have as a string or as a table."""
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token or "")


def _read(path: Path) -> dict[str, Any]:
    """Contents of a JSON file; nothing if there is none."""
    if not path.is_file():
        return {}
    verify_listed([path])
    stamp = path.stat()
    return _parsed(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any]:
    """Contents of a JSON file; time and size of its last change are part of the cache's key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): fetch the language model's folder again") from error
    return content if isinstance(content, dict) else {}
