"""Whether the pictures of a story belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2chat.callbacks.base import MetricCallback
from m2chat.evaluation.statistics import Estimate, estimate
from m2chat.evaluation.store import EvalStore
from m2chat.evaluation.targets import targets_of
from m2chat.metrics.base import Gathered, SampleMetric, sample_hash
from m2chat.metrics.clip_score import clip_score, cosines
from m2chat.metrics.encoders import OpenClipEncoder, TextImageEncoder
from m2chat.metrics.tasks import StoryConsistencyMetric
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
        consistency = {name: StoryConsistencyMetric() for name in ("story_consistency", "story_consistency_oracle")}
        self.hold({**consistency, "clip_score_frame": FrameScoreMetric()})

    def protocol(self) -> dict[str, Any]:
        """Which encoder, and what comes before a frame."""
        return {"story_encoder": self.encoder.name, "story_history": "true"}

    def measure(self, store: EvalStore, prediction: Prediction) -> dict[str, Any]:
        """Embeddings of a reply's pictures, and the cosine of each with its caption, None for a missing one."""
        targets = targets_of(prediction)
        drawn = [item for item in targets if item.generated is not None]
        known = [item.truth for item in targets if item.truth is not None]
        pictures = [item.generated for item in drawn if item.generated is not None]
        given = store.embed_images(self.encoder, pictures)
        fits = iter(cosines(given, store.embed_texts(self.encoder, [item.caption for item in drawn])))
        values = [next(fits) if item.generated is not None else np.nan for item in targets]
        return {
            "place": int(prediction.meta.get("reply", prediction.id.rpartition("#")[2])),
            "frames": given,
            "frames_there": np.array([item.generated is not None for item in targets], bool),
            "true_frames": store.embed_images(self.encoder, known),
            "true_frames_there": np.array([item.truth is not None for item in targets], bool),
            "frame_clip": [float(value) if np.isfinite(value) else None for value in values],
        }

    def add(self, prediction: Prediction, values: Mapping[str, Any]) -> None:
        """Adds the embeddings, and the cosines by the place of their frame, to the metrics."""
        story, _, turn = prediction.id.rpartition("#")
        for name, field in (("story_consistency", "frames"), ("story_consistency_oracle", "true_frames")):
            there = values[f"{field}_there"]
            count = int(there.sum())
            self.metric(name).add(
                values[field], prediction.id, prediction.kind,
                stories=np.full(count, sample_hash(story)), turns=np.full(count, int(turn)),
                replies=np.full(count, values["place"]), frames=np.flatnonzero(there),
                frame_counts=np.full(count, len(there)),
            )  # fmt: skip
        cosines = [np.nan if value is None else value for value in values["frame_clip"]]
        columns = {"stories": np.full(len(cosines), sample_hash(story)), "turns": np.full(len(cosines), int(turn))}
        self.metric("clip_score_frame").add(cosines, prediction.id, prediction.kind, **columns)

    def summarise(self, values: Mapping[str, Gathered], full: bool) -> dict[str, Estimate]:
        """Consistency of the stories, and in a test the CLIP score of their first, second, ... frames."""
        results = {"story_consistency": self.estimate("story_consistency", values["story_consistency"])}
        if full:
            oracle = "story_consistency_oracle"
            results[oracle] = self.estimate(oracle, values[oracle])
            for place, cosines in FrameScoreMetric.by_place(values["clip_score_frame"]).items():
                results[f"clip_score_frame_{place}"] = estimate(cosines, clip_score)
        return results


class FrameScoreMetric(SampleMetric):
    """CLIP score of the pictures of stories; values are cosines with their captions, NaN for missing pictures.

    Further states, (n,) int64 each:
        stories: Hash of the story's id.
        turns: Turn of the reply that holds the picture.
    """

    column_names = ("stories", "turns")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(statistic=clip_score, **kwargs)

    def scores(self, gathered: Gathered) -> NDArray[np.float64]:
        """The cosines of the pictures that exist."""
        values: NDArray[np.float64] = gathered.values
        return values[np.isfinite(values)]

    @staticmethod
    def by_place(gathered: Gathered) -> dict[int, list[float]]:
        """Cosines by the place of the picture in its story, counted from 1."""
        places: dict[int, list[float]] = {}
        counted: dict[int, int] = {}
        order = np.argsort(gathered.columns["turns"], kind="stable")
        stories = list(dict.fromkeys(gathered.columns["stories"][order].tolist()))
        for story in stories:
            for row in order[gathered.columns["stories"][order] == story]:
                counted[story] = place = counted.get(story, 0) + 1
                if np.isfinite(value := gathered.values[row]):
                    places.setdefault(place, []).append(float(value))
        return dict(sorted(places.items()))
