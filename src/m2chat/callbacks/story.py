"""Whether the pictures of a story belong together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore, Row
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.clip_score import clip_score, cosines
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.metrics.tasks import consistency
from m2chat.schema import Prediction


class StoryConsistency(MetricCallback):
    """Logs ``story_consistency``: CLIP-I between each picture of a story and the next.

    It is the mean over stories of the mean over their pairs; a frame that was not drawn is in no pair, nor is one whose
    neighbour was not among the samples. In a test
    also ``story_consistency_oracle`` (of the true pictures: stories change, so 100 is not the aim) and
    ``clip_score_frame_1``, ``_2``, ...: the CLIP score of each frame by its place. Each frame is generated from the
    true parts of the story before it.

    Args:
        encoder: What embeds; the micro CLIP by default.
    """

    key = "story"

    def __init__(self, encoder: TextImageEncoder | None = None) -> None:
        self.network = self.encoder = encoder or OpenClipEncoder()

    def protocol(self) -> dict[str, Any]:
        """Which encoder, and what comes before a frame."""
        return {"story_encoder": self.encoder.name, "story_history": "true"}

    def measure(self, store: EvalStore, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """Embeddings of each reply's pictures."""
        rows: list[dict[str, Any]] = []
        for prediction in predictions:
            targets = targets_of(prediction)
            drawn = [item for item in targets if item.generated is not None]
            known = [item.truth for item in targets if item.truth is not None]
            pictures = [item.generated for item in drawn if item.generated is not None]
            given = store.embed_images(self.encoder, pictures)
            fits = iter(cosines(given, store.embed_texts(self.encoder, [item.caption for item in drawn])))
            values = [next(fits) if item.generated is not None else np.nan for item in targets]
            rows.append(
                {
                    "place": int(prediction.meta.get("reply", prediction.id.rpartition("#")[2])),
                    "frames": given,
                    "frames_there": np.array([item.generated is not None for item in targets], bool),
                    "true_frames": store.embed_images(self.encoder, known),
                    "true_frames_there": np.array([item.truth is not None for item in targets], bool),
                    "frame_clip": [float(value) if np.isfinite(value) else None for value in values],
                }
            )
        return rows

    def summarise(self, rows: Sequence[Row], full: bool) -> dict[str, Estimate]:
        """Over the stories."""
        stories: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: int(row.id.rpartition("#")[2])):
            stories[row.id.rpartition("#")[0]].append(row)
        results = {"story_consistency": self._consistency(stories.values(), "frames")}
        if full:
            results["story_consistency_oracle"] = self._consistency(stories.values(), "true_frames")
            places: dict[int, list[float]] = defaultdict(list)
            for story in stories.values():
                for place, value in enumerate((value for row in story for value in row.values["frame_clip"]), 1):
                    if value is not None:
                        places[place].append(value)
            for place, values in sorted(places.items()):
                results[f"clip_score_frame_{place}"] = estimate(values, clip_score)
        return results

    @staticmethod
    def _consistency(stories: Any, name: str) -> Estimate:
        means = []
        for story in stories:
            frames, before = list[NDArray[np.float32] | None](), None
            for row in story:
                if before is not None and row.values["place"] != before + 1:
                    frames.append(None)
                before, drawn = row.values["place"], iter(row.values[name])
                # One that is not there keeps its place, and is in no pair.
                frames += [next(drawn) if there else None for there in row.values[f"{name}_there"]]
            known = next((frame for frame in frames if frame is not None), None)
            if known is None:
                continue
            nothing = np.full_like(known, np.nan)
            pairs = consistency(np.stack([nothing if frame is None else frame for frame in frames]))
            pairs = pairs[np.isfinite(pairs)]
            if len(pairs):
                means.append(100.0 * float(pairs.mean()))
        return estimate(means)
