"""What a test leaves in its folder: every prediction, and the results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from m2chat.callbacks.base import EvaluationCallback, Stage, store_of
from m2chat.evaluation import ranks
from m2chat.evaluation.results import prediction_row, versions, write_images, write_predictions, write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.schema import Prediction


class Predictions(EvaluationCallback):
    """Writes ``predictions.jsonl``, ``images/`` and ``results.json`` beside the events file of a test.

    The protocol in ``results.json`` holds the versions, the seed, the module's hyperparameters and, if the module has
    a method ``protocol()``, what that returns (checkpoint, steps, guidance, trained or zero-shot, ...).

    Args:
        dataset: What is evaluated: with ``coco``, ``cc3m`` or ``mmdialog`` reports show the paper's numbers too.
        protocol: Further entries.
    """

    def __init__(self, dataset: str = "", protocol: dict[str, Any] | None = None) -> None:
        self.dataset = dataset
        self.extra = protocol or {}
        self._folder = Path()
        self._rows: dict[str, dict[str, Any]] = {}

    def begin(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """Chooses the folder; the trainer must be asked on every rank."""
        if stage == "test":
            self._folder = Path(trainer.log_dir or trainer.default_root_dir)
            self._rows = {}

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: Stage) -> None:
        """Writes pictures as they come, since not all of them fit into memory."""
        if stage != "test":
            return
        rank, size = ranks.world()
        for prediction in predictions:
            if prediction.id not in self._rows:
                number = rank + size * len(self._rows)
                images = write_images(self._folder, number, prediction)
                self._rows[prediction.id] = prediction_row(number, prediction, images)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what needs all ranks and all metrics."""
        store = store_of(trainer)
        mine = [row | {"scores": store.scores(id_)} for id_, row in self._rows.items()]
        rows = {row["id"]: row for part in reversed(ranks.gather(mine)) for row in part}
        metrics = {
            name.removeprefix("test/"): Estimate(float(value), None)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        if trainer.is_global_zero:
            write_predictions(self._folder, rows.values())
            path = write_results(self._folder, metrics | store.results, self._protocol(trainer, pl_module))
            rank_zero_info(f"Results: {path}")

    def _protocol(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        describe = getattr(module, "protocol", None)
        return {
            "dataset": self.dataset,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "checkpoint": trainer.ckpt_path,
            "precision": trainer.precision,
            "ranks": trainer.world_size,
            "versions": versions(),
            "config": dict(module.hparams),
            **store_of(trainer).protocol,
            **(describe() if describe is not None else {}),
            **self.extra,
        }
