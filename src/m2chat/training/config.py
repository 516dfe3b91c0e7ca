"""Settings of the training modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from m2chat.errors import UserError
from m2chat.models.decoder_config import DecoderConfig
from m2chat.pipeline.conditions import Conditioner
from m2chat.pipeline.replier import Given
from m2chat.ranges import check_number, check_settings

_Config = TypeVar("_Config")


def required(config: _Config | None, name: str, example: str) -> _Config:
    """A setting of a module that has no default, since it states the scale.

    Raises:
        UserError: If it is not given; the message names a file that has it.
    """
    if config is None:
        raise UserError(f"model.init_args.{name} is not set, and no scale is a default: add --config or name {example}")
    return config


@dataclass
class OptimConfig:
    """AdamW and its learning rate.

    Args:
        lr: Peak learning rate.
        lr_language: Peak for LLaMA-Adapter's tensors and the two tokens' rows; None for `lr`. Biases and norms of
            a language model 128 wide must move much further than those of one 4096 wide.
        lr_visual: Peak for the encoder of the visual query; None for `lr_language`. It consists of matrices, which a
            rate meant for biases destroys.
        lr_gates: Peak for the gates of LLaMA-Adapter's prompts; None for `lr_language`. From zero a gate moves by about
            the rate in each step, so that at the rate of the biases pictures are hardly seen for hundreds of steps.
        frozen_layers: Number of the language model's first layers whose tensors stay as they are. The M³Adapter reads
            the states of early layers too, which then do not move under what it has learned in stage 1. Nothing goes
            back through them, which saves time: the added tokens' input rows stay too (unless the M³Adapter reads
            layer 0), and the visual query learns from the later layers.
        weight_decay: Weight decay of everything but biases, norms and gates.
        betas: AdamW's coefficients of the two running averages.
        warmup_steps: Optimiser steps of warm-up.
        schedule: Learning rate after warm-up: ``cosine`` falls to zero over the run, ``step`` is multiplied by 0.1
            every `drop_every_epochs`.
        drop_every_epochs: Epochs between drops.
        fused: Whether AdamW updates all parameters in one kernel, with the same numbers up to rounding; None on GPUs.

    Raises:
        UserError: If a number is out of its range.
    """

    lr: float = 1e-4
    lr_language: float | None = None
    lr_visual: float | None = None
    lr_gates: float | None = None
    frozen_layers: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    schedule: Literal["cosine", "step"] = "cosine"
    drop_every_epochs: int = 5
    fused: bool | None = None

    def __post_init__(self) -> None:
        kinds = {name: "lr" for name in ("lr", "lr_language", "lr_visual", "lr_gates")}
        check_settings(
            "optim",
            self,
            {
                **kinds,
                **{name: name for name in ("frozen_layers", "weight_decay", "warmup_steps", "drop_every_epochs")},
            },
        )
        for number, beta in enumerate(self.betas):
            check_number(f"optim.betas[{number}]", beta, "beta")

    def language_rates(self) -> tuple[float, float]:
        """Peak rates of the language model and of its visual query's encoder."""
        language = self.lr if self.lr_language is None else self.lr_language
        return language, language if self.lr_visual is None else self.lr_visual


@dataclass
class EvalConfig:
    """Generation of replies in validation and test.

    Args:
        given: Part of the reference reply that the model is given. Caption pairs are always text-to-image.
        layout: ``auto`` forces the layout in stage 1, which never learned the two tokens, and frees it in stage 2.
        steps: Denoising steps; None for those of `backbone.decoder.preset`, or 25.
        guidance: Scale of classifier-free guidance; None for that of `backbone.decoder.preset`, or 5.
        seed: Seed of the pictures' noise.
        max_text_tokens: Maximum length of an answer and of a caption, in tokens.
        max_tokens: Maximum length of a sequence, if it is to differ from `data.max_tokens`, which has the default.
        context: ``blank`` shows an empty picture in place of each context picture.
        conditioner: ``text_encoder`` conditions the image decoder on its text encoders' reading of the reference
            captions: the decoder alone, for comparison.
        weights: ``none`` evaluates the model before any training.
        resume: Folder of an interrupted ``lightning test`` with the same settings and weights, whose replies are
            reused. The number of processes may differ.

    Raises:
        UserError: If a number is out of its range.
    """

    given: Given = "nothing"
    layout: Literal["auto", "free", "forced"] = "auto"
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    max_text_tokens: int = 64
    max_tokens: int | None = None
    context: Literal["true", "blank"] = "true"
    conditioner: Conditioner = "m3adapter"
    weights: Literal["auto", "none"] = "auto"
    resume: str | None = None

    def __post_init__(self) -> None:
        check_settings(
            "evaluation", self, {name: name for name in ("steps", "guidance", "seed", "max_text_tokens", "max_tokens")}
        )

    def drawing(self, decoder: DecoderConfig) -> tuple[int, float]:
        """Steps and guidance, those of the image decoder where none are set."""
        return (
            decoder.steps if self.steps is None else self.steps,
            decoder.guidance if self.guidance is None else self.guidance,
        )
