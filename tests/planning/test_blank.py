"""Models without their weights have the sizes that stand in files of weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from m2chat.models.blank import blank_m2chat
from m2chat.models.build import build_m2chat
from m2chat.models.config import BackboneConfig, M3AdapterConfig, NewLoraConfig
from m2chat.models.weights.adapter import open_adapter

WIDTH, HEADS, LAYERS, INNER, WORDS = 32, 2, 3, 48, 640
CONNECTOR = M3AdapterConfig(width=48, heads=4)


def meta_folder(root: Path) -> Path:
    """A folder as Meta's, of a small LLaMA."""
    folder = root / "7B"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(
        json.dumps({"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": 1e-6, "vocab_size": -1})
    )
    tensors = {"tok_embeddings.weight": (WORDS, WIDTH), "norm.weight": (WIDTH,), "output.weight": (WORDS, WIDTH)}
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        tensors |= {f"{at}attention.w{name}.weight": (WIDTH, WIDTH) for name in "qkvo"}
        tensors |= {f"{at}feed_forward.w{n}.weight": (INNER, WIDTH) for n in (1, 3)}
        tensors |= {f"{at}feed_forward.w2.weight": (WIDTH, INNER)}
        tensors |= {f"{at}{name}_norm.weight": (WIDTH,) for name in ("attention", "ffn")}
    torch.save({name: torch.zeros(shape) for name, shape in tensors.items()}, folder / "consolidated.00.pth")
    return folder


def test_a_folder_as_metas(backbone: BackboneConfig, tmp_path: Path) -> None:
    folder = meta_folder(tmp_path)
    model, assumed = blank_m2chat(replace(backbone, language_model=str(folder)), CONNECTOR)
    assert assumed == []
    config = model.llama.config
    found = (config.hidden_size, config.num_attention_heads, config.num_hidden_layers, config.intermediate_size)
    assert found == (WIDTH, HEADS, LAYERS, INNER) and config.vocab_size == WORDS


def test_clip_in_one_file(backbone: BackboneConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    real = build_m2chat(backbone, CONNECTOR)
    (path,) = Path(backbone.vision_encoder).glob("*.safetensors")
    save_file(load_file(path), tmp_path / "clip.safetensors")
    model, assumed = blank_m2chat(replace(backbone, vision_encoder=str(tmp_path / "clip.safetensors")), CONNECTOR)
    assert assumed == []
    shapes = {name: parameter.shape for name, parameter in real.clip.named_parameters()}
    assert {name: parameter.shape for name, parameter in model.clip.named_parameters()} == shapes


def test_an_adapter_without_biases_gets_them(backbone: BackboneConfig, tmp_path: Path) -> None:
    payload = torch.load(backbone.adapter, weights_only=True)
    payload["model"] = {name: value for name, value in payload["model"].items() if not name.endswith(".bias") or
                        "llama" not in name}  # fmt: skip
    torch.save(payload, tmp_path / "CAPTION.pth")
    named = replace(backbone, adapter=str(tmp_path / "CAPTION.pth"))
    assert open_adapter(Path(named.adapter), "x").variant == "caption"
    real, (blank, _) = build_m2chat(named, CONNECTOR), blank_m2chat(named, CONNECTOR)
    names = {name: parameter.shape for name, parameter in real.named_parameters()}
    assert {name: parameter.shape for name, parameter in blank.named_parameters()} == names


def test_new_low_rank_updates_are_counted(backbone: BackboneConfig) -> None:
    named = replace(backbone, new_lora=NewLoraConfig(rank=3, layers=2))
    real, (blank, _) = build_m2chat(named, CONNECTOR), blank_m2chat(named, CONNECTOR)
    names = {name: parameter.shape for name, parameter in real.named_parameters()}
    assert sum(name.endswith("down_proj.lora_A") for name in names) == 2
    assert {name: parameter.shape for name, parameter in blank.named_parameters()} == names
