"""Replies of the row "VLM + SD finetune": their pictures are drawn from their text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

from m2chat.baselines.vlm_sd.model import VLMSDModel
from m2chat.models.denoising import OnStep
from m2chat.models.generation import Decoding, TokenSegment
from m2chat.models.m3adapter import Condition
from m2chat.models.sequence_reader import SequenceReader
from m2chat.pipeline.conditions import drawn_places
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.inputs import ReplyInputs
from m2chat.pipeline.replier import Drawings, Replier
from m2chat.schema import Segment
from m2chat.text import Layout

PromptSource = Literal["answer", "caption"]
"""Text of a reply that is the prompt: its answer, or the caption that the language model writes."""


def prompt_of(segment: Segment, source: PromptSource) -> str:
    """The prompt of a segment's picture; the other text where the chosen one is empty, as in text-to-image."""
    answer, caption = segment.answer.strip(), (segment.caption or "").strip()
    return (answer or caption) if source == "answer" else (caption or answer)


class PromptReplier(Replier):
    """Generates replies: text as M²Chat does, pictures from the words.

    Args:
        model: Model in evaluation mode.
        layout: Layout of token sequences.
        decoding: Settings of text decoding.
        draw: Settings of drawing.
        prompt: Text of a reply that is the prompt.
    """

    def __init__(
        self, model: VLMSDModel, layout: Layout, decoding: Decoding, draw: DrawSettings, prompt: PromptSource
    ) -> None:
        super().__init__(model, layout, decoding, draw)  # type: ignore[arg-type]  # no M³Adapter is asked for
        self.prompt: PromptSource = prompt

    def _reader(self, prompts: list[list[int]], inputs: ReplyInputs) -> SequenceReader:
        """A reader that keeps no states: pictures depend on words alone."""
        return SequenceReader(self.model, prompts, inputs.context_pixels, self.special.pad)

    def _draw(
        self,
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        inputs: ReplyInputs,
        seeds: Sequence[int],
        on_step: OnStep | None,
        reader: SequenceReader | None = None,
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
        pixels = yield from self.painting(condition, self._seeds(places, inputs, seeds), on_step)
        return dict(zip(places, pixels, strict=True)), {}
