"""The mark of a language model, which an adapter's file carries: its sizes, and a fingerprint of its tensors.

That fingerprint is another than `sampled.tensor_fingerprint`, by which trained weights know their backbones. A mark
reads 4,096 numbers of a tensor in full precision, since it refuses files and is computed where all tensors are loaded
anyway; the other reads few pages and takes a network and its half-precision copy for one. Both are kept in files of
users, so neither may change its value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from m2chat.errors import UserError

if TYPE_CHECKING:
    from m2chat.models.weights.llama import LlamaSource

_SAMPLES = 4096
"""Numbers of each tensor that the fingerprint reads: at 7B one has millions, and another network differs in all."""


@dataclass(frozen=True)
class BaseMark:
    """A language model by its contents and sizes.

    Args:
        fingerprint: Hash of its tensors, the same in every form of the folder.
        width: D.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        inner: Width inside the feed-forwards.
    """

    fingerprint: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int

    @classmethod
    def of(cls, source: LlamaSource) -> BaseMark:
        """The mark of a language model that is open, before its tensors are given up."""
        return cls(mark_fingerprint(source.state), **sizes_of(source.settings))

    @classmethod
    def read(cls, value: Any, where: str) -> BaseMark | None:
        """The mark that a file's config holds, as a mapping or as JSON; None without one.

        Raises:
            UserError: If it cannot be understood.
        """
        if value is None:
            return None
        try:
            return cls(**(json.loads(value) if isinstance(value, str) else value))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} has a mark of its language model that cannot be read ({error})") from None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a file's config."""
        return asdict(self)


def sizes_of(settings: Mapping[str, Any]) -> dict[str, int]:
    """The sizes in a `BaseMark`, from arguments of transformers' `LlamaConfig`."""
    heads = int(settings["num_attention_heads"])
    return {
        "width": int(settings["hidden_size"]),
        "layers": int(settings["num_hidden_layers"]),
        "heads": heads,
        "kv_heads": int(settings.get("num_key_value_heads") or heads),
        "inner": int(settings["intermediate_size"]),
    }


def mark_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short name of a language model's tensors for its mark: names, shapes and evenly spread numbers of each.

    Tensors of another precision that hold the same numbers have the same name. The output layer is left out: where
    it is tied to the input table some files hold it and some do not.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if name == "lm_head.weight":
            continue
        tensor = state[name]
        flat = tensor.reshape(-1)
        chosen = flat[:: max(1, flat.numel() // _SAMPLES)].float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + chosen.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
