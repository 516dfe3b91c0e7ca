"""What the metric callbacks have in common: when they measure, what they share and how they log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MetricCollection

from m2chat.errors import UserError
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.base import CountMetric, Gathered, SampleCount, SampleMetric
from m2chat.schema import KINDS, Prediction

EvalLoop = Literal["val", "test"]

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

    def begin(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Before the first batch."""

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: EvalLoop) -> None:
        """After a batch that generated something."""

    def finish(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """After the last batch, on all ranks."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins."""
        self.begin(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins."""
        self.begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any, **named: Any
    ) -> None:
        """Passes the predictions on."""
        if predictions := predictions_of(outputs):
            self.see(trainer, predictions, "val")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any, **named: Any
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

    It holds a `torchmetrics.MetricCollection`, a metric for each number that it logs. Collection and networks belong
    to the callback and never to the Lightning module: there they would be cast, sharded and saved with the model.
    """

    key: str
    """Name of the callback's values in the store."""
    network: Network | None = None
    """Encoder or extractor, if it measures with one."""
    in_validation: frozenset[str] = frozenset()
    """Names of the metrics that a validation logs; a test logs all."""
    metrics: Any
    """`MetricCollection` of what `hold` was given."""

    def hold(self, metrics: Mapping[str, SampleMetric]) -> None:
        """Sets the metrics, by the names under which they are logged."""
        self.metrics = MetricCollection(dict(metrics), compute_groups=False)
        self.seen = SampleCount()

    def metric(self, name: str) -> Any:
        """One of the metrics, as what `hold` was given."""
        return self.metrics[name]

    @abstractmethod
    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Values of a prediction by name, as ``predictions.jsonl`` keeps them; arrays are not kept."""

    @abstractmethod
    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the values of one prediction to the metrics."""

    def protocol(self) -> dict[str, Any]:
        """How it measures, for ``results.json``."""
        return {}

    def begin(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Empties the store and the metrics; every callback does so before the first batch."""
        if self.network is not None:
            self.network.to(module.device)
        store_of(trainer).start()
        self.reset(module.device)

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Empties the metrics, and moves them to where ranks exchange their states."""
        for metric in (self.metrics, self.seen):
            metric.reset()
            metric.to(device)

    def see(self, trainer: Trainer, predictions: list[Prediction], stage: EvalLoop) -> None:
        """Measures a batch."""
        self.update(store_of(trainer), predictions)

    def update(self, store: EvalStore, predictions: Sequence[Prediction]) -> None:
        """Measures predictions, and adds their values to the store and to the metrics."""
        for prediction in predictions:
            values = self.measure(store, prediction)
            store.put(self.key, prediction, values)
            self.add(prediction, values)
        self.seen.update([prediction.kind for prediction in predictions])

    def finish(self, trainer: Trainer, module: LightningModule, stage: EvalLoop) -> None:
        """Logs the numbers; after merging every rank has the same values."""
        store = store_of(trainer)
        results = self.results(stage == "test")
        store.results.update(results)
        store.protocol.update(self.protocol())
        values = {f"{stage}/{name}": item.value for name, item in results.items()}
        # The mean of equal values changes nothing, and without it Lightning warns once a metric.
        module.log_dict(values, rank_zero_only=False, sync_dist=True)

    def results(self, full: bool) -> dict[str, Estimate]:
        """Over the data set and, in a test of several kinds of sample, over each: ``bleu_1/dialogue``.

        A validation that generated nothing logs nothing; a test without samples logs NaN. Every rank must call it.
        """
        with self.seen.sync_context():
            counts = self.seen.counts.tolist()
        values = {name: self.metric(name).gather() for name in self.metrics}
        if not any(counts) and not full:
            return {}
        results = self.summarise(values, full)
        kinds = sorted(kind for kind, count in zip(KINDS, counts, strict=True) if count)
        if full and len(kinds) > 1:
            for kind in kinds:
                part = self.summarise({name: item.of_kind(kind) for name, item in values.items()}, full)
                results |= {f"{name}/{kind}": item for name, item in part.items() if item.n}
        return results

    def summarise(self, values: Mapping[str, Gathered], full: bool) -> dict[str, Estimate]:
        """Numbers over the data set or over one kind of sample.

        Args:
            values: Values of each metric.
            full: Whether to add what only a test needs, such as controls.
        """
        names = [name for name in values if full or name in self.in_validation]
        return {name: self.estimate(name, values[name]) for name in names}

    def estimate(self, name: str, values: Gathered) -> Estimate:
        """A metric over gathered values, with its interval; a counter has none."""
        metric = self.metric(name)
        if isinstance(metric, CountMetric):
            return Estimate(float(values.values.sum()), len(values))
        return estimate(metric.scores(values), metric.statistic)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frees the network."""
        if self.network is not None:
            self.network.release()


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
