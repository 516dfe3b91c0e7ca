"""Stage 2 of M³FT (Eq. 7): answer, caption and picture are learned together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2chat.batch import Batch
from m2chat.ranges import check_settings
from m2chat.training.global_batch import TextMean, global_text_loss
from m2chat.training.m2chat_module import M2ChatModule


class M3FTModule(M2ChatModule):
    """Trains the whole M³Adapter, LLaMA-Adapter's tensors and the two tokens' rows.

    Args:
        lambda_text: Weight of L_text.
        text_mean: Whether in L_text each token counts the same (``tokens``) or each reply (``replies``).
        align_context: Weight within L_align of samples that have a context picture, 0-1. L_align pulls the condition
            towards the caption alone, and so away from what only the context picture shows.
        init_from: Weights to start from: ``auto`` takes the newest stage-1 checkpoint on the same backbones, else the
            shipped; a file may be of stage 1 or of stage 2, which then learns further on this run's data.
        kwargs: Arguments of `M2ChatModule`.
    """

    stage = "m3ft"
    init_stage = "align"

    def __init__(
        self,
        lambda_text: float = 1.0,
        text_mean: TextMean = "tokens",
        align_context: float = 1.0,
        init_from: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from=init_from, **kwargs)
        self.lambda_text, self.text_mean, self.align_context = lambda_text, text_mean, align_context
        check_settings("model.init_args", self, {"lambda_text": "loss_weight", "align_context": "share"})

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses of Eq. 7, and the gate and its cosine for the log."""
        noise = self.needed_noise(batch)
        output = self.model(batch, noise)
        align_weights = torch.where(batch.has_context, self.align_context, 1.0)
        loss, parts = self.picture_losses(batch, noise, output, align_weights)
        assert output.logits is not None and output.logit_labels is not None
        text = global_text_loss(batch, output.logits, output.logit_labels, self.text_mean)
        losses = {"loss": loss + self.lambda_text * text, **parts, "loss_text": text}
        return losses, output.condition.gate, output.condition.cosine

    def loss_parts(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch and its parts by name."""
        return self.losses(batch)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of Eq. 7."""
        losses, gate, cosine = self.losses(batch)
        self.log_losses(batch, **losses)
        gated = batch.located().gated
        return {"loss": losses["loss"], "gate": gate[gated].detach(), "cosine": cosine[gated].detach()}
