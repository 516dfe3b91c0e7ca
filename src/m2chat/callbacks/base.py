"""What the metric callbacks have in common: when they measure, what they share and how they log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from m2chat.errors import UserError
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.schema import Prediction

Stage = Literal["val", "test"]

_STORES: WeakKeyDictionary[Trainer, EvalStore] = WeakKeyDictionary()


def store_of(trainer: Trainer) -> EvalStore:
    """The store that all callbacks of a trainer share."""
    return _STORES.setdefault(trainer, EvalStore())


def predictions_of(outputs: Any) -> list[Prediction]:
    """What a validation or test step returned; empty for a step that generated nothing.

    Raises:
        TypeError: If it is neither None nor a list of predictions.
    """
    if outputs is None:
        return []
    if not isinstance(outputs, list) or not all(isinstance(item, Prediction) for item in outputs):
        raise TypeError(
            "evaluation callbacks read the list of m2chat.schema.Prediction that validation_step and test_step "
            f"return (or None), not {type(outputs).__name__}"
        )
    return outputs


class Network(Protocol):
    """An encoder or extractor: on a device while it is used, freed afterwards."""

    def to(self, device: torch.device) -> None:
        """Chooses where to compute."""
        ...

    def release(self) -> None:
        """Frees the weights; the next use loads them again."""
        ...


class EvaluationCallback(Callback):
    """A callback that treats validation and test alike."""

    def begin(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """Before the first batch."""

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: Stage) -> None:
        """After a batch that generated something."""

    def finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """After the last batch, on all ranks."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins."""
        self.begin(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins."""
        self.begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Passes the predictions on."""
        if predictions := predictions_of(outputs):
            self.see(trainer, predictions, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Passes the predictions on."""
        if predictions := predictions_of(outputs):
            self.see(trainer, predictions, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes."""
        self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes."""
        self.finish(trainer, pl_module, "test")


class MetricCallback(EvaluationCallback, ABC):
    """Measures every prediction and logs numbers over the data set, ``val/...`` or ``test/...``.

    Its networks belong to the callback and never to the Lightning module: there they would be cast, sharded and
    saved with the model.
    """

    key: str
    """Names the callback's findings in the store."""
    network: Network | None = None
    """What it measures with, if it measures with a network."""

    @abstractmethod
    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """What is found in each prediction."""

    @abstractmethod
    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """Numbers over the findings of a data set or of one kind of sample.

        Args:
            rows: Findings, each sample once.
            full: Whether to add what only a test needs, such as controls.
        """

    def protocol(self) -> dict[str, Any]:
        """How it measures, for ``results.json``."""
        return {}

    def begin(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """Empties the store; every callback does so before the first batch."""
        if self.network is not None:
            self.network.to(module.device)
        store_of(trainer).start()

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: Stage) -> None:
        """Notes what is found in a batch."""
        store = store_of(trainer)
        for prediction, values in zip(predictions, self.measure(store, predictions), strict=True):
            store.put(self.key, prediction, values)

    def finish(self, trainer: Trainer, module: LightningModule, stage: Stage) -> None:
        """Logs the numbers; every rank has all findings and so the same values."""
        store = store_of(trainer)
        results = self.results(store, stage == "test")
        store.results.update(results)
        store.protocol.update(self.protocol())
        values = {f"{stage}/{name}": item.value for name, item in results.items()}
        # The mean of equal values changes nothing, and without it Lightning warns once a metric.
        module.log_dict(values, rank_zero_only=False, sync_dist=True)

    def results(self, store: EvalStore, full: bool) -> dict[str, Estimate]:
        """Over the data set and, in a test of several kinds of sample, over each: ``bleu_1/dialogue``.

        A validation that generated nothing logs nothing; a test without samples logs NaN.
        """
        rows = store.joined(self.key)
        if not rows and not full:
            return {}
        results = self.summarise(rows, full)
        kinds = sorted({row.kind for row in rows})
        if full and len(kinds) > 1:
            for kind in kinds:
                part = self.summarise([row for row in rows if row.kind == kind], full)
                results |= {f"{name}/{kind}": item for name, item in part.items() if item.n}
        return results

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the network."""
        if self.network is not None:
            self.network.release()


def flat(rows: Sequence[Row], name: str) -> list[Any]:
    """One finding of all rows, where each row holds a list of it."""
    return [value for row in rows for value in row.values[name]]


def count(rows: Sequence[Row], name: str) -> Estimate:
    """The sum of a counter, as a number without an interval."""
    return Estimate(float(sum(row.values[name] for row in rows)), len(rows))


def refuse_not_finite(strict: bool, bad: int, what: str, prediction: Prediction) -> None:
    """Stops an evaluation at embeddings or features that are not finite, if it is to be strict.

    Raises:
        UserError: That names the sample.
    """
    if strict and bad:
        raise UserError(
            f"{what} of sample {prediction.id!r} is not finite (strict=True): look at its picture and text, or set "
            "strict to false, which leaves such samples out and counts them"
        )
