"""Work of a training step that a run cannot do without, for the share of the GPU's peak in its log."""

from __future__ import annotations

from typing import Any

from m2chat.batch import Batch
from m2chat.models.blank import blank_m2chat, blank_reading, without_cached
from m2chat.models.trainable import freeze_first_layers, set_trainable
from m2chat.planning.step import BatchShape, StepMeasure, measure_step

_PICTURES = ("UNet", "VAE")
"""Parts whose work follows the pictures of L_ddpm, and not the samples."""


class UsefulWork:
    """Floating-point operations of a step, counted on the meta device; nothing is counted twice.

    What a feature cache makes superfluous is not useful, nor is what is computed again to save memory, nor padding.

    Args:
        module: `TrainingModule` of stage 0, 1 or 2, built.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._measured: dict[tuple[int, int, bool], list[tuple[int, StepMeasure]]] = {}

    def of(self, batch: Batch, tokens: float) -> float:
        """Operations of a step of this process.

        Args:
            batch: A batch of the run; its shapes count.
            tokens: Mean length of its sequences, without padding.
        """
        pixels = 0 if self.module.stage == "describe" else self._side(batch)
        key = len(batch), pixels, batch.features is not None
        if key not in self._measured:
            self._measured[key] = self._measure(*key)
        (short, few), (long, many) = self._measured[key]
        share = (tokens - short) / (long - short)
        drawn = self.module.ddpm_draws * min(self.module.ddpm_samples or len(batch), len(batch)) / len(batch)
        if not self.module.lambda_ddpm:
            drawn = 0.0
        return sum(
            (1 - share) * self._sum(few, name, drawn) + share * self._sum(many, name, drawn) for name in few.forward
        )

    def _side(self, batch: Batch) -> int:
        """Side of the target pictures, in pixels."""
        if batch.features is not None and batch.features.latents is not None:
            return int(batch.features.latents.shape[-1]) * int(self.module.model.decoder.vae_factor)
        return int(batch.target_pixels.shape[-1])

    @staticmethod
    def _sum(measure: StepMeasure, name: str, drawn: float) -> float:
        # With several draws the VAE encodes a picture once; it is the smaller of the two by far.
        return (measure.forward[name] + measure.backward[name]) * (drawn if name in _PICTURES else 1.0)

    def _measure(self, count: int, pixels: int, cached: bool) -> list[tuple[int, StepMeasure]]:
        """Two lengths, between which the work grows evenly."""
        module = self.module
        stage, backbone = module.stage, module.backbone
        cached = cached and stage == "align"
        model: Any
        if stage == "describe":
            model, _ = blank_reading(backbone)
        else:
            model, _ = blank_m2chat(backbone, module.m3adapter)
        if cached:
            without_cached(model)
        set_trainable(model, module.names_of(stage))
        freeze_first_layers(model, module.optim.frozen_layers)
        found = []
        for tokens in (2 * backbone.num_image_tokens + 64, 2 * backbone.num_image_tokens + 256):
            shape = BatchShape(count, tokens, pixels, backbone.num_image_tokens)
            found.append((tokens, measure_step(model, stage, shape, cached=cached)))
        return found
