"""The refiner of Fig. 2 beside diffusers' two pipelines, on a miniature with random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.text import CaptionTokens

STEPS, GUIDANCE, SEEDS = 10, 3.0, [11, 12]


@pytest.fixture(scope="module")
def folder(backbone: BackboneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refiner for the micro SDXL: its second text encoder, and a small UNet that takes five numbers."""
    from diffusers import UNet2DConditionModel

    base, root = Path(backbone.image_decoder), tmp_path_factory.mktemp("refiner")
    for name in ("text_encoder_2", "vae", "scheduler", "tokenizer_2"):
        shutil.copytree(base / name, root / name)
    config = json.loads((base / "unet" / "config.json").read_text())
    second = json.loads((base / "text_encoder_2" / "config.json").read_text())
    config |= {
        "block_out_channels": [32, 32],
        "cross_attention_dim": second["hidden_size"],
        "projection_class_embeddings_input_dim": second["projection_dim"] + 5 * config["addition_time_embed_dim"],
    }
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(config)
    unet.save_pretrained(root / "unet")
    index = json.loads((base / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None], "tokenizer": [None] * 2}
    index["requires_aesthetics_score"] = True
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def condition(micro_model: Any, backbone: BackboneConfig) -> tuple[Tensor, Tensor, Tensor]:
    captions = ["a large red circle on the left on a blue background", "a ring"]
    sequence, pooled = micro_model.decoder.encode_text(*CaptionTokens(backbone.image_decoder)(captions))
    return sequence, pooled, torch.tensor([[48.0, 64, 3, 5, 32, 32], [32, 32, 0, 0, 32, 32]])


def drawn(backbone: BackboneConfig, condition: tuple[Tensor, Tensor, Tensor], config: DecoderConfig) -> Tensor:
    decoder = ImageDecoder(backbone.image_decoder, config=config)
    rows = [decoder.sample(*(part[i : i + 1] for part in condition), SEEDS[i : i + 1], STEPS, GUIDANCE) for i in (0, 1)]
    return torch.cat(rows)


def both_pipelines(
    backbone: BackboneConfig, folder: Path, condition: tuple[Tensor, Tensor, Tensor], scheduler: Any, split: float
) -> Tensor:
    """Pictures by `denoising_end` of the one pipeline and `denoising_start` of the other."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

    base = StableDiffusionXLPipeline.from_pretrained(backbone.image_decoder).to(torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    refiner = StableDiffusionXLImg2ImgPipeline(
        vae=base.vae, text_encoder=None, text_encoder_2=base.text_encoder_2, tokenizer=None, tokenizer_2=None,
        unet=unet, scheduler=base.scheduler, requires_aesthetics_score=True, add_watermarker=False,
    )  # fmt: skip
    if scheduler is not None:
        base.scheduler = scheduler.from_config(base.scheduler.config)
    refiner.scheduler = type(base.scheduler).from_config(base.scheduler.config)
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    pictures = []
    sequence, pooled, time_ids = condition
    for row, seed in enumerate(SEEDS):
        numbers = [int(number) for number in time_ids[row].tolist()]
        conditions = {"original_size": tuple(numbers[:2]), "crops_coords_top_left": tuple(numbers[2:4])}
        shared: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **conditions}
        shared |= {f"negative_{name}": value for name, value in conditions.items()}

        def prompts(text: Tensor, vector: Tensor) -> dict[str, Tensor]:
            embeds = {"prompt_embeds": text, "pooled_prompt_embeds": vector}
            return {**embeds, **{f"negative_{name}": torch.zeros_like(value) for name, value in embeds.items()}}

        noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
        text, vector = sequence[row : row + 1], pooled[row : row + 1]
        latents = base(
            **prompts(text, vector), **shared, latents=noise, height=32, width=32, denoising_end=split,
            output_type="latent",
        ).images  # fmt: skip
        pictures.append(
            refiner(
                **prompts(text[..., 64:], vector), **shared, latents=latents, image=torch.zeros(1, 3, 32, 32),
                denoising_start=split, output_type="pt",
            ).images
        )  # fmt: skip
    return torch.cat(pictures) * 2 - 1


@pytest.mark.parametrize(("name", "split"), [(None, 0.8), ("dpmpp_2m", 0.5)])
def test_two_stages_are_those_of_diffusers(
    backbone: BackboneConfig, folder: Path, condition: tuple[Tensor, Tensor, Tensor], name: str | None, split: float
) -> None:
    from diffusers import DPMSolverMultistepScheduler

    config = DecoderConfig(refiner=str(folder), refiner_start=split, scheduler=name)
    ours = drawn(backbone, condition, config)
    theirs = both_pipelines(backbone, folder, condition, name and DPMSolverMultistepScheduler, split)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - drawn(backbone, condition, replace(config, refiner=None))).abs().mean() > 0.02


def with_flag(source: Path, target: Path, zeros: bool) -> Path:
    shutil.copytree(source, target)
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": zeros}))
    return target


@pytest.mark.parametrize(("of_base", "of_refiner"), [(True, False), (False, True)])
def test_the_negative_condition_is_what_each_folder_states(
    backbone: BackboneConfig, folder: Path, tmp_path: Path, of_base: bool, of_refiner: bool
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    base_folder = with_flag(Path(backbone.image_decoder), tmp_path / "base", of_base)
    folder = with_flag(folder, tmp_path / "refiner", of_refiner)
    caption, numbers = "a large red circle on the left on a blue background", torch.tensor([[32.0, 48, 0, 0, 32, 48]])
    decoder = ImageDecoder(base_folder, config=DecoderConfig(refiner=str(folder)))
    assert decoder.refiner is not None and (decoder.zeros, decoder.refiner.zeros) == (of_base, of_refiner)
    condition = decoder.encode_text(*CaptionTokens(base_folder)([caption]))
    ours = decoder.sample(*condition, numbers, [7], STEPS, GUIDANCE)
    base = StableDiffusionXLPipeline.from_pretrained(base_folder).to(torch.float32)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folder, text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2, text_encoder=None, tokenizer=None
    ).to(torch.float32)
    for pipe in (base, refiner):
        pipe.set_progress_bar_config(disable=True)
    shared: dict[str, Any] = {"prompt": caption, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    noise = torch.randn(1, 8, 8, 12, generator=torch.Generator().manual_seed(7))
    latents = base(
        **shared, latents=noise, height=32, width=48, denoising_end=0.8, output_type="latent"
    ).images  # fmt: skip
    theirs = refiner(
        **shared, image=torch.zeros(1, 3, 32, 48), latents=latents, denoising_start=0.8, original_size=(32, 48),
        target_size=(32, 48), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=1e-4, rtol=0)
    decoder.zeros = decoder.refiner.zeros = True
    assert (decoder.sample(*condition, numbers, [7], STEPS, GUIDANCE) - ours).abs().max() > 1e-3
    decoder.zeros, decoder.refiner.zeros = of_base, of_refiner
    partly = decoder.sample(*condition, numbers, [7], STEPS, GUIDANCE, interval=(0.0, 0.5))
    assert partly.isfinite().all() and not torch.equal(partly, ours)


def test_what_is_no_refiner_of_this_decoder(backbone: BackboneConfig, folder: Path, tmp_path: Path) -> None:
    def refused(path: object, message: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            ImageDecoder(backbone.image_decoder, config=DecoderConfig(refiner=str(path), **settings))

    refused(backbone.image_decoder, r"backbone\.decoder\.refiner='.*sdxl' is no refiner: .*cross_attention_dim.*Name")
    refused(tmp_path / "nowhere", r"backbone\.decoder\.refiner: there is no .*nowhere")
    for start in (0.0, 1.0, -1.0, float("nan")):
        refused(folder, r"backbone\.decoder\.refiner_start=.*between 0 and 1", refiner_start=start)
    other = shutil.copytree(folder, tmp_path / "other")
    path = other / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    save_file({name: value + 0.1 for name, value in state.items()}, path, metadata={"format": "pt"})
    refused(other, r"another text space than the image decoder.*text_encoder_2.*Name the refiner")
