"""CLIP score of generated pictures, with its controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from m2chat.callbacks.base import MetricCallback, refuse_not_finite
from m2chat.evaluation.store import EvalStore
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.base import CountMetric, SampleMetric
from m2chat.metrics.clip_score import CLIPImageMetric, CLIPScoreMetric, ShuffledCLIPScoreMetric, cosines
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
        name: Name of the score. Another one than ``clip_score`` stands for a second encoder on the same pictures, and
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
        metrics: dict[str, SampleMetric] = {name: CLIPScoreMetric()}
        if name == "clip_score":
            metrics |= {"clip_i": CLIPImageMetric(), "clip_score_shuffled": ShuffledCLIPScoreMetric()}
            metrics |= {"clip_score_oracle": CLIPScoreMetric()}
            metrics |= {"pictures_missing": CountMetric(), "clip_not_finite": CountMetric()}
        self.hold(metrics)
        self.in_validation = frozenset({name, "clip_i"})

    def protocol(self) -> dict[str, Any]:
        """Which encoder."""
        return {f"{self.name}_encoder": self.encoder.name, f"{self.name}_missing": self.missing}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Cosines of a prediction's pictures."""
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
        values: dict[str, Any] = {"clip": [*score[np.isfinite(score)].tolist(), *zeros]}
        if self.name == "clip_score":
            values |= {
                "clip_i": alike[np.isfinite(alike)].tolist(),
                "clip_oracle": cosines(images(known, "truth"), texts(known)).tolist(),
                "pictures_missing": lacking,
                "clip_not_finite": bad,
                "text_embeddings": wanted,
                "image_embeddings": given,
            }
            return values
        return {self.name: values["clip"]}

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the cosines to the metrics."""
        fields = {self.name: values["clip" if self.name == "clip_score" else self.name]}
        if self.name == "clip_score":
            fields |= {"clip_i": values["clip_i"], "clip_score_oracle": values["clip_oracle"]}
            fields |= {name: [values[name]] for name in ("pictures_missing", "clip_not_finite")}
            fields["clip_score_shuffled"] = np.concatenate([values["text_embeddings"], values["image_embeddings"]], 1)
        for name, rows in fields.items():
            self.metric(name).add(rows, prediction.id, prediction.kind)
