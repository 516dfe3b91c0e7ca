"""Settings of the training modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2chat.pipeline.replier import Conditioner, Given


@dataclass
class OptimConfig:
    """AdamW and its learning rate.

    Args:
        lr: Peak learning rate.
        lr_language: Peak for LLaMA-Adapter's tensors and the two tokens' rows; None for the same. Biases and norms of
            a language model 128 wide must move much further than those of one 4096 wide.
        lr_visual: Peak for the encoder of the visual query; None for `lr_language`. It is made of matrices, which a
            rate for biases would shake until it no longer sees.
        weight_decay: On everything but biases, norms and gates.
        betas: Of AdamW.
        warmup_steps: Optimiser steps of warm-up.
        schedule: ``cosine`` to zero over the whole run, or ``step``: times 0.1 every `drop_every_epochs`.
        drop_every_epochs: Epochs between drops.
    """

    lr: float = 1e-4
    lr_language: float | None = None
    lr_visual: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    schedule: Literal["cosine", "step"] = "cosine"
    drop_every_epochs: int = 5

    def language_rates(self) -> tuple[float, float]:
        """Peak rates of the language model and of its visual query's encoder."""
        language = self.lr if self.lr_language is None else self.lr_language
        return language, language if self.lr_visual is None else self.lr_visual


@dataclass
class EvalConfig:
    """How replies are generated in validation and test.

    Args:
        given: What is given of the true reply. Caption pairs are always text-to-image.
        layout: ``auto`` forces the layout in stage 1, which never learned the two tokens, and frees it in stage 2.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        seed: Of the pictures' noise.
        max_text_tokens: Longest answer and longest caption.
        max_tokens: Longest sequence.
        context: ``blank`` shows an empty picture in place of each context picture.
        conditioner: ``text_encoder`` draws with the image decoder's own text encoders from the true captions: the
            decoder alone, for comparison.
        weights: ``none`` evaluates the model as it is before any training.
        resume: Folder of an interrupted ``lightning test`` with the same settings and weights: its replies are taken
            from there. Any number of processes may go on.
    """

    given: Given = "nothing"
    layout: Literal["auto", "free", "forced"] = "auto"
    steps: int = 25
    guidance: float = 5.0
    seed: int = 0
    max_text_tokens: int = 64
    max_tokens: int = 512
    context: Literal["true", "blank"] = "true"
    conditioner: Conditioner = "m3adapter"
    weights: Literal["auto", "none"] = "auto"
    resume: str | None = None
