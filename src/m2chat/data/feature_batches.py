"""Batches from kept features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2chat.batch import Batch, FrozenFeatures
from m2chat.data.collate import Collator
from m2chat.data.dataset import Source
from m2chat.data.feature_file import FeaturePart
from m2chat.data.feature_form import NO_PICTURE, Form
from m2chat.data.items import Item


@dataclass(frozen=True)
class FeatureCollator:
    """Makes batches from kept features; it can be sent to worker processes.

    Args:
        parts: Records of each source, in the stream's order.
        starts: For each source, number of its kept samples before each shard.
        collator: Collator of the samples, for stage 2, and for validation, which shows the reference pictures; None to
            train stage 1, which needs neither words nor pictures.
    """

    parts: Sequence[FeaturePart]
    starts: Sequence[Sequence[int]]
    collator: Collator | None = None

    @classmethod
    def of(cls, sources: Iterable[Source], collator: Collator | None = None) -> FeatureCollator:
        """The collator of sources whose features are known."""
        known = list(sources)
        parts = [source.features for source in known if source.features is not None]
        return cls(
            parts, [[source.number(shard, 0) for shard in range(len(source.kept))] for source in known], collator
        )

    def compact(self, items: Sequence[Item]) -> Batch:
        """The batch of some replies."""
        places = [self._find(item) for item in items]
        form = self.parts[0].form
        read = [part.read(record) for part, record in places]
        records = np.stack([record for record, _ in read])
        states, mask = _states(form, [rows for _, rows in read])
        features = FrozenFeatures(
            states if form.whole else None,
            _tensor(form.get(records, "e_clip")) if form.text else None,
            torch.from_numpy(records["e_pclip"].copy()) if form.text and form.pooled_width else None,
            torch.from_numpy(records["latents"].copy()),
            mask if form.whole else None,
            None if form.whole else states,
        )
        if self.collator is not None:
            batch = self.collator.compact(items)
            batch.features = features
            return batch
        count = len(items)
        no, nothing = torch.zeros(count, dtype=torch.bool), torch.zeros(count, 0, dtype=torch.bool)
        captions = [
            nothing.long() if form.text else torch.from_numpy(records[name].astype(np.int64))
            for name in ("caption_ids", "caption_ids_2")
        ]
        has_target = torch.tensor([part.view(record).target != NO_PICTURE for part, record in places])
        return Batch(
            input_ids=nothing.long(), attention_mask=nothing, labels=nothing.long(), answer_mask=nothing,
            caption_mask=nothing, image_mask=nothing, context_pixels=torch.zeros(count, 3, 0, 0), has_context=no,
            target_pixels=torch.zeros(count, 3, 0, 0), has_target=has_target,
            time_ids=torch.from_numpy(records["time_ids"].copy()), caption_ids=captions[0], caption_ids_2=captions[1],
            samples=[item.sample for item in items], turns=[item.turn for item in items], cut_tokens=[0] * count,
            features=features,
        )  # fmt: skip

    def _find(self, item: Item) -> tuple[FeaturePart, int]:
        source, shard, index = item.place
        part = self.parts[source]
        return part, part.find(self.starts[source][shard] + index, item.turn, item.target)


def _states(form: Form, rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Rows of several samples, padded with zeros, and the mask of what is no padding."""
    longest = max(map(len, rows))
    whole = np.zeros((len(rows), longest), form.row)
    mask = np.zeros((len(rows), longest), bool)
    for number, each in enumerate(rows):
        whole[number, : len(each)] = each
        mask[number, : len(each)] = True
    states = _tensor(form.get(whole, "values"))  # (B, S, L, D)
    return states[:, :, 0] if form.layers == 1 else states.permute(2, 0, 1, 3), torch.from_numpy(mask)


def _tensor(values: NDArray[Any]) -> Tensor:
    """A tensor of float32, or of the bits of bfloat16."""
    if values.dtype == np.uint16:
        return torch.from_numpy(np.ascontiguousarray(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(values))
