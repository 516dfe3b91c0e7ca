"""Whether an edited picture changed as it should, and stayed what it was otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m2chat.callbacks.base import MetricCallback, flat
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.clip_score import clip_score, cosines, mean_score
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.metrics.tasks import direction_similarity
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

    def __init__(self, encoder: TextImageEncoder | None = None) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()

    def protocol(self) -> dict[str, Any]:
        """Which encoder."""
        return {"edit_encoder": self.encoder.name}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The three cosines of each picture, generated and true."""
        rows = []
        for prediction in predictions:
            found: dict[str, Any] = {f"{name}{end}": [] for name in _NAMES for end in ("", "_oracle")}
            said = prediction.meta.get("context_caption")
            if prediction.context is not None and said:
                source = store.embed_images(self.encoder, [prediction.context])
                before = store.embed_texts(self.encoder, [said])
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
                                found[name + end] += value[np.isfinite(value)].tolist()
            rows.append(found)
        return rows

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """The means."""
        ends = ("", "_oracle") if full else ("",)
        return {
            name + end: estimate(flat(rows, name + end), clip_score if name == "edit_text_score" else mean_score)
            for name in _NAMES
            for end in ends
        }
