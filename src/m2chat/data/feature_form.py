"""The form of the records of a feature cache, and the index from which the place of every record follows.

Shapes: R rows (in stage 1 the tokens that the M³Adapter reads), L layers, D width of the language model, Q queries, C
and P widths of the image decoder's condition.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2chat.checksums import NPZ_ERRORS, is_sealed, seal_zip
from m2chat.errors import UserError
from m2chat.files import write_whole
from m2chat.schema import KINDS

INDEX = "index.npz"
NO_PICTURE = -1
"""`FeatureView.target` of a reply without a picture."""
_STORED = {"float32": "<f4", "bfloat16": "<u2", "int8": "<i1"}
"""Type of a number on disk; bfloat16 as its bits, which NumPy does not know."""
DTYPES = tuple(_STORED)


class FeatureView(NamedTuple):
    """One reply of a sample from which a training step may learn.

    Args:
        turn: Index of the reply among the turns.
        target: Index of its segment whose picture is drawn; `NO_PICTURE` if it has none.
        rows: R; 0 for a sample of stage 2 without a context picture.
    """

    turn: int
    target: int
    rows: int


@dataclass(frozen=True)
class Form:
    """Form of the records of a cache.

    Args:
        dtype: Precision of states and of e_clip: ``float32``, ``bfloat16``, or ``int8`` with a scale per token.
        text: Whether e_clip and e_pclip are kept; if not, the caption's tokens are.
        layers: L.
        width: D.
        queries: Q.
        sequence_width: C.
        pooled_width: P; 0 for none.
        latents: Shape of the latents, (c, h, w).
        whole: Whether a record stands in for the whole sample, as in stage 1, and its rows are the states of L layers.
            In stage 2 they are the CLIP tokens of the context picture: L is 1, and D their width.
    """

    dtype: str
    text: bool
    layers: int
    width: int
    queries: int
    sequence_width: int
    pooled_width: int
    latents: tuple[int, int, int]
    whole: bool = True

    @cached_property
    def record(self) -> np.dtype[Any]:
        """One record, without its rows."""
        fields: list[Any] = [("crc", "<u4"), ("time_ids", "<f4", (6,)), ("latents", "<f4", tuple(self.latents))]
        if self.text:
            fields += self._numbers("e_clip", (self.queries, self.sequence_width))
            fields += [("e_pclip", "<f4", (self.pooled_width,))]
        else:
            fields += [("caption_ids", "<i4", (self.queries,)), ("caption_ids_2", "<i4", (self.queries,))]
        return np.dtype(fields)

    @cached_property
    def row(self) -> np.dtype[Any]:
        """The states of one token, or one CLIP token."""
        return np.dtype(self._numbers("values", (self.layers, self.width)))

    def _numbers(self, name: str, shape: tuple[int, ...]) -> list[Any]:
        fields: list[Any] = [(name, _STORED[self.dtype], shape)]
        return [*fields, (f"{name}_scale", "<f4", shape[:-1])] if self.dtype == "int8" else fields

    def put(self, into: NDArray[Any], name: str, values: NDArray[np.float32]) -> None:
        """Stores numbers in a field of records or rows.

        Args:
            into: Records or rows.
            name: Name of the field.
            values: Numbers, one entry per record or row.
        """
        if self.dtype == "float32":
            into[name] = values
        elif self.dtype == "bfloat16":
            into[name] = rounded(values)
        else:
            scale = np.abs(values).max(-1) / np.float32(127)
            into[f"{name}_scale"] = scale
            into[name] = np.rint(values / np.where(scale > 0, scale, 1)[..., None])

    def get(self, source: NDArray[Any], name: str) -> NDArray[Any]:
        """The numbers of a field: float32, or the bits of bfloat16."""
        values: NDArray[Any] = source[name]
        return values * source[f"{name}_scale"][..., None] if self.dtype == "int8" else values


def rounded(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each number, halves to even as torch rounds; for finite numbers."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Index:
    """What the records of a part are.

    Args:
        counts: Number of records of each kept sample of the source, in its order.
        turns: `FeatureView.turn` of each record.
        targets: `FeatureView.target` of each record.
        rows: `FeatureView.rows` of each record.
        kinds: Index in `KINDS` of each sample's kind.
        ids: Id of each sample, as UTF-8 one behind the other.
        id_ends: End of each of them.
    """

    counts: NDArray[np.uint16]
    turns: NDArray[np.int16]
    targets: NDArray[np.int16]
    rows: NDArray[np.uint16]
    kinds: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    id_ends: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[tuple[str, str, Sequence[FeatureView]]]) -> Index:
        """The index of samples.

        Args:
            samples: Id, kind, and views of each, of which there is one at least.
        """
        views = [view for _, _, each in samples for view in each]
        ids = [name.encode() for name, _, _ in samples]
        return cls(
            np.array([len(each) for _, _, each in samples], np.uint16),
            np.array([view.turn for view in views], np.int16),
            np.array([view.target for view in views], np.int16),
            np.array([view.rows for view in views], np.uint16),
            np.array([KINDS.index(kind) for _, kind, _ in samples], np.uint8),  # type: ignore[arg-type]
            np.frombuffer(b"".join(ids), np.uint8),
            np.cumsum([len(name) for name in ids], dtype=np.int64),
        )

    def write(self, path: Path) -> None:
        """Writes the index; the same index always gives the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        seal_zip(buffer)
        write_whole(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Index:
        """Reads what `write` wrote.

        Raises:
            UserError: If it is missing or damaged.
        """
        try:
            if not path.is_file():  # a pipe would be waited for without end
                raise FileNotFoundError("there is no such file")
            is_sealed(path)
            with np.load(path, allow_pickle=False) as kept:
                return cls(**{name: kept[name] for name in kept.files})
        except NPZ_ERRORS as error:
            raise UserError(f"{path} cannot be read ({error}): remove the folder and build the cache again") from error
