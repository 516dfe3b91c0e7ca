"""SDXL's single-file form: the configurations of a diffusers folder are derived from the shapes of the tensors.

SDXL's rules fill the rest: attention heads of 64 channels, its noise schedule, its scale of latents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.weights.families import SUPPORTED, family_of_names
from m2chat.models.weights.loading import KeyReport

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CLIP, _OPEN_CLIP = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.{}.model."
_HEAD, _EMBED = 64, 256  # channels of an attention head; of each of the numbers in time_ids
_JUNK = re.compile(r"position_ids$|logit_scale$|^denoiser\.|^model_ema\.|^alphas_cumprod|^betas$|^(v_pred|ztsnr)$")
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
"""SDXL's noise schedule."""


@dataclass
class SdxlParts:
    """A single file, taken apart.

    Args:
        configs: Configuration of each part, as in its ``config.json`` of a diffusers folder.
        states: Tensors of each part, by diffusers' and transformers' names.
        report: Use of each name of the file.
    """

    configs: dict[str, dict[str, Any]]
    states: dict[str, dict[str, Tensor]]
    report: KeyReport

    @property
    def is_refiner(self) -> bool:
        """Whether it is the refiner, which has the second text encoder alone."""
        return "text_encoder" not in self.configs


def is_single_file(names: Iterable[str]) -> bool:
    """Whether names are those of an SDXL in one file."""
    known = set(names)
    return f"{_UNET}label_emb.0.0.weight" in known and any(name.startswith("conditioner.embedders.") for name in known)


def take_apart(state: Mapping[str, Tensor], where: str) -> SdxlParts:
    """Sorts the tensors of a single file into the parts of a diffusers folder.

    Args:
        state: Tensors of the file.
        where: Name in messages.

    Raises:
        UserError: If it is another kind of file, such as SD 1.5 or a network alone.
    """
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
        convert_open_clip_checkpoint,
    )

    if family := family_of_names(state):
        raise UserError(f"{where} is {family}: {SUPPORTED}")
    if not is_single_file(state):
        raise UserError(
            f"{where} is not SDXL in one file: expected are names such as '{_UNET}label_emb.0.0.weight' and "
            f"'conditioner.embedders...', found {sorted(state)[:2]}. SD 1.5 is read from a diffusers folder"
        )
    refiner = not any(name.startswith(_CLIP) for name in state)
    second = _OPEN_CLIP.format(0 if refiner else 1)
    used = [name for name in state if not _JUNK.search(name)]
    clean = {name: state[name] for name in used}
    # Two empty tensors by which retrained models say what they predict.
    marks = {"prediction_type": "v_prediction"} if "v_pred" in state else {}
    configs: dict[str, dict[str, Any]] = {
        "scheduler": {**SCHEDULER, **marks, **({"rescale_betas_zero_snr": True} if "ztsnr" in state else {})}
    }
    states: dict[str, dict[str, Tensor]] = {}
    try:
        configs["text_encoder_2"] = open_clip_config(clean, second)
        pooled = configs["text_encoder_2"]["projection_dim"]
        configs["unet"] = unet_config(clean, pooled, 5 if refiner else 6)
        configs["vae"] = vae_config(clean)
        if not refiner:
            configs["text_encoder"] = clip_config(clean)
            states["text_encoder"] = convert_ldm_clip_checkpoint(clean, "conditioner.embedders.0.transformer.")
    except KeyError as error:
        raise UserError(f"{where} lacks {error}: the file is not complete; download it again") from None
    states["unet"] = convert_ldm_unet_checkpoint(clean, configs["unet"])
    states["vae"] = convert_ldm_vae_checkpoint(clean, configs["vae"])
    states["text_encoder_2"] = convert_open_clip_checkpoint(_Sized(configs["text_encoder_2"]), clean, second)
    known = (_UNET, _VAE, _CLIP, second)
    report = KeyReport(
        used=sorted(name for name in used if name.startswith(known)),
        unexpected=sorted(name for name in used if not name.startswith(known)),
        ignored=sorted(set(state) - set(used)),
    )
    return SdxlParts(configs, states, report)


class _Sized:
    """What diffusers' converter wants to know of a text encoder: its width."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = type("Config", (), {"hidden_size": config["hidden_size"]})


def unet_config(state: Mapping[str, Tensor], pooled: int, numbers: int) -> dict[str, Any]:
    """Of the UNet.

    Args:
        state: The file's tensors.
        pooled: P, width of the pooled condition.
        numbers: How many numbers ``time_ids`` has: 6, or 5 for the refiner.
    """
    blocks = _count(state, rf"^{_UNET}input_blocks\.(\d+)\.")
    channels: list[int] = []
    depths: list[int] = []
    layers = 0
    for block in range(1, blocks):
        at = f"{_UNET}input_blocks.{block}"
        if f"{at}.0.op.weight" in state:
            continue
        if block == 1 or f"{_UNET}input_blocks.{block - 1}.0.op.weight" in state:
            channels.append(state[f"{at}.0.out_layers.3.weight"].shape[0])
            depths.append(_count(state, rf"^{re.escape(at)}\.1\.transformer_blocks\.(\d+)\."))
        layers += len(channels) == 1
    middle = _count(state, rf"^{_UNET}middle_block\.1\.transformer_blocks\.(\d+)\.")
    cross = state[f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    entry = state[f"{_UNET}label_emb.0.0.weight"].shape[1]
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    first, last = state[f"{_UNET}input_blocks.0.0.weight"], state[f"{_UNET}out.2.weight"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "in_channels": first.shape[1],
        "out_channels": last.shape[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        # A level without attention has no depth, but the last one's is also that of the middle.
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [middle],
        "attention_head_dim": [max(1, width // _HEAD) for width in channels],
        "cross_attention_dim": cross.shape[1],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (entry - pooled) // numbers,
        "projection_class_embeddings_input_dim": entry,
    }


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the VAE."""
    levels = _count(state, rf"^{_VAE}encoder\.down\.(\d+)\.")
    channels = [state[f"{_VAE}encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 1024,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": state[f"{_VAE}post_quant_conv.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": _count(state, rf"^{_VAE}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


def clip_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the first text encoder, OpenAI's CLIP."""
    vocab, width = state[f"{_CLIP}embeddings.token_embedding.weight"].shape
    return {
        **_text_config(vocab, width, state[f"{_CLIP}embeddings.position_embedding.weight"].shape[0]),
        "intermediate_size": state[f"{_CLIP}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(state, rf"^{re.escape(_CLIP)}encoder\.layers\.(\d+)\."),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "architectures": ["CLIPTextModel"],
    }


def open_clip_config(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Of the second text encoder, an open_clip model."""
    vocab, width = state[f"{prefix}token_embedding.weight"].shape
    return {
        **_text_config(vocab, width, state[f"{prefix}positional_embedding"].shape[0]),
        "intermediate_size": state[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _count(state, rf"^{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        "hidden_act": "gelu",
        "projection_dim": state[f"{prefix}text_projection"].shape[1],
        "architectures": ["CLIPTextModelWithProjection"],
    }


def _text_config(vocab: int, width: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": length,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": vocab - 1,
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers a pattern finds."""
    matcher = re.compile(pattern)
    return len({match.group(1) for name in names if (match := matcher.match(name))})
