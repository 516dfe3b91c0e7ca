"""Both ways of computing attention give the same, and each is taken where it is the faster one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m2chat.models import attention
from m2chat.models.attention import attend, attend_by_products, prefers_products


def inputs(heads: int = 6, groups: int = 2, queries: int = 5, keys: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, heads, queries, 4), (2, groups, keys, 4), (2, groups, keys, 4))
    query, key, value = (torch.randn(size, generator=generator).requires_grad_() for size in sizes)
    return query, key, value


def gradients(result: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.square().sum(), leaves)


@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("case", ["everywhere", "masked", "causal", "transposed"])
def test_products_are_attention(groups: int, case: str) -> None:
    query, key, value = inputs(groups=groups, keys=5 if case == "causal" else 7)
    if case == "transposed":  # as heads are split from a projection
        query = query.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    mask = (torch.rand(2, 1, 1, 7) > 0.5).index_fill(3, torch.tensor([0]), True) if case == "masked" else None
    leaves = query, key, value
    plain = attend_by_products(*leaves, mask, case == "causal")
    fused = attend(*leaves, mask, case == "causal")
    torch.testing.assert_close(plain, fused)
    for ours, theirs in zip(gradients(plain, *leaves), gradients(fused, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_to_look_at_gives_zeros() -> None:
    query, key, value = inputs(keys=0)
    assert not attend_by_products(query, key, value, None, False).any()


def test_products_are_taken_in_bf16_with_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    query = inputs()[0]
    assert not prefers_products(query) and prefers_products(query.bfloat16())
    assert not prefers_products(query.bfloat16().to("meta"))
    with torch.no_grad():
        assert not prefers_products(query.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert prefers_products(query), "autocast would lower it"
    taken: list[str] = []
    monkeypatch.setattr(attention, "attend_by_products", lambda *_: taken.append("products"))
    attend(*(tensor.bfloat16() for tensor in inputs()))
    attend(*inputs())
    assert taken == ["products"]
