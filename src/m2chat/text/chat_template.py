"""A language model's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from m2chat.errors import UserError
from m2chat.schema import Role

if TYPE_CHECKING:
    from jinja2 import Template

_TODAY = datetime(2024, 7, 26)
"""Date of templates that state today's: a prompt must not change from training to generation. Llama 3's default."""
_MARK = "\ue000{}\ue001"
"""What stands for a message while a template is rendered; code points of private use, which no template has."""
_MARKS = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class ChatTemplate:
    """A template.

    Args:
        source: Jinja source.
        names: Spelling of the special tokens that it may name: ``bos_token``, ``eos_token``, ...
        folder: Folder of the language model, for messages.
    """

    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

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
                f"{self.folder}: the chat template cannot write a conversation of user and assistant ({error}): set "
                "data.prompt to alpaca, or mend the template"
            ) from error
        pieces = _MARKS.split(text)  # text and numbers in turns
        return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces) if index % 2 or piece]

    @cached_property
    def _compiled(self) -> Template:
        """The template, in the sandbox and with the functions that transformers gives to templates."""
        from jinja2 import TemplateError, TemplateSyntaxError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """``{% generation %}`` marks an assistant's text; it writes what is in it."""

            tags = {"generation"}  # noqa: RUF012

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
                f"{self.folder}: the chat template is not valid Jinja ({error}): set data.prompt to alpaca"
            ) from error

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[Any, ...]]:
        # What is compiled cannot be sent to another process.
        return type(self), (self.source, self.names, self.folder)
