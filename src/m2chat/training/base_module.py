"""What both stages share: building, initialising, noise, logging, optimiser, and generation for evaluation."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from m2chat.errors import UserError
from m2chat.losses import align_loss, ddpm_loss
from m2chat.models.build import build_m2chat, fingerprint
from m2chat.models.config import BackboneConfig, M3AdapterConfig
from m2chat.models.generation import Decoding
from m2chat.models.m2chat import DiffusionNoise, M2ChatModel, M2ChatOutput
from m2chat.models.memory import lower_parameters
from m2chat.models.trainable import Stage, set_trainable, trainable_names
from m2chat.pipeline.replier import DrawSettings, Given, Replier, noise_seed
from m2chat.schema import KINDS, Batch, Prediction
from m2chat.text import Layout, M2ChatTokenizer
from m2chat.training.checkpoints import find_checkpoint, load_trained, read_checkpoint
from m2chat.training.config import EvalConfig, OptimConfig
from m2chat.training.global_batch import weights_of_means
from m2chat.training.optim import cosine_schedule, rated_groups, step_schedule
from m2chat.training.references import reference_of, with_blank_context
from m2chat.training.sharding import shard
from m2chat.training.trained_only import TrainedOnlyModule


class M2ChatModule(TrainedOnlyModule):
    """Base of the two training stages.

    Args:
        backbone: Where the pretrained networks lie.
        m3adapter: Numbers of the connector.
        optim: Optimiser and schedule.
        evaluation: How replies are generated.
        phi: Weight of L_align.
        ddpm_samples: Samples of each batch that L_ddpm looks at, the first so many; None for all.
        ddpm_draws: Timesteps and noises drawn for each of them. A frozen UNet that is small beside the rest gives a
            steadier gradient for little time.
        drop_condition: Share of samples whose condition is dropped for L_ddpm, 0-1.
        seed: Of the noise of training.
        init_from: Weights to start from: ``none``, ``auto`` or a checkpoint file.
        checkpoint_root: Where ``auto`` and evaluation look for checkpoints.
        shipped: Folder of the weights that come with the project, used if no checkpoint is found.
        shard_frozen: Under FSDP, whether the frozen networks are sharded too.
        gradient_checkpointing: Whether the UNet and, where it is trained, the language model compute their
            activations again in the backward pass instead of keeping them: less memory, a third more work there.
    """

    stage: ClassVar[Stage]
    init_stage: ClassVar[Stage]

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        m3adapter: M3AdapterConfig | None = None,
        optim: OptimConfig | None = None,
        evaluation: EvalConfig | None = None,
        phi: float = 1.0,
        ddpm_samples: int | None = None,
        ddpm_draws: int = 1,
        drop_condition: float = 0.1,
        seed: int = 0,
        init_from: str = "none",
        checkpoint_root: str = "lightning_logs",
        shipped: str = "data/micro/m2chat",
        shard_frozen: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone or BackboneConfig()
        self.m3adapter = m3adapter or M3AdapterConfig()
        self.optim, self.evaluation = optim or OptimConfig(), evaluation or EvalConfig()
        self.phi, self.ddpm_samples, self.ddpm_draws = phi, ddpm_samples, ddpm_draws
        self.drop_condition, self.seed = drop_condition, seed
        self.init_from, self.checkpoint_root, self.shipped = init_from, Path(checkpoint_root), Path(shipped)
        self.shard_frozen, self.gradient_checkpointing = shard_frozen, gradient_checkpointing
        self.model: M2ChatModel = None  # type: ignore[assignment]
        self.tasks: set[str] = set()
        self.source, self._fingerprint = "new", ""

    # Building

    def fingerprint(self) -> str:
        """Identifies the backbones."""
        self._fingerprint = self._fingerprint or fingerprint(self.backbone)
        return self._fingerprint

    def configure_model(self) -> None:
        """Builds the model once, freezes what the stage does not train, loads the weights to start from, shards."""
        if self.model is not None:
            return
        torch.manual_seed(self.seed)  # the connector's start belongs to the seed, whatever was drawn before
        self.model = build_m2chat(self.backbone, self.m3adapter)
        self.source = self._load_start()
        set_trainable(self.model, self.stage)
        self.prepare_precision(self.model, str(self.trainer.precision) if self._trainer is not None else "32-true")
        if getattr(self, "device_mesh", None) is not None:
            shard(self.model, self.device_mesh["data_parallel"], self.shard_frozen)

    def prepare_precision(self, model: M2ChatModel, precision: str) -> torch.dtype | None:
        """Stores a frozen model as training wants it: to be called when it is known what is frozen.

        Args:
            model: To change.
            precision: The trainer's. Under ``bf16-mixed`` the frozen networks are kept in bf16, half their size and
                traffic: autocast would lower them at each use anyway. What is trained stays in fp32.

        Returns:
            The precision of autocast; None if there is none.
        """
        if self.gradient_checkpointing:
            model.decoder.unet.enable_gradient_checkpointing()
            if self.stage == "m3ft":
                model.llama.gradient_checkpointing_enable({"use_reentrant": False})
        if precision != "bf16-mixed":
            return None
        lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
        return torch.bfloat16

    def _load_start(self) -> str:
        """Loads the weights that the run starts from, or that it evaluates, and says which."""
        testing = self._trainer is not None and (self.trainer.testing or self.trainer.validating)
        if self._trainer is not None and self.trainer.ckpt_path:
            return f"checkpoint {self.trainer.ckpt_path}"  # Lightning loads it
        wanted: Stage = self.stage if testing else self.init_stage
        choice = self.evaluation.weights if testing else self.init_from
        if choice == "none":
            return "new"
        path = Path(choice)
        if choice == "auto":
            found = find_checkpoint(self.checkpoint_root, wanted, self.fingerprint())
            path = found or self.shipped / f"{wanted}.ckpt"
            if not path.is_file():
                raise UserError(
                    f"no checkpoint of stage '{wanted}' on these backbones (fingerprint {self.fingerprint()}) under "
                    f"{self.checkpoint_root}/, and none is shipped at {path}: train that stage first, or name a file "
                    f"with {'--ckpt_path' if testing else '--model.init_args.init_from'}"
                )
        names = trainable_names(self.model, wanted)
        load_trained(self, path, {f"model.{n}" for n in names}, stage=wanted, fingerprint=self.fingerprint())
        self.tasks = set(read_checkpoint(path).get("tasks", [])) if testing else set()
        rank_zero_info(f"{'Evaluating' if testing else 'Starting from'} the weights of {path}")
        return str(path)

    # Training

    def draw_noise(self, batch: Batch) -> DiffusionNoise:
        """Timesteps, noise and dropped conditions: a function of seed, step and sample only.

        So they need no saved state, and do not depend on how samples are spread over processes.
        """
        count = min(len(batch), self.ddpm_samples or len(batch))
        decoder = self.model.decoder
        shape = (
            int(decoder.unet.config.in_channels),
            *(side // decoder.vae_factor for side in batch.target_pixels.shape[-2:]),
        )
        steps, noise, drop = [], [], []
        for draw, sample in product(range(self.ddpm_draws), batch.samples[:count]):
            seed = noise_seed(self.seed, f"{self.global_step}/{draw}/{sample.id}")
            generator = torch.Generator().manual_seed(seed)
            steps.append(torch.randint(int(decoder.noiser.config.num_train_timesteps), (), generator=generator))
            drop.append(torch.rand((), generator=generator) < self.drop_condition)
            noise.append(torch.randn(shape, generator=generator))
        device = batch.input_ids.device
        return DiffusionNoise(
            torch.stack(steps).to(device),
            torch.stack(noise).to(device),
            torch.stack(drop).to(device),
            self.ddpm_draws,
        )

    def picture_losses(
        self, batch: Batch, output: M2ChatOutput, align_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L_ddpm and L_align of a pass: their means over all processes are those over the global batch.

        Args:
            batch: The samples.
            output: Of the model.
            align_weights: Of each sample's part in L_align, (B,); None for one.
        """
        condition, count = output.condition, len(output.prediction) // self.ddpm_draws
        drawn = batch.has_target[:count].repeat(self.ddpm_draws)
        ddpm = ddpm_loss(output.prediction, output.diffusion_target, drawn)
        align = align_loss(
            condition.h_align,
            output.e_clip,
            condition.h_palign,
            output.e_pclip,
            batch.has_target,
            align_weights,
        )
        weights = weights_of_means(torch.stack([batch.has_target[:count].sum(), batch.has_target.sum()]))
        return ddpm * weights[0], align * weights[1]

    def log_losses(self, batch: Batch, **losses: Tensor) -> None:
        """Logs each loss of the global batch by its name, the first of them in the progress bar."""
        for index, (name, value) in enumerate(losses.items()):
            self.log(f"train/{name}", value.detach(), prog_bar=index == 0, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what the stage trains."""
        config = self.optim
        model, lr_language = self.model, config.lr if config.lr_language is None else config.lr_language
        parts = {
            "m3adapter": (model.m3adapter, config.lr),
            "llama": (model.llama, lr_language),
            "visual_query": (model.visual_query, lr_language),
        }
        groups: Any = rated_groups(parts, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=config.betas)
        total = int(self.trainer.estimated_stepping_batches)
        if config.schedule == "cosine":
            warmup = min(config.warmup_steps, max(0, total - 1))
            schedule = cosine_schedule(optimizer, warmup, total)
        else:
            epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
            schedule = step_schedule(optimizer, config.warmup_steps, config.drop_every_epochs * epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Remembers which tasks were trained, so that results can say "trained" or "zero-shot"."""
        self.tasks.update(sample.kind for sample in batch.samples)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the trained tasks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tasks"] = sorted(self.tasks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        super().on_load_checkpoint(checkpoint)
        self.tasks = set(checkpoint.get("tasks", []))

    # Evaluation

    def protocol(self) -> dict[str, Any]:
        """How the evaluation was done, for the results file."""
        return {
            "stage": self.stage,
            "weights": self.source,
            "fingerprint": self.fingerprint(),
            "gate_mode": self.m3adapter.gate.mode,
            "tasks": {kind: "trained" if kind in self.tasks else "zero-shot" for kind in KINDS},
            **asdict(self.evaluation),
        }

    def replier(self) -> Replier:
        """Generates replies as configured."""
        config = self.evaluation
        forced = self.stage == "align" if config.layout == "auto" else config.layout == "forced"
        layout = Layout(
            M2ChatTokenizer(self.backbone.language_model), self.backbone.num_image_tokens, config.max_tokens
        )
        decoding = Decoding(layout="forced" if forced else "free", max_text_tokens=config.max_text_tokens)
        size = self.model.decoder.image_size
        return Replier(
            self.model,
            layout,
            decoding,
            DrawSettings(config.steps, config.guidance, config.seed, size),
            use_image=self.stage != "align",
            conditioner=config.conditioner,
        )

    def predict_replies(self, batch: Batch) -> list[Prediction]:
        """Generates the batch's replies beside the true ones."""
        if self.evaluation.context == "blank":
            batch = with_blank_context(batch)
        replier = self.replier()
        predictions: list[Prediction | None] = [None] * len(batch)
        pairs = [sample.kind in ("caption", "instruct") for sample in batch.samples]
        for is_pair in (True, False):
            chosen = [index for index, value in enumerate(pairs) if value == is_pair]
            if not chosen:
                continue
            part = batch.select(chosen)
            given: Given = "caption" if is_pair else self.evaluation.given
            for index, reply, note in zip(chosen, *replier.reply(part, given), strict=True):
                predictions[index] = reference_of(batch.samples[index], batch.turns[index], reply, note)
        return [prediction for prediction in predictions if prediction is not None]

    # Lightning hands any output on to the callbacks; only its annotation of the two steps is narrower.

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)
