"""Fréchet distance between the features of true and of generated pictures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Sums over feature vectors, in fp64: those of several ranks simply add up.

    Args:
        n: Number of vectors.
        total: Their sum, (D,).
        outer: Sum of their outer products, (D, D).
    """

    n: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Moments of feature vectors, (n, D); those that are not finite are left out with a warning."""
        rows = features.astype(np.float64)
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            warnings.warn(f"FID: left out {int((~finite).sum())} pictures with non-finite features", stacklevel=2)
            rows = rows[finite]
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(D,)."""
        return self.total / self.n

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased covariance, (D, D)."""
        return (self.outer - self.n * np.outer(self.mean, self.mean)) / (self.n - 1)

    def pack(self) -> NDArray[np.float64]:
        """The same as one vector, (1 + D + D*D,), to be summed over ranks."""
        return np.concatenate([[float(self.n)], self.total, self.outer.reshape(-1)])

    @classmethod
    def unpack(cls, packed: NDArray[np.float64], width: int) -> Moments:
        """Inverse of `pack`.

        Args:
            packed: From `pack`, or a sum of several.
            width: D.
        """
        total, outer = packed[1 : 1 + width], packed[1 + width :]
        return cls(round(float(packed[0])), total, outer.reshape(width, width))


def frechet_distance(real: Moments, generated: Moments) -> float:
    """``|mu_r - mu_g|^2 + Tr(S_r + S_g) - 2 Tr((S_r^1/2 S_g S_r^1/2)^1/2)``.

    The root is taken through two symmetric eigenvalue problems: several times faster at 2,048 features than the
    root of a general matrix, and exact where covariances have no full rank.

    Args:
        real: Of true pictures.
        generated: Of generated ones.

    Returns:
        Distance, 0 or more, lower is better; NaN if a side has fewer than two pictures.
    """
    if min(real.n, generated.n) < 2:
        warnings.warn(
            f"FID needs two pictures a side and has {real.n} true and {generated.n} generated ones: it is NaN",
            stacklevel=2,
        )
        return float("nan")
    difference = real.mean - generated.mean
    values, vectors = np.linalg.eigh(real.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    shared = np.linalg.eigvalsh(root.T @ generated.covariance @ root)
    cross = np.sqrt(np.maximum(shared, 0.0)).sum()
    spread = np.trace(real.covariance) + np.trace(generated.covariance)
    return max(0.0, float(difference @ difference + spread - 2.0 * cross))
