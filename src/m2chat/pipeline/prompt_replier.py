"""Replies whose pictures are drawn from words: those of the baseline "VLM + SD finetune"."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

from m2chat.models.generation import Decoding, TokenSegment
from m2chat.models.image_decoder import OnStep
from m2chat.models.m3adapter import Condition
from m2chat.models.vlm_sd import VLMSDModel
from m2chat.pipeline.replier import Drawings, DrawSettings, Replier, drawn_places
from m2chat.schema import Batch, Segment
from m2chat.text import Layout

PromptSource = Literal["answer", "caption"]
"""Which words of the language model are the prompt: what it says, or the caption that it writes."""


def prompt_of(segment: Segment, source: PromptSource) -> str:
    """The prompt of a segment's picture; the other text where the chosen one is empty, as in text-to-image."""
    answer, caption = segment.answer.strip(), (segment.caption or "").strip()
    return (answer or caption) if source == "answer" else (caption or answer)


class PromptReplier(Replier):
    """Generates replies: text as M²Chat does, pictures from the words.

    Args:
        model: In evaluation mode.
        layout: Builds token sequences.
        decoding: How text is decoded.
        draw: How pictures are drawn.
        prompt: Which words are the prompt.
    """

    def __init__(
        self, model: VLMSDModel, layout: Layout, decoding: Decoding, draw: DrawSettings, prompt: PromptSource
    ) -> None:
        super().__init__(model, layout, decoding, draw)
        self.prompt: PromptSource = prompt

    def _draw(
        self,
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        batch: Batch,
        seeds: Sequence[int],
        on_step: OnStep | None,
    ) -> Generator[None, None, Drawings]:
        """Every picture of every reply in one go; there is no gate."""
        model: Any = self.model
        places = drawn_places(replies)
        if not places:
            return {}, {}
        words = [prompt_of(self._segment(replies[i][k]), self.prompt) for i, k in places]
        text, pooled = model.encode_prompts(words)
        ones = text.new_ones(len(places))
        condition = Condition(text, pooled, ones, ones)
        pixels = yield from self.painting(condition, self._seeds(places, batch, seeds), on_step)
        return dict(zip(places, pixels, strict=True)), {}
