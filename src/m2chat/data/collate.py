"""From conversations to tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2chat.data.augment import Augmentation, Look
from m2chat.data.images import normalised, resize_crop, to_unit_range
from m2chat.data.stream import Item
from m2chat.errors import UserError
from m2chat.schema import Batch, Image, Sample
from m2chat.text import Layout, view_of
from m2chat.text.layout import IGNORE

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
                "open_clip: give a folder, or a name such as 'ViT-L-14-quickgelu:openai'"
            )
        return cls(int(open_clip.get_model_config(architecture)["vision_cfg"].get("image_size", 224)))


class CaptionTokens:
    """The tokenizers of the image decoder's text encoders.

    Args:
        image_decoder: A diffusers folder with ``tokenizer`` and, as SDXL has it, ``tokenizer_2``.

    Raises:
        UserError: If there is no ``tokenizer``.
    """

    def __init__(self, image_decoder: str | Path) -> None:
        self.folder = Path(image_decoder)
        if not (self.folder / "tokenizer").is_dir():
            raise UserError(
                f"image_decoder={str(image_decoder)!r} has no folder `tokenizer`: give a folder as diffusers saves it"
            )
        self._loaded: list[Any] = []

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens for the first and the second text encoder, (B, Q) each; zeros where there is no second."""
        ids = [self._encode(tokenizer, captions) for tokenizer in self._tokenizers()]
        return ids[0], ids[1] if len(ids) > 1 else torch.zeros_like(ids[0])

    @staticmethod
    def _encode(tokenizer: Any, captions: Sequence[str]) -> Tensor:
        # A caption that spells `<|endoftext|>` must stay words, or the encoder would pool in its middle.
        rows = tokenizer(
            list(captions), padding="max_length", truncation=True, split_special_tokens=True, return_tensors="pt"
        )
        ids: Tensor = rows["input_ids"]
        return ids

    def _tokenizers(self) -> list[Any]:
        if not self._loaded:
            from transformers import CLIPTokenizer

            folders = [self.folder / name for name in ("tokenizer", "tokenizer_2")]
            self._loaded = [CLIPTokenizer.from_pretrained(folder) for folder in folders if folder.is_dir()]
        return self._loaded

    def __reduce__(self) -> tuple[type[CaptionTokens], tuple[Path]]:
        return type(self), (self.folder,)


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
        captions, captions_2 = self.captions([row.pop("caption_text") for row in rows])
        cut_tokens = [row.pop("cut_tokens") for row in rows]
        longest = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": self.layout.tokenizer.pad_id, "labels": IGNORE}
        tensors: dict[str, Any] = {}
        for name in rows[0]:
            column = [row[name] for row in rows]
            if isinstance(column[0], list):
                fill = padding.get(name, False)
                column = [torch.tensor(values + [fill] * (longest - len(values))) for values in column]
            tensors[name] = torch.stack(column)
        return Batch(
            **tensors,
            attention_mask=torch.tensor([[k < len(row["input_ids"]) for k in range(longest)] for row in rows]),
            caption_ids=captions,
            caption_ids_2=captions_2,
            samples=[item[0] for item in items],
            turns=[item[1] for item in items],
            cut_tokens=cut_tokens,
        )

    def _row(self, sample: Sample, turn: int, target: int | None, lot: str) -> dict[str, Any]:
        """One row of each field, token lists not yet padded."""
        view = view_of(sample, turn)
        if target is None:
            target = next((k for k, picture in enumerate(view.targets) if picture is not None), 0)
        encoded = self.layout.encode(view.request, view.reply, target)
        drawn = view.targets[target]
        look = self.augmentation.look(sample, lot)
        pixels, time_ids = self._target(None if drawn is None else sample.images[drawn], look)
        return {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "answer_mask": encoded.answer,
            "caption_mask": encoded.caption,
            "image_mask": encoded.image,
            "context_pixels": self._context(None if view.context is None else sample.images[view.context]),
            "has_context": torch.tensor(view.context is not None),
            "target_pixels": pixels,
            "has_target": torch.tensor(drawn is not None),
            "time_ids": time_ids,
            "caption_text": view.reply[target].caption or "",
            "cut_tokens": encoded.cut_tokens,
        }

    def _context(self, image: Image | None) -> Tensor:
        """(3, S, S), normalised for the vision encoder; zeros without a picture."""
        if image is None:
            return torch.zeros(3, self.vision.size, self.vision.size)
        return normalised(resize_crop(image.pixels, self.vision.size)[0], self.vision.mean, self.vision.std)

    def _target(self, image: Image | None, look: Look) -> tuple[Tensor, Tensor]:
        """(3, H, W) in [-1, 1], and SDXL's micro-conditioning (6,); zeros without a picture."""
        side = self.image_size
        if image is None:
            return torch.zeros(3, side, side), torch.zeros(6)
        pixels, (top, left) = resize_crop(image.pixels, side, look.at)
        height, width = image.pixels.shape[:2]
        scale = side / min(height, width)
        if look.mirrored:
            pixels, left = pixels[:, ::-1], round(width * scale) - side - left
        # A crop that was taken before is scaled with the picture, and ours comes on top.
        top, left = top + round(image.crop[0] * scale), left + round(image.crop[1] * scale)
        original = image.original_size if all(image.original_size) else (height, width)
        return to_unit_range(pixels), torch.tensor([*original, top, left, side, side], dtype=torch.float32)
