"""Base of every trained module: building, initial weights, noise, logging, optimiser, settings of evaluation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from m2chat.batch import Batch
from m2chat.errors import UserError
from m2chat.models.adapter_file import LOW_RANK
from m2chat.models.checkpoints import check_header, load_trained, read_checkpoint, trained_digest
from m2chat.models.choosing import RUN
from m2chat.models.compiled import compile_step
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.generation import Decoding
from m2chat.models.m2chat import DiffusionNoise
from m2chat.models.memory import lower_parameters
from m2chat.models.precision import lowered_in_training
from m2chat.models.trainable import AnyStage, freeze_first_layers, set_trainable
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.replier import Given, Replier
from m2chat.ranges import check_settings
from m2chat.schema import KINDS
from m2chat.text import Layout, M2ChatTokenizer
from m2chat.text.prompts import EARLIER, PromptFormat, resolved
from m2chat.training.config import EvalConfig, OptimConfig, required
from m2chat.training.cost import Cost
from m2chat.training.data_at_hand import run_record, worlds_of
from m2chat.training.global_batch import settle_global_batch
from m2chat.training.noise import NoiseConfig, draw_noise, mention_few_steps
from m2chat.training.optim import adamw, rated_groups, schedule_of
from m2chat.training.predicting import PredictingModule, Replies
from m2chat.training.starting import FoundWeights, WeightSearch
from m2chat.training.strategy import shard


class TrainingModule(PredictingModule):
    """A module that trains a model with an image decoder by L_ddpm and the losses that its subclass adds.

    Args:
        backbone: Paths of the pretrained networks.
        optim: Optimiser and schedule.
        evaluation: Settings of generation in validation and test.
        lambda_ddpm: Weight of L_ddpm, 1 in the paper; 0 trains by alignment alone, without the UNet.
        ddpm_samples: Number of samples of each batch that L_ddpm uses, the first ones with a picture; None for all.
        ddpm_draws: Number of timesteps and noises drawn for each of them. A frozen UNet that is small beside the rest
            gives a steadier gradient for little time.
        drop_condition: Share of samples whose condition is dropped for L_ddpm, 0-1.
        seed: Seed of the noise of training.
        init_from: Initial weights: ``none``, ``auto`` or a checkpoint file, of the stage before or of this one.
        checkpoint_root: Folder in which ``auto`` and evaluation look for checkpoints.
        shipped: Folder of the weights that come with the project, used if there is no checkpoint.
        shard_frozen: Under FSDP, whether the frozen networks are sharded too.
        gradient_checkpointing: Whether the UNet and, where it is trained, the language model compute their
            activations again in the backward pass instead of keeping them: less memory, a third more work there.
        read_parts: Number of parts of similar length into which the language model divides a batch, to compute less
            padding.
        torch_compile: Whether the training step goes through `torch.compile`: minutes of compilation, and fewer passes
            over memory in every step on a GPU; on CPUs it rarely pays.

    Raises:
        UserError: If a number is out of its range.
    """

    stage: ClassVar[str]
    init_stage: ClassVar[str]
    """Stage whose checkpoints it may start from."""

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        optim: OptimConfig | None = None,
        evaluation: EvalConfig | None = None,
        lambda_ddpm: float = 1.0,
        ddpm_samples: int | None = None,
        ddpm_draws: int = 1,
        drop_condition: float = 0.1,
        seed: int = 0,
        init_from: str = "none",
        checkpoint_root: str = "lightning_logs",
        shipped: str = "data/micro/m2chat",
        shard_frozen: bool = True,
        gradient_checkpointing: bool = False,
        read_parts: int = 1,
        torch_compile: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = required(backbone, "backbone", "configs/backbone/micro.yaml")
        self.optim, self.evaluation = optim or OptimConfig(), evaluation or EvalConfig()
        self.lambda_ddpm, self.ddpm_samples, self.ddpm_draws = lambda_ddpm, ddpm_samples, ddpm_draws
        self.drop_condition, self.seed, self.gradient_checkpointing = drop_condition, seed, gradient_checkpointing
        self.init_from, self.checkpoint_root, self.shipped = init_from, Path(checkpoint_root), Path(shipped)
        self.shard_frozen, self.read_parts, self.torch_compile = shard_frozen, read_parts, torch_compile
        kinds = {name: name for name in ("ddpm_samples", "ddpm_draws", "drop_condition", "read_parts")}
        check_settings("model.init_args", self, {"lambda_ddpm": "loss_weight", **kinds})
        check_settings("backbone", self.backbone, {"num_image_tokens": "num_image_tokens"})
        self.model: Any = None
        self.tasks: set[str] = set()
        self.cost, self.costs_before = Cost(self.stage), list[dict[str, Any]]()
        self.source, self._backbones = "new", Fingerprints(self.backbone)
        self._total_steps: int | None = None
        self.shortened: list[str] = []
        """Settings of the command line that make the training shorter than its configuration."""

    # Building

    def backbones(self) -> Fingerprints:
        """Identifies the backbones."""
        return self._backbones

    @property
    def is_sharded(self) -> bool:
        """Whether processes share the model, each with a part of it."""
        return self.device_mesh is not None

    @abstractmethod
    def build(self) -> nn.Module:
        """The model before any training, on the CPU."""

    @abstractmethod
    def trained_parts(self) -> dict[str, tuple[nn.Module, float]]:
        """Parts that may be trained: name in the model to module and peak learning rate."""

    @abstractmethod
    def names_of(self, stage: str) -> set[str]:
        """Names of the model's parameters that a stage trains."""

    def configure_model(self) -> None:
        """Builds the model once, freezes what the stage does not train, loads the weights to start from, shards."""
        if self.model is not None:
            return
        _ = self.backbones().components  # what is missing or broken is refused before gigabytes are read
        found = self._find_weights()
        torch.manual_seed(self.seed)  # the connector's initial values depend on the seed alone
        self.model = self.build()
        self.model.read_parts = self.read_parts
        self._check_image_size()
        self.source = self._load_weights(found)
        testing = self._trainer is not None and self.trainer.testing
        if not testing and hasattr(self.model, "decoder"):  # stage 0 has none
            mention_few_steps(self.model.decoder, self.lambda_ddpm)
        set_trainable(self.model, self.names_of(self.stage))
        freeze_first_layers(self.model, self.optim.frozen_layers)
        self.prepare_precision(self.model, str(self.trainer.precision) if self._trainer is not None else "32-true")
        if self.torch_compile and not testing:
            compile_step(self.model)
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"], self.shard_frozen)

    def _check_image_size(self) -> None:
        """Raises if VAE and UNet cannot draw pictures of `data.image_size`."""
        side = getattr(self.data_module, "image_size", None)
        if side is not None and hasattr(self.model, "decoder") and getattr(self.data_module, "features", None) is None:
            self.model.decoder.checked_size(side, side, ("data.image_size", "data.image_size"))

    def prepare_precision(self, model: Any, precision: str) -> torch.dtype | None:
        """Sets the precision and recomputation of a model, once it is decided what is frozen.

        Args:
            model: Model, changed in place.
            precision: The trainer's. Under ``bf16-mixed`` the frozen networks are kept in bf16, half their size and
                traffic: autocast would lower them at each use anyway. What is trained stays in fp32, and so does the
                VAE's way from pictures to latents.

        Returns:
            The precision of autocast; None if there is none.
        """
        if self.gradient_checkpointing:
            if hasattr(model, "decoder"):
                model.decoder.unet.enable_gradient_checkpointing()
            if self.stage in ("describe", "m3ft"):
                model.llama.gradient_checkpointing_enable({"use_reentrant": False})
        if precision != "bf16-mixed":
            return None
        lower_parameters(lowered_in_training(model), torch.bfloat16)
        return torch.bfloat16

    def _find_weights(self) -> FoundWeights | None:
        """The weights that the run starts from or evaluates; None for new ones and those of ``--ckpt_path``."""
        if self._resumed:
            if (given := Path(self._resumed)).is_file():
                check_header(read_checkpoint(given), "the checkpoint", self.stage, self.backbones())
            return None  # Lightning loads it next
        choice, before = (self.evaluation.weights, None) if self._evaluates else (self.init_from, self.init_stage)
        worlds = worlds_of(self._trainer)
        search = WeightSearch(choice, self.stage, before, self.checkpoint_root, self.shipped, self.backbones(), worlds)
        return search.find()

    @property
    def _resumed(self) -> Any:
        """Path of ``--ckpt_path``, if there is one."""
        return self._trainer and self.trainer.ckpt_path

    @property
    def _evaluates(self) -> bool:
        return self._trainer is not None and (self.trainer.testing or self.trainer.validating)

    def _load_weights(self, found: FoundWeights | None) -> str:
        """Loads what `_find_weights` has found, and returns its source."""
        if found is None:
            return f"checkpoint {self._resumed}" if self._resumed else "new"
        names = {f"model.{name}" for name in self.names_of(found.stage)}
        is_new = self.backbone.new_lora is not None and not self._evaluates
        new = {name for name in names if is_new and name.endswith(LOW_RANK)}
        load_trained(self, found.path, names, stage=found.stage, backbones=self.backbones(), optional_names=new)
        payload = read_checkpoint(found.path)
        self.tasks = set(payload.get("tasks", []))  # what stage 1 has trained, stage 2 has too
        self.costs_before = payload.get("costs", [])
        doing = "Evaluating" if self._evaluates else "Starting from"
        rank_zero_info(f"{doing} the weights of {found.path}{f' ({found.about})' if found.about else ''}")
        return str(found.path)

    # Training

    def setup(self, stage: str) -> None:
        """Settles, before a training, how many samples a step has.

        Raises:
            UserError: If that does not come out, or what is trained would be kept in half precision.
        """
        if stage != "fit":
            return
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"trainer.precision={self.trainer.precision} would keep what is trained in half precision, where steps "
                "as small as these are rounded away: choose bf16-mixed, which keeps the frozen networks in bf16 too"
            )
        if batch_size := getattr(self.data_module, "batch_size", None):
            settle_global_batch(self.trainer, batch_size, getattr(self.data_module, "global_batch", None))

    def draw_noise(self, batch: Batch) -> DiffusionNoise:
        """The random part of L_ddpm of this step; a validation always has that of the first."""
        draws = NoiseConfig(self.seed, self.ddpm_samples, self.ddpm_draws, self.drop_condition)
        validating = self._trainer is not None and self.trainer.validating
        return draw_noise(self.model.decoder, batch, 0 if validating else self.global_step, draws)

    @cached_property
    def useful_work(self) -> Any:
        """Counter of a step's useful work, a `UsefulWork`; None of a model that it does not know."""
        from m2chat.training.useful_work import UsefulWork

        return UsefulWork(self) if self.stage in get_args(AnyStage) else None

    def log_losses(self, batch: Batch, **losses: Tensor) -> None:
        """Logs each loss of the global batch by its name, the first of them in the progress bar."""
        for index, (name, value) in enumerate(losses.items()):
            self.log(f"train/{name}", value.detach(), prog_bar=index == 0, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what the stage trains."""
        config = self.optim
        groups = rated_groups(self.trained_parts(), config.weight_decay, config.lr_gates)
        optimizer = adamw(groups, config, str(self.trainer.precision))
        self._total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = schedule_of(optimizer, config, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Remembers which tasks were trained, so that results can say "trained" or "zero-shot"."""
        self.tasks.update(sample.kind for sample in batch.samples)

    def on_train_start(self) -> None:
        """Starts the clock."""
        self.cost.start(self.trainer.world_size, self.device)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Counts the samples of a step."""
        self.cost.add(len(batch) * self.trainer.world_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the trained tasks and what they have cost, and what it takes to build the model again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tasks"] = sorted(self.tasks)
        checkpoint["costs"] = [*self.costs_before, self.cost.as_dict()]
        checkpoint["config"] = self.model_config()
        checkpoint[RUN] = run_record(self._trainer, self.global_step, self._total_steps, self.shortened)

    def model_config(self) -> dict[str, Any]:
        """Settings from which the model is built again, by their names in ``model.init_args``, and its text layout."""
        sizes = {"max_tokens": self.max_tokens(), "num_image_tokens": self.backbone.num_image_tokens}
        return {"backbone": asdict(self.backbone), "layout": {**sizes, "prompt": self.prompt_format()}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the trained tasks and their costs; the weights are those of the checkpoint from now on.

        Raises:
            UserError: If the prompts of its training had another format.
        """
        trained = ((checkpoint.get("config") or {}).get("layout") or {}).get("prompt", EARLIER)
        if trained != self.prompt_format():
            raise UserError(
                f"the checkpoint was trained on prompts in the format '{trained}', and this run writes them in "
                f"'{self.prompt_format()}': set data.prompt to {trained}"
            )
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None:
            self.source = f"checkpoint {self.trainer.ckpt_path}"
        self.tasks = set(checkpoint.get("tasks", []))
        if costs := checkpoint.get("costs"):
            self.costs_before, self.cost = costs[:-1], Cost(**costs[-1])

    # Evaluation

    def prompt_format(self) -> PromptFormat:
        """Format of the prompts, ``alpaca`` or ``chat``: that of the data."""
        return resolved(getattr(self.data_module, "prompt", "auto"), self.backbone.language_model)

    def evaluation_settings(self) -> dict[str, Any]:
        """Settings on which replies depend, for the results file."""
        # Results from before there was another format do not name theirs, and remain comparable.
        prompt = {} if self.prompt_format() == EARLIER else {"prompt": self.prompt_format()}
        return {**super().evaluation_settings(), **prompt}

    def protocol(self) -> dict[str, Any]:
        """Settings of the evaluation, for the results file."""
        return {
            "stage": self.stage,
            "weights": self.source,
            "weights_digest": trained_digest(self),
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "fingerprint": self.backbones().name,
            "fingerprints": self.backbones().components,
            "tasks": {kind: "trained" if kind in self.tasks else "zero-shot" for kind in KINDS},
            "costs": [*self.costs_before, *([self.cost.as_dict()] if self.cost.samples else [])],
            **self.evaluation_settings(),
        }

    def protocol_as_before(self) -> dict[str, Any]:
        """The same with the fingerprint of the backbones' files, by which earlier evaluations can be resumed."""
        settings = {name: value for name, value in self.protocol().items() if name != "fingerprints"}
        return {**settings, "fingerprint": self.backbones().legacy}

    def text_settings(self) -> tuple[Layout, Decoding]:
        """Layout of sequences, and settings of decoding."""
        config = self.evaluation
        forced = self.stage == "align" if config.layout == "auto" else config.layout == "forced"
        tokenizer = M2ChatTokenizer(self.backbone.language_model)
        layout = Layout(tokenizer, self.backbone.num_image_tokens, self.max_tokens(), self.prompt_format())
        return layout, Decoding(layout="forced" if forced else "free", max_text_tokens=config.max_text_tokens)

    def draw_settings(self) -> DrawSettings:
        """Settings of drawing."""
        steps, guidance = self.evaluation.drawing(self.backbone.decoder)
        return DrawSettings(steps, guidance, self.evaluation.seed, self.model.decoder.image_size)

    @abstractmethod
    def replier(self) -> Replier:
        """Generates replies as configured."""

    def generate(self, batch: Batch, given: Given) -> Replies:
        """Replies to the conversations of a batch."""
        return self.replier().reply(batch, given)
