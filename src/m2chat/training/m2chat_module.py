"""Base of the two stages of M³FT: the model, its connector, and the losses of its pictures."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from m2chat.batch import Batch
from m2chat.losses import align_loss, ddpm_loss
from m2chat.models.absent import Kept
from m2chat.models.build import build_m2chat
from m2chat.models.config import M3AdapterConfig
from m2chat.models.m2chat import DiffusionNoise, M2ChatModel, M2ChatOutput
from m2chat.models.trainable import Stage, trainable_names
from m2chat.pipeline.replier import Replier
from m2chat.ranges import check_settings
from m2chat.schema import Prediction
from m2chat.training.base_module import TrainingModule
from m2chat.training.config import required
from m2chat.training.global_batch import weights_of_means
from m2chat.training.optim import language_parts


class M2ChatModule(TrainingModule):
    """Base of the two stages.

    Args:
        m3adapter: Sizes and gate of the connector; required.
        phi: Weight of L_align (Eqs. 6 and 7).
        kwargs: Arguments of `TrainingModule`.
    """

    model: M2ChatModel

    def __init__(self, m3adapter: M3AdapterConfig | None = None, phi: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.m3adapter, self.phi = required(m3adapter, "m3adapter", "configs/m3adapter/micro.yaml"), phi
        check_settings("model.init_args", self, {"phi": "loss_weight"})

    def build(self) -> M2ChatModel:
        """The pretrained networks, and a connector that has learned nothing.

        A training from a feature cache does without the networks whose outputs the cache has.
        """
        data, kept = self.data_module, None
        if getattr(data, "features", None) and self.trainer.state.fn == TrainerFn.FITTING:
            cache = data.open_features(self.stage, self.backbones().outputs, self.m3adapter.layers)
            kept = cache and Kept(**cache.sizes, looking=self.stage == "m3ft" and data.validates)
        return build_m2chat(self.backbone, self.m3adapter, kept=kept, settled=not self.is_sharded)

    def trained_parts(self) -> dict[str, tuple[nn.Module, float]]:
        """Parts that may be trained: name in the model to module and peak learning rate."""
        model, config = self.model, self.optim
        language, visual = config.language_rates()
        return {
            "m3adapter": (model.m3adapter, config.lr),
            **language_parts(model.llama, config, language),
            "visual_query": (model.visual_query, visual),
        }

    def names_of(self, stage: str) -> set[str]:
        """Names of the model's parameters that a stage trains."""
        return trainable_names(self.model, cast(Stage, stage))

    def needed_noise(self, batch: Batch) -> DiffusionNoise | None:
        """The noise of L_ddpm; None in training where the loss weighs nothing: half of a step is the UNet's."""
        return self.draw_noise(batch) if self.lambda_ddpm or not self.training else None

    def picture_losses(
        self, batch: Batch, noise: DiffusionNoise | None, output: M2ChatOutput, align_weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the condition of the pictures costs, Eq. 6; means over all processes are those over the global batch.

        Args:
            batch: Samples of this process.
            noise: Noise that was drawn for them, by `needed_noise`.
            output: Output of the model for both.
            align_weights: Weight of each sample in L_align, (B,); None for 1.

        Returns:
            The weighted sum, and its parts by name; without noise there is no L_ddpm.
        """
        condition = output.condition
        drawn = batch.has_target if noise is None else batch.has_target[noise.samples]
        weights = weights_of_means(torch.stack([drawn.sum(), batch.has_target.sum()]))
        align = weights[1] * align_loss(
            condition.h_align,
            output.e_clip,
            condition.h_palign,
            output.e_pclip,
            batch.has_target,
            align_weights,
        )
        if noise is None:
            return self.phi * align, {"loss_align": align}
        assert output.prediction is not None and output.diffusion_target is not None
        ddpm = weights[0] * ddpm_loss(output.prediction, output.diffusion_target, drawn.repeat(noise.draws))
        return self.lambda_ddpm * ddpm + self.phi * align, {"loss_align": align, "loss_ddpm": ddpm}

    @abstractmethod
    def loss_parts(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch and its parts by name."""

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks; logs the loss of the batch too, always with the same noise.

        Several processes may have different numbers of batches, and the losses are means over all of them: there,
        and where networks were left out for a feature cache that has no features of this batch, there is no loss.
        """
        known = batch.features is not None or not self._has_cache()
        if self._trainer is not None and self.trainer.world_size == 1 and known:
            for name, value in self.loss_parts(batch).items():
                self.log(f"val/{name}", value, batch_size=len(batch))
        return super().validation_step(batch, batch_idx)

    def _has_cache(self) -> bool:
        return getattr(self.data_module, "features", None) is not None

    def model_config(self) -> dict[str, Any]:
        """Settings that it takes to build the model again."""
        return {**super().model_config(), "m3adapter": asdict(self.m3adapter)}

    def protocol(self) -> dict[str, Any]:
        """Settings of the evaluation, for the results file."""
        return {**super().protocol(), "gate_mode": self.m3adapter.gate.mode}

    def replier(self) -> Replier:
        """Generates replies as configured."""
        return Replier(
            self.model,
            *self.text_settings(),
            self.draw_settings(),
            use_image=self.stage != "align",
            conditioner=self.evaluation.conditioner,
        )
