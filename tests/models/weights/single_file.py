"""Writes diffusers' networks as SDXL's original single file names them: the way back from what the loader does."""

from __future__ import annotations

import re

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet_name(name: str, layers: int, with_attention: list[bool]) -> str:
    """Original name of a tensor of the UNet, without ``model.diffusion_model.``."""
    stem, kind = name.rsplit(".", 1)
    if stem in UNET:
        return f"{UNET[stem]}.{kind}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        part, index, rest = match.groups()
        place = 1 if part == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_resnet(rest) if part == 'resnets' else rest}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    assert match, name
    way, part, rest = match.group(1, 3, 5)
    block, index = int(match.group(2)), int(match.group(4))
    if way == "down":
        if part == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{kind}"
        at = f"input_blocks.{(layers + 1) * block + index + 1}"
    else:
        if part == "upsamplers":
            return f"output_blocks.{(layers + 1) * block + layers}.{1 + with_attention[-1 - block]}.{rest}"
        at = f"output_blocks.{(layers + 1) * block + index}"
    return f"{at}.1.{rest}" if part == "attentions" else f"{at}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    stem, kind = rest.rsplit(".", 1)
    return f"{RESNET[stem]}.{kind}"


def vae_tensor(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """Original name and form of a tensor of the VAE, without ``first_stage_model.``."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m.group(1)) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m.group(1))}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m.group(1))}.upsample", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
        if tensor.ndim == 2:
            tensor = tensor[..., None, None]
    return name, tensor


def open_clip_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder by open_clip's names."""
    plain = {name.removeprefix("text_model."): value for name, value in state.items()}
    named = {
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "text_projection": plain["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(1.0),
    }
    for layer in range(len({name.split(".")[2] for name in plain if name.startswith("encoder.layers.")})):
        at, to = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            named |= {f"{to}{new}.{kind}": plain[f"{at}{old}.{kind}"] for old, new in CLIP_LAYER.items()}
            own = [plain[f"{at}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            named[f"{to}attn.in_proj_{kind}"] = torch.cat(own)
    return named


def single_file(
    parts: dict[str, dict[str, Tensor]], layers: int, with_attention: list[bool], levels: int
) -> dict[str, Tensor]:
    """All tensors of SDXL in one file.

    Args:
        parts: State of each network by its name in a diffusers folder.
        layers: Layers of each block of the UNet.
        with_attention: Which of its levels have attention.
        levels: Of the VAE.
    """
    tensors = {
        f"model.diffusion_model.{unet_name(name, layers, with_attention)}": value
        for name, value in parts["unet"].items()
    }
    for name, value in parts["vae"].items():
        old, form = vae_tensor(name, value, levels)
        tensors[f"first_stage_model.{old}"] = form
    if "text_encoder" in parts:
        prefix = "conditioner.embedders.0.transformer.text_model."
        tensors |= {f"{prefix}{name}": value for name, value in parts["text_encoder"].items()}
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]
    second = f"conditioner.embedders.{int('text_encoder' in parts)}.model."
    tensors |= {f"{second}{name}": value for name, value in open_clip_tensors(parts["text_encoder_2"]).items()}
    tensors["denoiser.sigmas"] = torch.zeros(1000)
    return {name: value.contiguous().clone() for name, value in tensors.items()}
