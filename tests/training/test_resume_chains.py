"""Property: a training that is interrupted again and again sees and learns what an uninterrupted one does."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from m2chat.batch import Batch
from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.data.datamodule import M2ChatDataModule
from m2chat.data.dataset import SourceConfig
from m2chat.training.strategy import M2ChatFSDPStrategy

MICRO = Path(__file__).parents[2] / "data" / "micro"
SOURCES = {"align": ("caption",), "m3ft": ("dialogue", "edit", "story")}
EPOCHS = 3
Record = tuple[int, list[str], list[str]]
"""Optimiser steps after a batch; of all processes the samples, and the losses to the last bit."""
Outcome = tuple[list[Record], int]
"""What a run did, and how many batches of it end up in the weights."""


class Learner(LightningModule):
    """A few weights, so that each loss depends on its samples and on every step before; some losses are NaN.

    Args:
        asks: Whether its optimiser asks for the number of steps, which opens the data before a checkpoint is restored.
    """

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks = asks
        self.weight = torch.nn.Parameter(torch.zeros(16))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        seeds = [sum(map(ord, name)) * 7919 for name in names_of(batch)]
        targets = [torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        loss = (self.weight - torch.stack(targets)).square().mean()
        return loss * float("nan") if seeds[0] % 11 == 0 else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.Adam(self.parameters(), lr=0.1)


def names_of(batch: Batch) -> list[str]:
    return [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]


class Memory(Callback):
    """Remembers every batch, and which of them are behind an optimiser step."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.finished = 0
        self._steps = False

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._steps = True

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        every = [(names_of(batch), outputs["loss"].item().hex())]
        if torch.distributed.is_initialized():
            every = every * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(every, every[0])
        losses = [loss for _, loss in every]
        self.records.append((trainer.global_step, [name for share, _ in every for name in share], losses))
        if self._steps:
            self.finished, self._steps = len(self.records), False


class Interrupted(Exception):
    pass


class Interrupts(Callback):
    """Saves and ends a run in one hook, or ends it in the middle of a step and saves as a crash would.

    Args:
        hook: Where.
        after: Batches of this run that come before.
        path: Of the checkpoint.
    """

    def __init__(self, hook: str, after: int, path: Path) -> None:
        self.left, self.path, self.saved = after, path, False
        self.crashes = hook in ("on_train_batch_start", "on_before_optimizer_step")
        setattr(self, hook, self._interrupt)

    def on_before_backward(self, *_: Any) -> None:
        self.left -= 1

    def _interrupt(self, trainer: Trainer, *_: Any) -> None:
        if not (trainer.sanity_checking or self.left > 0 or self.saved):
            if not self.crashes:
                self._save(trainer)
            raise Interrupted

    def on_exception(self, trainer: Trainer, module: Any, error: BaseException) -> None:
        if self.crashes:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = True


class SavesAtTheEnd(Callback):
    """Saves in a hook that follows the last step of a run."""

    def __init__(self, hook: str, path: Path) -> None:
        setattr(self, hook, lambda trainer, *_: trainer.save_checkpoint(path))


class RestoresLate(SingleDeviceStrategy):
    """Restores checkpoints after its setup, as sharded strategies do."""

    restore_checkpoint_after_setup = True


HOOKS = [
    "on_train_start", "on_train_batch_end", "on_train_batch_end", "on_validation_batch_end", "on_validation_end",
    "on_train_epoch_end", "on_train_batch_start", "on_before_optimizer_step",
]  # fmt: skip
ENDS = ["on_train_epoch_end", "on_train_end", "after"]


@dataclass(frozen=True)
class Plan:
    """The settings of a run."""

    stage: str
    size: int
    batch_size: int
    accumulate: int = 1
    limit: int | None = None
    validate_every: int | None = None
    bucketing: int = 0
    asks: bool = True
    late: bool = False
    workers: int = 0
    ranks: int = 1

    @classmethod
    def draw(cls, rng: random.Random, ranks: int) -> Plan:
        batch_size, size = rng.choice([1, 2, 3]), rng.choice([12, 14, 15]) * ranks
        batches = -(-size // (batch_size * ranks))
        return cls(
            rng.choice([*SOURCES]), size, batch_size, rng.choice([1, 1, 2, 3]),
            rng.choice([None, None, max(3, batches - 2)]), rng.choice([None, 2, 3]), rng.choice([0, 0, 2]),
            rng.random() < 0.7, rng.random() < 0.3, ranks=ranks,
        )  # fmt: skip

    def run(
        self,
        shards: Path,
        folder: Path,
        ckpt: Path | None,
        *callbacks: Callback,
        max_steps: int = -1,
        after: Path | None = None,
    ) -> Outcome:
        data = M2ChatDataModule(
            train=[SourceConfig(kind, str(shards / kind), 1 + k) for k, kind in enumerate(SOURCES[self.stage])],
            val=[SourceConfig("val", str(shards / ("story" if self.stage == "align" else "caption")))],
            val_samples=4, eval_batch_size=2, check_leaks=False, language_model=str(MICRO / "llama"),
            vision_encoder=str(MICRO / "clip"), image_decoder=str(MICRO / "sdxl"), batch_size=self.batch_size,
            samples_per_epoch=self.size, num_workers=self.workers, max_tokens=256, length_bucketing=self.bucketing,
            num_image_tokens=8,
        )  # fmt: skip
        memory = Memory()
        alone = RestoresLate("cpu") if self.late else SingleDeviceStrategy("cpu")
        trainer = Trainer(
            accelerator="cpu", devices=self.ranks, strategy=DDPStrategy() if self.ranks > 1 else alone,
            max_epochs=EPOCHS, max_steps=max_steps, accumulate_grad_batches=self.accumulate,
            limit_train_batches=self.limit, val_check_interval=self.validate_every, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            callbacks=[memory, NonFiniteGuard(patience=99), *callbacks],
        )  # fmt: skip
        try:
            trainer.fit(Learner(self.asks), datamodule=data, ckpt_path=ckpt, weights_only=False)
        except Interrupted:
            return memory.records, memory.finished
        if after is not None:
            trainer.save_checkpoint(after)
        return memory.records, memory.finished


def here(plan: Plan, *args: Any, **kwargs: Any) -> Outcome:
    return plan.run(*args, **kwargs)


def chain(
    rng: random.Random,
    shards: Path,
    folder: Path,
    plan_of: Callable[[], Plan],
    run: Callable[..., Outcome] = here,
) -> tuple[list[Record], list[str]]:
    """Trains in up to six runs of which each but the last is interrupted, and goes on from its checkpoint.

    Returns:
        What the checkpoints of the runs hold, joined; and what was done, for a message.
    """
    records: list[Record] = []
    done: list[str] = []
    ckpt: Path | None = None
    for link in range(rng.randint(2, 5)):
        path, plan, after = folder / f"{link}.ckpt", plan_of(), rng.randint(0, 9)
        if rng.random() < 0.75:
            hook = rng.choice(HOOKS)
            seen, finished = run(plan, shards, folder, ckpt, Interrupts(hook, after, path))
        else:
            hook = rng.choice(ENDS)
            steps = torch.load(ckpt, weights_only=False)["global_step"] if ckpt is not None else 0
            saves = [] if hook == "after" else [SavesAtTheEnd(hook, path)]
            last = path if hook == "after" else None
            seen, finished = run(plan, shards, folder, ckpt, *saves, max_steps=steps + after + 1, after=last)
        done.append(f"{hook} after {after} batches of {plan}")
        if not path.is_file():  # the end came first
            return records + seen, done
        records += seen[:finished]
        ckpt = path
    return records + run(plan_of(), shards, folder, ckpt)[0], done


def wrong(seed: int, shards: Path, folder: Path, ranks: int = 1) -> str:
    """Draws a chain and says what it did if a batch, the number of its step or its loss is not as without a stop."""
    rng = random.Random(f"{seed}/{ranks}")
    plan = Plan.draw(rng, ranks)
    folder = folder / str(seed)
    whole, _ = plan.run(shards, folder, None)
    found, done = chain(rng, shards, folder, lambda: replace(plan, workers=rng.choice([0, 0, 0, 2])))
    return "" if found == whole else f"seed {seed}: {done}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 106), marks=pytest.mark.slow)], ids=len)
def test_chains_of_interruptions(micro: Any, tmp_path: Path, seeds: range) -> None:
    assert "\n".join(filter(None, (wrong(seed, micro.shards, tmp_path) for seed in seeds))) == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow  # the next test has two ranks too
@pytest.mark.parametrize("seeds", [range(42)], ids=len)
def test_chains_on_two_ranks(
    micro: Any, tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any], seeds: range
) -> None:
    task = lambda: "\n".join(filter(None, (wrong(seed, micro.shards, tmp_path, 2) for seed in seeds)))  # noqa: E731
    assert on_two_ranks(task) == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 42), marks=pytest.mark.slow)], ids=len)
def test_chains_with_other_ranks_and_batches(
    micro: Any, tmp_path: Path, on_ranks: Callable[..., Any], seeds: range
) -> None:
    """The samples are the same, in the same order, whatever the size of the batches; no epoch is cut short."""

    def run(plan: Plan, *args: Any, **kwargs: Any) -> Outcome:
        outcome: Outcome = on_ranks(partial(plan.run, *args, **kwargs), plan.ranks)
        return outcome

    for seed in seeds:
        rng = random.Random(seed)
        # Even numbers, so that two ranks leave nothing of an epoch to the next.
        plan = Plan(rng.choice([*SOURCES]), rng.choice([12, 14, 22]), 2, asks=rng.random() < 0.7)

        def draw(rng: random.Random = rng, plan: Plan = plan) -> Plan:
            ranks = rng.choice([1, 2])
            size = rng.choice([1, 2, 3]) * (2 // ranks)
            return replace(plan, batch_size=size, ranks=ranks, workers=rng.choice([0, 0, 2]), late=rng.random() < 0.3)

        folder = tmp_path / str(seed)
        whole, _ = plan.run(micro.shards, folder, None)
        found, done = chain(rng, micro.shards, folder, draw, run)
        names = [[name for _, names, _ in records for name in names] for records in (whole, found)]
        assert names[0] == names[1], f"seed {seed}: {done}"


def wrong_micro(micro: Any, seed: int, folder: Path, ranks: int = 1) -> str:
    """As `wrong`, with the real modules: stages and accumulation take turns."""
    rng = random.Random(f"{seed}/{ranks}/micro")
    stage, accumulate = [*SOURCES][seed % 2], [1, 3][seed // 2 % 2]
    folder, steps = folder / str(seed), {1: 12, 3: 6}[accumulate]  # three epochs of four batches

    def run(plan: Plan, shards: Path, folder: Path, ckpt: Path | None, *callbacks: Callback, **ends: Any) -> Outcome:
        memory, after = Memory(), ends.get("after")
        if ranks > 1:
            os.environ["WORLD_SIZE"] = str(ranks)  # which Lightning takes away at the end of a run
        options = {} if ranks == 1 else {"strategy": M2ChatFSDPStrategy(), "batch_size": 3}
        try:
            done = micro.fit(
                stage, folder, min(steps, ends.get("max_steps", steps)), ckpt=ckpt, callbacks=(memory, *callbacks),
                accumulate=accumulate, workers=plan.workers, **options,
            )  # fmt: skip
            if after is not None:
                done.trainer.save_checkpoint(after)
        except Interrupted:
            pass
        return memory.records, memory.finished

    plan = Plan(stage, 24, 6)
    whole, _ = run(plan, micro.shards, folder, None)
    found, done = chain(rng, micro.shards, folder, lambda: replace(plan, workers=rng.choice([0, 2])), run)
    return "" if found == whole and len(whole) == 12 else f"seed {seed}: {done}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seeds", [range(1, 2), pytest.param([0, *range(2, 12)], marks=pytest.mark.slow)], ids=len)
def test_chains_with_the_real_modules(micro: Any, tmp_path: Path, seeds: Sequence[int]) -> None:
    assert "\n".join(filter(None, (wrong_micro(micro, seed, tmp_path) for seed in seeds))) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_chains_with_sharded_modules(
    micro: Any, tmp_path: Path, on_two_ranks: Callable[[Callable[[], object]], Any]
) -> None:
    task = lambda: "\n".join(filter(None, (wrong_micro(micro, seed, tmp_path, 2) for seed in range(6))))  # noqa: E731
    assert on_two_ranks(task) == ""
