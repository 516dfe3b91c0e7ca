"""Training that is killed, interrupted, doubled and long."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

import ranks
from chaos.figures import Figures, module_of
from m2chat.callbacks.nonfinite import NonFiniteGuard
from m2chat.errors import UserError
from m2chat.run_folder import run_folder
from m2chat.training.atomic_io import AtomicCheckpointIO

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
KILLS = 10
"""Kills of one chain: each run but the first goes on from what the one before has left."""


def forked(task: Callable[[], object], quiet: bool = True) -> int:
    """The id of a forked process that does a task."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            if quiet:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.dup2(null, 2)
            task()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Learner(LightningModule):
    """Weights of a megabyte; each loss depends on the number of its step and on every step before."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 512)
        self.notes = notes

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        inputs = torch.randn(4, 512, generator=torch.Generator().manual_seed(step))
        loss: Tensor = (self.layer(inputs) - inputs.flip(1)).square().mean()
        with self.notes.open("a") as file:
            file.write(f"loss {step} {loss.item().hex()}\n")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(10_000, 1))


class NotingIO(AtomicCheckpointIO):
    """Writes down every checkpoint that is finished."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        with self.notes.open("a") as file:
            file.write(f"saved {checkpoint['global_step']} {Path(path).name}\n")


def learn(folder: Path, notes: Path, steps: int = -1) -> None:
    """Trains from where the folder has its last checkpoint."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    last = folder / "last.ckpt"
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last=True)
    Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[NonFiniteGuard(), saver], plugins=[NotingIO(notes)], **QUIET
    ).fit(Learner(notes), ckpt_path=last if last.is_file() else None, weights_only=True)  # fmt: skip


def noted(notes: Path, what: str) -> list[tuple[int, str]]:
    lines = notes.read_text().splitlines() if notes.is_file() else []
    rows = [line.split() for line in lines]
    return [(int(row[1]), row[2]) for row in rows if len(row) == 3 and row[0] == what]


def kills(count: int, folder: Path, seed: int) -> Figures:
    """``kill -9`` at random moments of training, half of them around a save."""
    rng, found = random.Random(seed), Figures()
    reference = folder / "reference.txt"
    ended(forked(lambda: learn(folder / "whole", reference, 40)))
    losses = dict(noted(reference, "loss"))
    assert len(losses) == 40
    while found.tried < count:
        root, notes = folder / str(found.tried), folder / f"{found.tried}.txt"
        root.mkdir(parents=True)
        for _ in range(KILLS):
            if found.tried >= count:
                break
            before = len(noted(notes, "saved"))
            pid = forked(lambda root=root, notes=notes: learn(root, notes))  # type: ignore[misc]
            if rng.random() < 0.9:  # else while it starts
                end = time.monotonic() + 60
                while len(noted(notes, "saved")) <= before and time.monotonic() < end:
                    time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            found.tried += 1
            found.wrong += _after_a_kill(root, notes, losses)
    return found


def _after_a_kill(root: Path, notes: Path, losses: dict[int, str]) -> Iterator[str]:
    """What is wrong with what a killed run has left."""
    finished = [step for step, name in noted(notes, "saved") if name == "last.ckpt"]
    if finished:
        try:
            held = AtomicCheckpointIO().load_checkpoint(root / "last.ckpt")["global_step"]
        except UserError as error:
            yield f"lost: {error}"
        else:
            if held < max(finished):
                yield f"last.ckpt holds step {held}, and step {max(finished)} was saved"
    for step, loss in noted(notes, "loss"):
        if step in losses and losses[step] != loss:
            yield f"another loss at step {step}: {loss}"
            break


def chains(count: int, folder: Path, seed: int) -> Figures:
    """Trainings that are interrupted up to five times, in any hook, with any settings of the loader."""
    warnings.simplefilter("ignore")
    shards = module_of("training/conftest.py").make_micro(folder / "shards").shards
    wrong = module_of("training/test_resume_chains.py").wrong
    outcomes = [wrong(1000 + seed + number, shards, folder) for number in range(count)]
    return Figures(count, [outcome for outcome in outcomes if outcome])


def signals(count: int, folder: Path, seed: int) -> Figures:
    """Signals to one or both of two processes, while training or in a validation."""
    rng, found, ends = random.Random(seed), Figures(count), module_of("training/test_signals.py").ends
    for number in range(count):
        sent = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        at = rng.choice([("train", rng.randrange(4)), ("val", rng.randrange(4))])  # each has four batches
        to, root = rng.choice([(0,), (1,), (0, 1)]), folder / str(number)
        root.mkdir(parents=True)
        try:
            outcome = ranks.on_ranks(lambda args=(root, sent, at, to): ends(*args), 2, root)  # type: ignore[misc]
            saved = AtomicCheckpointIO().load_checkpoint(root / "checkpoints" / "interrupted.ckpt")["global_step"]
        except (AssertionError, UserError) as error:
            found.wrong.append(f"{sent.name} to {to} at {at}: {error}")
            continue
        step = at[1] + 1 if at[0] == "train" else 3
        if outcome != [[128 + sent, *at]] * 2 or saved != step:
            found.wrong.append(f"{sent.name} to {to} at {at}: {outcome}, step {saved}")
    return found


def folders(count: int, folder: Path, seed: int) -> Figures:
    """Two runs that start at the same moment, with the same name or without one."""
    found = Figures(count)
    for number in range(count):
        root, named = folder / str(number), number % 2 == 0
        start = time.monotonic() + 0.05

        def task(root: Path = root, named: bool = named, start: float = start) -> None:
            logger = TensorBoardLogger(root, version="mine" if named else None)
            trainer = Trainer(**{**QUIET, "logger": logger})
            time.sleep(max(0.0, start - time.monotonic()))
            with run_folder(trainer, "chaos"):
                (Path(logger.log_dir) / f"hparams.{os.getpid()}.yaml").touch()
                (Path(logger.log_dir) / "config.yaml").touch()
                time.sleep(0.1)

        pids = [forked(task), forked(task)]
        codes = [ended(pid) for pid in pids]
        runs = [len(list(path.glob("hparams.*"))) for path in root.glob("*/*") if path.is_dir()]
        if named and (sorted(codes) != [0, 1] or runs != [1]):
            found.wrong.append(f"one name: codes {codes}, runs in each folder {runs}")
        if not named and (codes != [0, 0] or runs != [1, 1]):
            found.wrong.append(f"no name: codes {codes}, runs in each folder {runs}")
    return found


class _Resident(Callback):
    """Resident memory after every tenth step, in MB."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step % 10 == 0:
            self.values.append(resident())


def resident() -> float:
    """Resident memory of this process, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def slope(values: list[float], every: int) -> float:
    """Growth in MB per 100, over the last two thirds; `every` is the distance of two values."""
    rest = values[len(values) // 3 :]
    return float(np.polyfit(np.arange(len(rest)) * every, rest, 1)[0]) * 100


def soak(count: int, folder: Path, seed: int) -> Figures:
    """A long training."""
    warnings.simplefilter("ignore")
    memory, micro = _Resident(), module_of("training/conftest.py").make_micro(folder / "shards")
    micro.fit("align", folder, count, batch_size=1, callbacks=(memory,), data={"samples_per_epoch": count})
    return _grown(count, "MB per 100 steps", slope(memory.values, 10))


def talks(count: int, folder: Path, seed: int) -> Figures:
    """Conversations of ten turns, one behind the other, a third of the replies with pictures."""
    from m2chat.pipeline import M2ChatPipeline

    pipe, values = M2ChatPipeline.from_pretrained(), []
    for turn in range(count):
        if turn % 10 == 0:
            session = pipe.session(seed=turn, steps=2, max_images=1)
        session.reply("please paint a large red circle on a blue background" if turn % 3 == 0 else "hello")
        values.append(resident())
    return _grown(count, "MB per 100 turns", slope(values, 1))


def _grown(count: int, what: str, growth: float) -> Figures:
    """Figures of a soak; a short one shows what is allocated once."""
    return Figures(count, [f"{growth:.2f} {what}"] if growth >= 1 and count >= 300 else [], {what: growth})
