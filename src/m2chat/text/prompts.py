"""Formats of a prompt: Alpaca's, and the chat template of the language model.

A format writes a request, with its oldest lines of history left out, as tokens; `m2chat.text.layout` decides how many
are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from m2chat.errors import UserError
from m2chat.schema import Role
from m2chat.text.chat_template import ChatTemplate
from m2chat.text.tokenizer import IC_TOKEN, M2ChatTokenizer
from m2chat.text.view import Line, Request
from m2chat.tokenizer_settings import folder_settings

PromptFormat = Literal["auto", "alpaca", "chat"]
"""Format of prompts; ``auto`` is ``chat`` where the language model's folder has a chat template."""
PROMPT_FORMATS: tuple[PromptFormat, ...] = ("auto", "alpaca", "chat")
EARLIER: PromptFormat = "alpaca"
"""Format of weights that do not name theirs: those from before there was another."""
GO_ON = "Go on."
"""Message of the user between two replies in a row, and before a reply that opens a conversation: chat templates want
user and assistant in turns."""
Known: TypeAlias = dict[tuple[str, bool], list[int]]
"""Tokens of texts, by text and whether a special token stands before it."""
_Message: TypeAlias = tuple[Role, str]

_TASK = "Below is an instruction that describes a task"
_PLAIN = _TASK + ". Write a response that appropriately completes the request."
_PAIRED = (
    _TASK + ", paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def alpaca(instruction: str, context: str = "") -> str:
    """Alpaca's template, as LLaMA-Adapter was trained with: no space behind ``Response:``."""
    if context:
        return f"{_PAIRED}\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"
    return f"{_PLAIN}\n\n### Instruction:\n{instruction}\n\n### Response:"


class Prompts(ABC):
    """Writes requests as tokens; can be sent to other processes.

    Args:
        tokenizer: Tokenizer of the language model.
    """

    name: PromptFormat
    end_id: int
    """Token behind a reply."""
    marks: dict[int, str]
    """Special tokens of a sequence, and how they are shown."""

    def __init__(self, tokenizer: M2ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_id = tokenizer.eos_id
        self.marks = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>", tokenizer.ic_id: IC_TOKEN}

    @abstractmethod
    def ids(self, request: Request, skip: int, known: Known) -> list[int]:
        """Tokens of a prompt.

        Args:
            request: Contents of the prompt.
            skip: Number of lines of history that are left out, the oldest first.
            known: Tokens of texts, so that none is tokenised twice; is extended.
        """

    @abstractmethod
    def cost(self, request: Request, line: int) -> int:
        """Number of tokens that a line of history adds to a prompt that has newer ones.

        It may be off by a few tokens where a token reaches across the ends of lines; in Alpaca's format with LLaMA's
        tokenizer none does.

        Args:
            request: Contents of the prompt.
            line: Index of the line.
        """

    def __reduce__(self) -> tuple[type[Prompts], tuple[M2ChatTokenizer]]:
        return type(self), (self.tokenizer,)


class AlpacaPrompts(Prompts):
    """Alpaca's template: the instruction, and the history as its input, a line for each turn."""

    name = "alpaca"

    def ids(self, request: Request, skip: int, known: Known) -> list[int]:
        """Tokens of a prompt; its text is tokenised in one piece, since a token may reach across the ends of lines."""
        text = alpaca(request.instruction, "\n".join(request.history[skip:]))
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def cost(self, request: Request, line: int) -> int:
        """Number of tokens of a line and of its end."""
        return len(self.tokenizer.encode("\n" + request.history[line])) - self._break + 1

    @cached_property
    def _break(self) -> int:
        # With the token that sentencepiece may put before a text, which stands for no character of it.
        return len(self.tokenizer.encode("\n"))


class ChatPrompts(Prompts):
    """The language model's chat template, with the history as real turns.

    Special tokens become numbers only where the template writes them. Between two of them the text is tokenised in one
    piece, as transformers does, but as plain text: what people wrote never becomes a special token.

    Args:
        tokenizer: Tokenizer of the language model.

    Raises:
        UserError: If the language model's folder has no chat template, or one that cannot be used.
    """

    name = "chat"

    def __init__(self, tokenizer: M2ChatTokenizer) -> None:
        super().__init__(tokenizer)
        if tokenizer.chat_template is None:
            raise UserError(
                f"data.prompt=chat, and {tokenizer.folder} has no chat template: set data.prompt to alpaca, or put the "
                "model's chat_template.jinja or tokenizer_config.json there"
            )
        spelled = {number: name for name, number in tokenizer.special_tokens.items()}
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        names = {name: spelled[number] for name, number in ids.items() if number in spelled}
        self.template = ChatTemplate(tokenizer.chat_template, names, tokenizer.folder)
        self.marks |= spelled
        self.end_id = self._end()

    def ids(self, request: Request, skip: int, known: Known) -> list[int]:
        """Tokens of a prompt; a reply whose question is left out is left out, too."""
        ids: list[int] = []
        for piece in self._pieces(_messages(request, skip)):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            key = piece, bool(ids)
            if key not in known:
                known[key] = self.tokenizer.encode(*key)
            ids += known[key]
        return ids

    def cost(self, request: Request, line: int) -> int:
        """Number of tokens of a message, with those that the template puts around it."""
        return len(self.tokenizer.encode(_text(request.lines[line].parts))) + self._around

    @cached_property
    def _around(self) -> int:
        """Number of tokens that the template puts around a message, on average."""
        short = Request("x")
        long = Request("x", ("x", "x"), (Line(("x",), "user", "before"), Line(("x",), "assistant", "before")))
        added = len(self.ids(long, 0, {})) - len(self.ids(short, 0, {}))
        return max(0, round(added / 2) - len(self.tokenizer.encode("x")))

    def _pieces(self, messages: Sequence[_Message]) -> Iterator[str | int]:
        """A conversation with the beginning of the next reply: plain texts, and the special tokens between them."""
        text = ""
        for piece in self.template.render([role for role, _ in messages], generate=True):
            for part in [messages[piece][1]] if isinstance(piece, int) else self.tokenizer.split_special(piece):
                if isinstance(part, str):
                    text += part
                    continue
                if text:
                    yield text
                    text = ""
                yield part
        if text:
            yield text

    def _end(self) -> int:
        """The first special token that the template writes behind an assistant's message; else the tokenizer's."""
        pieces = self.template.render(["user", "assistant"], generate=False)
        behind = pieces[pieces.index(1) + 1 :] if 1 in pieces else []
        numbers = (
            token for text in behind for token in self.tokenizer.split_special(str(text)) if isinstance(token, int)
        )
        return next(numbers, self.tokenizer.eos_id)


def _messages(request: Request, skip: int) -> list[_Message]:
    """A request as messages of user and assistant in turns, the user's first and last."""
    kept = request.lines[skip:]
    beside = _text([part for line in kept if line.place == "beside" for part in line.parts])
    turns: list[_Message] = [(line.role, _text(line.parts)) for line in kept if line.place == "before"]
    while skip and turns and turns[0][0] == "assistant":
        del turns[0]
    turns.append(("user", _text([beside, request.instruction])))
    turns += [(line.role, _text(line.parts)) for line in kept if line.place == "behind"]
    messages: list[_Message] = []
    if turns[-1][0] == "assistant":
        turns.append(("user", GO_ON))
    for role, text in turns:
        if role == "user" and messages and messages[-1][0] == "user":
            messages[-1] = ("user", _text([messages[-1][1], text]))
            continue
        if role == "assistant" and (not messages or messages[-1][0] == "assistant"):
            messages.append(("user", GO_ON))
        messages.append((role, text))
    return messages


def _text(parts: Sequence[str]) -> str:
    """Texts and pictures of a message, a line each."""
    return "\n".join(stripped for part in parts if (stripped := part.strip()))


def resolved(name: PromptFormat, language_model: str | Path) -> PromptFormat:
    """The format that a setting stands for, ``alpaca`` or ``chat``.

    Args:
        name: Setting.
        language_model: Folder of the language model; it decides in case of ``auto``.

    Raises:
        UserError: If there is no such format.
    """
    if name not in PROMPT_FORMATS:
        raise UserError(f"data.prompt={name!r}: choose one of {', '.join(PROMPT_FORMATS)}")
    if name != "auto":
        return name
    return "chat" if folder_settings(Path(language_model)).chat_template else "alpaca"


def prompts_of(name: PromptFormat, tokenizer: M2ChatTokenizer) -> Prompts:
    """The format of that name.

    Raises:
        UserError: If there is no such format, or the language model has no chat template that can be used.
    """
    return ChatPrompts(tokenizer) if resolved(name, tokenizer.folder) == "chat" else AlpacaPrompts(tokenizer)
