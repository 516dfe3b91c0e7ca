"""Parameters of the full-size networks, counted on the meta device: the published numbers, to the last one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.config import GateConfig, M3AdapterConfig
from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM
from m2chat.models.m3adapter import M3Adapter
from m2chat.models.visual_encoder import VisualQueryEncoder
from m2chat.models.weights.clip import ClipSource, tower_skeleton
from m2chat.models.weights.loading import on_meta

WIDTH, C, P, Q = 4096, 2048, 1280, 77


def llama_7b(rank: int = 0) -> tuple[AdapterLlamaForCausalLM, VisualQueryEncoder]:
    config = AdapterLlamaConfig(
        vocab_size=32000, hidden_size=WIDTH, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        lora_rank=rank,
    )  # fmt: skip
    return on_meta(lambda: AdapterLlamaForCausalLM(config)), on_meta(lambda: VisualQueryEncoder(768, WIDTH))


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def m3adapter_7b() -> M3Adapter:
    return on_meta(lambda: M3Adapter(M3AdapterConfig(1536, 24, gate=GateConfig()), WIDTH, 768, Q, C, P))


def test_llama_adapter_7b_by_group() -> None:
    llama, visual_query = llama_7b()
    named = dict(llama.named_parameters())
    groups: dict[str, list[Tensor]] = {
        group: [] for group in ("base", "norms", "biases", "gates", "adapter_query", "tokens")
    }
    for name, parameter in named.items():
        if name.endswith(".extra"):
            group = "tokens"
        elif name.endswith("norm.weight"):
            group = "norms"
        elif name.endswith(".bias"):
            group = "biases"
        elif name.endswith("adapter_gate"):
            group = "gates"
        else:
            group = "adapter_query" if name.endswith("adapter_query") else "base"
        groups[group].append(parameter)
    assert {group: size(tensors) for group, tensors in groups.items()} == {
        "base": 6_738_149_376, "norms": 266_240, "biases": 1_097_728, "gates": 1_024, "adapter_query": 1_269_760,
        "tokens": 16_384,
    }  # fmt: skip
    parts = {name: size(list(part.parameters())) for name, part in visual_query.named_children()}
    assert parts == {
        "visual_query": 7_680, "visual_blocks": 56_702_976, "clip_proj": 590_592, "clip_proj_norm": 1_536,
        "visual_proj": 3_149_824, "visual_proj_norm": 8_192,
    }  # fmt: skip
    finetuned = size(groups["biases"]) + size(groups["norms"])
    pretrained = size(groups["gates"]) + size(groups["adapter_query"]) + sum(parts.values())
    assert (finetuned, pretrained, finetuned + pretrained) == (1_363_968, 61_731_584, 63_095_552)
    assert sum(p.numel() for p in llama.parameters()) + sum(parts.values()) == 6_738_149_376 + 63_095_552 + 16_384


def test_the_files_hold_what_stage_2_trains() -> None:
    counts = {}
    for rank in (0, 16):
        llama, visual_query = llama_7b(rank)
        everything = {f"llama.{name}": p for name, p in llama.named_parameters()}
        everything |= {f"visual_query.{name}": p for name, p in visual_query.named_parameters()}
        counts[rank] = size([everything[name] for name in adapter_parameter_names(llama, visual_query)])
        if rank:
            assert size([p for name, p in everything.items() if ".lora_" in name]) == 39_976_960
            assert size([p for name, p in everything.items() if name.endswith("new_gate")]) == 32
    assert counts == {0: 63_095_552, 16: 103_072_544}


def test_clip_vit_l_14() -> None:
    import open_clip

    source = ClipSource(open_clip.get_model_config("ViT-L-14-quickgelu"), {}, [], "")
    assert size(list(tower_skeleton(source).parameters())) == 303_966_208


@pytest.mark.parametrize("layers", [(-1,), (-1, -9, -17)])
def test_the_m3adapter_stays_below_90_million(layers: tuple[int, ...]) -> None:
    adapter = on_meta(lambda: M3Adapter(M3AdapterConfig(1536, 24, layers=layers), WIDTH, 768, Q, C, P))
    assert 75_000_000 < size(list(adapter.parameters())) <= 90_000_000


def test_exported_weights_are_small() -> None:
    adapter = m3adapter_7b()
    unused: set[int] = {id(p) for part in (*adapter.image_branch(), adapter.gate) for p in part.parameters()}
    stage_1 = size([p for p in adapter.parameters() if id(p) not in unused])
    stage_2 = size(list(adapter.parameters())) + 63_095_552 + 16_384
    assert stage_1 * 4 < 400e6 and stage_2 * 4 < 700e6, (stage_1, stage_2)


SDXL: dict[str, Any] = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "sample_size": 128, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "sample_size": 1024, "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4, "layers_per_block": 2, "scaling_factor": 0.13025, "in_channels": 3, "out_channels": 3,
        "force_upcast": True,
    },
    "text_encoder": {
        "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "text_encoder_2": {
        "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120,
        "num_hidden_layers": 32, "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}  # fmt: skip
REFINER: dict[str, Any] = {
    "unet": {
        **SDXL["unet"], "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4, "attention_head_dim": [6, 12, 24, 24], "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
    "vae": SDXL["vae"], "text_encoder_2": SDXL["text_encoder_2"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("configs", "attention", "counts"),
    [
        (
            SDXL, [False, True, True],
            {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
        ),
        (
            REFINER, [False, True, True, False],
            {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840},
        ),
    ],
    ids=["base", "refiner"],
)  # fmt: skip
def test_sdxl_from_its_description_and_from_the_shapes_of_its_single_file(
    configs: dict[str, Any], attention: list[bool], counts: dict[str, int]
) -> None:
    import runpy
    from pathlib import Path

    from m2chat.models.weights.diffusion import skeleton
    from m2chat.models.weights.sdxl_file import take_apart

    networks: dict[str, nn.Module] = {name: skeleton(name, config) for name, config in configs.items()}
    assert {name: size(list(network.parameters())) for name, network in networks.items()} == counts
    # The published files, in fp16, are these numbers and a header of some 0.3 to 0.4 MB.
    published = 6_938_078_334 if "text_encoder" in configs else 6_075_981_930
    assert 250_000 < published - 2 * sum(counts.values()) < 450_000
    write = runpy.run_path(str(Path(__file__).with_name("single_file.py")))["single_file"]
    with torch.device("meta"):
        file = write({name: network.state_dict() for name, network in networks.items()}, 2, attention, 4)
        parts = take_apart(file, "the file")
    assert not parts.report.unexpected and parts.is_refiner == ("text_encoder" not in configs)
    for name, network in networks.items():
        again = skeleton(name, parts.configs[name])
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    unet: Any = parts.configs["unet"]
    assert unet["attention_head_dim"] == configs["unet"]["attention_head_dim"]
    assert unet["addition_time_embed_dim"] == 256 and unet["sample_size"] == 128
    for name in ("text_encoder", "text_encoder_2"):
        if name in configs:
            assert {key: parts.configs[name][key] for key in configs[name]} == configs[name]
