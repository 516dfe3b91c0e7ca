"""Fréchet distance between true and generated pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from m2chat.callbacks.base import MetricCallback, refuse_not_finite
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.base import CountMetric, Gathered
from m2chat.metrics.extractors import FeatureExtractor, MicroExtractor
from m2chat.metrics.fid import FrechetDistanceMetric, Moments, frechet_distance
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
        moments = None if reference is None else Moments.load(Path(reference), self.extractor.name)
        distance = FrechetDistanceMetric(self.extractor.num_features, reference=moments)
        self.hold({self.extractor.metric: distance, "not_finite": CountMetric()})

    def protocol(self) -> dict[str, Any]:
        """Which extractor, and which true pictures."""
        return {"fid_extractor": self.extractor.name, "fid_reference": self.reference or "the samples' own pictures"}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Features of true and generated pictures."""
        targets = targets_of(prediction)
        real = [item.truth for item in targets if item.truth is not None]
        drawn = [item.generated for item in targets if item.generated is not None]
        features = self.extractor.extract([*real, *drawn])
        finite = np.isfinite(features).all(1)
        refuse_not_finite(self.strict, int((~finite).sum()), "a feature vector", prediction)
        sides = features[: len(real)], features[len(real) :]
        kept = [side[np.isfinite(side).all(1)] for side in sides]
        return {"real": kept[0], "generated": kept[1], "fid_not_finite": int((~finite).sum())}

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the features to the metric."""
        real, generated = values["real"], values["generated"]
        sides = np.repeat([0, 1], [len(real), len(generated)])
        rows = np.concatenate([real, generated])
        self.metric(self.extractor.metric).add(rows, prediction.id, prediction.kind, generated=sides)
        self.metric("not_finite").add([values["fid_not_finite"]], prediction.id, prediction.kind)

    def summarise(self, values: Mapping[str, Gathered], full: bool) -> dict[str, Estimate]:
        """The distance, and in a test the numbers of pictures behind it."""
        name = self.extractor.metric
        real, generated = self.metric(name).moments(values[name])
        fewest = min(real.n, generated.n)
        if not full and real.n == generated.n == 0:
            return {}
        results = {name: Estimate(frechet_distance(real, generated), fewest)}
        if full:
            if 1 < fewest < len(real.total):
                rank_zero_warn(f"{name} of {fewest} pictures in {len(real.total)} features is biased upwards")
            bad = int(self.estimate("not_finite", values["not_finite"]).value)
            results[f"{name}_n_real"] = Estimate(real.n, real.n)
            results[f"{name}_n_generated"] = Estimate(generated.n, generated.n)
            results[f"{name}_not_finite"] = Estimate(bad, real.n + generated.n + bad)
        return results
