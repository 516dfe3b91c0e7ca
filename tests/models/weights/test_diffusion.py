from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.weights.diffusion import open_diffusion, part_report, skeleton
from m2chat.models.weights.sampled import tensor_fingerprint
from m2chat.models.weights.sdxl_file import SCHEDULER

FILE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("single_file.py")))
VOCAB, LENGTH, FIRST, SECOND = 30, 16, 64, 128
LAYERS, ATTENTION, LEVELS = 2, [False, True], 2


def text_config(width: int, act: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [kind], "model_type": "clip_text_model", "vocab_size": VOCAB, "hidden_size": width,
        "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": width // 64,
        "max_position_embeddings": LENGTH, "hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": width,
        "bos_token_id": VOCAB - 2, "eos_token_id": VOCAB - 1, "pad_token_id": VOCAB - 1,
    }  # fmt: skip


def configs_of(refiner: bool) -> dict[str, dict[str, Any]]:
    """SDXL's description with small numbers, by hand: nothing in it is read off tensors."""
    wide = SECOND if refiner else FIRST + SECOND
    numbers = 5 if refiner else 6
    configs: dict[str, dict[str, Any]] = {
        "unet": {
            "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
            "block_out_channels": [64, 128], "layers_per_block": LAYERS, "use_linear_projection": True,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
            "attention_head_dim": [1, 2], "cross_attention_dim": wide, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": SECOND + numbers * 32,
        },
        "vae": {
            "_class_name": "AutoencoderKL", "sample_size": 1024, "latent_channels": 4, "block_out_channels": [32, 64],
            "layers_per_block": 1, "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
            "up_block_types": ["UpDecoderBlock2D"] * LEVELS, "scaling_factor": 0.13025, "force_upcast": True,
        },
        "text_encoder_2": text_config(SECOND, "gelu", "CLIPTextModelWithProjection"),
    }  # fmt: skip
    if not refiner:
        configs["text_encoder"] = text_config(FIRST, "quick_gelu", "CLIPTextModel")
    return configs


@pytest.fixture(scope="module", params=[False, True], ids=["base", "refiner"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, Path]:
    """The same random SDXL as a diffusers folder and as a single file."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("refiner" if request.param else "base")
    configs = configs_of(request.param)
    folder = root / "folder"
    states: dict[str, dict[str, Tensor]] = {}
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        state = skeleton(name, config).state_dict()
        states[name] = {key: torch.randn(value.shape).half() * 0.05 for key, value in state.items()}
        # The real folders hold older names for the first text encoder, and half precision as a variant.
        stem = "model.fp16" if name.startswith("text") else "diffusion_pytorch_model.fp16"
        prefix = "text_model." if name == "text_encoder" else ""
        named = {f"{prefix}{key}": value for key, value in states[name].items()}
        save_file(named, folder / name / f"{stem}.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {name: ["transformers", config["architectures"][0]] for name, config in configs.items() if "text" in name}
    index |= {name: ["diffusers", configs[name]["_class_name"]] for name in ("unet", "vae")}
    empty = {"text_encoder": [None, None], "tokenizer": [None, None]} if request.param else {}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", **index, **empty}))
    save_file(FILE["single_file"](states, LAYERS, ATTENTION, LEVELS), root / "sdxl.safetensors")
    return request.param, folder, root / "sdxl.safetensors"


def test_both_forms_are_used_up(files: tuple[bool, Path, Path]) -> None:
    refiner, folder, single = files
    source = open_diffusion(single, "x")
    assert not source.report.unexpected and not source.report.missing and len(source.report.used) > 300
    for path in (folder, single):
        parts = open_diffusion(path, "x")
        assert ("text_encoder" in parts.states) != refiner
        for name in parts.states:
            report = part_report(name, parts)
            assert report.used and not report.missing and not report.unexpected, (path, name)
    prints = [
        {name: tensor_fingerprint(state) for name, state in open_diffusion(path, "x").states.items()}
        for path in (folder, single)
    ]
    assert prints[0] == prints[1] and len(set(prints[0].values())) == len(prints[0])


def test_both_forms_are_the_same_network(files: tuple[bool, Path, Path]) -> None:
    refiner, folder, single = files
    first, second = ImageDecoder(folder), ImageDecoder(single)
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    h, p = first.encode_text(ids, ids)
    wide = SECOND if refiner else FIRST + SECOND
    assert p is not None and h.shape == (2, LENGTH, wide) and p.shape == (2, SECOND)
    assert first.sequence_width == wide and first.queries == LENGTH and first.vae_factor == 2
    noisy, steps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    numbers = torch.full((2, 5 if refiner else 6), 64.0)
    with torch.no_grad():
        one, two = (decoder.predict(noisy, steps, h, p, numbers) for decoder in (first, second))
        other = second.encode_text(ids, ids)
        assert torch.equal(h, other[0]) and torch.equal(one, two) and one.std() > 0
        pixels = torch.rand(1, 3, 16, 16)
        assert torch.equal(first.encode_pixels(pixels), second.encode_pixels(pixels))
    assert second.scheduler.config.prediction_type == "epsilon" and second.vae.config.scaling_factor == 0.13025


def test_what_the_file_predicts_is_marked_in_it(files: tuple[bool, Path, Path], tmp_path: Path) -> None:
    marked = {**load_file(files[2]), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(marked, tmp_path / "v.safetensors")
    config = open_diffusion(tmp_path / "v.safetensors", "x").configs["scheduler"]
    assert config["prediction_type"] == "v_prediction" and config["rescale_betas_zero_snr"] is True


def test_the_precision_is_the_wanted_one_or_the_file_s(files: tuple[bool, Path, Path]) -> None:
    assert {p.dtype for p in ImageDecoder(files[1], torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in ImageDecoder(files[2], None).parameters()} == {torch.float16}


def test_bad_files_say_what_is_wrong(files: tuple[bool, Path, Path], tmp_path: Path) -> None:
    whole = files[2].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"image_decoder: .*cut\.safetensors is truncated: [\d,]+ of [\d,]+ bytes"):
        ImageDecoder(path)
    state = load_file(files[2])
    lost = next(name for name in state if name.endswith("input_blocks.1.0.in_layers.2.weight"))
    save_file({name: value for name, value in state.items() if name != lost}, tmp_path / "lost.safetensors")
    with pytest.raises(UserError, match=r"lost\.safetensors', unet: .*1 missing \(down_blocks.0.resnets.0.conv1"):
        ImageDecoder(tmp_path / "lost.safetensors")
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors' is not SDXL in one file: expected are names such as"):
        ImageDecoder(tmp_path / "other.safetensors")
    (tmp_path / "sdxl.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"sdxl\.ckpt'.*expected is a diffusers folder, or SDXL in one \.safetensors"):
        ImageDecoder(tmp_path / "sdxl.ckpt")
