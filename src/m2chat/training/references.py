"""The true reply beside the generated one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from m2chat.schema import Batch, Prediction, Reply, Sample
from m2chat.text import view_of
from m2chat.text.view import replies_of


def reference_of(sample: Sample, turn: int, generated: Reply, note: Mapping[str, Any]) -> Prediction:
    """The prediction of one reply.

    Its meta holds the reply's place among the replies (``reply``) and among the turns (``turn``), and the indices of
    the reference pictures (``targets``).

    Args:
        sample: The conversation.
        turn: Index of the true reply.
        generated: What the model said.
        note: What generation reported.
    """
    view = view_of(sample, turn)
    images = tuple(None if target is None else sample.images[target].pixels for target in view.targets)
    targets = [target for target in view.targets if target is not None]
    meta = {**sample.meta, **note, "reply": replies_of(sample).index(turn), "turn": turn, "targets": targets}
    if view.context is not None:
        meta["context_caption"] = sample.images[view.context].caption
    return Prediction(
        f"{sample.id}#{turn}",
        sample.kind,
        sample.source,
        view.request.instruction,
        Reply(view.reply, images),
        generated,
        None if view.context is None else sample.images[view.context].pixels,
        meta,
    )


def with_blank_context(batch: Batch) -> Batch:
    """The same batch with an empty picture wherever there is a context picture."""
    return replace(batch, context_pixels=torch.zeros_like(batch.context_pixels))
