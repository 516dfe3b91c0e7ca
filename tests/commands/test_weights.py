from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from m2chat.commands import main
from m2chat.models.config import BackboneConfig
from m2chat.models.fingerprints import Fingerprints
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.weights import known

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "data" / "micro"
OFFICIAL: dict[str, Any] = runpy.run_path(str(ROOT / "tests" / "models" / "weights" / "conftest.py"))


def run(*arguments: object) -> int:
    return main(["weights", *map(str, arguments)])


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("llama", ["LLaMA", "transformers folder", "955,520 (float16)", "39 used, 0 missing, 0 unexpected"]),
        ("adapter/BIAS-micro.pth", ["LLaMA-Adapter V2", "variant", "bias", "69 used, 0 missing, 0 unexpected"]),
        ("clip", ["CLIP vision tower", "QuickGELU", "vision tower: 44 used, 0 missing, 0 unexpected"]),
        ("sdxl", ["diffusion model", "v_prediction", "2,995,944", "unet: 290 used, 0 missing, 0 unexpected"]),
        ("sd15", ["SD 1.5", "text_encoder: "]),
        ("decoders/unet_small", ["UNet of a diffusion model", "UNet: ", " used, 0 missing, 0 unexpected"]),
        ("decoders/lcm_lora", ["lcm_lora: LoRA", "changes", "ranks", " used, 0 missing, 0 unexpected"]),
        ("m2chat/m3ft.ckpt", ["training checkpoint", "m3ft", "1,133,042 (float16)", "trained: 148 used"]),
    ],
)
def test_the_shipped_weights_are_whole(path: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", MICRO / path) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in lines), out
    assert out.endswith("whole\n") and "note:" not in out
    if "m2chat" not in path:
        assert "manifest.json" in out, "the micro manifest states their checksums"
    assert run("inspect", MICRO / path) == 0
    shorter = capsys.readouterr().out
    assert out.startswith(shorter) and "used" not in shorter


def test_an_adapter_is_checked_with_its_llama(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    adapter = MICRO / "adapter" / "BIAS-micro.pth"
    assert run("check", adapter, "--with", MICRO / "llama", "--no-hash") == 0
    out = capsys.readouterr().out
    assert "adapter: 69 used" in out and "LLaMA: 39 used, 0 missing" in out
    OFFICIAL["write_meta"](tmp_path)
    assert run("check", adapter, "--with", tmp_path) == 2
    assert "it was trained for width 128" in capsys.readouterr().err


def test_what_is_not_whole_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = OFFICIAL["adapter_tensors"]("lora-bias")
    lost = state.pop("clip_proj.bias")
    torch.save({"model": {**state, "visual_blocks.0.more.weight": lost}}, tmp_path / "a.pth")
    assert run("check", tmp_path / "a.pth", "--no-hash") == 1
    out = capsys.readouterr().out
    assert "missing: visual_query.clip_proj.bias" in out and "unexpected: visual_query.visual_blocks.0.more.wei" in out
    assert out.endswith("NOT whole: see above\n")


def test_checksums_that_are_stated_are_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = OFFICIAL["write_adapter"](tmp_path / "a.pth", "bias").read_bytes()
    digest = hashlib.sha256(original).hexdigest()
    (tmp_path / f"{digest}_BIAS.pth").write_bytes(original)
    assert run("check", tmp_path / f"{digest}_BIAS.pth") == 0
    assert f"{digest}  {digest}_BIAS.pth: as in its own name" in capsys.readouterr().out
    wrong = "0" * 64
    (tmp_path / f"{wrong}_BIAS.pth").write_bytes(original)
    assert run("check", tmp_path / f"{wrong}_BIAS.pth") == 1
    assert "differs from its own name: damaged, or another file" in capsys.readouterr().out
    (tmp_path / "BIAS-7B.pth").write_bytes(original)
    assert run("check", tmp_path / "BIAS-7B.pth") == 1
    assert "differs from the published LLaMA-Adapter V2 BIAS-7B" in capsys.readouterr().out
    ours = known.Published("LLaMA-Adapter V2 BIAS-7B", f"{digest[:8]}...{digest[-4:]}", "BIAS-7B.pth")
    monkeypatch.setattr(known, "PUBLISHED", (ours,))
    assert run("check", tmp_path / "BIAS-7B.pth") == 0
    assert "is the published LLaMA-Adapter V2 BIAS-7B" in capsys.readouterr().out
    assert run("convert", tmp_path / "BIAS-7B.pth", tmp_path / "b.safetensors") == 0, (
        "released files are known to be bgr"
    )
    assert "marked channel_order bgr" in capsys.readouterr().out


def test_meta_s_own_list_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = OFFICIAL["write_meta"](tmp_path)
    md5 = hashlib.md5((folder / "consolidated.00.pth").read_bytes()).hexdigest()
    (folder / "checklist.chk").write_text(f"{md5}  consolidated.00.pth\n")
    assert run("check", tmp_path) == 0
    out = capsys.readouterr().out
    assert "consolidated.00.pth: as in checklist.chk" in out
    assert "640 words in tokenizer.model" in out and "note:" not in out
    (folder / "checklist.chk").write_text(f"{'0' * 32}  consolidated.00.pth\n")
    assert run("check", folder) == 1
    assert "differs from checklist.chk" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "docs", "nowhere"])
def test_what_is_no_weights_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", ROOT / name) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and name in error


def test_llama_becomes_a_transformers_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m2chat.models.build import load_language

    OFFICIAL["write_meta"](tmp_path / "meta")
    adapter = OFFICIAL["write_adapter"](tmp_path / "a.pth", "bias")
    assert run("convert", tmp_path / "meta", tmp_path / "hf") == 0
    assert "backbone.language_model" in capsys.readouterr().out
    assert (tmp_path / "hf" / "tokenizer.model").is_file() and (tmp_path / "hf" / "model.safetensors").is_file()
    backbones = [BackboneConfig(str(tmp_path / name), str(adapter), "", "", 8) for name in ("meta", "hf")]
    networks = [load_language(backbone)[0].state_dict() for backbone in backbones]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.get_tensor("lm_head.weight").dtype == torch.float16, "in the precision that it had"
    assert run("convert", tmp_path / "meta", tmp_path / "hf") == 2
    assert "is there already: name a new one" in capsys.readouterr().err


def test_an_adapter_becomes_marked_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m2chat.models.weights.adapter import open_adapter

    source = OFFICIAL["write_adapter"](tmp_path / "a.pth", "lora-bias")
    assert run("convert", source, tmp_path / "b.safetensors") == 2
    assert "add --channel-order bgr if LLaMA-Adapter's own code trained it" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "b.pth", "--channel-order", "bgr") == 2
    assert "let its name end in .safetensors" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "b.safetensors", "--channel-order", "bgr") == 0
    old, new = open_adapter(source, "x"), open_adapter(tmp_path / "b.safetensors", "x")
    assert old.channel_order is None and new.channel_order == "bgr" and new.variant == "lora-bias"
    assert old.state.keys() == new.state.keys() and all(torch.equal(v, new.state[n]) for n, v in old.state.items())
    assert new.base is None and new.shape == old.shape
    capsys.readouterr()
    llama, other = OFFICIAL["write_meta"](tmp_path / "llama"), tmp_path / "other"
    OFFICIAL["write_meta"](other, {name: tensor.flip(-1) for name, tensor in OFFICIAL["llama_tensors"]().items()})
    marking = ("convert", source, tmp_path / "c.safetensors", "--channel-order", "bgr", "--with")
    assert run(*marking, other) == 2
    assert "was not made for the language model" in capsys.readouterr().err
    assert run(*marking, llama) == 0
    for language_model, code, words in ((llama, 0, "whole"), (other, 1, "not made for this language model: its mark")):
        assert run("check", tmp_path / "c.safetensors", "--with", language_model, "--no-hash") == code
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("refiner", [False, True])
def test_sdxl_in_one_file_becomes_a_folder(tmp_path: Path, refiner: bool) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
    from safetensors.torch import save_file

    tests = ROOT / "tests" / "models" / "weights"
    configs = runpy.run_path(str(tests / "test_diffusion.py"))["configs_of"](refiner)
    from m2chat.models.weights.diffusion import skeleton

    generator = torch.Generator().manual_seed(0)
    states = {
        name: {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in skeleton(name, c).state_dict().items()}
        for name, c in configs.items()
    }
    file = runpy.run_path(str(tests / "single_file.py"))["single_file"](states, 2, [False, True], 2)
    save_file(file, tmp_path / "sdxl.safetensors")
    assert run("convert", tmp_path / "sdxl.safetensors", tmp_path / "folder") == 0
    ours, theirs = (ImageDecoder(tmp_path / name).state_dict() for name in ("sdxl.safetensors", "folder"))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    kind = StableDiffusionXLImg2ImgPipeline if refiner else StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(tmp_path / "folder")
    assert pipeline.tokenizer_2.pad_token == "!" and (pipeline.text_encoder is None) == refiner
    assert run("check", tmp_path / "folder", "--no-hash") == 0
    assert run("convert", tmp_path / "folder", tmp_path / "again") == 2, "a folder is read as it is"


def without_configuration(source: Path, target: Path) -> Path:
    """A checkpoint as versions wrote it that did not keep the configuration."""
    payload = torch.load(source, weights_only=True)
    del payload["config"]
    torch.save(payload, target)
    return target


@pytest.mark.parametrize("stage", ["align", "m3ft"])
def test_a_checkpoint_becomes_a_folder_that_training_starts_from(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2chat.models.build import build_m2chat
    from m2chat.models.checkpoints import load_trained, read_checkpoint
    from m2chat.models.weights.exported import load_model

    monkeypatch.chdir(ROOT)
    source, number = MICRO / "m2chat" / f"{stage}.ckpt", {"align": 1, "m3ft": 2}[stage]
    assert run("convert", source, tmp_path / "as_it_is") == 0
    assert run("convert", without_configuration(source, tmp_path / "older.ckpt"), tmp_path / "out") == 2
    assert "does not hold its configuration" in capsys.readouterr().err
    config = ROOT / "configs" / f"stage{number}.yaml"
    assert run("convert", source, tmp_path / "out", "--config", config) == 0
    assert run("check", tmp_path / "out") == 0
    assert "model.safetensors: as in " in capsys.readouterr().out
    old, new = read_checkpoint(source), read_checkpoint(tmp_path / "out")
    assert old["m2chat"].items() <= new["m2chat"].items() and old["tasks"] == new["tasks"]
    assert old["state_dict"].keys() == new["state_dict"].keys()
    assert all(torch.equal(value, new["state_dict"][name]) for name, value in old["state_dict"].items())
    model, manifest = load_model(tmp_path / "out")
    expected = {"max_tokens": {"align": 192, "m3ft": 320}[stage], "num_image_tokens": 8}
    assert {name: value for name, value in manifest.layout.items() if name != "prompt"} == expected
    assert manifest.layout.get("prompt", "alpaca") == "alpaca"
    assert manifest.stage == stage and manifest.step == old["global_step"]
    fresh = torch.nn.ModuleDict({"model": build_m2chat(manifest.backbone, manifest.m3adapter)})
    load_trained(fresh, tmp_path / "out", old["state_dict"], stage=stage, backbones=Fingerprints(manifest.backbone))
    for one in (fresh["model"], model):
        named = dict(one.named_parameters())
        assert all(torch.equal(named[n.removeprefix("model.")], v.float()) for n, v in old["state_dict"].items())


def test_a_run_s_own_configuration_is_found_beside_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run_folder = tmp_path / "version_0"
    (run_folder / "checkpoints").mkdir(parents=True)
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    without_configuration(MICRO / "m2chat" / "align.ckpt", checkpoint)
    config = run_folder / "config.yaml"
    m3adapter = "model:\n  init_args:\n    m3adapter: {width: 192, heads: 6, blocks: 2}\n    backbone: "
    backbone = yaml.safe_load((ROOT / "configs/backbone/micro.yaml").read_text())
    config.write_text(m3adapter + json.dumps(backbone))
    assert run("convert", checkpoint, tmp_path / "out") == 0
    config.write_text("model:\n  init_args:\n    m3adapter: {wide: 192}\n")
    assert run("convert", checkpoint, tmp_path / "b") == 2
    assert "has settings that this version does not know" in capsys.readouterr().err
    config.write_text("trainer: {}\n")
    assert run("convert", checkpoint, tmp_path / "b") == 2
    assert "is not the configuration of a training run" in capsys.readouterr().err
    config.write_text(m3adapter + json.dumps({**backbone, "channel_order": "bgr"}))
    assert run("convert", checkpoint, tmp_path / "b") == 2
    assert "was trained on other backbones" in capsys.readouterr().err and not (tmp_path / "b").exists()
