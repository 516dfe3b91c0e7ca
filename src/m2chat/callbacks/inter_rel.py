"""InterRel (Eq. 8) and MM-Relevance of generated replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback, refuse_not_finite
from m2chat.evaluation.store import EvalStore
from m2chat.metrics.base import CountMetric, SampleMetric
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.metrics.inter_rel import (
    Elements,
    InterRelMetric,
    InterRelOptions,
    MMRelevanceMetric,
    Modality,
    inter_rel,
    mm_relevance,
)
from m2chat.schema import Picture, Prediction, Reply

LITERAL = InterRelOptions(reduction="sum")
"""Eq. 8 as it is printed."""
_MEANS = (
    "inter_rel", "mm_relevance", "inter_rel_sum", "inter_rel_oracle", "mm_relevance_precision", "mm_relevance_recall",
)  # fmt: skip


class InterRel(MetricCallback):
    """Logs ``inter_rel`` and ``mm_relevance`` (F1), means over the replies for which they are defined.

    In a test also ``inter_rel_sum`` (Eq. 8 to the letter), ``inter_rel_oracle`` (the true replies against
    themselves: the most that can be expected of this encoder), ``inter_rel_undefined`` (replies in which no text
    meets a picture), ``inter_rel_not_finite`` (left out), and precision and recall of MM-Relevance.

    Args:
        encoder: What embeds; the micro CLIP by default.
        options: Another reading of Eq. 8.
        strict: Whether an embedding that is not finite stops the evaluation.
    """

    key = "inter_rel"
    in_validation = frozenset({"inter_rel", "mm_relevance"})

    def __init__(
        self,
        encoder: TextImageEncoder | None = None,
        options: InterRelOptions | None = None,
        strict: bool = False,
    ) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()
        self.options, self.strict = options or InterRelOptions(), strict
        metrics: dict[str, SampleMetric] = {name: SampleMetric() for name in _MEANS}
        metrics |= {"inter_rel": InterRelMetric(self.options), "mm_relevance": MMRelevanceMetric()}
        metrics |= {"inter_rel_undefined": CountMetric(), "inter_rel_not_finite": CountMetric()}
        self.hold(metrics)

    def protocol(self) -> dict[str, Any]:
        """Which encoder and which reading of Eq. 8."""
        return {"inter_rel_encoder": self.encoder.name, "inter_rel": asdict(self.options)}

    def elements(self, store: EvalStore, reply: Reply) -> Elements:
        """A reply's texts and pictures, embedded; blank texts are no elements."""
        source = self.options.text_source
        texts = [(item.answer if source == "answer" else item.caption) or "" for item in reply.segments]
        order: list[Modality] = []
        for text, image in zip(texts, reply.images, strict=True):
            order += ["T"] if text.strip() else []
            order += ["V"] if image is not None else []
        words = iter(store.embed_texts(self.encoder, [text for text in texts if text.strip()]))
        pictures: list[Picture] = reply.pictures
        images = iter(store.embed_images(self.encoder, pictures))
        rows = [next(words) if modality == "T" else next(images) for modality in order]
        return Elements(order, np.stack(rows) if rows else np.zeros((0, 0), np.float32))

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Values of a reply; None where one is not defined."""
        reference = self.elements(store, prediction.reference)
        generated = self.elements(store, prediction.generated)
        finite = reference.finite and generated.finite
        refuse_not_finite(self.strict, not finite, "a CLIP embedding", prediction)
        values: dict[str, Any] = {**dict.fromkeys(_MEANS), "inter_rel_not_finite": not finite}
        if finite:
            way = self.options.reduction
            values["inter_rel"] = inter_rel(reference, generated, self.options).reduced(way)
            values["inter_rel_sum"] = inter_rel(reference, generated, LITERAL).reduced("sum")
            values["inter_rel_oracle"] = inter_rel(reference, reference, self.options).reduced(way)
            if relevance := mm_relevance(reference, generated):
                values["mm_relevance"] = relevance.f1
                values["mm_relevance_precision"] = relevance.precision
                values["mm_relevance_recall"] = relevance.recall
        return values

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the values that are defined to the metrics."""
        for name in _MEANS:
            defined = [] if values[name] is None else [values[name]]
            self.metric(name).add(defined, prediction.id, prediction.kind)
        bad = values["inter_rel_not_finite"]
        counts = {"inter_rel_undefined": values["inter_rel"] is None and not bad, "inter_rel_not_finite": bad}
        for name, count in counts.items():
            self.metric(name).add([float(count)], prediction.id, prediction.kind)
