"""InterRel (Eq. 8) and MM-Relevance of generated replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.metrics.encoders import OpenClipEncoder, Picture, TextImageEncoder
from m2chat.metrics.inter_rel import Elements, Modality, inter_rel, mm_relevance
from m2chat.schema import Prediction, Reply


class InterRel(MetricCallback):
    """Logs ``inter_rel`` and ``mm_relevance``, means over the replies for which they are defined.

    In a test also ``inter_rel_sum`` (Eq. 8 to the letter), ``inter_rel_oracle`` (the true replies against
    themselves: the most that can be expected of this encoder) and ``inter_rel_undefined`` (replies in which no text
    meets a picture).

    Args:
        encoder: What embeds; the micro CLIP by default.
    """

    key = "inter_rel"

    def __init__(self, encoder: TextImageEncoder | None = None) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()

    def protocol(self) -> dict[str, Any]:
        """Which encoder and which reading of Eq. 8."""
        return {
            "inter_rel_encoder": self.encoder.name,
            "inter_rel": "mean over slots, both directions, missing element = 0, text = answer",
        }

    def elements(self, store: EvalStore, reply: Reply) -> Elements:
        """A reply's answers and pictures, embedded; captions are the model's own business and do not count."""
        order: list[Modality] = []
        for segment, image in zip(reply.segments, reply.images, strict=True):
            order += ["T"] if segment.answer.strip() else []
            order += ["V"] if image is not None else []
        texts = iter(store.embed_texts(self.encoder, reply.texts))
        pictures: list[Picture] = reply.pictures
        images = iter(store.embed_images(self.encoder, pictures))
        rows = [next(texts) if modality == "T" else next(images) for modality in order]
        return Elements(order, np.stack(rows) if rows else np.zeros((0, 0), np.float32))

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Each reply's values; None where one is not defined."""
        rows = []
        for prediction in predictions:
            reference = self.elements(store, prediction.reference)
            generated = self.elements(store, prediction.generated)
            value = inter_rel(reference, generated)
            rows.append(
                {
                    "inter_rel": value.mean,
                    "inter_rel_sum": value.total if value.slots else None,
                    "inter_rel_oracle": inter_rel(reference, reference).mean,
                    "mm_relevance": mm_relevance(reference, generated),
                }
            )
        return rows

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """Means over the replies for which a value is defined."""
        names = ["inter_rel", "mm_relevance"] + (["inter_rel_sum", "inter_rel_oracle"] if full else [])
        results = {}
        for name in names:
            values = [row.values[name] for row in rows]
            results[name] = estimate([value for value in values if value is not None])
        if full:
            undefined = sum(row.values["inter_rel"] is None for row in rows)
            results["inter_rel_undefined"] = Estimate(float(undefined), len(rows))
        return results
