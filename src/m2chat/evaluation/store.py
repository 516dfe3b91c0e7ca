"""Values and embeddings that the metric callbacks of one evaluation share."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.evaluation.statistics import Estimate
from m2chat.metrics.encoders import TextImageEncoder
from m2chat.schema import Picture, Prediction

CACHED_EMBEDDINGS = 8192
"""Embeddings that are kept: enough for every caption and reference picture of a small validation set."""


@dataclass
class EvalStore:
    """Per-sample values, embeddings and results of one evaluation on this rank.

    A sample that a padding sampler hands to two ranks, or twice to one, counts once, by its id.

    Args:
        results: Metric name to its value over the data set, of all ranks.
        protocol: Settings of the metrics, for ``results.json``.
    """

    results: dict[str, Estimate] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    _values: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    _embeddings: OrderedDict[tuple[str, str | bytes], NDArray[np.float32]] = field(default_factory=OrderedDict)

    def start(self) -> None:
        """Clears the last evaluation; embeddings stay valid and are kept."""
        self.results.clear()
        self.protocol.clear()
        self._values.clear()

    def put(self, metric: str, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Records values of a metric for a sample; all but arrays go to ``predictions.jsonl``."""
        self._values[metric][prediction.id] = values

    def scores(self, prediction_id: str) -> dict[str, Any]:
        """The values of all metrics for one of this rank's samples, without arrays."""
        scores: dict[str, Any] = {}
        for by_id in self._values.values():
            values = by_id.get(prediction_id, {})
            scores |= {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        return scores

    def embed_texts(self, encoder: TextImageEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of n texts, (n, D); each text is encoded once."""
        return self._embed(encoder.name, encoder.encode_text, texts, texts)

    def embed_images(self, encoder: TextImageEncoder, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Unit vectors of n pictures, (n, D); each picture is encoded once."""
        keys = [hashlib.sha256(str(item.shape).encode() + item.tobytes()).digest() for item in pictures]
        return self._embed(encoder.name, encoder.encode_image, pictures, keys)

    def _embed(self, name: str, encode: Any, items: Sequence[Any], keys: Sequence[str | bytes]) -> NDArray[np.float32]:
        if not items:
            return np.zeros((0, 0), np.float32)
        new = {key: item for key, item in zip(keys, items, strict=True) if (name, key) not in self._embeddings}
        if new:
            for key, row in zip(new, encode(list(new.values())), strict=True):
                self._embeddings[name, key] = row
        rows = np.stack([self._embeddings[name, key] for key in keys])
        for key in keys:
            self._embeddings.move_to_end((name, key))
        while len(self._embeddings) > CACHED_EMBEDDINGS:
            self._embeddings.popitem(last=False)
        return rows
