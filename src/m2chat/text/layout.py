"""The layout of a sequence (Eq. 1), which training, evaluation and generation share.

``Instruction`` and ``Input`` in Alpaca's template, then for every picture of the reply
``answer <|IC|> caption <|img|> x N``, then ``</s>``; a reply without a picture is ``answer </s>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from m2chat.errors import UserError
from m2chat.schema import Segment
from m2chat.text.tokenizer import M2ChatTokenizer
from m2chat.text.view import Request

IGNORE = -100
"""Label of a position that the language loss skips."""

MAX_TOKENS = 512
"""Maximum length of a sequence where neither weights nor settings state one: that of LLaMA-Adapter V2."""

DESCRIBE = "Generate caption of this image"
"""LLaMA-Adapter's instruction for describing a picture."""

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
        self.labels += [token if i < scored else IGNORE for i, token in enumerate(ids)]
        for name in ("answer", "caption", "image"):
            getattr(self, name).extend([name == span] * len(ids))

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
        tokenizer: Of the language model.
        num_image_tokens: N, the number of ``<|img|>`` tokens of a picture; the micro scale's by default.
        max_tokens: Longest sequence, prompt and response together; the micro scale's by default.
    """

    tokenizer: M2ChatTokenizer
    num_image_tokens: int = 32
    max_tokens: int = MAX_TOKENS

    def prompt(self, request: Request, room: int) -> tuple[list[int], int]:
        """Tokens of the prompt, cut to fit.

        The history is cut first, whole lines, the oldest first; then the end of the instruction.

        Args:
            request: Contents of the prompt.
            room: Maximum number of tokens of the prompt.

        Returns:
            The tokens with the start token, and the number of those that did not fit.

        Raises:
            UserError: If even an empty instruction does not fit.
        """
        encode = self.tokenizer.encode
        full = 0
        for skip in range(len(request.history) + 1):
            ids = [self.tokenizer.bos_id, *encode(alpaca(request.instruction, "\n".join(request.history[skip:])))]
            full = full or len(ids)
            if len(ids) <= room:
                return ids, full - len(ids)
        # At least the excess must go; decoding and encoding the rest may give other pieces, so each length is tried.
        instruction = self.tokenizer.encode(request.instruction)
        for keep in range(len(instruction) - max(1, len(ids) - room), -1, -1):
            ids = [self.tokenizer.bos_id, *encode(alpaca(self.tokenizer.decode(instruction[:keep])))]
            if len(ids) <= room:
                return ids, full - len(ids)
        ids = [self.tokenizer.bos_id, *encode(alpaca(""))]
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
        encoded.add([tokens.eos_id], loss=True)
        return encoded

    @cached_property
    def _least_prompt(self) -> int:
        """Number of tokens of an empty prompt."""
        return 1 + len(self.tokenizer.encode(alpaca("")))

    @staticmethod
    def _cut_reply(answers: list[list[int]], captions: list[list[int] | None], room: int) -> int:
        """Shortens the longest text of the reply until all fit; returns the number of tokens that were cut."""
        texts = [text for text in (*answers, *captions) if text is not None]
        cut = 0
        while texts and sum(map(len, texts)) > max(room, 0) and any(texts):
            max(texts, key=len).pop()
            cut += 1
        return cut
