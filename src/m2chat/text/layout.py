"""The layout of a sequence (Eq. 1), which training, evaluation and generation share.

The request as a prompt, in Alpaca's template or the language model's own; then for every picture of the reply
``answer <|IC|> caption <|img|> x N``; then ``</s>``, or the template's own end of a turn. A reply without a picture is
``answer </s>``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from m2chat.errors import UserError
from m2chat.schema import Segment
from m2chat.text.prompts import Known, PromptFormat, Prompts, alpaca, prompts_of
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.text.view import Request

__all__ = ["DESCRIBE", "IGNORE", "MAX_TOKENS", "Encoded", "Fitted", "Layout", "StoppedError", "alpaca"]

IGNORE = -100
"""Label of a position that the language loss skips."""

MAX_TOKENS = 512
"""Maximum length of a sequence where neither weights nor settings state one: that of LLaMA-Adapter V2."""

_EASY = 16
"""Characters per token of room up to which a history is tokenised as a whole first: most fit, some do not."""

_LONGEST = 64
"""Characters per token of room beyond which a text is not tokenised: no tokenizer makes so few tokens of one."""

DESCRIBE = "Generate caption of this image"
"""LLaMA-Adapter's instruction for describing a picture."""


class StoppedError(Exception):
    """Nobody waits any longer for what was asked for."""


@dataclass
class Encoded:
    """A sequence and its spans; all lists have one entry per token.

    Args:
        input_ids: Tokens.
        labels: Token where the language loss applies, else `IGNORE`.
        answer: Whether the token belongs to the answer of the target segment.
        caption: Whether the token belongs to its caption.
        image: Whether the token is one of its image tokens.
        cut_tokens: Number of tokens of the prompt or of the reply's text that did not fit.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    caption: list[bool] = field(default_factory=list)
    image: list[bool] = field(default_factory=list)
    cut_tokens: int = 0

    def add(self, ids: Sequence[int], *, loss: bool | int, span: str = "") -> None:
        """Appends tokens.

        Args:
            ids: Tokens.
            loss: Whether the language loss applies to them, or to how many of the first.
            span: ``answer``, ``caption`` or ``image`` of the target segment; empty otherwise.
        """
        scored = len(ids) if loss is True else int(loss)
        self.input_ids += ids
        self.labels += ids[:scored]
        self.labels += [IGNORE] * (len(ids) - scored)
        self.answer += [span == "answer"] * len(ids)
        self.caption += [span == "caption"] * len(ids)
        self.image += [span == "image"] * len(ids)

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Fitted:
    """Prompt and reply in tokens, cut to fit into one sequence.

    Args:
        prompt: Tokens of the prompt, with the start token.
        answers: Tokens of each segment's answer.
        captions: Tokens of each segment's caption; None for text alone.
        cut_tokens: Number of tokens of the prompt or of the reply's text that did not fit.
    """

    prompt: list[int]
    answers: list[list[int]]
    captions: list[list[int] | None]
    cut_tokens: int


@dataclass(frozen=True)
class Layout:
    """Builds sequences.

    Args:
        tokenizer: Tokenizer of the language model.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture; the micro scale's by default.
        max_tokens: Maximum length of a sequence, prompt and response together; the micro scale's by default.
        format: Format of the prompt.

    Raises:
        UserError: If there is no such format, or the language model has no chat template that can be used.
    """

    tokenizer: M2ChatTokenizer
    num_image_tokens: int = 8
    max_tokens: int = 192
    format: PromptFormat = "auto"
    prompts: Prompts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", prompts_of(self.format, self.tokenizer))

    @property
    def end_id(self) -> int:
        """Token behind a reply: ``</s>``, or the chat template's end of a turn."""
        return self.prompts.end_id

    def prompt(
        self, request: Request, room: int, is_stopped: Callable[[], bool] | None = None
    ) -> tuple[list[int], int]:
        """Tokens of the prompt, cut to fit.

        The history is cut first, whole lines, the oldest first; then the end of the instruction. Of a long history each
        line is tokenised once, so that the work is proportional to its length.

        Args:
            request: Contents of the prompt.
            room: Maximum number of tokens of the prompt.
            is_stopped: Function that is asked before every line whether anyone still waits for the prompt.

        Returns:
            The tokens with the start token, and the number of those that did not fit.

        Raises:
            StoppedError: If nobody waits any longer.
            UserError: If even an empty instruction does not fit.
        """
        known: Known = {}
        full = 0
        request = _shortened(request, _LONGEST * max(room, 1))
        if sum(map(len, request.history)) <= _EASY * room:
            ids = self.prompts.ids(request, 0, known)
            if len(ids) <= room:
                return ids, 0
            full = len(ids)
        last = max(len(request.history) - 1, 0)
        ids = self.prompts.ids(request, last, known)  # with the newest line alone
        lengths = [len(ids)]  # without older lines; with one, two, ... of them
        for line in reversed(range(last)):
            if is_stopped is not None and is_stopped():
                raise StoppedError
            lengths.append(lengths[-1] + self.prompts.cost(request, line))
        full = full or lengths[-1]
        # The lengths are estimates, from which the largest prompt that really fits is not far.
        skip = last - max(bisect_right(lengths, room) - 1, 0)
        ids = self.prompts.ids(request, skip, known)
        if len(ids) <= room:
            while skip and len(longer := self.prompts.ids(request, skip - 1, known)) <= room:
                skip, ids = skip - 1, longer
        while len(ids) > room and skip < len(request.history):
            skip += 1
            ids = self.prompts.ids(request, skip, known)
        if len(ids) <= room:
            return ids, max(full - len(ids), 1) if skip else 0
        return self._cut_instruction(request.instruction, room, len(ids), full)

    def _cut_instruction(self, text: str, room: int, length: int, full: int) -> tuple[list[int], int]:
        """A prompt without history and with as much of the instruction as fits.

        Args:
            text: Instruction.
            room: Maximum number of tokens of the prompt.
            length: Number of tokens with the whole instruction.
            full: Number of tokens with the history as well.
        """
        instruction = self.tokenizer.encode(text)
        # At least the excess must go; decoding and encoding the rest may give other pieces, so each length is tried.
        for keep in range(len(instruction) - max(1, length - room), -1, -1):
            ids = self.prompts.ids(Request(self.tokenizer.decode(instruction[:keep])), 0, {})
            if len(ids) <= room:
                return ids, full - len(ids)
        ids = self.prompts.ids(Request(""), 0, {})
        if len(ids) <= room:
            return ids, full - len(ids)
        raise UserError(
            f"max_tokens={self.max_tokens} leaves {room} tokens for the prompt, and its template alone takes "
            f"{len(ids)}: raise max_tokens"
        )

    def encode(self, request: Request, reply: Sequence[Segment], target: int | None = None) -> Encoded:
        """The whole sequence of a request and its reply.

        Args:
            request: Contents of the prompt.
            reply: Segments of the reply.
            target: Index of the segment whose spans are marked, since its picture is drawn; None takes the first
                segment with a caption.

        Returns:
            Tokens, labels and spans, at most `max_tokens` long; image tokens and ``</s>`` are never cut.
        """
        if target is None:
            target = next((i for i, segment in enumerate(reply) if segment.caption is not None), 0)
        fitted = self.fit(request, reply)
        encoded = self.assemble(fitted.prompt, fitted.answers, fitted.captions, target)
        encoded.cut_tokens = fitted.cut_tokens
        return encoded

    def fit(self, request: Request, reply: Sequence[Segment]) -> Fitted:
        """Tokens of a request and of a given reply, cut so that they fit together.

        Training calls it, and generation with a given reply, so that both get the same history.

        Args:
            request: Contents of the prompt.
            reply: Segments of the reply.
        """
        encode = self.tokenizer.encode
        answers = [encode(segment.answer) if segment.answer else [] for segment in reply]
        captions = [None if segment.caption is None else encode(segment.caption) for segment in reply]
        # </s>, and <|IC|> and the image tokens of each picture.
        fixed = 1 + sum(1 + self.num_image_tokens for c in captions if c is not None)
        reply_cut = self._cut_reply(answers, captions, self.max_tokens - fixed - self._least_prompt)
        used = fixed + sum(map(len, answers)) + sum(len(c) for c in captions if c is not None)
        prompt, cut = self.prompt(request, self.max_tokens - used)
        return Fitted(prompt, answers, captions, cut + reply_cut)

    def assemble(
        self,
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        captions: Sequence[Sequence[int] | None],
        target: int,
    ) -> Encoded:
        """A sequence from its tokens; generation calls it with the tokens that it has decoded.

        Args:
            prompt: Tokens of the prompt.
            answers: Tokens of each segment's answer.
            captions: Tokens of each segment's caption; None for text alone.
            target: Index of the segment whose spans are marked.
        """
        tokens = self.tokenizer
        encoded = Encoded()
        encoded.add(prompt, loss=False)
        for index, (answer, caption) in enumerate(zip(answers, captions, strict=True)):
            is_target = index == target
            encoded.add(answer, loss=True, span="answer" if is_target else "")
            if caption is not None:
                encoded.add([tokens.ic_id], loss=True)
                encoded.add(caption, loss=True, span="caption" if is_target else "")
                # Only the first image token is predicted; the others follow it always, in training and in generation.
                images = [tokens.img_id] * self.num_image_tokens
                encoded.add(images, loss=1, span="image" if is_target else "")
        encoded.add([self.end_id], loss=True)
        return encoded

    @cached_property
    def _least_prompt(self) -> int:
        """Number of tokens of an empty prompt."""
        return len(self.prompts.ids(Request(""), 0, {}))

    @staticmethod
    def _cut_reply(answers: list[list[int]], captions: list[list[int] | None], room: int) -> int:
        """Shortens the longest text of the reply until all fit; returns the number of tokens that were cut."""
        texts = [text for text in (*answers, *captions) if text is not None]
        cut = 0
        while texts and sum(map(len, texts)) > max(room, 0) and any(texts):
            max(texts, key=len).pop()
            cut += 1
        return cut


def _shortened(request: Request, most: int) -> Request:
    """The request without the ends of texts that cannot fit: to tokenise a million letters takes a second.

    What is left of such a line of history does not fit either, so that the line is left out as a whole; only the count
    of tokens that did not fit is lower than it would be.

    Args:
        request: Contents of the prompt.
        most: Characters that are left of a text.
    """
    if max(map(len, (request.instruction, *request.history))) <= most:
        return request
    lines = [
        replace(line, parts=tuple(part[:most] for part in line.parts)) if len(text) > most else line
        for line, text in zip(request.lines, request.history, strict=True)
    ]
    return Request(request.instruction[:most], tuple(text[:most] for text in request.history), tuple(lines))
