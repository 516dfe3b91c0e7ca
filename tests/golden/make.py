"""Losses of the first steps of both micro stages, written down: ``make golden``.

A change that should not alter training must not alter these numbers. After one that should (other backbones, data,
recipes), they are made anew, and the difference is looked at.
"""

from __future__ import annotations

import contextlib
import csv
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 20, 8
NAMES = {1: ("loss", "loss_ddpm", "loss_align"), 2: ("loss", "loss_ddpm", "loss_align", "loss_text")}

Losses = list[dict[str, float]]


def path_of(stage: int) -> Path:
    """Where the losses of a stage stand."""
    return Path(__file__).with_name(f"stage{stage}_micro.txt")


def train(stage: int) -> Losses:
    """The losses of each step, by the real command with the configuration's own settings, seed 0 and one thread.

    Stage 2 starts from nothing, so that no checkpoint that lies about can change them.
    """
    import torch

    from m2chat import cli

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.chdir(ROOT), tempfile.TemporaryDirectory() as folder:
        code = cli.main(
            [
                "fit", f"--config=configs/stage{stage}.yaml", "--seed_everything=0", "--model.init_args.init_from=none",
                f"--data.batch_size={BATCH}", f"--data.samples_per_epoch={STEPS * BATCH}",
                f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0",
                "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
                f"--trainer.default_root_dir={folder}", "--trainer.callbacks=[]",
                "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=golden",
            ]
        )  # fmt: skip
        torch.set_num_threads(threads)
        if code:
            raise SystemExit(code)
        (metrics,) = Path(folder).rglob("metrics.csv")
        with metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(row[f"train/{name}"]) for name in NAMES[stage]} for row in rows]


def read(stage: int) -> Losses:
    """The losses that were written down."""
    lines = [line.split() for line in path_of(stage).read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return [dict(zip(NAMES[stage], map(float, line), strict=True)) for line in lines]


def write(stage: int, losses: Losses) -> None:
    """Writes them down, a line a step."""
    lines = [f"# Losses of the first {STEPS} steps of configs/stage{stage}.yaml at batch {BATCH}, by `make golden`:"]
    lines.append("# " + " ".join(NAMES[stage]))
    lines += [" ".join(f"{step[name]:.6f}" for name in NAMES[stage]) for step in losses]
    path_of(stage).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Makes the files of both stages."""
    for stage in NAMES:
        write(stage, train(stage))
        print(path_of(stage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
