"""What a test leaves in its folder: every prediction, the results, and a page to look at."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from m2chat.callbacks.base import EvalLoop, EvaluationCallback, store_of
from m2chat.evaluation import ranks
from m2chat.evaluation.journal import Journal, known_replies
from m2chat.evaluation.page import write_page
from m2chat.evaluation.predictions import prediction_row, write_images, write_predictions
from m2chat.evaluation.results import settings_hash, versions, write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.schema import Prediction


class Predictions(EvaluationCallback):
    """Writes ``predictions.jsonl``, ``images/``, ``results.json`` and ``report.html`` beside the events file of a test.

    The protocol in ``results.json`` holds the versions, the seeds, a hash of the settings, which samples were
    evaluated and, if the module has a method ``protocol()``, what that returns (checkpoint, steps, guidance, trained or
    zero-shot, ...).

    Replies are on disk as soon as they come. With `evaluation.resume` a module that has a method ``recall`` takes
    those of an interrupted evaluation from its folder.

    Args:
        dataset: What is evaluated: with ``coco``, ``cc3m`` or ``mmdialog`` reports show the paper's numbers too.
        protocol: Further entries.
    """

    def __init__(self, dataset: str = "", protocol: dict[str, Any] | None = None) -> None:
        self.dataset = dataset
        self.extra = protocol or {}
        self._folder = Path()
        self._rows: dict[str, dict[str, Any]] = {}
        self._generation = ""
        self._journal: Journal | None = None

    def begin(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Chooses the folder; the trainer must be asked on every rank."""
        if stage != "test":
            return
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._rows = {}
        self._generation = settings_hash(_described(module))
        if earlier := getattr(getattr(module, "evaluation", None), "resume", None):
            known = known_replies(Path(earlier), self._generation, _hash_as_before(module))
            module.recall(known)  # type: ignore[operator]
            rank_zero_info(f"Resuming: {len(known)} replies are known from {earlier}")
        self._journal = Journal(self._folder, ranks.world()[0], self._generation)

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: EvalLoop) -> None:
        """Writes pictures as they come, since not all of them fit into memory."""
        if stage != "test":
            return
        for prediction in predictions:
            if prediction.id not in self._rows:
                row = prediction_row(prediction, write_images(self._folder, prediction))
                self._rows[prediction.id] = row
                if self._journal is not None:
                    self._journal.add(row)

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
            path = write_results(self._folder, metrics | store.results, self._protocol(trainer, pl_module, list(rows)))
            page = write_page(self._folder)
            rank_zero_info(f"Results: {path}\nTo look at: {page}")
        ranks.gather(None)  # no rank removes its journal before the first has written everything
        if self._journal is not None:
            self._journal.close()

    def _protocol(self, trainer: Trainer, module: LightningModule, ids: list[str]) -> dict[str, Any]:
        described = _described(module)
        settings = {
            "dataset": self.dataset,
            "precision": trainer.precision,
            "samples": {"n": len(ids), "sha256": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()},
            **store_of(trainer).protocol,
            **described,
            **self.extra,
        }
        return {
            **settings,
            "seeds": {"run": os.environ.get("PL_GLOBAL_SEED"), "noise": described.get("seed")},
            "checkpoint": trainer.ckpt_path,
            "ranks": trainer.world_size,
            "versions": versions(),
            "generation": self._generation,
            "config_hash": settings_hash(settings),
        }


def _described(module: LightningModule) -> dict[str, Any]:
    describe = getattr(module, "protocol", None)
    return dict(describe()) if describe is not None else {}


def _hash_as_before(module: LightningModule) -> str | None:
    """Hash of the settings with the fingerprint that earlier versions computed; None if there was none."""
    describe = getattr(module, "protocol_as_before", None)
    return None if describe is None else settings_hash(describe())
