"""From conversations to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.batch import Batch
from m2chat.data.augment import Augmentation, CropFlip
from m2chat.data.images import resize_crop
from m2chat.data.items import Item
from m2chat.data.network_inputs import VisionInput
from m2chat.schema import Image, Sample
from m2chat.text import CaptionTokens, Layout, view_of
from m2chat.text.layout import IGNORE, Encoded

_TOKENS = (
    ("input_ids", "input_ids"), ("labels", "labels"), ("answer_mask", "answer"), ("caption_mask", "caption"),
    ("image_mask", "image"),
)  # fmt: skip
"""Fields of a batch that have one entry per token, and their names in an encoded sequence."""


class _Row(NamedTuple):
    """The inputs of one reply before they become tensors; pictures are RGB, (S, S, 3), 0-255."""

    encoded: Encoded
    context: NDArray[np.uint8] | None
    target: NDArray[np.uint8] | None
    time_ids: list[int]
    caption: str


@dataclass(frozen=True)
class Collator:
    """Makes batches; it can be sent to worker processes.

    Args:
        layout: Layout of the token sequences.
        captions: Tokenizers of the target captions.
        vision: Input of the vision encoder.
        image_size: Side of the target pictures, in pixels.
        augmentation: Random augmentation of the target pictures in training.
    """

    layout: Layout
    captions: CaptionTokens
    vision: VisionInput
    image_size: int
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __call__(self, items: Sequence[Item | tuple[Sample, int, int | None]]) -> Batch:
        """The batch of some replies, ready for the networks; see `compact`."""
        return self.compact(items).ready()

    def compact(self, items: Sequence[Item | tuple[Sample, int, int | None]]) -> Batch:
        """The batch of some replies, in the compact form in which it is sent between processes.

        Args:
            items: Sample, index of the reply in its turns, and segment of the reply whose picture is the target
                (None: the first that has one).

        Returns:
            Tensors on the CPU; pictures are uint8, see `Batch.ready`.
        """
        rows = [self._row(item[0], item[1], item[2], getattr(item, "lot", "")) for item in items]
        tokens: dict[str, Any] = {
            name: self._padded(name, [getattr(row.encoded, source) for row in rows]) for name, source in _TOKENS
        }
        captions, captions_2 = self.captions([row.caption for row in rows])
        lengths = torch.tensor([len(row.encoded) for row in rows])
        batch = Batch(
            **tokens,
            attention_mask=torch.arange(int(lengths.max())) < lengths[:, None],
            context_pixels=_stacked([row.context for row in rows], self.vision.size),
            has_context=torch.tensor([row.context is not None for row in rows]),
            target_pixels=_stacked([row.target for row in rows], self.image_size),
            has_target=torch.tensor([row.target is not None for row in rows]),
            time_ids=torch.tensor([row.time_ids for row in rows], dtype=torch.float32),
            caption_ids=captions,
            caption_ids_2=captions_2,
            samples=[item[0] for item in items],
            turns=[item[1] for item in items],
            cut_tokens=[row.encoded.cut_tokens for row in rows],
            normalisation=(self.vision.mean, self.vision.std) if any(row.context is not None for row in rows) else None,
        )
        batch.located()  # in a worker process, if there are any
        return batch

    def _padded(self, name: str, column: Sequence[list[Any]]) -> Tensor:
        """Token lists of different lengths as one tensor, (B, T)."""
        fill = {"input_ids": self.layout.tokenizer.pad_id, "labels": IGNORE}.get(name, False)
        table = np.full((len(column), max(map(len, column))), fill)
        for row, values in enumerate(column):
            table[row, : len(values)] = values
        return torch.from_numpy(table)

    def _row(self, sample: Sample, turn: int, target: int | None, seed: str) -> _Row:
        """The inputs of one reply; `seed` is that of the augmentation."""
        view = view_of(sample, turn)
        if target is None:
            target = next((k for k, picture in enumerate(view.targets) if picture is not None), 0)
        encoded = self.layout.encode(view.request, view.reply, target)
        context = None
        if view.context is not None:
            context = resize_crop(sample.images[view.context].pixels, self.vision.size)[0]
        drawn = view.targets[target]
        crop_flip = self.augmentation.draw(sample, seed)
        pixels, time_ids = (None, [0] * 6) if drawn is None else self._target(sample.images[drawn], crop_flip)
        caption = ("" if drawn is None else sample.images[drawn].full_caption) or view.reply[target].caption or ""
        return _Row(encoded, context, pixels, time_ids, caption)

    def _target(self, image: Image, crop_flip: CropFlip) -> tuple[NDArray[np.uint8], list[int]]:
        """The square to draw, (S, S, 3), and SDXL's micro-conditioning.

        Returns:
            The square; and original height and width, top and left of the crop, target height and width, in pixels.
        """
        side = self.image_size
        pixels, (top, left) = resize_crop(image.pixels, side, crop_flip.at)
        height, width = image.pixels.shape[:2]
        scale = side / min(height, width)
        if crop_flip.mirrored:
            pixels, left = pixels[:, ::-1].copy(), round(width * scale) - side - left
        # A crop that was taken before is scaled with the picture, and this one is added to it.
        top, left = top + round(image.crop[0] * scale), left + round(image.crop[1] * scale)
        original = image.original_size if all(image.original_size) else (height, width)
        return pixels, [*original, top, left, side, side]


def _stacked(squares: Sequence[NDArray[np.uint8] | None], size: int) -> Tensor:
    """Pictures as one tensor, (B, 3, S, S), 0-255, each copied once; zeros where there is none.

    It has the channels last in memory, as the pictures have them: `Batch.ready` brings them forward, on the device.
    """
    # Zeros that are all written over need not be cleared; NumPy does not touch the others before they are written to.
    is_full = all(square is not None for square in squares)
    batch = (np.empty if is_full else np.zeros)((len(squares), size, size, 3), np.uint8)
    for row, square in zip(batch, squares, strict=True):
        if square is not None:
            row[:] = square
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
