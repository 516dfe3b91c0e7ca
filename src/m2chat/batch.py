"""Batches of tensors, the input of training and evaluation, and what frozen networks make of them.

Shapes: B batch, T text tokens, Q queries of the image decoder's text condition, S side of the vision encoder's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from m2chat.schema import Sample

if TYPE_CHECKING:
    import torch

    from m2chat.places import Places


def in_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures of 0-255, (..., 3, H, W), as input of the image decoder: floats in [-1, 1]."""
    return pixels.contiguous().float().div_(127.5).sub_(1)


def normalised(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures of 0-255 as input of the vision encoder: floats of about zero mean and unit variance.

    Args:
        pixels: uint8, (..., 3, H, W).
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
    """
    floats = pixels.contiguous().float()
    means, stds = (floats.new_tensor(values)[:, None, None] for values in (mean, std))
    return floats.div_(255).sub_(means).div_(stds)


@dataclass
class FrozenFeatures:
    """Outputs of the frozen networks for a batch, which may be kept (`m2chat data features`).

    Args:
        states: States of the language model, (B, S, D), or (L, B, S, D) of several layers: of whole sequences, or,
            with `mask`, of the tokens alone that the M³Adapter reads. None in stage 2, where they change.
        e_clip: Target of h_align, (B, Q, C); None if it is to be computed from the batch's captions.
        e_pclip: Target of h_palign, (B, P).
        latents: Latents of the target pictures, (B, c, h, w); None where nothing is learned from them.
        mask: True at the caption and image tokens among the states, (B, S) bool; None for the batch's masks.
        f_img: CLIP tokens of the context pictures, (B, I, W), in stage 2; of an empty picture where there is none.
    """

    states: torch.Tensor | None
    e_clip: torch.Tensor | None
    e_pclip: torch.Tensor | None
    latents: torch.Tensor | None
    mask: torch.Tensor | None = None
    f_img: torch.Tensor | None = None

    def select(self, rows: list[int] | torch.Tensor) -> FrozenFeatures:
        """The features of some of the samples."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        chosen = {name: None if value is None else value[rows] for name, value in values.items() if name != "states"}
        states = self.states
        if states is not None:
            states = states[:, rows] if states.ndim == 4 else states[rows]
        return FrozenFeatures(states=states, **chosen)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> FrozenFeatures:
        """The features with every tensor changed, such as moved to another device."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return FrozenFeatures(**changed)


@dataclass
class Batch:
    """Input of training and evaluation. Fields that are tensors share the first dimension B.

    A loader makes batches with pictures of uint8, 0-255, a quarter of the bytes of float32. `to` moves a batch to the
    networks' device, where `ready` turns its pictures into the floats described below; Lightning always calls `to`.

    Args:
        input_ids: Prompt and response, right-padded, (B, T).
        attention_mask: True at real tokens, (B, T) bool.
        labels: `input_ids` where the language loss applies, else -100, (B, T).
        answer_mask: True at the answer tokens of the target segment, (B, T) bool.
        caption_mask: True at its caption tokens, (B, T) bool.
        image_mask: True at its N ``<|img|>`` tokens, (B, T) bool.
        context_pixels: Context picture, normalised for the vision encoder, zeros where there is none,
            (B, 3, S, S).
        has_context: Whether there is a context picture, (B,) bool.
        target_pixels: Reference picture, in [-1, 1], zeros where there is none, (B, 3, H, W).
        has_target: Whether there is a picture to draw, (B,) bool.
        time_ids: Original size, crop and target size of the target picture, (B, 6).
        caption_ids: Target caption for the first text encoder of the image decoder, (B, Q).
        caption_ids_2: The same for the second, (B, Q).
        samples: Samples, for evaluation and logs.
        turns: Index of the reply within each sample's turns.
        cut_tokens: Prompt tokens that did not fit, one count per sample.
        normalisation: Mean and standard deviation of each channel, in [0, 1], with which `ready` normalises
            `context_pixels`; None if the batch has no context picture.
        features: Outputs of the frozen networks, from a feature cache. A batch of stage 1 to train on then has neither
            tokens nor pictures: those dimensions are 0 in their fields.

    Attributes:
        places: Where in the batch is what; None until `located` is asked for it, and again in a changed copy.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    answer_mask: torch.Tensor
    caption_mask: torch.Tensor
    image_mask: torch.Tensor
    context_pixels: torch.Tensor
    has_context: torch.Tensor
    target_pixels: torch.Tensor
    has_target: torch.Tensor
    time_ids: torch.Tensor
    caption_ids: torch.Tensor
    caption_ids_2: torch.Tensor
    samples: list[Sample] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    cut_tokens: list[int] = field(default_factory=list)
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    features: FrozenFeatures | None = None
    places: Places | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def located(self) -> Places:
        """Where in the batch is what: found once, on the CPU, before the batch goes to another device."""
        if self.places is None:
            from m2chat.places import Places  # torch, which what reads words does without

            read = self.caption_mask | self.image_mask
            whole = (self.input_ids, self.attention_mask, self.labels, read, self.has_context, self.has_target)
            device = self.input_ids.device
            found = Places.of(*(tensor.cpu() for tensor in whole))
            self.places = found if device.type == "cpu" else found.each(lambda tensor: tensor.to(device))
        return self.places

    def select(self, rows: list[int]) -> Batch:
        """The batch of some of the samples."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("normalisation", "features", "places"):
                changed[item.name] = [value[row] for row in rows] if isinstance(value, list) else value[rows]
        features = None if self.features is None else self.features.select(rows)
        return replace(self, **changed, features=features)

    def ready(self) -> Batch:
        """The same batch with its pictures as floats, the networks' input; the batch itself if they already are."""
        if self.target_pixels.is_floating_point():
            return self
        # Both scalings would turn the zeros of missing pictures into something else.
        target = in_unit_range(self.target_pixels).masked_fill_(~self.has_target[:, None, None, None], 0)
        if self.normalisation is None:
            context = target.new_zeros(self.context_pixels.shape)
        else:
            context = normalised(self.context_pixels, *self.normalisation)
            context.masked_fill_(~self.has_context[:, None, None, None], 0)
        ready = replace(self, context_pixels=context, target_pixels=target)
        ready.places = self.places
        return ready

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in pinned memory; the data loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device, `ready` there."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking)).ready()

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if hasattr(value, "to")}
        features = None if self.features is None else self.features.each(change)
        places = self.located().each(change)
        batch = replace(self, **changed, features=features)
        batch.places = places
        return batch
