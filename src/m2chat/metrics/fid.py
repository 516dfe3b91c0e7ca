"""Fréchet distance between the features of reference and of generated pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.checksums import NPZ_ERRORS, seal_zip
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.integrity import verify
from m2chat.metrics.base import Gathered, SampleMetric
from m2chat.metrics.extractors import FeatureExtractor
from m2chat.schema import Picture


@dataclass(frozen=True)
class Moments:
    """Sums over feature vectors, in fp64.

    Args:
        n: Number of vectors.
        total: Sum of the vectors, (D,).
        outer: Sum of their outer products, (D, D).
        features: The vectors themselves, (n, D), as long as they are fewer than D; else None.
    """

    n: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]
    features: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Moments of feature vectors, (n, D); those that are not finite are left out with a warning."""
        rows = features.astype(np.float64)
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            warnings.warn(f"FID: left out {int((~finite).sum())} pictures with non-finite features", stacklevel=2)
            rows = rows[finite]
        return cls(len(rows), rows.sum(0), rows.T @ rows, rows if len(rows) < rows.shape[1] else None)

    def __add__(self, other: Moments) -> Moments:
        both = None
        if self.features is not None and other.features is not None and self.n + other.n < len(self.total):
            both = np.concatenate([self.features, other.features])
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer, both)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(D,)."""
        return self.total / self.n

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased covariance, (D, D)."""
        return (self.outer - self.n * np.outer(self.mean, self.mean)) / (self.n - 1)

    @property
    def centred(self) -> NDArray[np.float64] | None:
        """A with AᵀA the covariance, (n, D), where the vectors are kept."""
        return None if self.features is None else (self.features - self.mean) / np.sqrt(self.n - 1)

    def save(self, path: Path, extractor: str) -> None:
        """Writes the sums as ``.npz``, with the name of the extractor that they belong to, and a checksum."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path = _named(path)
        with whole_file(path) as part, part.open("w+b") as file:
            np.savez(file, n=self.n, total=self.total, outer=self.outer, extractor=extractor)
            seal_zip(file)

    @classmethod
    def load(cls, path: Path, extractor: str) -> Moments:
        """Reads what `save` wrote.

        Args:
            path: The file; ``.npz`` may be left out, as in `save`.
            extractor: Name of the extractor that it must belong to.

        Raises:
            UserError: If there is no such file, it is damaged, another tool's, or belongs to another extractor.
        """
        path = path if path.is_file() else _named(path)
        if not path.is_file():
            raise UserError(f"FID reference={str(path)!r} is no file; `m2chat eval moments` writes one")
        _refuse_foreign(path)
        verify(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                name, moments = str(file["extractor"]), cls(int(file["n"]), file["total"], file["outer"])
        except NPZ_ERRORS as error:
            raise UserError(
                f"FID reference={str(path)!r} cannot be read as moments ({error}): write them again with "
                "`m2chat eval moments`"
            ) from error
        if name != extractor:
            raise UserError(
                f"FID reference={str(path)!r} holds moments of the extractor {name!r}, and this evaluation uses "
                f"{extractor!r}: write them again with `m2chat eval moments`"
            )
        return moments


def _named(path: Path) -> Path:
    """The path with the suffix, as numpy writes it."""
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")


def _refuse_foreign(path: Path) -> None:
    """Checks that a file was not written by another tool.

    Raises:
        UserError: If it was.
    """
    remedy = "write the moments of the same pictures by `m2chat eval moments PICTURES OUT.npz`"
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UserError(f"FID reference={str(path)!r} is a single array (.npy), and no moments: {remedy}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
    except NPZ_ERRORS:
        return  # damaged: what reads it says so
    if {"mu", "sigma"} <= set(names):
        raise UserError(
            f"FID reference={str(path)!r} holds mu and sigma, as pytorch-fid and others write them: they state neither "
            f"the network nor the number of pictures, so they cannot be compared with ours; {remedy}"
        )
    if not {"n", "total", "outer", "extractor"} <= set(names):
        raise UserError(f"FID reference={str(path)!r} holds {', '.join(names) or 'nothing'}, and no moments: {remedy}")


def _congruent(root: NDArray[np.floating], symmetric: NDArray[np.floating], block: int = 256) -> NDArray[np.floating]:
    """The lower triangle of RᵀSR for a lower triangular R, in a third of the work of two whole products.

    Args:
        root: R, (D, D).
        symmetric: S, (D, D).
        block: Columns at a time.

    Returns:
        (D, D); above the blocks on the diagonal it is zero.
    """
    result = np.zeros_like(symmetric)
    for j in range(0, len(root), block):
        # R has nothing above row j in these columns, nor in those to their right.
        result[j:, j : j + block] = root[j:, j:].T @ (symmetric[j:, j:] @ root[j:, j : j + block])
    return result


def _sum_of_roots(symmetric: NDArray[np.floating]) -> float:
    """Sum of the square roots of the eigenvalues, those below zero left out; the upper triangle is not read."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(symmetric, "L"), 0.0)).sum())


def root_trace(real: Moments, generated: Moments) -> float:
    """``Tr((S_r^1/2 S_g S_r^1/2)^1/2)``, the term that makes FID slow.

    With S_r = R Rᵀ it is the sum of the square roots of the eigenvalues of Rᵀ S_g R, whatever the root R. The
    cheapest R is Cholesky's factor; a covariance that is not positive definite has a root by its eigenvectors. Of
    fewer vectors than features, the centred vectors themselves are roots, and the term is the nuclear norm of their
    products.

    Args:
        real: Moments of two or more reference pictures.
        generated: Moments of two or more generated ones.
    """
    first, second = real.centred, generated.centred
    if first is not None and second is not None:
        return float(np.linalg.norm(first @ second.T, ord="nuc"))
    if first is not None or second is not None:
        few, many = (first, generated) if first is not None else (second, real)
        assert few is not None
        return _sum_of_roots(few @ many.covariance @ few.T)
    try:
        return _sum_of_roots(_congruent(np.linalg.cholesky(real.covariance), generated.covariance))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(real.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return _sum_of_roots(root.T @ generated.covariance @ root)


def frechet_distance(real: Moments, generated: Moments) -> float:
    """``|mu_r - mu_g|^2 + Tr(S_r + S_g) - 2 Tr((S_r^1/2 S_g S_r^1/2)^1/2)``.

    Args:
        real: Moments of the reference pictures.
        generated: Moments of the generated ones.

    Returns:
        Distance, 0 or more, lower is better; NaN if a side has fewer than two pictures.
    """
    if min(real.n, generated.n) < 2:
        warnings.warn(
            f"FID needs two pictures a side and has {real.n} reference and {generated.n} generated ones: it is NaN",
            stacklevel=2,
        )
        return float("nan")
    difference = real.mean - generated.mean
    spread = np.trace(real.covariance) + np.trace(generated.covariance)
    return max(0.0, float(difference @ difference + spread - 2.0 * root_trace(real, generated)))


class FrechetDistanceMetric(SampleMetric):
    """Fréchet distance (FID) between the features of reference and of generated pictures.

    The features themselves are kept, float32: a sample that a sampler hands out twice then counts once, and distances
    by kind of sample need them. For D = 2,048 that is 8 KiB a picture, on every rank after merging.

    Further states, (n,) int64:
        generated: 1 for a generated picture, 0 for a reference one.

    Args:
        num_features: Width D of a feature vector.
        extractor: Extractor of `update`; not needed where features are added with `add`.
        reference: Moments of the reference pictures, instead of those that are added.
    """

    higher_is_better = False
    value_dtype = torch.float32
    column_names = ("generated",)

    def __init__(
        self,
        num_features: int,
        extractor: FeatureExtractor | None = None,
        reference: Moments | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(width=num_features, **kwargs)
        self.extractor, self.reference = extractor, reference

    def update(self, pictures: Sequence[Picture], real: bool, ids: Sequence[str] | None = None) -> None:
        """Adds pictures of one side, and the ids of their samples.

        Args:
            pictures: Pictures of any sizes.
            real: Whether they are reference pictures.
            ids: Unique ids of their samples; by default every picture is a sample.
        """
        assert self.extractor is not None, "FrechetDistanceMetric needs an extractor for update()"
        for row, id_ in zip(self.extractor.extract(pictures), self.names(len(pictures), ids), strict=True):
            self.add(row[None], id_, generated=[int(not real)])

    def moments(self, gathered: Gathered) -> tuple[Moments, Moments]:
        """Moments of the reference and of the generated pictures."""
        generated = gathered.columns["generated"] == 1
        features = gathered.values.reshape(len(gathered), self.width or 0)
        real = self.reference if self.reference is not None else Moments.of(features[~generated])
        return real, Moments.of(features[generated])

    def compute(self) -> Tensor:
        """The distance over the pictures of all ranks; NaN if a side has fewer than two."""
        return torch.tensor(frechet_distance(*self.moments(self._merged())), dtype=torch.float64)
