"""Whether an edited picture changed as it should, and stayed what it was otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.store import EvalStore
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.base import SampleMetric
from m2chat.metrics.clip_score import CLIPImageMetric, CLIPScoreMetric, cosines
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.metrics.tasks import EditDirectionMetric, direction_similarity
from m2chat.schema import Prediction

_NAMES = ("edit_direction", "edit_clip_i_source", "edit_text_score")


class EditScores(MetricCallback):
    """Logs three numbers of edited pictures, all times 100.

    ``edit_direction``: cosine between the change of the picture and the change of its caption. ``edit_clip_i_source``:
    CLIP-I to the picture before. ``edit_text_score``: CLIP score with the caption after. In a test each also as
    ``..._oracle``, of the true pictures. A picture that should have been edited and was not drawn is in no mean, as is
    a sample without a context picture, or whose caption is not known.

    Args:
        encoder: What embeds; the micro CLIP by default.
    """

    key = "edit"
    in_validation = frozenset(_NAMES)

    def __init__(self, encoder: TextImageEncoder | None = None) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()
        classes: tuple[type[SampleMetric], ...] = (EditDirectionMetric, CLIPImageMetric, CLIPScoreMetric)
        self.hold({name + end: kind() for name, kind in zip(_NAMES, classes, strict=True) for end in ("", "_oracle")})

    def protocol(self) -> dict[str, Any]:
        """Which encoder."""
        return {"edit_encoder": self.encoder.name}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """The three cosines of each picture, generated and true."""
        row: dict[str, Any] = {f"{name}{end}": [] for name in _NAMES for end in ("", "_oracle")}
        caption = prediction.meta.get("context_caption")
        if prediction.context is not None and caption:
            source = store.embed_images(self.encoder, [prediction.context])
            before = store.embed_texts(self.encoder, [caption])
            for target in targets_of(prediction):
                after = store.embed_texts(self.encoder, [target.caption])
                for end, picture in (("", target.generated), ("_oracle", target.truth)):
                    if picture is not None:
                        image = store.embed_images(self.encoder, [picture])
                        values = (
                            direction_similarity(source, image, before, after),
                            cosines(image, source),
                            cosines(image, after),
                        )
                        for name, value in zip(_NAMES, values, strict=True):
                            row[name + end] += value[np.isfinite(value)].tolist()
        return row

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the cosines to the metrics."""
        for name in values:
            self.metric(name).add(values[name], prediction.id, prediction.kind)
