"""CLIP score: how well pictures fit the captions that they should show."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    opposites. The factor is always 100, never an encoder's own logit scale.

    Args:
        values: Cosine of each picture with its caption, (n,).

    Returns:
        Score in [0, 100]; NaN without values.
    """
    # np.maximum, unlike max(), keeps NaN.
    return float(np.maximum(0.0, mean_score(values)))
