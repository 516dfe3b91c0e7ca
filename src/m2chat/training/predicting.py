"""What every module that is evaluated shares: replies for the metric callbacks, new or from an interrupted run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from m2chat.pipeline.replier import Given
from m2chat.schema import Batch, Prediction, Reply
from m2chat.text import Layout
from m2chat.training.config import EvalConfig
from m2chat.training.references import reference_of, with_blank_context
from m2chat.training.trained_only import TrainedOnlyModule

Replies = tuple[list[Reply], list[dict[str, Any]]]
"""The replies of a batch, and beside each what generation reported."""


class PredictingModule(TrainedOnlyModule):
    """A module whose validation and test steps return replies beside the true ones.

    A reply depends on its sample, the settings and the weights alone, never on its batch or rank: so replies that an
    interrupted evaluation has left on disk may stand in for new ones.
    """

    evaluation: EvalConfig
    """Settings of the generation of replies."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Mapping[str, tuple[Reply, Mapping[str, Any]]] = {}

    def max_tokens(self) -> int:
        """Maximum length of a sequence: that of the data, unless `evaluation` names another."""
        data = self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]
        of_data: int = getattr(data, "max_tokens", Layout.max_tokens)
        return self.evaluation.max_tokens or of_data

    def evaluation_settings(self) -> dict[str, Any]:
        """Settings on which replies depend, for the results file."""
        settings = {**asdict(self.evaluation), "max_tokens": self.max_tokens()}
        del settings["resume"]
        return settings

    @abstractmethod
    def generate(self, batch: Batch, given: Given) -> Replies:
        """Replies to the conversations of a batch.

        Args:
            batch: Conversations.
            given: What is given of the true replies.
        """

    def recall(self, known: Mapping[str, tuple[Reply, Mapping[str, Any]]]) -> None:
        """Takes these replies, by the ids of their predictions, instead of generating them."""
        self._known = known

    def predict_replies(self, batch: Batch) -> list[Prediction]:
        """Generates the batch's replies, but for those that are known, beside the true ones."""
        if self.evaluation.context == "blank":
            batch = with_blank_context(batch)
        names = [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        found = {index: self._known[name] for index, name in enumerate(names) if name in self._known}
        pairs = [sample.kind in ("caption", "instruct") for sample in batch.samples]
        for is_pair in (True, False):
            chosen = [index for index, value in enumerate(pairs) if value == is_pair and index not in found]
            if chosen:
                given: Given = "caption" if is_pair else self.evaluation.given
                replies, notes = self.generate(batch.select(chosen), given)
                found |= dict(zip(chosen, zip(replies, notes, strict=True), strict=True))
        return [
            reference_of(batch.samples[index], batch.turns[index], *found[index]) for index in range(len(batch.samples))
        ]

    # Lightning hands any output on to the callbacks; only its annotation of the two steps is narrower.

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)
