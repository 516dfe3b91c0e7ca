"""The image decoder of the micro model beside diffusers' own pipeline on the same files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.batch import Batch
from m2chat.models.config import BackboneConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import M2ChatModel
from m2chat.planning.step import BatchShape, blank_batch
from m2chat.text import CaptionTokens

CAPTIONS = ["a large red circle on the left on a blue background", "a ring"]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture(scope="session")
def decoder(micro_model: M2ChatModel) -> ImageDecoder:
    return micro_model.decoder


@pytest.fixture(scope="session")
def pipeline(backbone: BackboneConfig) -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(backbone.image_decoder).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def encoded(decoder: ImageDecoder, backbone: BackboneConfig) -> tuple[Tensor, Tensor]:
    e_clip, e_pclip = decoder.encode_text(*CaptionTokens(backbone.image_decoder)(CAPTIONS))
    assert e_pclip is not None
    return e_clip, e_pclip


@pytest.fixture
def drawn(pipeline: Any, encoded: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
    """What diffusers' pipeline draws of the captions at seeds 11 and 12, in [0, 1], perhaps with other parts."""

    def draw(steps: int = 4, guidance: float = 4.0, height: int = 32, width: int = 32, **how: Any) -> Tensor:
        before = {name: getattr(pipeline, name) for name in ("scheduler", "vae")}
        parts = {name: how.pop(name) for name in before if name in how}
        try:
            for name, part in parts.items():
                setattr(pipeline, name, part)
            pictures: Tensor = pipeline(
                prompt_embeds=encoded[0], pooled_prompt_embeds=encoded[1],
                negative_prompt_embeds=torch.zeros_like(encoded[0]),
                negative_pooled_prompt_embeds=torch.zeros_like(encoded[1]),
                generator=[torch.Generator().manual_seed(seed) for seed in (11, 12)], height=height, width=width,
                num_inference_steps=steps, guidance_scale=guidance, output_type="pt", **how,
            ).images  # fmt: skip
        finally:
            for name, part in before.items():
                setattr(pipeline, name, part)
        return pictures

    return draw


@pytest.fixture
def batch(micro_model: M2ChatModel) -> Batch:
    """Two samples for the micro model."""
    torch.manual_seed(1)
    return blank_batch(micro_model, BatchShape(2, 64, 32, 8), "cpu")
