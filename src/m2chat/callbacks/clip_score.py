"""CLIP score of generated pictures, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from m2chat.callbacks.base import MetricCallback, count, flat, refuse_not_finite
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
    not drawn) and ``clip_not_finite`` (in no mean).

    Args:
        encoder: What embeds; the micro CLIP by default.
        missing: A picture that is due but was not drawn is in no mean (``skip``), or counts 0 in ``clip_score``
            (``zero``).
        strict: Whether an embedding that is not finite stops the evaluation, instead of being left out and counted.
        name: Of the score. Another one than ``clip_score`` stands for a second encoder on the same pictures, and
            logs nothing but the score itself.
    """

    def __init__(
        self,
        encoder: TextImageEncoder | None = None,
        missing: Literal["skip", "zero"] = "skip",
        strict: bool = False,
        name: str = "clip_score",
    ) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()
        self.missing, self.strict = missing, strict
        self.key = self.name = name

    def protocol(self) -> dict[str, Any]:
        """Which encoder."""
        return {f"{self.name}_encoder": self.encoder.name, f"{self.name}_missing": self.missing}

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
        score, alike = cosines(given, wanted), cosines(images(both, "generated"), images(both, "truth"))
        bad, lacking = int((~np.isfinite(score)).sum()), len(targets) - len(drawn)
        refuse_not_finite(self.strict, bad, "a CLIP embedding", prediction)
        zeros = [0.0] * lacking if self.missing == "zero" else []
        found: dict[str, Any] = {"clip": [*score[np.isfinite(score)].tolist(), *zeros]}
        if self.name == "clip_score":
            found |= {
                "clip_i": alike[np.isfinite(alike)].tolist(),
                "clip_oracle": cosines(images(known, "truth"), texts(known)).tolist(),
                "pictures_missing": lacking,
                "clip_not_finite": bad,
                "text_embeddings": wanted,
                "image_embeddings": given,
            }
            return found
        return {self.name: found["clip"]}

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """The score, and in a test its controls."""
        if self.name != "clip_score":
            return {self.name: estimate(flat(rows, self.name), clip_score)}
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
