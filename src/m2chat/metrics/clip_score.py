"""CLIP score and CLIP-I: how well pictures fit captions and other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from m2chat.metrics.base import Gathered, SampleMetric, Statistic
from m2chat.metrics.encoders import TextImageEncoder
from m2chat.schema import Picture


def cosines(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each row of one matrix with the same row of the other.

    Args:
        first: Vectors, (n, D).
        second: Vectors, (n, D).

    Returns:
        Values in [-1, 1], (n,); NaN where a vector is not finite or zero.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        values: NDArray[np.float64] = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return values


def mean_score(values: ArrayLike) -> float:
    """100 times the mean cosine; NaN without values."""
    array = np.asarray(values, np.float64)
    return 100.0 * float(array.mean()) if array.size else float("nan")


def clip_score(values: ArrayLike) -> float:
    """CLIP score of a data set: ``max(0, 100 * mean cosine)``.

    Only the mean is clamped, not each pair: clamping pairs would lift the score of an encoder that often sees
    opposites. The factor is always 100, never an encoder's logit scale.

    Args:
        values: Cosine of each picture with its caption, (n,).

    Returns:
        Score in [0, 100]; NaN without values.
    """
    # np.maximum, unlike max(), keeps NaN.
    return float(np.maximum(0.0, mean_score(values)))


class EmbeddingMetric(SampleMetric):
    """A metric over cosines in [-1, 1] between embeddings.

    Args:
        encoder: Encoder of `update`; not needed where cosines are added with `add`.
        statistic: From the cosines, (n,), to the metric's value.
    """

    higher_is_better = True

    def __init__(self, encoder: TextImageEncoder | None, statistic: Statistic, **kwargs: Any) -> None:
        super().__init__(statistic=statistic, **kwargs)
        self._encoder = encoder

    @property
    def encoder(self) -> TextImageEncoder:
        """What `update` embeds with."""
        assert self._encoder is not None, f"{type(self).__name__} needs an encoder for update()"
        return self._encoder


class CLIPScoreMetric(EmbeddingMetric):
    """CLIP score, ``max(0, 100 * mean cosine)``, of pictures and captions; values are the cosines.

    Args:
        encoder: Encoder of `update`; not needed where cosines are added with `add`.
    """

    def __init__(self, encoder: TextImageEncoder | None = None, **kwargs: Any) -> None:
        super().__init__(encoder, clip_score, **kwargs)

    def update(self, pictures: Sequence[Picture], captions: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """Adds pictures with their captions, and the ids of their samples; non-finite embeddings are left out."""
        self.add_samples(cosines(self.encoder.encode_image(pictures), self.encoder.encode_text(captions)).tolist(), ids)


class CLIPImageMetric(EmbeddingMetric):
    """CLIP-I, 100 times the mean cosine between pictures and their reference pictures.

    Args:
        encoder: Encoder of `update`; not needed where cosines are added with `add`.
    """

    def __init__(self, encoder: TextImageEncoder | None = None, **kwargs: Any) -> None:
        super().__init__(encoder, mean_score, **kwargs)

    def update(
        self, pictures: Sequence[Picture], reference_pictures: Sequence[Picture], ids: Sequence[str] | None = None
    ) -> None:
        """Adds pictures with their reference pictures, and the ids of their samples."""
        images, references = (self.encoder.encode_image(side) for side in (pictures, reference_pictures))
        self.add_samples(cosines(images, references).tolist(), ids)


class ShuffledCLIPScoreMetric(SampleMetric):
    """CLIP score of pictures with the captions of other samples: a control that should be far below the real score.

    Values are embeddings: caption and picture side by side, (2 * D,). Each picture meets the caption before it in the
    order of `Gathered`, which has nothing to do with content.
    """

    value_dtype = torch.float32

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(width=None, statistic=clip_score, **kwargs)

    def scores(self, gathered: Gathered) -> NDArray[np.float64]:
        """Cosines of pictures with other captions, (n,), finite ones only; none for fewer than two pairs."""
        if len(gathered) < 2:
            return np.zeros(0)
        texts, images = np.split(gathered.values, 2, axis=1)
        values = cosines(images, np.roll(texts, 1, axis=0))
        return values[np.isfinite(values)]
