from __future__ import annotations

import pytest
import torch

from m2chat.models.m2chat import M2ChatModel
from m2chat.places import Places


def places_of(ids: torch.Tensor, lengths: torch.Tensor, shown: torch.Tensor | None = None) -> Places:
    """Where sequences end and which of them have a picture, all by default; nothing is scored or drawn."""
    count, length = ids.shape
    real, no = torch.arange(length) < lengths[:, None], torch.zeros(count, dtype=torch.bool)
    labels, read = torch.full_like(ids, -100), torch.zeros_like(real)
    return Places.of(ids, real, labels, read, ~no if shown is None else shown, no)


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
        states, _, last = micro_model.read(ids, pixels, places_of(ids, lengths))
        (gradient,) = torch.autograd.grad((states * real).pow(2).sum() + (last * real).sum(), bias)
        return states.detach() * real, gradient

    try:
        whole, divided = read(1), read(parts)
    finally:
        micro_model.read_parts = 1
    for expected, own in zip(whole, divided, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_a_common_beginning_is_read_once_with_the_same_states(
    micro_model: M2ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = torch.tensor([21, 40, 25, 33])
    ids = torch.randint(3, 600, (4, 40), generator=torch.Generator().manual_seed(0))
    ids[:, :20] = ids[0, :20]
    ids[:, 20] = torch.arange(3, 7)  # they differ from here on
    real = (torch.arange(40) < lengths[:, None])[..., None]
    ids = torch.where(real[..., 0], ids, 0)
    places, empty = places_of(ids, lengths), torch.zeros(1, 3, 32, 32)
    assert places.prefix == 20
    passes: list[tuple[int, ...]] = []
    whole = micro_model.llama.model.forward

    def counted(input_ids: torch.Tensor, *rest: object, **named: object) -> object:
        passes.append(tuple(input_ids.shape))
        return whole(input_ids, *rest, **named)

    monkeypatch.setattr(micro_model.llama.model, "forward", counted)
    for layers in ((-1,), (2, -1)):
        monkeypatch.setattr(type(micro_model), "read_layers", layers)
        with torch.no_grad():
            expected, _, last = micro_model.read(ids, empty)
            passes.clear()
            for parts in (1, 3):
                micro_model.read_parts = parts
                states, _, own_last = micro_model.read(ids, empty, places)
                torch.testing.assert_close(states * real, expected * real, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(own_last * real, last * real, rtol=1e-5, atol=1e-5)
        micro_model.read_parts = 1
        assert passes[0] == (1, 20) and passes[1] == (4, 20), "20 tokens once, and 20 of each behind them"
        assert all(rows * width < 4 * 40 for rows, width in passes)


def test_pictures_that_are_not_there_are_looked_at_once(micro_model: M2ChatModel) -> None:
    ids = torch.randint(3, 600, (5, 12), generator=torch.Generator().manual_seed(0))
    shown = torch.tensor([False, True, False, True, False])
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * shown[:, None, None, None]
    looked: list[int] = []
    hook = micro_model.clip.register_forward_pre_hook(lambda _, inputs: looked.append(len(inputs[0])))
    places = places_of(ids, torch.full((5,), 12), shown)
    try:
        expected, f_img, _ = micro_model.read(ids, pixels)
        states, own, _ = micro_model.read(ids, pixels, places)
        kept, _, _ = micro_model.read(ids, pixels, places, f_img)
    finally:
        hook.remove()
    assert looked == [5, 3], "two pictures, and an empty one for the other three"
    for each in (states, kept):
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own, f_img, rtol=1e-4, atol=1e-5)
