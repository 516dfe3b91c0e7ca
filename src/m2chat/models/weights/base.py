"""Which language model an adapter was made for: the mark in its file, and how to tell without one.

An adapter replaces norms and adds biases that only make sense to the network that they were trained on. On another
network of the same sizes it loads, and speaks nonsense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models import published
from m2chat.models.adapter_file import NORM

if TYPE_CHECKING:
    from m2chat.models.weights.adapter import AdapterSource
    from m2chat.models.weights.llama import LlamaSource

_SAMPLES = 4096
"""Numbers of each tensor that the fingerprint reads: at 7B one has millions, and another network differs in all."""
_LEAST_AGREEMENT = 0.3
"""Norms of unrelated networks agree by chance: at width 4096 within 0.02 of zero, at width 128 within 0.1."""
_SAME = 0.02
"""Relative difference of norms that are taken to be the same without asking for their agreement."""


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
        return cls(tensor_fingerprint(source.state), **_sizes(source.settings))

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


def _sizes(settings: Mapping[str, Any]) -> dict[str, int]:
    heads = int(settings["num_attention_heads"])
    return {
        "width": int(settings["hidden_size"]),
        "layers": int(settings["num_hidden_layers"]),
        "heads": heads,
        "kv_heads": int(settings.get("num_key_value_heads") or heads),
        "inner": int(settings["intermediate_size"]),
    }


def tensor_fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short name of a network's tensors by names, shapes and evenly spread numbers of each, whatever its precision.

    The output layer is left out: where it is tied to the input table some files hold it and some do not.
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


def why_foreign(source: LlamaSource, adapter: AdapterSource) -> str | None:
    """Why an adapter that fits a language model's sizes was nevertheless made for another one; None if it was not.

    Args:
        source: Language model.
        adapter: Adapter.
    """
    if adapter.base is not None:
        sizes = {**adapter.base.as_dict(), "fingerprint": None}
        here = {**_sizes(source.settings), "fingerprint": None}
        if differing := [name for name in here if sizes[name] != here[name]]:
            texts = (f"{name} {sizes[name]} and not {here[name]}" for name in differing)
            return f"its mark names a language model of {', '.join(texts)}"
        actual = tensor_fingerprint(source.state)
        if adapter.base.fingerprint == actual:
            return None
        return (
            f"its mark names the language model {adapter.base.fingerprint}, and this one is {actual}: same sizes, "
            "other weights"
        )
    if _is_7b(adapter) and (reason := _not_llama_1(source.settings)):
        return (
            f"it has no mark and the sizes of the published files, which fit LLaMA-1 7B and nothing else, and {reason}"
        )
    distance, agreement = norm_agreement(source.state, adapter.state)
    if distance <= _SAME or agreement >= _LEAST_AGREEMENT:
        return None
    return (
        f"it has no mark, and its norms are {100 * distance:.0f} % away from those of the language model and agree "
        f"with them by {agreement:.2f} (1 is the same, 0 is chance, {_LEAST_AGREEMENT} the least for an adapter of it)"
    )


def norm_agreement(base: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> tuple[float, float]:
    """How far an adapter's norms are from those of a language model.

    Training moves a norm from where it was, so that its channels keep their pattern; another network has another
    pattern about a similar mean.

    Args:
        base: Tensors of the language model by transformers' names.
        official: Tensors of the adapter by the official names.

    Returns:
        The relative distance of all norms together, and the median over them of the correlation of their channels;
        0 and 1 if the adapter has no norms.
    """
    pairs = [(base["model.norm.weight"], official["llama.norm.weight"])] if "llama.norm.weight" in official else []
    for theirs, ours in NORM.items():
        for name in official:
            if name.endswith(f".{theirs}.weight"):
                pairs.append((base[f"model.layers.{name.split('.')[2]}.{ours}.weight"], official[name]))
    if not pairs:
        return 0.0, 1.0
    wide = [(a.double(), b.double()) for a, b in pairs]
    distance = sum(float((a - b).square().sum()) for a, b in wide) / sum(float(a.square().sum()) for a, _ in wide)
    return distance**0.5, median(_correlation(a, b) for a, b in wide)


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(torch.dot(a, b)) / scale if scale else 0.0


def _is_7b(adapter: AdapterSource) -> bool:
    gates = sum(name.endswith("attention.gate") for name in adapter.state)
    return adapter.width == published.LLAMA_7B["hidden_size"] and gates == published.LLAMA_7B["num_hidden_layers"]


def _not_llama_1(settings: Mapping[str, Any]) -> str | None:
    """Which setting tells a language model of 7B from LLaMA-1; None if it may be LLaMA-1."""
    rope = settings.get("rope_parameters") or {}
    actual = {
        "vocab_size": settings.get("vocab_size"),
        "rms_norm_eps": settings.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", settings.get("rope_theta", 10000.0)),
        "num_key_value_heads": settings.get("num_key_value_heads") or settings.get("num_attention_heads"),
        "max_position_embeddings": settings.get("max_position_embeddings", 2048),
    }
    wanted = {name: published.LLAMA_7B.get(name, 10000.0) for name in actual}
    for name, value in actual.items():
        if value != wanted[name]:
            return f"this language model has {name} {value} where LLaMA-1 has {wanted[name]}"
    return None
