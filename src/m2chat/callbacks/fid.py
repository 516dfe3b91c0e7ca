"""Fréchet distance between true and generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from m2chat.callbacks.base import MetricCallback, count, flat, refuse_not_finite
from m2chat.evaluation import ranks
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.extractors import FeatureExtractor, MicroExtractor
from m2chat.metrics.fid import Moments, frechet_distance
from m2chat.schema import Prediction


class FID(MetricCallback):
    """Logs ``fid``, or ``fid_micro`` with the micro world's extractor.

    In a test also both numbers of pictures, and ``..._not_finite``: pictures left out because of their features. It
    has no interval: resampled pictures repeat, and the distance is biased upwards by that.

    Args:
        extractor: What turns pictures into features; the micro world's by default.
        reference: Moments of the true pictures, as ``m2chat eval moments`` writes them; None takes the true
            pictures of the samples themselves.
        strict: Whether features that are not finite stop the evaluation.
    """

    key = "fid"

    def __init__(
        self, extractor: FeatureExtractor | None = None, reference: str | None = None, strict: bool = False
    ) -> None:
        self.network = self.extractor = extractor or MicroExtractor()
        self.reference, self.strict = reference, strict

    def protocol(self) -> dict[str, Any]:
        """Which extractor, and which true pictures."""
        return {"fid_extractor": self.extractor.name, "fid_reference": self.reference or "the samples' own pictures"}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Features of true and generated pictures."""
        rows = []
        for prediction in predictions:
            targets = targets_of(prediction)
            real = [item.truth for item in targets if item.truth is not None]
            drawn = [item.generated for item in targets if item.generated is not None]
            features = self.extractor.extract([*real, *drawn])
            finite = np.isfinite(features).all(1)
            refuse_not_finite(self.strict, int((~finite).sum()), "a feature vector", prediction)
            sides = features[: len(real)], features[len(real) :]
            kept = [side[np.isfinite(side).all(1)] for side in sides]
            rows.append({"real": kept[0], "generated": kept[1], "fid_not_finite": int((~finite).sum())})
        return rows

    def results(self, store: EvalStore, full: bool) -> dict[str, Estimate]:
        """The distance, from what all ranks have."""
        own = store.own(self.key)
        real, generated = (self._of_all_ranks(own, side) for side in ("real", "generated"))
        if not full and real.n == generated.n == 0:
            return {}
        bad = sum(ranks.gather(int(count(own, "fid_not_finite").value)))
        return self._distance(real, generated, bad, full)

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """The distance over the given rows alone."""
        bad = int(count(rows, "fid_not_finite").value)
        return self._distance(self._moments(rows, "real"), self._moments(rows, "generated"), bad, full)

    def _moments(self, rows: Sequence[Row], side: str) -> Moments:
        features = flat(rows, side)
        return Moments.of(np.stack(features) if features else np.zeros((0, self.extractor.num_features)))

    def _of_all_ranks(self, rows: Sequence[Row], side: str) -> Moments:
        """Moments of one side over all ranks: every rank must call it."""
        own, width = self._moments(rows, side), self.extractor.num_features
        if sum(ranks.gather(own.n)) < width:
            # Fewer numbers than their sums of products, and they make the distance fast and exact.
            parts = [part for part in ranks.gather(own.features) if part is not None]
            return Moments.of(np.concatenate(parts))
        return Moments.unpack(ranks.add_up(own.pack()), width)

    def _distance(self, real: Moments, generated: Moments, bad: int, full: bool) -> dict[str, Estimate]:
        if self.reference is not None:
            real = Moments.load(Path(self.reference), self.extractor.name)
        name, fewest = self.extractor.metric, min(real.n, generated.n)
        results = {name: Estimate(frechet_distance(real, generated), fewest)}
        if full:
            if 1 < fewest < len(real.total):
                rank_zero_warn(f"{name} of {fewest} pictures in {len(real.total)} features is biased upwards")
            results[f"{name}_n_real"] = Estimate(real.n, real.n)
            results[f"{name}_n_generated"] = Estimate(generated.n, generated.n)
            results[f"{name}_not_finite"] = Estimate(bad, real.n + generated.n + bad)
        return results
