"""Replies whose pictures are drawn from words: those of the baseline "VLM + SD finetune"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2chat.models.generation import Decoding, TokenSegment
from m2chat.models.image_decoder import OnStep
from m2chat.models.vlm_sd import VLMSDModel
from m2chat.pipeline.replier import DrawSettings, Replier, drawn_places, to_pictures
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
    ) -> tuple[dict[tuple[int, int], NDArray[np.uint8]], dict[tuple[int, int], tuple[float, float]]]:
        """Every picture of every reply in one go, by reply and segment; there is no gate."""
        model: Any = self.model
        places = drawn_places(replies)
        if not places:
            return {}, {}
        words = [prompt_of(self._segment(replies[i][k]), self.prompt) for i, k in places]
        text, pooled = model.encode_prompts(words)
        size = self.draw.size
        time_ids = text.new_tensor([[size, size, 0, 0, size, size]]).expand(len(places), -1)
        own = self._seeds(places, batch, seeds)
        pixels = model.decoder.sample(text, pooled, time_ids, own, self.draw.steps, self.draw.guidance, on_step)
        return dict(zip(places, to_pictures(pixels), strict=True)), {}
