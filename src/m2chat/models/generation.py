"""Interleaved decoding: text until ``<|img|>``, its slots by force, and on until ``</s>``.

Works on token numbers only; `m2chat.pipeline` turns them into words and pictures. `stream_replies` is the one
loop: run to its end it gives whole replies, and between its steps a reply can be shown or stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from m2chat.models.reading import ReadingModel
from m2chat.models.sequence_reader import SequenceReader

DecodingLayout = Literal["free", "forced"]


@dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the tokens that steer decoding.

    Args:
        ic: ``<|IC|>``.
        img: ``<|img|>``.
        eos: ``</s>``.
        pad: Padding; its value has no effect.
    """

    ic: int
    img: int
    eos: int
    pad: int = 0


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Args:
        layout: ``free``: the model decides; ``forced``: text up to ``</s>``, then ``<|IC|>``, a caption up to
            ``</s>``, then one picture, for a model that has not learned the two tokens.
        num_image_tokens: N.
        max_text_tokens: Maximum length of an answer, in tokens; the reply ends there.
        max_caption_tokens: Maximum length of a caption, in tokens; None for that of an answer. The reply ends there,
            and a caption that was cut is not drawn. In layout ``forced``, where a caption's end is not learned, it
            ends the caption instead.
        max_pictures: Maximum number of pictures of a reply; 0 for text alone.
        min_pictures: Minimum number of pictures; a model that would end before must begin another picture.
        temperature: 0 takes the likeliest token.
        top_p: Share of the likelihood to sample from, if the temperature is above 0.
    """

    layout: DecodingLayout = "free"
    num_image_tokens: int = 8
    max_text_tokens: int = 64
    max_caption_tokens: int | None = None
    max_pictures: int = 4
    min_pictures: int = 0
    temperature: float = 0.0
    top_p: float = 0.75

    @property
    def caption_limit(self) -> int:
        """Maximum length of a caption, in tokens."""
        return self.max_text_tokens if self.max_caption_tokens is None else self.max_caption_tokens


@dataclass
class TokenSegment:
    """A segment of a reply in tokens.

    Args:
        answer: Tokens of the text.
        caption: Tokens of the caption; None for text alone.
        cut: Text that its limit has cut; a caption that was cut is left out.
    """

    answer: list[int] = field(default_factory=list)
    caption: list[int] | None = None
    cut: Literal["", "answer", "caption"] = ""


_NO_PICTURE, _MAY_DRAW, _IN_CAPTION = range(3)


def _rules(special: SpecialTokens, vocabulary: int, device: torch.device) -> Tensor:
    """What is added to the logits: -inf at the tokens that must not come, a row a rule, (3, V)."""
    rules = torch.zeros(3, vocabulary)
    rules[_NO_PICTURE, [special.ic, special.img]] = -torch.inf
    rules[_MAY_DRAW, special.img] = -torch.inf
    rules[_IN_CAPTION, [special.ic, special.eos]] = -torch.inf
    return rules.to(device)


class _OpenReply:
    """One reply while it is being decoded: what may come next, and what has come."""

    def __init__(self, special: SpecialTokens, decoding: Decoding) -> None:
        self.special, self.decoding = special, decoding
        self.segments = [TokenSegment()]
        self.slots = 0
        self.done = False

    @property
    def pictures(self) -> int:
        """How many have been begun."""
        return sum(segment.caption is not None for segment in self.segments)

    @property
    def rule(self) -> int:
        """Row of `_rules` with the tokens that may follow."""
        if self.decoding.layout == "free":
            if self.segments[-1].caption is not None:
                return _IN_CAPTION
            if self.pictures < self.decoding.max_pictures:
                return _MAY_DRAW
        return _NO_PICTURE

    def take(self, token: int) -> int:
        """Accepts the model's choice and returns what really follows."""
        if self.done:
            return self.special.pad
        if self.slots:  # within a picture the choice does not matter
            self.slots -= 1
            if not self.slots:
                if self.decoding.layout == "forced":
                    self.done = True
                else:
                    self.segments.append(TokenSegment())
            return self.special.img
        segment, special = self.segments[-1], self.special
        if segment.caption is None:
            text, over = segment.answer, len(segment.answer) >= self.decoding.max_text_tokens
            if over and token not in (special.ic, special.eos):
                segment.cut = "answer"
            forced = self.decoding.layout == "forced" or self.pictures < self.decoding.min_pictures
            if token == special.ic or (forced and (over or token == special.eos)):
                segment.caption = []
                return special.ic
            if token == special.eos or over:
                self.done = True
                return special.eos
        else:
            text, over = segment.caption, len(segment.caption) >= self.decoding.caption_limit
            if token in (special.img, special.eos) or (over and self.decoding.layout == "forced"):
                return self._draw()
            if over:
                segment.caption, segment.cut, self.done = None, "caption", True
                return special.eos
        text.append(token)
        return token

    def _draw(self) -> int:
        self.slots = self.decoding.num_image_tokens - 1
        if not self.slots:
            self.done = self.decoding.layout == "forced"
            self.segments.append(TokenSegment())
        return self.special.img


@torch.inference_mode()
def stream_replies(
    model: ReadingModel,
    prompts: Sequence[Sequence[int]],
    context_pixels: Tensor,
    special: SpecialTokens,
    decoding: Decoding,
    generator: torch.Generator | None = None,
    reader: SequenceReader | None = None,
) -> Iterator[list[list[TokenSegment]]]:
    """Decodes the replies to several prompts together; each is what it would be alone.

    Args:
        model: The model.
        prompts: Tokens of each prompt.
        context_pixels: (B, 3, S, S), zeros where there is no picture.
        special: Tokens that steer.
        decoding: How.
        generator: Generator of the sampling, if the temperature is above 0.
        reader: Reader of the prompts, for a caller that needs the states; None makes one.

    Yields:
        After every pass of the language model the segments of each reply so far. They are the same lists each time
        and grow; behind a picture whose slots are filled stands a new segment, which may stay empty.
    """
    reader = reader or SequenceReader(model, prompts, context_pixels, special.pad)
    replies = [_OpenReply(special, decoding) for _ in prompts]
    rules = None
    while True:
        logits = reader.logits()
        rules = _rules(special, logits.shape[-1], logits.device) if rules is None else rules
        allowed = logits + rules[[reply.rule for reply in replies]]
        choices = _choose(allowed, decoding, generator)
        rows = [[reply.take(choice)] for reply, choice in zip(replies, choices, strict=True)]
        # What follows by force needs no separate pass: as many slots go in together as all replies have left.
        sure = min((reply.slots for reply in replies if not reply.done), default=0)
        for reply, row in zip(replies, rows, strict=True):
            row += [reply.take(special.img) for _ in range(sure)]
        reader.add(rows)
        yield [reply.segments for reply in replies]
        if all(reply.done for reply in replies):
            return


def finished(segments: list[TokenSegment]) -> list[TokenSegment]:
    """The segments of a whole reply, without an empty one behind the last picture."""
    last = segments[-1]
    empty = len(segments) > 1 and not last.answer and last.caption is None
    return segments[:-1] if empty else segments


def decode_replies(
    model: ReadingModel,
    prompts: Sequence[Sequence[int]],
    context_pixels: Tensor,
    special: SpecialTokens,
    decoding: Decoding,
    generator: torch.Generator | None = None,
) -> list[list[TokenSegment]]:
    """The segments of whole replies; arguments as for `stream_replies`."""
    *_, segments = stream_replies(model, prompts, context_pixels, special, decoding, generator)
    return [finished(parts) for parts in segments]


_COLDEST = 1e-6
"""Temperature below which logits would overflow."""


def _choose(logits: Tensor, decoding: Decoding, generator: torch.Generator | None) -> list[int]:
    """Of each row, (B, V), the likeliest token, or one sampled from the top share of the likelihood."""
    if decoding.temperature <= 0:
        return logits.argmax(-1).tolist()
    likelihood, order = (logits / max(decoding.temperature, _COLDEST)).softmax(-1).sort(descending=True)
    kept = likelihood.masked_fill(likelihood.cumsum(-1) - likelihood > decoding.top_p, 0)
    return order.gather(-1, torch.multinomial(kept, 1, generator=generator))[:, 0].tolist()
