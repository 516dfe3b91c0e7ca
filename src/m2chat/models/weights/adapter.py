"""LLaMA-Adapter V2's files: the released ``.pth`` of each variant, full training checkpoints, converted safetensors.

Which variant a file is follows from its keys: ``.wq.bias`` is the bias variant, ``lora_w`` the LoRA-bias one, and
neither the caption one. The ``config`` beside the tensors, and the file's name, are not believed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from m2chat.checksums import UNSEALED, seal_safetensors, seal_zip
from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.models.adapter_file import AdapterShape, read_shape
from m2chat.models.config import BackboneConfig
from m2chat.models.weights.base import BaseMark
from m2chat.models.weights.files import read_pickled, read_safetensors, read_safetensors_metadata

_LOG = logging.getLogger(__name__)
_BASE = re.compile(
    r"^clip\.|^llama\.(tok_embeddings|output)\.|^llama\.layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.weight$"
    r"|rope\.freqs$"
)
"""What a full training checkpoint holds beside the adapter: the networks that were frozen."""
_NEEDED = ("adapter_query.weight", "visual_query.weight", "clip_proj.weight", "visual_proj.weight")

_HEADS = {768: 16, 96: 2}
"""Heads of the visual blocks by their width where neither file nor setting states them: of the published files, and of
the micro adapter."""
_NARROW = 48
"""Width of a head of the published files and of the micro adapter; blocks that are no wider are taken to have one."""

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
        base: The language model that it was trained on, where the file states it.
    """

    state: dict[str, Tensor]
    shape: AdapterShape
    channel_order: Literal["rgb", "bgr"] | None
    is_training_checkpoint: bool
    ignored: list[str]
    base: BaseMark | None = None

    @property
    def variant(self) -> Variant:
        """Which of the released variants its keys are those of."""
        return "lora-bias" if self.shape.lora_rank else "bias" if self.shape.bias else "caption"

    @property
    def width(self) -> int:
        """D of the language model that it was trained for."""
        return int(self.state["adapter_query.weight"].shape[1])


def open_adapter(
    path: Path, what: str, visual_heads: int | None = None, visual_blocks: int | None = None
) -> AdapterSource:
    """Opens an adapter file of any form.

    Args:
        path: ``.pth`` as released, a training checkpoint, or ``.safetensors`` as `m2chat weights convert` writes it.
        what: The setting that names it, for messages.
        visual_heads: Heads of its visual blocks; None if the file states them, or is of known sizes.
        visual_blocks: Number of its visual blocks; None for as many as it has.

    Raises:
        UserError: If it is missing, broken, or not an adapter, or its sizes are ambiguous.
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
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"{what}: {path} holds NaN or infinite numbers, in {broken[0]} for example: get it again")
    if not any(name.endswith("attention.gate") for name in state):
        _LOG.warning("%s: %s has no gates, so pictures will say nothing to the language model", what, path)
    order: Any = config.get("channel_order")
    if order not in (None, "rgb", "bgr"):
        raise UserError(f"{what}: {path} is marked channel_order={order!r}; known are 'rgb' and 'bgr'")
    where = f"{what}: {path}"
    heads = _visual_heads(config.get("visual_heads"), visual_heads, state["clip_proj.weight"].shape[0], where)
    try:
        shape = read_shape(state, heads)
    except ValueError as error:
        raise UserError(f"{where}: {error}; is it whole, and is backbone.visual_heads right?") from None
    for source, blocks in (("states", config.get("visual_blocks")), ("should have", visual_blocks)):
        if blocks is not None and int(blocks) != shape.visual_depth:
            raise UserError(
                f"{where} {source} {blocks} visual blocks and has {shape.visual_depth}: is it whole, and is "
                "backbone.visual_blocks right?"
            )
    return AdapterSource(state, shape, order, whole, ignored, BaseMark.read(config.get("base"), where))


def _visual_heads(stated: Any, given: int | None, width: int, where: str) -> int:
    """Heads of the visual blocks, which no tensor shows: a wrong number loads and computes something else.

    Args:
        stated: What the file's config states.
        given: The setting.
        width: Width of the blocks.
        where: Name of the file in messages.

    Raises:
        UserError: If they are unknown, or file and setting differ.
    """
    if stated is not None and given is not None and int(stated) != given:
        raise UserError(
            f"{where} states {stated} heads of its visual blocks, and backbone.visual_heads is {given}: leave the "
            "setting out, or name another file"
        )
    heads = stated if stated is not None else given if given is not None else _HEADS.get(width)
    if heads is None and width <= _NARROW:
        _LOG.warning(
            "%s does not state how many heads its visual blocks have; %d wide, they are taken to have one: set "
            "backbone.visual_heads if that is wrong",
            where,
            width,
        )
        heads = 1
    if heads is None:
        choices = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 8)
        raise UserError(
            f"{where} has visual blocks {width} wide and does not state how many heads they have: set "
            f"backbone.visual_heads (of `m2chat weights` --visual-heads) to the number of its training ({choices})"
        )
    return int(heads)


def write_adapter(
    path: Path,
    tensors: Mapping[str, Tensor],
    base: BaseMark | None,
    channel_order: Literal["rgb", "bgr"],
    visual_heads: int,
) -> None:
    """Writes an adapter file in the official layout, marked with what its tensors do not show.

    Args:
        path: File to write; earlier contents give way. ``.pth`` is the official form; ``.safetensors`` has the same
            tensors and strings.
        tensors: Tensors by the official names.
        base: Language model that it was trained on; None if that is not known.
        channel_order: Channel order of the training pictures.
        visual_heads: Heads of the visual blocks.

    Raises:
        UserError: If the name ends in neither, or a tensor holds a number that is not finite.
    """
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"{path}: an adapter becomes one file; let its name end in .pth or .safetensors")
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{path}: {bad[0]} holds numbers that are not finite: this adapter is of no use")
    shape = read_shape(tensors, visual_heads)
    config: dict[str, Any] = {"w_bias": shape.bias, "w_lora": shape.lora_rank > 0, "lora_rank": shape.lora_rank or 16}
    config |= {"visual_heads": visual_heads, "visual_blocks": shape.visual_depth, "channel_order": channel_order}
    config |= {} if base is None else {"base": base.as_dict()}  # no shapes: the tensors have those
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        if path.suffix == ".safetensors":
            strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
            save_file(ready, part, metadata={"format": "pt", **strings, **UNSEALED})
            seal_safetensors(part)
        else:
            with part.open("w+b") as file:
                torch.save({"model": ready, "config": config}, file)
                seal_zip(file)


def marked_channel_order(backbone: BackboneConfig) -> Literal["rgb", "bgr"] | None:
    """Channel order of the training pictures that an adapter's file records; None without a record or a file."""
    path = Path(backbone.adapter)
    if not path.is_file():
        return None
    return open_adapter(path, "backbone.adapter", backbone.visual_heads, backbone.visual_blocks).channel_order
