"""The real modules of both stages on the micro backbones, small enough for a few steps in a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.strategies import Strategy

import ranks
from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import SourceConfig
from m2chat.data.shards import write_shards
from m2chat.data.sources import caption_sample
from m2chat.models.config import BackboneConfig, GateConfig, M3AdapterConfig, NewAdapterConfig
from m2chat.schema import Image, Sample
from m2chat.training.align_module import AlignModule
from m2chat.training.atomic_io import AtomicCheckpointIO
from m2chat.training.config import OptimConfig
from m2chat.training.describe_module import DescribeModule
from m2chat.training.m2chat_module import M2ChatModule
from m2chat.training.m3ft_module import M3FTModule
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.scenes import render

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers' loading threads do not survive a fork
MICRO = Path(__file__).parents[2] / "data" / "micro"
SOURCES = {"describe": ("caption",), "align": ("caption",), "m3ft": ("dialogue", "edit", "story")}


class Recorder(Callback):
    """Remembers the losses of every step, as they are logged."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        names = [name for name in trainer.callback_metrics if name.startswith("train/loss")]
        self.losses.append({name: trainer.callback_metrics[name].item() for name in sorted(names)})


class SaveAt(Callback):
    """Saves a checkpoint after a step.

    Args:
        step: Counted from 1.
        path: Where to.
    """

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@dataclass
class Run:
    """What a training left.

    Args:
        module: As it is after the last step.
        trainer: Its trainer.
        losses: Of each step, by name.
    """

    module: M2ChatModule
    trainer: Trainer
    losses: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Micro:
    """Makes modules and data of a stage, ``describe``, ``align`` or ``m3ft``, and trains them.

    Args:
        shards: A folder of shards for each kind of sample.
    """

    shards: Path

    def backbone(self) -> BackboneConfig:
        return BackboneConfig(
            *(str(MICRO / name) for name in ("llama", "adapter/BIAS-micro.pth", "clip", "sdxl")), num_image_tokens=8
        )

    def module(self, stage: str, **options: Any) -> M2ChatModule:
        if stage == "describe":
            new: Any = NewAdapterConfig(prompts=10, layers=3, visual_blocks=2, visual_heads=2)
            optim = OptimConfig(lr=3e-3, schedule="step", drop_every_epochs=1)
            backbone = replace(self.backbone(), adapter="new", new_adapter=new)
            return DescribeModule(**{"backbone": backbone, "optim": optim, **options})  # type: ignore[return-value]
        kind = {"align": AlignModule, "m3ft": M3FTModule}[stage]
        m3adapter = M3AdapterConfig(width=48, heads=2, gate=GateConfig(options.pop("gate", "learnable")))
        optim = OptimConfig(lr=1e-3, schedule="step", drop_every_epochs=1)
        options = {"backbone": self.backbone(), "optim": optim, "init_from": "none", **options}
        return kind(m3adapter=m3adapter, **options)

    def data(
        self,
        stage: str,
        batch_size: int = 6,
        workers: int = 0,
        backbone: BackboneConfig | None = None,
        **settings: Any,
    ) -> M2ChatDataModule:
        backbone = backbone or self.backbone()
        of_run: dict[str, Any] = {
            "train": [
                SourceConfig(kind, str(self.shards / kind), describe=stage == "describe") for kind in SOURCES[stage]
            ],
            "language_model": backbone.language_model, "vision_encoder": backbone.vision_encoder,
            "image_decoder": backbone.image_decoder, "batch_size": batch_size, "samples_per_epoch": 24,
            "max_tokens": 256, "num_image_tokens": 8, "num_workers": workers,
        }  # fmt: skip
        return M2ChatDataModule(**{**of_run, **settings})

    def fit(
        self,
        stage: str,
        folder: Path,
        steps: int,
        *,
        batch_size: int = 6,
        ckpt: Path | None = None,
        callbacks: tuple[Callback, ...] = (),
        save: tuple[int, Path] | None = None,
        strategy: str | Strategy = "auto",
        accumulate: int = 1,
        workers: int = 0,
        data: dict[str, Any] | None = None,
        precision: Any = None,
        **options: Any,
    ) -> Run:
        """Trains on the epochs' 24 samples; the same samples, noise and start in every call.

        `data` are further settings of the data.
        """
        recorder, module = Recorder(), self.module(stage, **options)
        own = [recorder, NonFiniteGuard(), *([SaveAt(*save)] if save else [])]
        trainer = Trainer(
            default_root_dir=folder, accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", "1")),
            strategy=strategy, precision=precision, max_steps=steps,
            plugins=[AtomicCheckpointIO()] if strategy == "auto" else None,
            max_epochs=10, gradient_clip_val=1.0, accumulate_grad_batches=accumulate, limit_val_batches=0, logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[*own, *callbacks],
        )  # fmt: skip
        run = Run(module, trainer, recorder.losses)
        trainer.fit(
            module,
            datamodule=self.data(stage, batch_size, workers, options.get("backbone"), **(data or {})),
            ckpt_path=ckpt,
            weights_only=True,
        )
        return run


def _samples(kind: str, count: int) -> Iterator[Sample]:
    maker = ConversationMaker("train", 0)
    for index in range(count):
        if kind == "caption":
            scene = maker.scene()
            yield caption_sample(
                f"caption/{index}", "caption", Image(render(scene, maker.noise), caption_of(scene)), {}
            )
        else:
            yield getattr(maker, kind)().sample(kind, kind, index)


def make_micro(root: Path) -> Micro:
    """Writes the shards."""
    for kind in {kind for kinds in SOURCES.values() for kind in kinds}:
        write_shards(_samples(kind, 24), root / kind, kind, 10)
    return Micro(root)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    return make_micro(tmp_path_factory.mktemp("micro"))


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., Any]:
    """A function that runs a task in forked processes of one group and returns what the first of them returned."""

    return lambda task, number: ranks.on_ranks(task, number, tmp_path)


@pytest.fixture
def on_two_ranks(on_ranks: Callable[..., Any]) -> Callable[[Callable[[], object]], Any]:
    """`on_ranks` with two of them."""
    return lambda task: on_ranks(task, 2)
