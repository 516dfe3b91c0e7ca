"""From conversations to tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.data.augment import Augmentation, Look
from m2chat.data.images import normalise_, resize_crop, to_unit_range_
from m2chat.data.stream import Item
from m2chat.errors import UserError
from m2chat.schema import Batch, Image, Sample
from m2chat.text import Layout, view_of
from m2chat.text.clip_tokenizers import clip_tokenizers, require_tokenizers
from m2chat.text.layout import IGNORE, Encoded

_TOKENS = (
    ("input_ids", "input_ids"), ("labels", "labels"), ("answer_mask", "answer"), ("caption_mask", "caption"),
    ("image_mask", "image"),
)  # fmt: skip
"""Fields of a batch that have one entry a token, and what they are called in an encoded sequence."""
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionInput:
    """What the vision encoder wants to see.

    Args:
        size: Side of the square picture, in pixels.
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
    """

    size: int = 224
    mean: tuple[float, ...] = _OPENAI_MEAN
    std: tuple[float, ...] = _OPENAI_STD

    @classmethod
    def of(cls, vision_encoder: str) -> VisionInput:
        """Reads it from an encoder.

        Args:
            vision_encoder: A folder with ``open_clip_config.json``, or a name that open_clip knows; ``:`` and its
                weights' tag may follow, and are of no matter here.

        Raises:
            UserError: If it is neither.
        """
        path = Path(vision_encoder) / "open_clip_config.json"
        if path.is_file():
            config = json.loads(path.read_text())
            shown = config.get("preprocess_cfg", {})
            mean, std = shown.get("mean", _OPENAI_MEAN), shown.get("std", _OPENAI_STD)
            return cls(int(config["model_cfg"]["vision_cfg"]["image_size"]), tuple(mean), tuple(std))
        from m2chat._compat import ensure_torchvision

        ensure_torchvision()
        import open_clip

        architecture = vision_encoder.partition(":")[0]
        if architecture not in open_clip.list_models():
            raise UserError(
                f"vision_encoder={vision_encoder!r} is neither a folder with open_clip_config.json nor a model of "
                "open_clip: give a folder, or a name such as 'ViT-L-14-quickgelu:openai'; a file stands behind its "
                "architecture, as in 'ViT-L-14-quickgelu:/weights/ViT-L-14.pt', which says how large its pictures are"
            )
        return cls(int(open_clip.get_model_config(architecture)["vision_cfg"].get("image_size", 224)))


class CaptionTokens:
    """The tokenizers of the image decoder's text encoders.

    Args:
        image_decoder: A diffusers folder with ``tokenizer`` and, as SDXL has it, ``tokenizer_2``; or SDXL in one file.

    Raises:
        UserError: If it has no tokenizers.
    """

    def __init__(self, image_decoder: str | Path) -> None:
        self.path = Path(image_decoder)
        require_tokenizers(self.path)
        self._loaded: list[Any] = []

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens for the first and the second text encoder, (B, Q) each; zeros where there is no second."""
        ids = [self._encode(tokenizer, captions) for tokenizer in self._tokenizers()]
        return ids[0], ids[1] if len(ids) > 1 else torch.zeros_like(ids[0])

    @staticmethod
    def _encode(tokenizer: Any, captions: Sequence[str]) -> Tensor:
        # Below transformers' own call, which costs a third more: these are small, and there are many.
        return torch.tensor([row.ids for row in tokenizer.backend_tokenizer.encode_batch_fast(list(captions))])

    def _tokenizers(self) -> list[Any]:
        if not self._loaded:
            self._loaded = clip_tokenizers(self.path)
            for tokenizer in self._loaded:
                backend, length = tokenizer.backend_tokenizer, tokenizer.model_max_length
                backend.enable_truncation(length)
                backend.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
                # A caption that spells `<|endoftext|>` must stay words, or the encoder would pool in its middle.
                backend.encode_special_tokens = True
        return self._loaded

    def __reduce__(self) -> tuple[type[CaptionTokens], tuple[Path]]:
        return type(self), (self.path,)


class _Row(NamedTuple):
    """What a batch needs of one reply, nothing yet a tensor; pictures of the right size, RGB, 0-255."""

    encoded: Encoded
    context: NDArray[np.uint8] | None
    target: NDArray[np.uint8] | None
    time_ids: list[int]
    caption: str


@dataclass(frozen=True)
class Collator:
    """Makes batches; it can be sent to worker processes.

    Args:
        layout: Builds the token sequences.
        captions: Tokenizes the target captions.
        vision: What the vision encoder wants to see.
        image_size: Side of the target pictures, in pixels.
        augmentation: What is left to chance in the target pictures of training.
    """

    layout: Layout
    captions: CaptionTokens
    vision: VisionInput
    image_size: int
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __call__(self, items: Sequence[Item | tuple[Sample, int, int | None]]) -> Batch:
        """The batch of some replies.

        Args:
            items: Sample, index of the reply in its turns, and segment of the reply whose picture is the target
                (None: the first that has one).

        Returns:
            The tensors, on the CPU.
        """
        rows = [self._row(item[0], item[1], item[2], getattr(item, "lot", "")) for item in items]
        tokens = {name: self._padded(name, [getattr(row.encoded, source) for row in rows]) for name, source in _TOKENS}
        captions, captions_2 = self.captions([row.caption for row in rows])
        lengths = torch.tensor([len(row.encoded) for row in rows])
        return Batch(
            **tokens,
            attention_mask=torch.arange(int(lengths.max())) < lengths[:, None],
            context_pixels=_stacked([row.context for row in rows], self.vision.size, self._normalise),
            has_context=torch.tensor([row.context is not None for row in rows]),
            target_pixels=_stacked([row.target for row in rows], self.image_size, to_unit_range_),
            has_target=torch.tensor([row.target is not None for row in rows]),
            time_ids=torch.tensor([row.time_ids for row in rows], dtype=torch.float32),
            caption_ids=captions,
            caption_ids_2=captions_2,
            samples=[item[0] for item in items],
            turns=[item[1] for item in items],
            cut_tokens=[row.encoded.cut_tokens for row in rows],
        )

    def _padded(self, name: str, column: Sequence[list[Any]]) -> Tensor:
        """Token lists of different lengths as one tensor, (B, T)."""
        fill = {"input_ids": self.layout.tokenizer.pad_id, "labels": IGNORE}.get(name, False)
        table = np.full((len(column), max(map(len, column))), fill)
        for row, values in enumerate(column):
            table[row, : len(values)] = values
        return torch.from_numpy(table)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return normalise_(pixels, self.vision.mean, self.vision.std)

    def _row(self, sample: Sample, turn: int, target: int | None, lot: str) -> _Row:
        """One row of the batch, nothing yet a tensor."""
        view = view_of(sample, turn)
        if target is None:
            target = next((k for k, picture in enumerate(view.targets) if picture is not None), 0)
        encoded = self.layout.encode(view.request, view.reply, target)
        context = None
        if view.context is not None:
            context = resize_crop(sample.images[view.context].pixels, self.vision.size)[0]
        drawn = view.targets[target]
        look = self.augmentation.look(sample, lot)
        pixels, time_ids = (None, [0] * 6) if drawn is None else self._target(sample.images[drawn], look)
        return _Row(encoded, context, pixels, time_ids, view.reply[target].caption or "")

    def _target(self, image: Image, look: Look) -> tuple[NDArray[np.uint8], list[int]]:
        """The square to draw, and SDXL's micro-conditioning: six numbers."""
        side = self.image_size
        pixels, (top, left) = resize_crop(image.pixels, side, look.at)
        height, width = image.pixels.shape[:2]
        scale = side / min(height, width)
        if look.mirrored:
            pixels, left = pixels[:, ::-1].copy(), round(width * scale) - side - left
        # A crop that was taken before is scaled with the picture, and ours comes on top.
        top, left = top + round(image.crop[0] * scale), left + round(image.crop[1] * scale)
        original = image.original_size if all(image.original_size) else (height, width)
        return pixels, [*original, top, left, side, side]


def _stacked(squares: Sequence[NDArray[np.uint8] | None], size: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Pictures as one tensor, (B, 3, S, S), each written once to where it stays; zeros where there is none."""
    # NumPy's zeros are not touched before they are written to: a batch without context pictures costs nothing.
    batch = torch.from_numpy(np.zeros((len(squares), 3, size, size), np.float32))
    for row, square in zip(batch, squares, strict=True):
        if square is not None:
            change(row.copy_(torch.from_numpy(square).permute(2, 0, 1).contiguous()))
    return batch
