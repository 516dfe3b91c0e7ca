"""Attention in the way that is fastest where it is computed.

Shapes: B batch, H heads of the queries, G heads of keys and values, T queries, S keys, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def prefers_products(query: Tensor) -> bool:
    """Whether plain products are faster for these queries: in bf16 on a CPU, where gradients are wanted.

    PyTorch's fused attention takes up to four times as long there, nearly all of it in the backward pass.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    return dtype == torch.bfloat16


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v, (B, H, T, d).

    Args:
        query: (B, H, T, d).
        key: (B, G, S, d), where H is a multiple of G.
        value: (B, G, S, d).
        mask: True where a query may look, broadcastable to (B, H, T, S); None for everywhere.
        causal: Whether a query looks at keys up to its place alone; T and S are the same then, and `mask` is None.
    """
    if prefers_products(query):
        return attend_by_products(query, key, value, mask, causal)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The same as two products and a softmax in fp32; arguments as for `attend`."""
    (batch, heads, count, width), (groups, keys) = query.shape, key.shape[1:3]
    # The queries of all heads that share keys stand in one matrix, so that no key is copied.
    stacked = (query * width**-0.5).reshape(batch, groups, heads // groups * count, width)
    scores = (stacked @ key.transpose(-1, -2)).view(batch, heads, count, keys)
    if causal:
        mask = torch.ones(count, keys, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    attended: Tensor = weights.view(batch, groups, heads // groups * count, keys) @ value
    return attended.view_as(query)
