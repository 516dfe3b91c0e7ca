"""CLIP score of generated pictures, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback, count, flat
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.clip_score import clip_score, cosines, mean_score
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.schema import Prediction


class CLIPScore(MetricCallback):
    """Logs ``clip_score``: generated pictures against the captions that they should show.

    Beside it ``clip_i`` (against the true pictures); in a test also ``clip_score_shuffled`` (the same pictures
    against the captions of other samples), ``clip_score_oracle`` (the true pictures), ``pictures_missing`` (due but
    not drawn, and so in no mean) and ``clip_not_finite`` (left out too).

    Args:
        encoder: What embeds; the micro CLIP by default.
    """

    key = "clip_score"

    def __init__(self, encoder: TextImageEncoder | None = None) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()

    def protocol(self) -> dict[str, Any]:
        """Which encoder."""
        return {"clip_score_encoder": self.encoder.name}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Cosines of each prediction's pictures."""
        return [self._measure(store, prediction) for prediction in predictions]

    def _measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        targets = targets_of(prediction)
        drawn = [item for item in targets if item.generated is not None]
        known = [item for item in targets if item.truth is not None]
        both = [item for item in drawn if item.truth is not None]

        def texts(items: list[Any]) -> Any:
            return store.embed_texts(self.encoder, [item.caption for item in items])

        def images(items: list[Any], name: str) -> Any:
            return store.embed_images(self.encoder, [getattr(item, name) for item in items])

        wanted, given = texts(drawn), images(drawn, "generated")
        score = cosines(given, wanted)
        return {
            "clip": score[np.isfinite(score)].tolist(),
            "clip_i": cosines(images(both, "generated"), images(both, "truth")).tolist(),
            "clip_oracle": cosines(images(known, "truth"), texts(known)).tolist(),
            "pictures_missing": len(targets) - len(drawn),
            "clip_not_finite": int((~np.isfinite(score)).sum()),
            "text_embeddings": wanted,
            "image_embeddings": given,
        }

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """The score, and in a test its controls."""
        results = {
            "clip_score": estimate(flat(rows, "clip"), clip_score),
            "clip_i": estimate(flat(rows, "clip_i"), mean_score),
        }
        if full:
            results["clip_score_shuffled"] = estimate(self._shuffled(rows), clip_score)
            results["clip_score_oracle"] = estimate(flat(rows, "clip_oracle"), clip_score)
            results["pictures_missing"] = count(rows, "pictures_missing")
            results["clip_not_finite"] = count(rows, "clip_not_finite")
        return results

    @staticmethod
    def _shuffled(rows: Sequence[Row]) -> list[float]:
        """Cosines with the captions rolled by one; rows come in an order without meaning."""
        texts, images = flat(rows, "text_embeddings"), flat(rows, "image_embeddings")
        if len(texts) < 2:
            return []
        values = cosines(np.stack(images), np.roll(np.stack(texts), 1, axis=0))
        return [float(value) for value in values if np.isfinite(value)]
