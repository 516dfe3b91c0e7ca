"""LLaMA-Adapter V2's files: the released ``.pth`` of each variant, full training checkpoints, converted safetensors.

Which variant a file is follows from its keys: ``.wq.bias`` is the bias variant, ``lora_w`` the LoRA-bias one, and
neither the caption one. The ``config`` beside the tensors, and the file's name, are not believed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.adapter_file import AdapterShape, read_shape
from m2chat.models.weights.files import read_pickled, read_safetensors, read_safetensors_metadata

_LOG = logging.getLogger(__name__)
_BASE = re.compile(
    r"^clip\.|^llama\.(tok_embeddings|output)\.|^llama\.layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.weight$"
    r"|rope\.freqs$"
)
"""What a full training checkpoint holds beside the adapter: the networks that were frozen."""
_NEEDED = ("adapter_query.weight", "visual_query.weight", "clip_proj.weight", "visual_proj.weight")

Variant = Literal["bias", "lora-bias", "caption"]


@dataclass(frozen=True)
class AdapterSource:
    """An adapter as it is on disk.

    Args:
        state: Tensors by the official names.
        shape: Sizes, derived from the tensors.
        channel_order: Channel order of the training pictures that the file records; None if it records none.
        is_training_checkpoint: Whether it was a whole training checkpoint.
        ignored: Names of frozen networks in a training checkpoint.
    """

    state: dict[str, Tensor]
    shape: AdapterShape
    channel_order: Literal["rgb", "bgr"] | None
    is_training_checkpoint: bool
    ignored: list[str]

    @property
    def variant(self) -> Variant:
        """Which of the released variants its keys are those of."""
        return "lora-bias" if self.shape.lora_rank else "bias" if self.shape.bias else "caption"

    @property
    def width(self) -> int:
        """D of the language model that it was trained for."""
        return int(self.state["adapter_query.weight"].shape[1])


def open_adapter(path: Path, what: str) -> AdapterSource:
    """Opens an adapter file of any form.

    Args:
        path: ``.pth`` as released, a training checkpoint, or ``.safetensors`` as `m2chat weights convert` writes it.
        what: The setting that names it, for messages.

    Raises:
        UserError: If it is missing, broken, or not an adapter.
    """
    if not path.is_file():
        raise UserError(
            f"{what}: there is no {path}. The setting names a LLaMA-Adapter V2 file such as BIAS-7B.pth; "
            "`make backbones` rebuilds the micro one, and data/README.md says where the real one comes from."
        )
    if path.suffix == ".safetensors":
        state, config, whole = read_safetensors(path, what), read_safetensors_metadata(path, what), False
    else:
        payload = read_pickled(path, what)
        if not isinstance(payload, Mapping) or not isinstance(payload.get("model"), Mapping):
            raise UserError(
                f"{what}: {path} is not a LLaMA-Adapter file: expected is {{'model': tensors, 'config': ...}}, found "
                f"{sorted(map(str, payload))[:3] if isinstance(payload, Mapping) else type(payload).__name__}"
            )
        state = {re.sub(r"^llma\.", "llama.", name): tensor for name, tensor in payload["model"].items()}
        config, whole = payload.get("config") or {}, "optimizer" in payload
    ignored = [name for name in state if _BASE.search(name)]
    state = {name: tensor for name, tensor in state.items() if not _BASE.search(name)}
    if lost := [name for name in _NEEDED if name not in state]:
        raise UserError(
            f"{what}: {path} is not a LLaMA-Adapter V2 multimodal file: it lacks {', '.join(lost)}; expected is one "
            "such as BIAS-7B.pth, LORA-BIAS-7B.pth or CAPTION-7B.pth"
        )
    if not any(name.endswith("attention.gate") for name in state):
        _LOG.warning("%s: %s has no gates, so pictures will say nothing to the language model", what, path)
    order: Any = config.get("channel_order")
    if order not in (None, "rgb", "bgr"):
        raise UserError(f"{what}: {path} is marked channel_order={order!r}; known are 'rgb' and 'bgr'")
    return AdapterSource(state, read_shape(state), order, whole, ignored)


def marked_channel_order(path: Path) -> Literal["rgb", "bgr"] | None:
    """Channel order of the training pictures that an adapter's file records; None without a record or a file."""
    return open_adapter(path, "backbone.adapter").channel_order if path.is_file() else None
