"""The paper's configurations with tiny networks: two processes train, save, and one process goes on as they did."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from m2chat import cli
from m2chat.data.shards import write_shards
from m2chat.data.sources import caption_sample
from m2chat.models.checkpoints import read_checkpoint
from m2chat.schema import Image
from m2chat.worlds.shapes.captions import caption_of
from m2chat.worlds.shapes.conversations import ConversationMaker
from m2chat.worlds.shapes.scenes import render

ROOT = Path(__file__).parents[2]
STEPS, SAVED = 5, 3
KINDS = {1: ("caption", "caption"), 2: ("edit", "dialogue")}
"""Kinds of micro samples that stand for the sources of each stage."""


def tiny(micro: Any, stage: int, ranks: int, precision: str) -> dict[str, Any]:
    """What has to change so that the configuration runs here: where the networks and data are, and how large."""
    own = yaml.safe_load((ROOT / f"configs/paper/stage{stage}.yaml").read_text(encoding="utf-8"))
    sources = zip(own["data"]["train"], KINDS[stage], strict=True)
    backbone = micro.backbone()
    return {
        "model": {
            "class_path": own["model"]["class_path"],
            "init_args": {
                "backbone": {**asdict(backbone), "channel_order": "rgb"},
                "m3adapter": {"width": 48, "heads": 2},
                "init_from": "none",
            },
        },
        "data": {
            "train": [{**source, "path": str(micro.shards / kind)} for source, kind in sources],
            "batch_size": 4 // ranks,
            "global_batch": 4,
            "samples_per_epoch": 16,  # an epoch of 4 steps: it saves and resumes in the middle of one
            "image_size": 32,
            "max_tokens": 256,
            "num_workers": 0,
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": ranks,
            "precision": precision,
            "max_steps": STEPS,
            "log_every_n_steps": 1,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def fit(folder: Path, micro: Any, stage: int, ranks: int, precision: str, *more: str) -> int:
    """Runs `lightning fit` on the paper's file and the small numbers."""
    overlay = folder / f"tiny{ranks}.yaml"
    overlay.write_text(yaml.safe_dump(tiny(micro, stage, ranks, precision)), encoding="utf-8")
    paper = str(ROOT / f"configs/paper/stage{stage}.yaml")
    saving = f"--trainer.callbacks=[{{class_path: ModelCheckpoint, init_args: {{every_n_train_steps: {SAVED}, \
save_top_k: -1, dirpath: {folder}/saved, filename: '{{step}}'}}}}]"
    return cli.main(["fit", "--config", paper, "--config", str(overlay), saving, *more])


def losses(folder: Path, version: int) -> dict[int, float]:
    """The loss of each step."""
    paths = sorted(folder.glob("logs/lightning_logs/*/metrics.csv"), key=lambda path: path.parent.name)
    with paths[version].open(encoding="utf-8") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (2, "32-true"),
        pytest.param(1, "32-true", marks=pytest.mark.slow),
        pytest.param(2, "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_save_and_one_goes_on(
    micro: Any,
    on_two_ranks: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    precision: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert on_two_ranks(lambda: fit(tmp_path, micro, stage, 2, precision)) == 0
    two = losses(tmp_path, 0)
    assert sorted(two) == list(range(STEPS))
    path = tmp_path / "saved" / f"step={SAVED}.ckpt"
    saved = read_checkpoint(path)
    assert {tensor.dtype for tensor in saved["state_dict"].values()} == {torch.float32}

    assert fit(tmp_path, micro, stage, 1, precision, "--trainer.strategy=auto", f"--ckpt_path={path}") == 0
    one = losses(tmp_path, 1)
    assert sorted(one) == list(range(SAVED, STEPS))
    # In bf16 products of two rows and of four are rounded in other places.
    tolerance = 1e-5 if precision == "32-true" else 2e-2
    for step, loss in one.items():
        assert loss == pytest.approx(two[step], rel=tolerance), step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", [1, 2])
def test_replicas_draw_samples_while_they_train(
    micro: Any, on_two_ranks: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """As configs/paper/ddp.yaml: every process holds all weights, and replies to validation samples."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    small = tiny(micro, stage, 2, "32-true")
    small["model"]["init_args"]["evaluation"] = {"steps": 2, "max_text_tokens": 8}
    maker = ConversationMaker("val", 0)
    images = [Image(render(scene, maker.noise), caption_of(scene)) for scene in (maker.scene() for _ in range(3))]
    write_shards((caption_sample(f"val/{n}", "cc3m", image, {}) for n, image in enumerate(images)), tmp_path / "val")
    small["data"] |= {"val": [{"name": "cc3m", "path": "val"}], "val_samples": 3}
    small["trainer"] |= {"val_check_interval": 2, "max_steps": 4, "logger": {"class_path": "TensorBoardLogger"}}
    small["trainer"]["logger"]["init_args"] = {"save_dir": "logs"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    files = [str(ROOT / f"configs/paper/stage{stage}.yaml"), str(ROOT / "configs/paper/ddp.yaml"), "tiny.yaml"]
    assert on_two_ranks(lambda: cli.main(["fit", *(part for file in files for part in ("--config", file))])) == 0
    events = EventAccumulator(str(tmp_path / "logs/lightning_logs/version_0")).Reload()
    shown = [event.step for event in events.Images("val/context_generated_truth")]
    assert (
        shown == [2, 4]
        and len({event.encoded_image_string for event in events.Images("val/context_generated_truth")}) == 2
    )
    assert {event.step for event in events.Scalars("train/loss")} == {0, 1, 2, 3}
