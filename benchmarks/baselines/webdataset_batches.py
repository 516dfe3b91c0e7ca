"""Batches of caption pairs by a pipeline of webdataset: the same work as the loader's, written as its users write it.

Read, decode with Pillow, resize and crop, tokenise, make a batch. Two ways of the middle part:

- `torchvision`: `decode("pil")`, then torchvision's Resize, CenterCrop and PILToTensor;
- `img2dataset`: `decode("pil")` as readers of img2dataset's shards do, then the loader's resize.

The words go through the loader's tokenizers, since these are no matter of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m2chat.data.collate import Collator
from m2chat.data.images import resize_crop
from m2chat.schema import Segment
from m2chat.text.layout import Encoded
from m2chat.text.view import Request


def torchvision(size: int) -> Callable[[PILImage], Tensor]:
    """Torchvision's transforms of a picture, (3, S, S), 0-255."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

    transform: Callable[[PILImage], Tensor] = Compose(
        [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), PILToTensor()]
    )
    return transform


def img2dataset(size: int) -> Callable[[PILImage], Tensor]:
    """The loader's resize of a picture, (3, S, S), 0-255."""
    return lambda image: torch.from_numpy(resize_crop(np.array(image), size)[0]).permute(2, 0, 1)


def tokens(captions: Sequence[str], collator: Collator) -> tuple[list[Encoded], tuple[Tensor, Tensor]]:
    """The words of some pairs as the language model reads them, and as both text encoders do."""
    encoded = [
        collator.layout.encode(Request(f"Draw {caption}", ()), [Segment("", caption)], 0) for caption in captions
    ]
    return encoded, collator.captions(captions)


def batches(
    shards: Sequence[Path], transform: Callable[[PILImage], Tensor], collator: Collator, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Batches of the pairs of some shards, in their order."""

    def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
        encoded, (ids, ids_2) = tokens([row["txt"] for row in rows], collator)
        sizes = [(row["json"]["original_height"], row["json"]["original_width"]) for row in rows]
        return {
            "pixels": torch.stack([row["jpg"] for row in rows]),
            "input_ids": pad_sequence([torch.tensor(each.input_ids) for each in encoded], batch_first=True),
            "labels": pad_sequence([torch.tensor(each.labels) for each in encoded], batch_first=True),
            "masks": [
                pad_sequence([torch.tensor(mask) for mask in masks], batch_first=True)
                for masks in zip(*((each.answer, each.caption, each.image) for each in encoded), strict=True)
            ],
            "caption_ids": ids, "caption_ids_2": ids_2, "sizes": torch.tensor(sizes),
        }  # fmt: skip

    data: Any = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("pil")
    data = data.map_dict(jpg=transform).batched(batch_size, collation_fn=batch)
    yield from data
