"""Base of every module that is evaluated: generated replies beside the reference replies, for the metric callbacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from m2chat.batch import Batch
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig
from m2chat.pipeline.replier import Given
from m2chat.schema import Prediction, Reply, Sample
from m2chat.text import Layout, view_of
from m2chat.text.view import replies_of
from m2chat.training.config import EvalConfig
from m2chat.training.trained_only import TrainedOnlyModule

Replies = tuple[list[Reply], list[dict[str, Any]]]
"""The replies of a batch, and values that generation reported of each."""


class PredictingModule(TrainedOnlyModule):
    """A module whose validation and test steps return generated replies beside the reference replies.

    A reply depends on its sample, the settings and the weights alone, never on its batch or rank: so replies that an
    interrupted evaluation has left on disk can replace new ones.
    """

    evaluation: EvalConfig
    """Settings of the generation of replies."""
    backbone: BackboneConfig
    """Paths of the pretrained networks."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Mapping[str, tuple[Reply, Mapping[str, Any]]] = {}

    @property
    def data_module(self) -> Any:
        """The data of the run; None for a module that is used without a trainer."""
        return getattr(self._trainer, "datamodule", None)

    def max_tokens(self) -> int:
        """Maximum length of a sequence: that of the data, unless `evaluation` names another."""
        of_data: int = getattr(self.data_module, "max_tokens", Layout.max_tokens)
        return self.evaluation.max_tokens or of_data

    def evaluation_settings(self) -> dict[str, Any]:
        """Settings on which replies depend, for the results file."""
        steps, guidance = self.evaluation.drawing(self.backbone.decoder)
        settings = {**asdict(self.evaluation), "steps": steps, "guidance": guidance, "max_tokens": self.max_tokens()}
        del settings["resume"], settings["weights"]  # a results file has the weights themselves under that name
        # Named only where there is something to name: results of earlier versions stay comparable.
        return settings if self.backbone.decoder == DecoderConfig() else settings | {"decoder": self._decoder()}

    def _decoder(self) -> dict[str, Any]:
        """What of the image decoder is replaced, and how it draws."""
        return {name: value for name, value in asdict(self.backbone.decoder).items() if value}

    @abstractmethod
    def generate(self, batch: Batch, given: Given) -> Replies:
        """Replies to the conversations of a batch.

        Args:
            batch: Conversations.
            given: Part of the reference replies that the model is given.
        """

    def recall(self, known: Mapping[str, tuple[Reply, Mapping[str, Any]]]) -> None:
        """Sets replies that are not generated again.

        Args:
            known: Replies and their notes, by the ids of their predictions.
        """
        self._known = known

    def predict_replies(self, batch: Batch) -> list[Prediction]:
        """Predictions of a batch: its replies, generated unless they are known, beside the reference replies."""
        if self.evaluation.context == "blank":
            batch = replace(batch, context_pixels=torch.zeros_like(batch.context_pixels))
        names = [f"{sample.id}#{turn}" for sample, turn in zip(batch.samples, batch.turns, strict=True)]
        replies = {index: self._known[name] for index, name in enumerate(names) if name in self._known}
        # Caption pairs are drawn from their captions; all else is generated as `evaluation.given` states.
        pairs = [sample.kind in ("caption", "instruct") for sample in batch.samples]
        for is_pair in (True, False):
            chosen = [index for index, value in enumerate(pairs) if value == is_pair and index not in replies]
            if chosen:
                given: Given = "caption" if is_pair else self.evaluation.given
                generated, notes = self.generate(batch.select(chosen), given)
                replies |= dict(zip(chosen, zip(generated, notes, strict=True), strict=True))
        places = enumerate(zip(batch.samples, batch.turns, strict=True))
        return [prediction_of(sample, turn, *replies[index]) for index, (sample, turn) in places]

    # Lightning hands any output on to the callbacks; only its annotation of the two steps is narrower.

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Replies for the metric callbacks."""
        return self.predict_replies(batch)


def prediction_of(sample: Sample, turn: int, generated: Reply, note: Mapping[str, Any]) -> Prediction:
    """A generated reply beside its reference.

    Its meta holds the reply's index among the replies (``reply``) and among the turns (``turn``), and the indices of
    the reference pictures (``targets``).

    Args:
        sample: Conversation.
        turn: Index of the reference reply among the turns.
        generated: Reply of the model.
        note: Values that generation reported.
    """
    view = view_of(sample, turn)
    images = tuple(None if target is None else sample.images[target].pixels for target in view.targets)
    targets = [target for target in view.targets if target is not None]
    meta = {**sample.meta, **note, "reply": replies_of(sample).index(turn), "turn": turn, "targets": targets}
    if view.context is not None:
        meta["context_caption"] = sample.images[view.context].caption
    return Prediction(
        f"{sample.id}#{turn}",
        sample.kind,
        sample.source,
        view.request.instruction,
        Reply(view.reply, images),
        generated,
        None if view.context is None else sample.images[view.context].pixels,
        meta,
    )
