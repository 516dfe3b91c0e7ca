"""Training of the row "VLM + SD finetune" of Table 2, on the data and steps of stage 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2chat.baselines.vlm_sd.model import VLMSDModel, VLMSDOutput, build_vlm_sd
from m2chat.baselines.vlm_sd.replier import PromptReplier, PromptSource, prompt_of
from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.losses import ddpm_loss
from m2chat.schema import Segment
from m2chat.text import M2ChatTokenizer
from m2chat.training.base_module import TrainingModule
from m2chat.training.global_batch import TextMean, global_text_loss, weights_of_means


class VLMSDModule(TrainingModule):
    """Trains the UNet of a Stable Diffusion on prompts and pictures, and the language model on replies.

    Only text connects the two: no alignment, no connector, no gate. The data, the steps and the language side are
    those of stage 2.

    Args:
        prompt: Text of a reply that is the prompt of its picture: its ``answer`` (the paper's baseline has no other
            text), or the ``caption`` that the language model learns to write in M²Chat's layout.
        lambda_text: Weight of L_text.
        text_mean: Elements of the mean of L_text, as in `M3FTModule`.
        lr_unet: Peak learning rate of the UNet; None for `optim.lr`.
        init_from: ``none``: it starts from the backbones.
        kwargs: Arguments of `TrainingModule`.
    """

    model: VLMSDModel
    stage = "vlm_sd"
    init_stage = "vlm_sd"

    def __init__(
        self,
        prompt: PromptSource = "answer",
        lambda_text: float = 1.0,
        text_mean: TextMean = "tokens",
        lr_unet: float | None = None,
        init_from: str = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from=init_from, **kwargs)
        if prompt not in ("answer", "caption"):
            raise UserError(f"prompt={prompt!r}: choose answer or caption")
        self.prompt: PromptSource = prompt
        self.lambda_text, self.text_mean, self.lr_unet = lambda_text, text_mean, lr_unet

    def build(self) -> VLMSDModel:
        """The pretrained networks."""
        return build_vlm_sd(self.backbone)

    def names_of(self, stage: str) -> set[str]:
        """Names of the model's parameters that are trained."""
        return self.model.trained_names()

    def trained_parts(self) -> dict[str, tuple[torch.nn.Module, float]]:
        """Parts that may be trained, with their learning rates."""
        model, config = self.model, self.optim
        language, visual = config.language_rates()
        return {
            "decoder": (model.decoder, config.lr if self.lr_unet is None else self.lr_unet),
            "llama": (model.llama, language),
            "visual_query": (model.visual_query, visual),
        }

    def prompts(self, batch: Batch, samples: Tensor) -> list[str]:
        """The reference texts from which the pictures of some samples are to be drawn."""
        decode = M2ChatTokenizer(self.backbone.language_model).decode
        rows = zip(batch.input_ids[samples], batch.answer_mask[samples], batch.caption_mask[samples], strict=True)
        segments = [
            Segment(decode(ids[answer].tolist()), decode(ids[caption].tolist())) for ids, answer, caption in rows
        ]
        return [prompt_of(segment, self.prompt) for segment in segments]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_ddpm of the Stable Diffusion and L_text of the language model."""
        noise = self.draw_noise(batch)
        output: VLMSDOutput = self.model(batch, self.prompts(batch, noise.samples), noise)
        drawn = batch.has_target[noise.samples]
        weight = weights_of_means(drawn.sum()[None])[0]
        ddpm = ddpm_loss(output.prediction, output.diffusion_target, drawn.repeat(noise.draws)) * weight
        text = global_text_loss(batch, output.logits, output.logit_labels, self.text_mean)
        return {"loss": self.lambda_ddpm * ddpm + self.lambda_text * text, "loss_ddpm": ddpm, "loss_text": text}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step."""
        losses = self.losses(batch)
        self.log_losses(batch, **losses)
        return {"loss": losses["loss"]}

    def protocol(self) -> dict[str, Any]:
        """How the evaluation was done."""
        return {**super().protocol(), "prompt": self.prompt}

    def replier(self) -> PromptReplier:
        """Generates replies as configured."""
        return PromptReplier(self.model, *self.text_settings(), self.draw_settings(), self.prompt)
