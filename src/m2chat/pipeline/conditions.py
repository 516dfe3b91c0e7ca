"""The image decoder's condition of each picture of a batch of replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.generation import TokenSegment
from m2chat.models.m2chat import M2ChatModel
from m2chat.models.m3adapter import Condition
from m2chat.models.sequence_reader import SequenceReader
from m2chat.pipeline.inputs import ReplyInputs
from m2chat.text import Layout

Conditioner = Literal["m3adapter", "text_encoder"]
"""Source of the image decoder's condition: the M³Adapter, or for comparison its own text encoders, which read the
reference captions."""
Place: TypeAlias = tuple[int, int]
"""Place of a picture: index of the reply in the batch, index of the segment in the reply."""


class PictureConditions:
    """Computes conditions of pictures.

    Args:
        model: Model in evaluation mode.
        layout: Layout of token sequences.
        use_image: Whether the image branch takes part; False for a model of stage 1.
        conditioner: Source of the condition.
    """

    def __init__(self, model: M2ChatModel, layout: Layout, use_image: bool, conditioner: Conditioner) -> None:
        self.model: Any = model
        self.layout, self.use_image, self.conditioner = layout, use_image, conditioner

    def read(
        self,
        places: list[Place],
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        inputs: ReplyInputs,
        reader: SequenceReader | None = None,
    ) -> Condition:
        """The image decoder's condition of each picture: as in training, from whole sequences, one row a picture.

        Args:
            places: Places of the pictures.
            prompts: Tokens of each prompt.
            replies: Segments of each reply.
            inputs: Context pictures.
            reader: Reader that has decoded the replies; without one, or where it has read other tokens, the sequences
                are read here.

        Raises:
            UserError: If the condition is to come from reference captions, or kept features, that are not there.
        """
        if inputs.batch is not None and inputs.batch.features is not None:
            condition = self._kept(places, inputs.batch)
        else:
            condition = self._computed(places, prompts, replies, inputs, reader)
        if self.conditioner == "text_encoder":
            condition.h_align, condition.h_palign = self._encoded_captions(places, inputs.batch)
        return condition

    def _computed(
        self,
        places: list[Place],
        prompts: list[list[int]],
        replies: list[list[TokenSegment]],
        inputs: ReplyInputs,
        reader: SequenceReader | None,
    ) -> Condition:
        """The same from the language model's states of whole sequences."""
        rows = [
            self.layout.assemble(prompts[i], [s.answer for s in replies[i]], [s.caption for s in replies[i]], k)
            for i, k in places
        ]
        # What stands behind a picture's last token has no influence on its condition.
        lengths = [len(row.image) - row.image[::-1].index(True) for row in rows]
        longest, device = max(lengths), inputs.context_pixels.device

        def padded(name: str, fill: int | bool) -> Tensor:
            values = [getattr(row, name)[:length] for row, length in zip(rows, lengths, strict=True)]
            return torch.tensor([value + [fill] * (longest - len(value)) for value in values], device=device)

        chosen = torch.tensor([i for i, _ in places], device=device)
        read = [(i, row.input_ids[:length]) for (i, _), row, length in zip(places, rows, lengths, strict=True)]
        states = None if reader is None else reader.states(read)
        if reader is not None and states is not None:
            f_img = reader.f_img[chosen]
        else:
            ids = padded("input_ids", self.layout.tokenizer.pad_id)
            states, f_img, _ = self.model.read(ids, inputs.context_pixels[chosen])
        spans = (padded(name, False) for name in ("answer", "caption", "image"))
        condition: Condition = self.model.m3adapter(states, *spans, f_img, inputs.has_context[chosen], self.use_image)
        return condition

    def _kept(self, places: list[Place], batch: Batch) -> Condition:
        """The same from kept features, which are those of the given captions: of each reply's first picture."""
        assert batch.features is not None
        if any(k for _, k in places):
            raise UserError(
                "a feature cache has the first picture of each reply to validate, and one has several: set "
                "trainer.limit_val_batches to 0, or train without data.features"
            )
        chosen = torch.tensor([i for i, _ in places], device=batch.has_context.device)
        condition: Condition = self.model.text_condition(batch.features.select(chosen), batch.has_context[chosen])
        return condition

    def _encoded_captions(self, places: list[Place], batch: Batch | None) -> tuple[Tensor, Tensor | None]:
        """The decoder's text encoders' states of the reference captions."""
        chosen = [i for i, _ in places]
        if batch is None or any(k for _, k in places) or not all(bool(batch.has_target[i]) for i in chosen):
            raise UserError(
                "conditioner='text_encoder' draws one reference caption per reply: set evaluation.given to 'caption' "
                "or 'reply' and test on replies of one picture"
            )
        encoded: tuple[Tensor, Tensor | None] = self.model.decoder.encode_text(
            batch.caption_ids[chosen], batch.caption_ids_2[chosen]
        )
        return encoded


def drawn_places(replies: Sequence[Sequence[TokenSegment]]) -> list[Place]:
    """Reply and segment of every picture to draw."""
    return [(i, k) for i, reply in enumerate(replies) for k, s in enumerate(reply) if s.caption is not None]
