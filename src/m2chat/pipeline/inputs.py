"""Conversations that wait for a reply, as a batch: what generation looks at, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.data.images import VisionInput, resize_crop
from m2chat.errors import UserError
from m2chat.schema import Batch, Sample, normalised
from m2chat.text import view_of


def as_pixels(image: object) -> NDArray[np.uint8]:
    """A picture as RGB (H, W, 3) of 0-255.

    Args:
        image: A Pillow picture, or such an array already.

    Raises:
        UserError: If it is something else.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image: {what} is no picture: give a Pillow picture, or RGB as uint8 of (H, W, 3)")
    if not image.size:
        raise UserError(f"image: a picture of {image.shape[0]} x {image.shape[1]} pixels shows nothing")
    return np.ascontiguousarray(image)


def seen(pictures: Sequence[NDArray[np.uint8] | None], vision: VisionInput, device: torch.device) -> Tensor:
    """Pictures as the vision encoder wants them, (B, 3, S, S); zeros where there is none."""
    rows = []
    for pixels in pictures:
        if pixels is None:
            rows.append(torch.zeros(3, vision.size, vision.size))
        else:
            square = torch.from_numpy(resize_crop(pixels, vision.size)[0])
            rows.append(normalised(square.permute(2, 0, 1), vision.mean, vision.std))
    return torch.stack(rows).to(device)


def waiting(
    samples: Sequence[Sample], vision: VisionInput, device: torch.device, turns: Sequence[int] | None = None
) -> Batch:
    """The batch from which a `Replier` replies.

    Args:
        samples: The conversations.
        vision: What the vision encoder wants to see.
        device: Where the model is.
        turns: Of the replies; None asks each conversation for the one still to come.
    """
    turns = [len(sample.turns) for sample in samples] if turns is None else list(turns)
    contexts = [view_of(sample, turn).context for sample, turn in zip(samples, turns, strict=True)]
    shown = [None if k is None else sample.images[k].pixels for sample, k in zip(samples, contexts, strict=True)]
    tokens = torch.zeros(len(samples), 0, dtype=torch.long, device=device)
    no_picture = torch.zeros(len(samples), 3, 0, 0, device=device)
    nothing = torch.zeros(len(samples), dtype=torch.bool, device=device)
    return Batch(
        input_ids=tokens,
        attention_mask=tokens.bool(),
        labels=tokens,
        answer_mask=tokens.bool(),
        caption_mask=tokens.bool(),
        image_mask=tokens.bool(),
        context_pixels=seen(shown, vision, device),
        has_context=torch.tensor([k is not None for k in contexts], device=device),
        target_pixels=no_picture,
        has_target=nothing,
        time_ids=torch.zeros(len(samples), 6, device=device),
        caption_ids=tokens,
        caption_ids_2=tokens,
        samples=list(samples),
        turns=turns,
        cut_tokens=[0] * len(samples),
    )
