from __future__ import annotations

import pytest
import torch

from m2chat.models.m2chat import M2ChatModel


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_reading_in_parts_gives_the_same_states_and_gradients(micro_model: M2ChatModel, parts: int) -> None:
    lengths = torch.tensor([5, 40, 12, 33, 8])
    ids = torch.randint(3, 600, (5, 40), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(40) >= lengths[:, None]] = 0
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    real = (torch.arange(40) < lengths[:, None])[..., None]
    bias = micro_model.llama.model.layers[0].mlp.down_proj.bias

    def read(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        micro_model.read_parts = number
        bias.requires_grad_(True)
        states, _, last = micro_model.read(ids, pixels, lengths)
        (gradient,) = torch.autograd.grad((states * real).pow(2).sum() + (last * real).sum(), bias)
        return states.detach() * real, gradient

    try:
        whole, divided = read(1), read(parts)
    finally:
        micro_model.read_parts = 1
    for expected, own in zip(whole, divided, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
