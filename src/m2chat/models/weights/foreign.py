"""Whether an adapter was made for a language model, by the mark in its file or, without one, by its norms.

An adapter replaces norms and adds biases that only make sense to the network that they were trained on. On another
network of the same sizes it loads, and speaks nonsense.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models import published
from m2chat.models.adapter_file import NORM
from m2chat.models.weights.adapter import AdapterSource
from m2chat.models.weights.base import mark_fingerprint, sizes_of
from m2chat.models.weights.llama import LlamaSource

_LOG = logging.getLogger(__name__)
_LEAST_AGREEMENT = 0.3
"""Norms of unrelated networks agree by chance: at width 4096 within 0.02 of zero, at width 128 within 0.1."""
_SAME = 0.02
"""Relative difference of norms that are taken to be the same without asking for their agreement."""


def refuse_foreign(source: LlamaSource, adapter: AdapterSource, where: str, allowed: bool) -> None:
    """Makes sure that an adapter was made for a language model.

    Args:
        source: Language model.
        adapter: Adapter that has its sizes.
        where: Name of the adapter in messages.
        allowed: Whether another one's is accepted, with a warning.

    Raises:
        UserError: If it was made for another one.
    """
    if reason := why_foreign(source, adapter):
        text = f"{where} was not made for the language model in {source.folder}: {reason}"
        if not allowed:
            raise UserError(
                f"{text}. With it the language model would speak nonsense: name the adapter of this language model, "
                "train one with backbone.adapter: new and configs/stage0.yaml, or set backbone.allow_foreign_adapter: "
                "true to use it nevertheless"
            )
        _LOG.warning("%s; backbone.allow_foreign_adapter accepts it", text)
    elif adapter.base is None and not _norms(source.state, adapter.state):
        _LOG.warning("%s has neither a mark nor norms, so nothing tells whether it is this language model's", where)


def why_foreign(source: LlamaSource, adapter: AdapterSource) -> str | None:
    """Why an adapter that fits a language model's sizes was nevertheless made for another one; None if it was not.

    Args:
        source: Language model.
        adapter: Adapter.
    """
    if adapter.base is not None:
        sizes = {**adapter.base.as_dict(), "fingerprint": None}
        here = {**sizes_of(source.settings), "fingerprint": None}
        if differing := [name for name in here if sizes[name] != here[name]]:
            texts = (f"{name} {sizes[name]} and not {here[name]}" for name in differing)
            return f"its mark names a language model of {', '.join(texts)}"
        actual = mark_fingerprint(source.state)
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
    pairs = _norms(base, official)
    if not pairs:
        return 0.0, 1.0
    wide = [(a.double(), b.double()) for a, b in pairs]
    distance = sum(float((a - b).square().sum()) for a, b in wide) / sum(float(a.square().sum()) for a, _ in wide)
    return distance**0.5, median(_correlation(a, b) for a, b in wide)


def _norms(base: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each norm of a language model that an adapter has, beside the adapter's."""
    names = {"llama.norm.weight": "model.norm.weight"}
    for name in official:
        for theirs, ours in NORM.items():
            if name.startswith("llama.layers.") and name.endswith(f".{theirs}.weight"):
                names[name] = f"model.layers.{name.split('.')[2]}.{ours}.weight"
    return [(base[ours], official[name]) for name, ours in names.items() if name in official]


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(torch.dot(a, b)) / scale if scale else 0.0


def _is_7b(adapter: AdapterSource) -> bool:
    gates = sum(name.endswith("attention.gate") for name in adapter.state)
    sizes = (adapter.width, gates)
    return sizes == (published.LLAMA_7B["hidden_size"], published.LLAMA_7B["num_hidden_layers"])


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
