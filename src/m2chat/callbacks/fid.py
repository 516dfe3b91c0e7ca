"""Fréchet distance between true and generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from m2chat.callbacks.base import MetricCallback, flat
from m2chat.evaluation import ranks
from m2chat.evaluation.statistics import Estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.extractors import FeatureExtractor, MicroExtractor
from m2chat.metrics.fid import Moments, frechet_distance
from m2chat.schema import Prediction


class FID(MetricCallback):
    """Logs ``fid``, or ``fid_micro`` with the micro world's extractor; in a test also both numbers of pictures.

    Args:
        extractor: What turns pictures into features; the micro world's by default.
    """

    key = "fid"

    def __init__(self, extractor: FeatureExtractor | None = None) -> None:
        self.network = self.extractor = extractor or MicroExtractor()

    def protocol(self) -> dict[str, Any]:
        """Which extractor."""
        return {"fid_extractor": self.extractor.name}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Features of true and generated pictures."""
        rows = []
        for prediction in predictions:
            targets = targets_of(prediction)
            real = [item.truth for item in targets if item.truth is not None]
            drawn = [item.generated for item in targets if item.generated is not None]
            features = self.extractor.extract([*real, *drawn])
            rows.append({"real": features[: len(real)], "generated": features[len(real) :]})
        return rows

    def results(self, store: EvalStore, full: bool) -> dict[str, Estimate]:
        """The distance, from sums over all ranks: features themselves would be too much to send around."""
        own = store.own(self.key)
        width = self.extractor.num_features
        real, generated = (
            Moments.unpack(ranks.add_up(self._moments(own, side, width).pack()), width)
            for side in ("real", "generated")
        )
        if not full and real.n == generated.n == 0:
            return {}
        return self._distance(real, generated, full)

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """The distance over the given rows alone."""
        width = self.extractor.num_features
        return self._distance(self._moments(rows, "real", width), self._moments(rows, "generated", width), full)

    @staticmethod
    def _moments(rows: Sequence[Row], side: str, width: int) -> Moments:
        features = flat(rows, side)
        return Moments.of(np.stack(features) if features else np.zeros((0, width)))

    def _distance(self, real: Moments, generated: Moments, full: bool) -> dict[str, Estimate]:
        name, fewest = self.extractor.metric, min(real.n, generated.n)
        results = {name: Estimate(frechet_distance(real, generated), fewest)}
        if full:
            if 1 < fewest < len(real.total):
                rank_zero_warn(f"{name} of {fewest} pictures in {len(real.total)} features is biased upwards")
            results[f"{name}_n_real"] = Estimate(real.n, real.n)
            results[f"{name}_n_generated"] = Estimate(generated.n, generated.n)
        return results
