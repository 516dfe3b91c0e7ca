"""What several sequences begin with, read once for all of them: exact, since attention is causal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

SHORTEST = 8
"""Tokens from which on a common beginning is worth a separate pass."""


class Beginning(DynamicCache):
    """Keys and values of P tokens, for passes over what follows them; it never grows.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        input_ids: (1, P).
        visual_query: Visual query of the picture that all sequences share, (1, K, D).
        hidden: Whether the states of every layer are wanted.

    Attributes:
        length: P.
        output: What the language model returned.
    """

    def __init__(self, llama: Any, input_ids: Tensor, visual_query: Tensor, hidden: bool) -> None:
        super().__init__()
        self.output = llama.model(
            input_ids, visual_query=visual_query, output_hidden_states=hidden, cache=DynamicCache(), use_cache=True
        )
        self.length = input_ids.shape[1]
        self.layers = self.output.cache.layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of whole sequences, from those of what follows: (B, heads, n, d) to (B, heads, P + n, d)."""
        layer = self.layers[layer_idx]
        whole = [
            torch.cat([kept.expand(len(new), -1, -1, -1), new], 2)
            for kept, new in ((layer.keys, key), (layer.values, value))
        ]
        return whole[0], whole[1]
