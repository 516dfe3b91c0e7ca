from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2chat.models.config import GATE_MODES, GateConfig, GateMode, M3AdapterConfig
from m2chat.models.m3adapter import M3Adapter, fuse

D, W, Q, C, P = 16, 12, 5, 10, 6


def connector(mode: GateMode = "learnable", pooled: int = P, **settings: Any) -> M3Adapter:
    torch.manual_seed(0)
    return M3Adapter(M3AdapterConfig(width=8, heads=2, gate=GateConfig(mode), **settings), D, W, Q, C, pooled)


def inputs(rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Ragged rows: answer, caption and image tokens one after the other, padding behind."""
    generator = torch.Generator().manual_seed(1)
    answer, caption, image = (torch.zeros(rows, length, dtype=torch.bool) for _ in range(3))
    for row in range(rows):
        answer[row, :2], caption[row, 2 : 4 + row], image[row, 4 + row : 6 + row] = True, True, True
    return {
        "states": torch.randn(rows, length, D, generator=generator),
        "answer_mask": answer,
        "caption_mask": caption,
        "image_mask": image,
        "f_img": torch.randn(rows, 4, W, generator=generator),
        "has_context": torch.ones(rows, dtype=torch.bool),
    }


def test_shapes() -> None:
    condition = connector()(**inputs())
    assert condition.h_align.shape == (3, Q, C) and condition.gate.shape == condition.cosine.shape == (3,)
    assert condition.h_palign is not None and condition.h_palign.shape == (3, P)
    assert connector(pooled=0)(**inputs()).h_palign is None


@pytest.mark.parametrize("mode", GATE_MODES)
def test_a_ragged_batch_equals_each_row_alone(mode: GateMode) -> None:
    adapter, batch = connector(mode).eval(), inputs()
    batch["has_context"][1] = False
    together = adapter(**batch)
    for row in range(3):
        length = 6 + row  # without any padding
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        cut = {name: v[:, :length] if name == "states" or name.endswith("_mask") else v for name, v in alone.items()}
        single = adapter(**cut)
        torch.testing.assert_close(single.h_align[0], together.h_align[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single.h_palign[0], together.h_palign[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(single.gate[0], together.gate[row], atol=1e-6, rtol=0)


def test_only_caption_and_image_tokens_are_read() -> None:
    adapter, batch = connector("constant").eval(), inputs()
    changed = {**batch, "states": batch["states"].clone()}
    beyond = ~(batch["caption_mask"] | batch["image_mask"])
    changed["states"][beyond] = 7.0
    assert torch.equal(adapter(**changed).h_align, adapter(**batch).h_align)
    for name in ("caption_mask", "image_mask"):
        moved = {**batch, "states": batch["states"].clone()}
        moved["states"][batch[name]] += torch.randn(D, generator=torch.Generator().manual_seed(3))
        assert not torch.allclose(adapter(**moved).h_align, adapter(**batch).h_align, atol=1e-3)


def test_a_row_without_tokens_or_picture_is_finite() -> None:
    adapter, batch = connector(), inputs()
    for name in ("answer_mask", "caption_mask", "image_mask", "has_context"):
        batch[name][0] = False
    batch["f_img"][0] = 0
    condition = adapter(**batch)
    assert condition.h_align.isfinite().all() and condition.h_palign.isfinite().all()
    elsewhere = adapter(**{**batch, "states": batch["states"].flip(0)})
    assert torch.equal(elsewhere.h_align[0], condition.h_align[0]), "it looks at nothing, not at everything"
    condition.h_align.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in adapter.parameters())
    torch.testing.assert_close(
        connector()(**inputs()).h_align[1:], condition.h_align[1:], msg="the others see nothing of it"
    )


def speaking(adapter: M3Adapter) -> M3Adapter:
    """Gives the image branch, which starts silent, something to say."""
    for block in adapter.image_blocks:
        for parameter in block.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return adapter


def test_the_image_branch_starts_silent() -> None:
    adapter, batch = connector().eval(), inputs()
    other = {**batch, "f_img": torch.randn_like(batch["f_img"])}
    assert torch.equal(adapter(**batch).h_align, adapter(**other).h_align)


def test_gradients_reach_gate_and_image_branch() -> None:
    adapter = speaking(connector())
    adapter(**inputs()).h_align.square().sum().backward()
    for name, parameter in adapter.named_parameters():
        if not name.startswith("pooled_head"):
            assert parameter.grad is not None and parameter.grad.any(), name


def test_off_has_no_image_branch() -> None:
    adapter, batch = connector("off"), inputs()
    condition = adapter(**batch)
    condition.h_align.square().sum().backward()
    branch = {id(p) for module in adapter.image_branch() for p in module.parameters()}
    assert branch and all(
        (p.grad is None) == (id(p) in branch) for p in adapter.parameters() if p.ndim and id(p) not in _pooled(adapter)
    )
    blind = adapter(**{**batch, "f_img": torch.randn_like(batch["f_img"])})
    assert torch.equal(blind.h_align, condition.h_align) and condition.gate.tolist() == [1.0] * 3


def _pooled(adapter: M3Adapter) -> set[int]:
    assert adapter.pooled_head is not None
    return {id(p) for p in adapter.pooled_head.parameters()}


def test_stage_1_is_blind_and_the_gate_reports_one() -> None:
    adapter, batch = connector(), inputs()
    blind = adapter(**batch, use_image=False)
    assert torch.equal(blind.h_align, connector("off")(**batch).h_align) and blind.gate.tolist() == [1.0] * 3


def test_the_picture_counts_only_where_there_is_one() -> None:
    adapter, batch = speaking(connector()).eval(), inputs()
    batch["has_context"][0] = False
    other = {**batch, "f_img": torch.randn_like(batch["f_img"])}
    first, second = adapter(**batch).h_align, adapter(**other).h_align
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1:], second[1:], atol=1e-3)


def test_fusion_is_equation_3() -> None:
    picture, semantic, gate = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0.0, 0.25, 1.0])
    fused = fuse(picture, semantic, gate)
    torch.testing.assert_close(fused[0], picture[0])
    torch.testing.assert_close(fused[1], 0.75 * picture[1] + 0.25 * semantic[1])
    assert torch.equal(fuse(picture * torch.inf, semantic, gate)[2], semantic[2])


def test_several_layers_are_mixed() -> None:
    adapter = connector(layers=(-1, 2, 1))
    states = [torch.randn(2, 3, D) * scale for scale in (1, 10, 100)]
    mixed = adapter.mix_layers(torch.stack(states))
    normal = [torch.nn.functional.layer_norm(state, (D,)) for state in states]
    torch.testing.assert_close(mixed, sum(normal) / 3)
    assert connector().layer_weights is None and connector().mix_layers(states[0]) is states[0]
    batch = inputs()
    adapter(**{**batch, "states": torch.stack([batch["states"]] * 3)}).h_align.square().sum().backward()
    assert adapter.layer_weights is not None and adapter.layer_weights.grad is not None


def test_positions_tell_the_order_of_the_tokens() -> None:
    batch = inputs()
    swapped = {**batch, "states": batch["states"].clone()}
    swapped["states"][:, [2, 3]] = batch["states"][:, [3, 2]]  # the caption's first two tokens
    plain, counted = connector().eval(), connector(positions=3).eval()
    torch.testing.assert_close(plain(**batch, use_image=False).h_align, plain(**swapped, use_image=False).h_align)
    changed = counted(**batch, use_image=False).h_align - counted(**swapped, use_image=False).h_align
    assert changed.abs().amax((1, 2)).min() > 1e-3


def test_positions_count_what_is_read_wherever_it_lies() -> None:
    adapter, batch = connector(positions=3).eval(), inputs()
    mask = batch["caption_mask"] | batch["image_mask"]
    places = torch.stack([(~row).int().argsort(stable=True)[: mask.sum(1).max()] for row in mask])
    gathered = adapter(**batch, read=(places, mask.gather(1, places)))
    torch.testing.assert_close(adapter(**batch).h_align, gathered.h_align)


def test_size_at_paper_scale() -> None:
    with torch.device("meta"):
        adapter = M3Adapter(M3AdapterConfig(1536, 24), 4096, 768, 77, 2048, 1280)
    assert (adapter.config.width, adapter.config.heads, adapter.config.blocks) == (1536, 24, 2)
    assert sum(p.numel() for p in adapter.parameters()) == 80_934_146 <= 90_000_000
