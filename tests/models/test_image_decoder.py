from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.schedulers import SCHEDULERS, make_scheduler
from m2chat.models.vae import decode, encode
from m2chat.worlds.shapes.scenes import render, scenes_of_split


def time_ids(rows: int) -> Tensor:
    return torch.tensor([[32.0, 32, 0, 0, 32, 32]]).expand(rows, -1)


def test_encode_text_is_encode_prompt(
    decoder: ImageDecoder, pipeline: Any, encoded: tuple[Tensor, Tensor], captions: list[str]
) -> None:
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    assert encoded[0].shape == (2, decoder.queries, decoder.sequence_width)
    assert encoded[1].shape == (2, decoder.pooled_width)
    torch.testing.assert_close(encoded[0], embeds, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoded[1], pooled, atol=1e-6, rtol=1e-6)
    assert (embeds[0] - embeds[1]).abs().max() > 0.1


def test_drawing_equals_the_pipeline(decoder: ImageDecoder, pipeline: Any, encoded: tuple[Tensor, Tensor]) -> None:
    seeds = [11, 12]
    ours = decoder.sample(*encoded, time_ids(2), seeds, steps=5, guidance=4.0)
    noise = [torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    theirs = pipeline(
        prompt_embeds=encoded[0], pooled_prompt_embeds=encoded[1], negative_prompt_embeds=torch.zeros_like(encoded[0]),
        negative_pooled_prompt_embeds=torch.zeros_like(encoded[1]), latents=torch.stack(noise), height=32, width=32,
        num_inference_steps=5, guidance_scale=4.0, output_type="pt",
    ).images  # fmt: skip
    assert ours.shape == (2, 3, 32, 32) and ours.std() > 0.1
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=1e-4, rtol=0)


def test_other_sizes_equal_the_pipeline(decoder: ImageDecoder, drawn: Any, encoded: tuple[Tensor, Tensor]) -> None:
    height, width = decoder.checked_size(48, 32)
    ids = torch.tensor([[height, width, 0.0, 0.0, height, width]]).expand(2, -1)
    ours = decoder.sample(*encoded, ids, [11, 12], steps=4, guidance=4.0)
    assert ours.shape == (2, 3, 48, 32)
    torch.testing.assert_close((ours + 1) / 2, drawn(height=48, width=32, steps=4), atol=1e-4, rtol=0)
    # The numbers that the UNet is told of the size count, not the shape of the noise alone.
    other = drawn(height=48, width=32, steps=4, original_size=(32, 32), target_size=(32, 32))
    assert (other - (ours + 1) / 2).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((33, 32), r"height=33: VAE and UNet need a multiple of 8; the nearest is 32 or 40"),
        ((32, 4), r"width=4: VAE and UNet need a multiple of 8; the nearest is 8"),
        ((-8, 32), r"height=-8: VAE and UNet need a multiple of 8; the nearest is 8$"),
        (("32", 32), r"height='32': give a number of pixels, a multiple of 8"),
        ((32.5, 32), r"height=32\.5: give a number of pixels"),
    ],
)
def test_sizes_that_cannot_be_drawn(decoder: ImageDecoder, size: tuple[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder.checked_size(*size)


@pytest.mark.parametrize(("name", "steps"), [("lcm", 60), ("pndm", 2)])
def test_steps_that_a_scheduler_does_not_have(decoder: ImageDecoder, name: str, steps: int) -> None:
    before, decoder.scheduler = decoder.scheduler, make_scheduler(name, decoder.noiser.config)
    try:
        with pytest.raises(UserError, match=rf"steps={steps}: the scheduler {SCHEDULERS[name]} cannot draw in so many"):
            decoder.checked_steps(steps)
        assert decoder.checked_steps(20) == 20
    finally:
        decoder.scheduler = before


@pytest.mark.parametrize("marked", [True, False])
def test_a_vae_that_overflows_in_fp16_draws_no_black_picture(
    decoder: ImageDecoder, marked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    latents = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = copy.deepcopy(decoder.vae)
    vae.decoder.conv_in.weight.data.mul_(1e5)
    wanted = decode(vae, latents.half().float())
    assert not vae.half().decode((latents / vae.config.scaling_factor).half()).sample.isfinite().all()
    vae.register_to_config(force_upcast=marked)
    pixels = decode(vae, latents.half())
    torch.testing.assert_close(pixels.float(), wanted, atol=0.02, rtol=0)
    assert ("force_upcast is off" in caplog.text) != marked
    assert encode(vae, pixels.half()).dtype == vae.dtype == torch.float32  # lifted for good
    with pytest.raises(UserError, match="the UNet's numbers are not finite in fp16"):
        decode(vae, torch.full((1, 8, 8, 8), torch.inf, dtype=torch.float16))


def test_a_picture_does_not_depend_on_its_batch(decoder: ImageDecoder, encoded: tuple[Tensor, Tensor]) -> None:
    both = decoder.sample(*encoded, time_ids(2), [11, 12], steps=3)
    alone = decoder.sample(encoded[0][1:], encoded[1][1:], time_ids(1), [12], steps=3)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    other = decoder.sample(encoded[0][1:], encoded[1][1:], time_ids(1), [13], steps=3)
    assert (other - alone).abs().max() > 0.1


def test_diffuse_follows_the_prediction_type(decoder: ImageDecoder, backbone: BackboneConfig) -> None:
    latents, noise = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([999, 300])
    alpha = decoder.noiser.alphas_cumprod[steps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    noisy, target = decoder.diffuse(latents, noise, steps)
    torch.testing.assert_close(noisy, alpha * latents + sigma * noise)
    torch.testing.assert_close(target, alpha * noise - sigma * latents)
    torch.testing.assert_close(noisy[0], noise[0])  # zero terminal signal: the last step is pure noise
    own = type(decoder.noiser).from_config(decoder.noiser.config, prediction_type="epsilon")
    before, decoder.noiser = decoder.noiser, own
    try:
        assert torch.equal(decoder.diffuse(latents, noise, steps)[1], noise)
        decoder.noiser = type(own).from_config(own.config, prediction_type="sample")
        with pytest.raises(UserError, match="'sample'; supported are 'epsilon' and 'v_prediction'"):
            decoder.diffuse(latents, noise, steps)
    finally:
        decoder.noiser = before


def test_gradients_reach_the_condition_through_the_frozen_network(
    decoder: ImageDecoder, encoded: tuple[Tensor, Tensor]
) -> None:
    h_align, h_palign = (tensor.clone().requires_grad_() for tensor in encoded)
    noise = torch.randn(2, 8, 8, 8)
    decoder.predict(noise, torch.tensor([10, 900]), h_align, h_palign, time_ids(2)).square().sum().backward()
    assert h_align.grad is not None and h_palign.grad is not None
    assert h_align.grad.abs().sum((1, 2)).all() and h_palign.grad.abs().sum(1).all()
    assert all(p.grad is None and not p.requires_grad for p in decoder.parameters())


def test_it_stays_in_evaluation_mode(decoder: ImageDecoder) -> None:
    assert not decoder.train().training and not any(module.training for module in decoder.modules())


def test_latents_there_and_back(decoder: ImageDecoder) -> None:
    assert (decoder.vae_factor, decoder.image_size) == (4, 32)
    scene = scenes_of_split("test", 1)[0]
    pixels = torch.from_numpy(render(scene)).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = decoder.encode_pixels(pixels)
    assert latents.shape == (1, 8, 8, 8) and torch.equal(latents, decoder.encode_pixels(pixels))
    assert (decoder.decode_latents(latents) - pixels).abs().mean() < 0.1


def test_missing_folders_are_one_clear_error(backbone: BackboneConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.image_decoder: there is no .*model_index\.json"):
        ImageDecoder(tmp_path)
    copy = shutil.copytree(backbone.image_decoder, tmp_path / "copy")
    for lost in (
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
    ):
        kept = (copy / lost).rename(tmp_path / "kept")
        with pytest.raises(UserError, match=rf"backbone\.image_decoder: .*{Path(lost).parent}"):
            ImageDecoder(copy)
        kept.rename(copy / lost)
    shutil.rmtree(copy / "vae")
    with pytest.raises(UserError, match=r"backbone\.image_decoder: .*vae"):
        ImageDecoder(copy)
