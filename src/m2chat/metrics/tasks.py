"""Edits and stories: numbers for the two tasks that the paper shows in pictures only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m2chat.metrics.base import Gathered, SampleMetric, sample_hash
from m2chat.metrics.clip_score import EmbeddingMetric, cosines, mean_score
from m2chat.metrics.encoders import TextImageEncoder
from m2chat.schema import Picture


def direction_similarity(
    source_image: NDArray[np.floating],
    image: NDArray[np.floating],
    source_text: NDArray[np.floating],
    text: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Cosine between the change of a picture and the change of its caption.

    Args:
        source_image: Embeddings of the pictures before the edit, (n, D).
        image: Embeddings of the edited pictures, (n, D).
        source_text: Embeddings of the captions before the edit, (n, D).
        text: Embeddings of the captions after it, (n, D).

    Returns:
        Cosines of the two changes, (n,); 0 where the picture stayed as it was, NaN where the captions are the same or
        an embedding is not finite.
    """
    moved, wanted = image.astype(np.float64) - source_image, text.astype(np.float64) - source_text
    values = cosines(moved, wanted)
    return np.where((moved == 0).all(-1) & (wanted != 0).any(-1) & np.isfinite(wanted).all(-1), 0.0, values)


class EditDirectionMetric(EmbeddingMetric):
    """100 times the mean `direction_similarity` of edited pictures.

    Args:
        encoder: Encoder of `update`; not needed where cosines are added with `add`.
    """

    def __init__(self, encoder: TextImageEncoder | None = None, **kwargs: Any) -> None:
        super().__init__(encoder, mean_score, **kwargs)

    def update(
        self,
        source_pictures: Sequence[Picture],
        pictures: Sequence[Picture],
        source_captions: Sequence[str],
        captions: Sequence[str],
        ids: Sequence[str] | None = None,
    ) -> None:
        """Adds pictures and captions before and after an edit, and the ids of their samples."""
        images = [self.encoder.encode_image(side) for side in (source_pictures, pictures)]
        texts = [self.encoder.encode_text(side) for side in (source_captions, captions)]
        self.add_samples(direction_similarity(*images, *texts).tolist(), ids)


class StoryConsistencyMetric(SampleMetric):
    """CLIP-I between each picture of a story and the next, times 100: the mean over stories of the mean over pairs.

    Values are the embeddings of the pictures that exist, (D,). A picture is in no pair with one that is not its
    neighbour in the story, because what stood between was not drawn or not among the samples.

    Further states, (n,) int64 each:
        stories: Hash of the story's id.
        turns: Turn of the reply that holds the picture.
        replies: Position of that reply among the replies of the story.
        frames: Position of the picture in the reply.
        frame_counts: Number of pictures that the reply should hold.
    """

    higher_is_better = True
    value_dtype = torch.float32
    column_names = ("stories", "turns", "replies", "frames", "frame_counts")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(width=None, **kwargs)

    def update(self, story_frames: Sequence[NDArray[np.floating]], ids: Sequence[str]) -> None:
        """Adds whole stories.

        Args:
            story_frames: Embeddings of each story's pictures in order, (n, D).
            ids: Unique ids of the stories.
        """
        for frames, id_ in zip(story_frames, ids, strict=True):
            count = len(frames)
            self.add(
                frames, id_, stories=np.full(count, sample_hash(id_)), turns=np.zeros(count), replies=np.zeros(count),
                frames=np.arange(count), frame_counts=np.full(count, count),
            )  # fmt: skip

    def scores(self, gathered: Gathered) -> NDArray[np.float64]:
        """100 times the mean cosine of the neighbouring pictures of each story that has any, (stories,)."""
        columns = gathered.columns
        order = np.argsort(columns["turns"], kind="stable")
        stories: dict[int, list[int]] = {}
        for row in order:
            stories.setdefault(int(columns["stories"][row]), []).append(int(row))
        means = []
        for rows in stories.values():
            here, following = np.array(rows[:-1], int), np.array(rows[1:], int)
            frames, replies = columns["frames"], columns["replies"]
            same_reply = (replies[here] == replies[following]) & (frames[here] + 1 == frames[following])
            next_reply = (
                (replies[here] + 1 == replies[following])
                & (frames[following] == 0)
                & (frames[here] == columns["frame_counts"][here] - 1)
            )
            pairs = cosines(gathered.values[here], gathered.values[following])[same_reply | next_reply]
            pairs = pairs[np.isfinite(pairs)]
            if len(pairs):
                means.append(100.0 * float(pairs.mean()))
        return np.array(means, np.float64)
