"""The base of our metrics: values of samples, kept so that each sample counts once on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from m2chat.schema import KINDS, Kind

Statistic = Callable[[NDArray[Any]], float]
"""From the values of all samples, (n, ...), to the metric's value."""


def mean(values: NDArray[Any]) -> float:
    """Mean of the values; NaN without any."""
    return float(values.mean()) if len(values) else float("nan")


@dataclass(frozen=True)
class Gathered:
    """The values of all ranks, each once, in an order that depends on the sample ids only.

    Neighbours are not, say, two pictures of one story: the order is that of the SHA-256 of the ids.

    Args:
        values: Values, (n,) or (n, width).
        kinds: Index into `KINDS` of each value's sample, -1 if unknown, (n,).
        columns: Further integers of each value by name, each (n,).
    """

    values: NDArray[Any]
    kinds: NDArray[np.int64]
    columns: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, mask: NDArray[np.bool_]) -> Gathered:
        """The values at which a mask, (n,), is true."""
        columns = {name: column[mask] for name, column in self.columns.items()}
        return Gathered(self.values[mask], self.kinds[mask], columns)

    def of_kind(self, kind: Kind) -> Gathered:
        """The values of one kind of sample."""
        return self.where(self.kinds == KINDS.index(kind))


class SampleMetric(Metric):
    """A `torchmetrics.Metric` over values of samples.

    A sampler may pad: a sample that two ranks see, or one rank twice, counts once. That needs the values themselves
    and not only their sum, which intervals by resampling and results by kind of sample need too.

    States, all of them lists that are concatenated over ranks:
        values: Values of the samples, flattened, (n * width,), float64 unless the class names another `value_dtype`.
        samples: Hash of the sample's id, (n,) int64; its order is that of the id's SHA-256.
        places: Position of the value among those of its sample, (n,) int64.
        kinds: Index into `KINDS` of the sample's kind, -1 if unknown, (n,) int64.
        Further int64 columns that a subclass names in `column_names`, (n,) each.

    Args:
        width: Numbers of a value; 0 for a scalar, None where `add` tells by its first value.
        statistic: From `scores`, (n,) or (n, width), to the metric's value; the mean by default.
    """

    full_state_update = False
    value_dtype: torch.dtype = torch.float64
    column_names: tuple[str, ...] = ()
    values: list[Tensor]
    samples: list[Tensor]

    def __init__(self, width: int | None = 0, statistic: Statistic = mean, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.statistic = width, statistic
        self._unnamed = 0  # samples without an id so far; never set back, so that no two share a name
        for name in ("values", *self._integers):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def _integers(self) -> tuple[str, ...]:
        return ("samples", "places", "kinds", *self.column_names)

    def add(self, values: ArrayLike, id_: str, kind: Kind | None = None, **columns: ArrayLike) -> None:
        """Adds the values of one sample.

        Args:
            values: Values of the sample, (k,) or (k, width); k may be 0.
            id_: Unique id of the sample.
            kind: Kind of the sample, where results by kind are wanted.
            columns: Further integers of each value, (k,), named as in `column_names`.
        """
        rows = torch.as_tensor(np.asarray(values), dtype=self.value_dtype)
        count = len(rows)
        if not count:
            return
        constant = {"samples": sample_hash(id_), "kinds": -1 if kind is None else KINDS.index(kind)}
        numbers = {name: torch.full((count,), value) for name, value in constant.items()}
        numbers["places"] = torch.arange(count)
        numbers |= {name: torch.as_tensor(np.asarray(column, np.int64)) for name, column in columns.items()}
        self.values.append(rows.reshape(-1).to(self.device))
        for name, column in numbers.items():
            getattr(self, name).append(column.to(self.device))
        self._update_count += 1
        self._computed = None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds samples: here one value a sample, as `add_samples`; a subclass takes what it measures."""
        self.add_samples(*args, **kwargs)

    def add_samples(self, values: Sequence[ArrayLike], ids: Sequence[str] | None = None) -> None:
        """Adds one value a sample.

        Args:
            values: Values, one a sample; those that are not finite are left out.
            ids: Unique ids of the samples; by default every value counts as a sample of its own.
        """
        for value, id_ in zip(values, self.names(len(values), ids), strict=True):
            if np.isfinite(np.asarray(value, np.float64)).all():
                self.add(np.asarray(value)[None], id_)

    def names(self, count: int, ids: Sequence[str] | None) -> Sequence[str]:
        """The ids of samples, or names that no other sample has, on any rank."""
        if ids is not None:
            return ids
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        first, self._unnamed = self._unnamed, self._unnamed + count
        return [f"{rank}/{number}" for number in range(first, first + count)]

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Merges the states of all ranks; a rank without values takes part with empty tensors of the right type."""
        for name in ("values", *self._integers):
            if not getattr(self, name):
                dtype = self.value_dtype if name == "values" else torch.int64
                getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))
        super().sync(*args, **kwargs)

    def gather(self) -> Gathered:
        """The values of all ranks; every rank must call it."""
        with self.sync_context():
            return self._merged()

    def _merged(self) -> Gathered:
        """The values in the states, each once, ordered by sample."""
        columns = {name: _joined(getattr(self, name), torch.int64) for name in self._integers}
        values = _joined(self.values, self.value_dtype)
        count = len(columns["samples"])
        if self.width != 0 and count:
            values = values.reshape(count, -1)
        # Sorted by sample, then by place. Of rows with equal keys the first is kept, which is the lowest rank's.
        keys = [columns[name] for name in ("samples", "places", *self.column_names)]
        order = np.lexsort(keys[::-1])
        rows = np.stack([key[order] for key in keys], 1)
        kept = order[np.r_[True, (rows[1:] != rows[:-1]).any(1)]] if count else order
        further = {name: columns[name][kept] for name in self.column_names}
        return Gathered(values[kept], columns["kinds"][kept], further)

    def scores(self, gathered: Gathered) -> NDArray[Any]:
        """The values that `statistic` takes, and that intervals resample: by default the gathered ones."""
        return gathered.values

    def compute(self) -> Tensor:
        """The metric's value over the samples of all ranks, a scalar; NaN without values."""
        return torch.tensor(self.statistic(self.scores(self._merged())), dtype=torch.float64)


class CountMetric(SampleMetric):
    """A sum of counters, one a sample."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(statistic=lambda values: float(values.sum()), **kwargs)


class SampleCount(Metric):
    """Number of samples of each kind that were seen, repeated ones included.

    States:
        counts: Number of samples by index into `KINDS`, (5,) int64, summed over ranks.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", default=torch.zeros(len(KINDS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, kinds: Sequence[Kind]) -> None:
        """Counts samples of these kinds."""
        for kind in kinds:
            self.counts[KINDS.index(kind)] += 1

    def compute(self) -> Tensor:
        """Number of samples by index into `KINDS`, (5,)."""
        return self.counts


def sample_hash(id_: str) -> int:
    """A signed 64-bit number in whose order ids stand as in the order of their SHA-256."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big") - 2**63


def _joined(parts: list[Tensor] | Tensor, dtype: torch.dtype) -> NDArray[Any]:
    """A state as one array: a list before it is synchronised, a tensor after."""
    tensors = [parts] if isinstance(parts, Tensor) else parts
    return torch.cat(tensors or [torch.empty(0, dtype=dtype)]).cpu().numpy()
