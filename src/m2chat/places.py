"""Where in a batch is what, found on the CPU: a step that asked tensors on a GPU would wait for all of its work.

Shapes: B batch, T tokens, S caption and image tokens of the sample that has most of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Places in a batch: numbers, and tensors that move with the batch.

    Args:
        lengths: Real tokens of each sequence.
        drawn: Rows with a picture to draw.
        shown: Rows with a context picture.
        prefix: Number of tokens with which all sequences begin, fewer than the shortest has; 0 for a single sequence.
        replies: Number of rows with a scored token.
        order: Rows by length, the shortest first, (B,).
        back: Place of each row in `order`, (B,).
        pictures: `shown` as a tensor, (n,).
        picture: For each row the place of its picture among these, n if it has none, (B,).
        gated: Rows with a context picture and one to draw, (gated,).
        scored: Positions whose next token is scored, counted through all rows, (scored,).
        row: Row of each of them, (scored,).
        read: Positions of each row's caption and image tokens, then zeros, (B, S).
        is_read: False at those zeros, (B, S) bool.
    """

    lengths: tuple[int, ...]
    drawn: tuple[int, ...]
    shown: tuple[int, ...]
    prefix: int
    replies: int
    order: Tensor
    back: Tensor
    pictures: Tensor
    picture: Tensor
    gated: Tensor
    scored: Tensor
    row: Tensor
    read: Tensor
    is_read: Tensor

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        read: Tensor,
        has_context: Tensor,
        has_target: Tensor,
    ) -> Places:
        """The places of a batch on the CPU.

        Args:
            input_ids: (B, T).
            attention_mask: True at real tokens, (B, T) bool.
            labels: Tokens where the language loss applies, else negative, (B, T).
            read: True at caption and image tokens, (B, T) bool.
            has_context: Whether there is a context picture, (B,) bool.
            has_target: Whether there is a picture to draw, (B,) bool.
        """
        # NumPy: of tensors this small torch's calls take several times as long.
        ids, scores, reads = input_ids.numpy(), labels[:, 1:].numpy() >= 0, read.numpy()
        context, target = has_context.numpy(), has_target.numpy()
        count, length = ids.shape
        lengths = attention_mask.numpy().sum(1)
        order = lengths.argsort(kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(count)
        pictures = context.nonzero()[0]
        row, before = scores.nonzero()
        found = reads.sum(1)
        is_read = np.arange(found.max(initial=0)) < found[:, None]
        places = np.zeros(is_read.shape, np.int64)
        places[is_read] = reads.nonzero()[1]  # both go through the rows in order
        prefix = 0
        if count > 1 and length:
            differing = (ids != ids[0]).any(0)
            same = int(differing.argmax()) if differing.any() else length
            prefix = min(same, int(lengths.min()) - 1)
        tensors = {
            "order": order,
            "back": back,
            "pictures": pictures,
            "picture": np.where(context, context.cumsum() - 1, len(pictures)),
            "gated": (context & target).nonzero()[0],
            "scored": row * length + before,
            "row": row,
            "read": places,
            "is_read": is_read,
        }
        return cls(
            lengths=tuple(lengths.tolist()),
            drawn=tuple(target.nonzero()[0].tolist()),
            shown=tuple(pictures.tolist()),
            prefix=max(0, prefix),
            replies=int(scores.any(1).sum()),
            **{name: torch.from_numpy(values) for name, values in tensors.items()},
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Places:
        """The same with every tensor changed, such as moved to another device."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)
