"""Tables of numbers, schedules, latents and sizes keep their precision when weights are lowered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.losses import align_loss, ddpm_loss
from m2chat.models.denoising import size_ids
from m2chat.models.m2chat import M2ChatModel
from m2chat.pipeline import M2ChatPipeline


def tables(model: M2ChatModel) -> dict[str, Tensor]:
    """Every buffer of numbers, and every tensor that a noise schedule holds, by name."""
    found = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    for name in ("noiser", "scheduler"):
        schedule = vars(getattr(model.decoder, name))
        found |= {f"{name}.{key}": value for key, value in schedule.items() if isinstance(value, Tensor)}
    return found


@pytest.fixture(scope="module")
def exact() -> dict[str, Tensor]:
    return tables(M2ChatPipeline.from_pretrained().model)


def test_tables_survive_loading_in_bf16(exact: dict[str, Tensor]) -> None:
    pipe = M2ChatPipeline.from_pretrained(torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.bfloat16}
    found = tables(pipe.model)
    rotation = "llama.model.rotary_emb."
    assert {f"{rotation}inv_freq", f"{rotation}original_inv_freq", "noiser.alphas_cumprod"} <= found.keys()
    assert found.keys() == exact.keys()
    for name, table in exact.items():
        assert table.dtype == found[name].dtype and torch.equal(table, found[name]), name


@pytest.mark.parametrize("cast", [lambda model: model.half(), lambda model: model.llama.bfloat16()])
def test_any_cast_leaves_the_rotations_alone(micro_model: M2ChatModel, cast: Callable[[Any], object]) -> None:
    model = copy.deepcopy(micro_model)
    before = tables(model)
    cast(model)
    assert next(model.llama.parameters()).dtype != torch.float32
    for name, table in tables(model).items():
        assert table.dtype == before[name].dtype and torch.equal(table, before[name]), name


def test_noise_is_not_lost_at_the_first_timesteps(micro_model: M2ChatModel) -> None:
    decoder = micro_model.decoder
    latents = torch.randn(5, 8, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    noise = torch.randn(5, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([0, 1, 2, 10, 50])
    kept = decoder.noiser.alphas_cumprod.double()[steps].view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        noisy, target = decoder.diffuse(latents, noise, steps)
    signal, sigma = latents.double(), (1 - kept).sqrt()
    torch.testing.assert_close(noisy.double(), kept.sqrt() * signal + sigma * noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.double(), kept.sqrt() * noise - sigma * signal, rtol=1e-6, atol=1e-6)


def test_autocast_does_not_reach_the_latents(micro_model: M2ChatModel) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = micro_model.decoder.encode_pixels(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        found = micro_model.decoder.encode_pixels(pixels)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_latents_and_sizes_stay_exact_between_lowered_steps(micro_model: M2ChatModel) -> None:
    decoder = copy.deepcopy(micro_model.decoder).to(torch.bfloat16)
    seen: list[Any] = []
    decoder.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    width = decoder.sequence_width
    h_align = torch.zeros(1, decoder.queries, width, dtype=torch.bfloat16)
    h_palign = torch.zeros(1, decoder.pooled_width, dtype=torch.bfloat16)
    ids = size_ids(32, 32, 1)
    ids = torch.cat([torch.tensor([[4104.0, 683.0]]), ids[:, 2:]], 1)  # bf16 has neither
    states = list(decoder.denoise(h_align, h_palign, ids, [0], steps=2))
    assert {state.latents.dtype for state in states} == {torch.float32}
    assert len(seen) == 2 and all(args[0].dtype == torch.bfloat16 for args, _ in seen)
    assert torch.equal(seen[0][1]["fixed"].time_ids[-1:], ids)
    assert decoder.decode_latents(states[-1].latents).dtype == torch.bfloat16


def test_losses_of_lowered_tensors_are_those_of_their_values() -> None:
    generator = torch.Generator().manual_seed(0)
    given, wanted = (torch.randn(2, 4, 8, generator=generator).bfloat16() for _ in range(2))
    mask = torch.ones(2, dtype=torch.bool)
    exact = (given.double() - wanted.double()).square().mean()
    assert align_loss(given, wanted, None, None, mask).item() == pytest.approx(exact.item(), rel=1e-6)
    assert ddpm_loss(given, wanted, mask).item() == pytest.approx(exact.item(), rel=1e-6)
