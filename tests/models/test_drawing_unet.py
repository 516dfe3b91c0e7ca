"""The way of drawings through a UNet beside diffusers' own, on miniatures with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from m2chat.models.config import BackboneConfig
from m2chat.models.denoising import FixedCondition, denoise
from m2chat.models.drawing_unet import UNet2DConditionModel
from m2chat.models.image_decoder import ImageDecoder

SDXL = {"use_linear_projection": True}
FIFTEEN = {
    "addition_embed_type": None, "projection_class_embeddings_input_dim": None, "use_linear_projection": False,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
OTHER = {**FIFTEEN, "resnet_time_scale_shift": "scale_shift"}


@pytest.mark.parametrize(("settings", "is_plain"), [(SDXL, True), (FIFTEEN, True), (OTHER, False)])
@torch.inference_mode()
def test_each_step_is_that_of_diffusers(settings: dict[str, Any], is_plain: bool, backbone: BackboneConfig) -> None:
    config = json.loads((Path(backbone.image_decoder) / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config({**config, **settings}).eval()
    assert unet.is_plain == is_plain
    text, latents = torch.randn(2, 20, 160), torch.randn(2, 8, 16, 8)
    width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    pooled, ids = torch.randn(2, width), torch.rand(2, 6) * 64
    added = {"text_embeds": torch.cat([pooled * 0, pooled]), "time_ids": torch.cat([ids, ids])}
    has_pooled = unet.config.addition_embed_type is not None
    fixed = FixedCondition(
        torch.tensor([999, 300]), text, added["text_embeds"] if has_pooled else None, added["time_ids"]
    )
    for index, timestep in enumerate(fixed.timesteps):
        guided = unet(torch.cat([latents] * 2), timestep, torch.cat([text * 0, text]), added_cond_kwargs=added).sample
        for is_guided, wanted in ((True, guided), (False, guided[2:])):
            ours = unet(latents, fixed=fixed, index=index, guided=is_guided)
            torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    assert bool(fixed.shifts) == is_plain


def test_guidance_acts_within_its_interval(
    decoder: ImageDecoder, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, guided = torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(2, -1), []
    step = decoder.unet.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        guided.append(kwargs["guided"])
        return step(*args, **kwargs)

    monkeypatch.setattr(decoder.unet, "step", watched)

    def drawn(guidance: float, interval: tuple[float, float]) -> torch.Tensor:
        *_, last = denoise(decoder, *encoded, ids, [1, 2], 10, guidance, interval)
        return last.latents

    middle = drawn(4.0, (0.25, 0.7))
    assert guided == [False] * 3 + [True] * 4 + [False] * 3
    whole, without = drawn(4.0, (0.0, 1.0)), drawn(1.0, (0.0, 1.0))
    assert guided[10:] == [True] * 10 + [False] * 10
    torch.testing.assert_close(drawn(4.0, (1.0, 1.0)), without, atol=1e-4, rtol=0)
    assert min((middle - other).abs().max() for other in (whole, without)) > 0.1
