"""Inputs of generation: pictures as arrays and tensors, and conversations that wait for a reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2chat.batch import Batch, normalised
from m2chat.data.images import pixels_of, resize_crop
from m2chat.data.network_inputs import VisionInput
from m2chat.errors import UserError
from m2chat.schema import Conversation, Image, Picture
from m2chat.text import View, view_of


def as_pixels(image: object) -> Picture:
    """A picture as RGB (H, W, 3) of 0-255.

    Args:
        image: Pillow picture, seen as the same file is (upright, on white), or uint8 array (H, W, 3).

    Raises:
        UserError: If it is something else, empty or broken.
    """
    from PIL import Image as Pillow

    if isinstance(image, Pillow.Image):
        if image.mode == "F":
            raise UserError("image: a picture of floats (mode F) has no known range: scale it to 0-255, as mode L")
        try:
            image = pixels_of(image)
        except Exception as error:  # Pillow decodes here, and raises OSError, ValueError, SyntaxError on broken files.
            raise UserError(f"image: the picture cannot be decoded ({error})") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image: {kind} is no picture: give a Pillow picture, or RGB as uint8 of (H, W, 3)")
    if not image.size:
        raise UserError(f"image: a picture of {image.shape[0]} x {image.shape[1]} pixels is empty")
    return np.ascontiguousarray(image)


def content_of(text: object, images: object) -> list[str | Image]:
    """Texts and pictures of a message in their order.

    Args:
        text: Text, or texts and pictures.
        images: Pictures before it.

    Raises:
        UserError: If one is something else, or there is neither a text nor a picture.
    """
    if not isinstance(text, str | list | tuple):
        raise UserError(f"text: {type(text).__name__} is neither a text nor a list of texts and pictures")
    if not isinstance(images, list | tuple):
        raise UserError(f"images: {type(images).__name__} is no list of pictures")
    content: list[str | Image] = [Image(as_pixels(item)) for item in images]
    parts = [text] if isinstance(text, str) else text
    content += [part if isinstance(part, str) else Image(as_pixels(part)) for part in parts]
    if not any(isinstance(part, Image) or part.strip() for part in content):
        raise UserError("text: say something, or show a picture")
    return content


def checked_text(text: object, name: str) -> str:
    """A text to which a reply is expected.

    Args:
        text: Text.
        name: Its setting, for the message.

    Raises:
        UserError: If it is something else, or blank.
    """
    if not isinstance(text, str):
        raise UserError(f"{name}: {type(text).__name__} is no text")
    if not text.strip():
        raise UserError(f"{name}: the text is empty: say something")
    return text


def vision_pixels(pictures: Sequence[Picture | None], vision: VisionInput, device: torch.device) -> Tensor:
    """Pictures as input of the vision encoder: normalised floats, (B, 3, S, S); zeros for None."""
    rows = []
    for pixels in pictures:
        if pixels is None:
            rows.append(torch.zeros(3, vision.size, vision.size))
        else:
            square = torch.from_numpy(resize_crop(pixels, vision.size)[0])
            rows.append(normalised(square.permute(2, 0, 1), vision.mean, vision.std))
    return torch.stack(rows).to(device)


@dataclass(frozen=True)
class ReplyInputs:
    """B conversations to which a `Replier` replies.

    Args:
        names: Name of each reply, ``"<conversation id>#<turn>"``; it decides the noise of the reply's pictures.
        views: View of each conversation from the reply.
        context_pixels: Context pictures, normalised for the vision encoder, zeros where there is none, (B, 3, S, S).
        has_context: Whether there is a context picture, (B,) bool.
        batch: Batch of a data set, if the conversations come from one: it has the reference captions as tokens.
    """

    names: list[str]
    views: list[View]
    context_pixels: Tensor
    has_context: Tensor
    batch: Batch | None = None

    @classmethod
    def of_batch(cls, batch: Batch) -> ReplyInputs:
        """The inputs for the replies of a batch."""
        names = [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        views = [view_of(sample, turn) for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        return cls(names, views, batch.context_pixels, batch.has_context, batch)


def waiting(
    conversations: Sequence[Conversation],
    vision: VisionInput,
    device: torch.device,
    turns: Sequence[int] | None = None,
) -> ReplyInputs:
    """The inputs for replies to conversations.

    Args:
        conversations: Conversations.
        vision: Size and normalisation of the vision encoder's input.
        device: Device of the model.
        turns: Index of each reply; None asks each conversation for its next turn.
    """
    turns = [len(item.turns) for item in conversations] if turns is None else list(turns)
    views = [view_of(item, turn) for item, turn in zip(conversations, turns, strict=True)]
    contexts = [
        None if view.context is None else item.images[view.context].pixels
        for item, view in zip(conversations, views, strict=True)
    ]
    return ReplyInputs(
        [f"{item.id}#{turn}" for item, turn in zip(conversations, turns, strict=True)],
        views,
        vision_pixels(contexts, vision, device),
        torch.tensor([pixels is not None for pixels in contexts], device=device),
    )
