"""The data of real processes: what they see when they are interrupted, and what they count."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from m2chat.batch import Batch
from m2chat.callbacks.data_counts import DataCounts
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import SourceConfig
from m2chat.data.images import save_png
from m2chat.data.index import open_shard
from m2chat.data.shards import write_groups

MICRO = Path(__file__).parents[2] / "data" / "micro"
Steps = list[list[str]]


class Watcher(LightningModule):
    """Learns nothing and remembers what all ranks were shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: Steps = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        names = [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        every = [names]
        if torch.distributed.is_initialized():
            every = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(every, names)
        self.steps.append([name for share in every for name in share])
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(sources: list[SourceConfig], folder: Path, batch: int, ckpt: Path | None = None, **options: Any) -> Steps:
    callbacks, logger = options.pop("callbacks", []), options.pop("logger", False)
    data = M2ChatDataModule(
        train=sources, language_model=str(MICRO / "llama"), vision_encoder=str(MICRO / "clip"),
        image_decoder=str(MICRO / "sdxl"), batch_size=batch, max_tokens=256,
        num_image_tokens=8, **options,
    )  # fmt: skip
    module, world = Watcher(), int(os.environ.get("WORLD_SIZE", "1"))
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=2, logger=logger,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=callbacks, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    return module.steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kinds", [pytest.param(("caption",), marks=pytest.mark.slow), ("dialogue", "edit", "story")])
def test_two_processes_and_one_continue_each_other(
    micro: Any, tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any], kinds: tuple[str, ...]
) -> None:
    sources = [SourceConfig(kind, str(micro.shards / kind), 1 + k) for k, kind in enumerate(kinds)]
    options: dict[str, Any] = {"samples_per_epoch": 24, "length_bucketing": 2, "num_workers": 2}
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    whole = fit(sources, tmp_path, 4, callbacks=[SaveAt(2, one)], **options)
    assert len(whole) == 12
    assert on_two_ranks(lambda: fit(sources, tmp_path, 2, callbacks=[SaveAt(8, two)], **options)) == whole
    assert on_two_ranks(lambda: fit(sources, tmp_path, 2, one, **options)) == whole[2:]
    assert on_two_ranks(lambda: fit(sources, tmp_path, 2, two, **options)) == whole[8:]
    assert fit(sources, tmp_path, 4, two, **options) == whole[8:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_counts_of_all_ranks_and_workers_are_logged(
    tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any], workers: int
) -> None:
    groups = [(f"{k:04d}", {"png": save_png(np.full((8, 8, 3), k, np.uint8)), "txt": b"words"}) for k in range(24)]
    groups += [("b1", {"png": b"junk", "txt": b"words"}), ("b2", {"txt": b"words"}), ("b3", {"txt": b"words"})]
    (path,) = write_groups(groups, tmp_path / "shards", "x", 100)
    entries, stat, data = open_shard(path).entries, path.stat(), bytearray(path.read_bytes())
    for lost in (3, 11, 12):  # after they were indexed, and nobody notices
        _, offset, size = next(member for member in entries[lost].members if member[0] == "png")
        data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def run() -> list[dict[str, float]]:
        logger = CSVLogger(tmp_path, name="", version=0)
        logged: list[dict[str, float]] = []
        logger.log_metrics = lambda metrics, step=None: logged.append(metrics)  # type: ignore[assignment]
        source = SourceConfig("x", str(tmp_path / "shards"))
        fit([source], tmp_path, 2, num_workers=workers, callbacks=[DataCounts()], logger=logger)
        return [metrics for metrics in logged if "data/skipped" in metrics]

    for found in (run(), on_two_ranks(run)):
        start, end = found
        assert start == {
            "data/skipped": 3.0, "data/skipped/no_picture": 2.0,
            "data/skipped/undecodable_picture_UnidentifiedImageError": 1.0,
        }  # fmt: skip
        # Two epochs, three lost samples: each is missed once an epoch, and once more where it would have stood in.
        missed = end["data/skipped"] - 3
        assert missed >= 6 and end["data/skipped/undecodable_picture_UnidentifiedImageError"] == 1 + missed


@pytest.mark.parametrize("every", [0, -1])
def test_counts_are_logged_after_some_batches(every: int) -> None:
    with pytest.raises(ValueError, match=r"DataCounts\.every"):
        DataCounts(every)
