"""The small SDXL that each generated world pretrains, and its SD 1.5 twin: tokenizer, networks, conditions, sampling.

v-prediction with zero terminal SNR: with epsilon-prediction on 8 x 8 latents even the noisiest step leaks the mean
colour, and the network learns to ignore the text there.

Shapes: B pictures, S pixels a side, T tokens, C width of the sequence condition, P width of the pooled condition.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2chat.models.denoising import size_ids

LATENT_CHANNELS = 8
_TIME_WIDTH = 16
SCHEDULER: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
)


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (B, S, S, 3) of 0-255 to (B, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def decay_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser without decay on vectors."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def write_clip_tokenizer(
    folder: Path, texts: Iterable[str], vocabulary: int, context_length: int, pad_token: str = "<|endoftext|>"
) -> None:
    """Writes a `CLIPTokenizer` folder: byte-level BPE whose merges make each frequent word of the texts one token.

    Any other text is spelt from pieces, down to bytes, so every text can be read.

    Args:
        folder: Folder to write.
        texts: Texts whose words become tokens.
        vocabulary: Largest number of pieces.
        context_length: Longest text in tokens.
        pad_token: Token that pads a text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    # The trainer sees bytes as printable characters, as CLIP's vocabulary writes them.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = alphabet + [character + "</w>" for character in alphabet]
    pieces += dict.fromkeys(left + right for left, right in merges)
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    tokens = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=tokens, merges=merges, pad_token=pad_token, model_max_length=context_length)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)  # half the size


def build_text_encoders(tokenizer: Any, widths: tuple[int, int], layers: int = 3) -> tuple[Any, Any]:
    """SDXL's two: `CLIPTextModel`, and `CLIPTextModelWithProjection` for the pooled condition."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int, **more: Any) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            vocab_size=len(tokenizer),
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            **more,
        )

    return CLIPTextModel(config(widths[0])), CLIPTextModelWithProjection(config(widths[1], hidden_act="gelu"))


def text_states(encoders: Sequence[Any], input_ids: Tensor, end: int) -> tuple[list[Tensor], Tensor]:
    """What SDXL and SD 1.5 read of a text.

    Returns:
        Of each encoder its penultimate state at the end, and its pooled output, the last being SDXL's pooled condition;
        and the penultimate states of all tokens, SDXL's sequence condition, (B, T, C).
    """
    at_end, rows = (input_ids == end).int().argmax(1), torch.arange(len(input_ids), device=input_ids.device)
    states, sequences = [], []
    for encoder in encoders:
        output = encoder(input_ids, output_hidden_states=True)
        sequences.append(output.hidden_states[-2])
        states.append(output.hidden_states[-2][rows, at_end])
        pooled = getattr(output, "text_embeds", None)
        states.append(pooled if pooled is not None else output.pooler_output)
    return states, torch.cat(sequences, -1)


def build_vae(widths: Sequence[int], size: int, groups: int) -> Any:
    """The VAE with orthogonal convolutions and silent residual branches: a third of the steps of the default start.

    Args:
        widths: Channels of each level; between two levels the side is halved.
        size: Side S of the pictures.
        groups: Groups of the normalisation.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=groups,
        mid_block_add_attention=False,
        sample_size=size,
    )
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    return vae


def build_unet(widths: Sequence[int], size: int, heads: int | Sequence[int], sequence: int, pooled: int | None) -> Any:
    """SDXL's UNet with small numbers, or SD 1.5's.

    Args:
        widths: Channels of each level.
        size: Side of the latents.
        heads: Attention heads, of all levels or of each.
        sequence: Width C of the sequence condition.
        pooled: Width P of the pooled condition; None for SD 1.5, which has none.
    """
    from diffusers import UNet2DConditionModel

    added: dict[str, Any] = {}
    if pooled is not None:
        added = dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=_TIME_WIDTH,
            projection_class_embeddings_input_dim=pooled + 6 * _TIME_WIDTH,
        )
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        norm_num_groups=16,
        cross_attention_dim=sequence,
        use_linear_projection=True,
        **added,
    )


def random_time_ids(batch: int, size: int, rng: random.Random) -> Tensor:
    """Original size, crop and target size of each picture: (B, 6); a fifth pretend to have been scaled down."""
    rows = []
    larger = (size, size * 3 // 2, size * 2)
    for _ in range(batch):
        height, width = (size, size) if rng.random() < 0.8 else (rng.choice(larger), rng.choice(larger))
        rows.append([height, width, 0, 0, size, size])
    return torch.tensor(rows, dtype=torch.float32)


def write_model_index(root: Path, is_xl: bool) -> None:
    """Writes the file that makes a folder a diffusers pipeline."""
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline", **parts, "safety_checker": [None, None]}
    if is_xl:
        parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        parts["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}
    (root / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class Conditioner:
    """The text conditions of SDXL (or of SD 1.5, with one encoder) from a diffusers folder.

    Args:
        root: Folder of the model.
        is_xl: Whether there are two encoders.
        device: Where to compute.
    """

    def __init__(self, root: Path, is_xl: bool, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        self.is_xl, self.device = is_xl, device
        names = [("tokenizer", "text_encoder", CLIPTextModel)]
        if is_xl:
            names.append(("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection))
        self.parts: list[tuple[Any, Any]] = [
            (
                CLIPTokenizer.from_pretrained(root / tokenizer),
                kind.from_pretrained(root / encoder, dtype=torch.float32).eval().to(device),
            )
            for tokenizer, encoder, kind in names
        ]

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Sequence (B, T, C) and pooled (B, P) conditions; SD 1.5 has no pooled one."""
        states, pooled = [], None
        for tokenizer, encoder in self.parts:
            ids = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            output = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2] if self.is_xl else output.last_hidden_state)
            pooled = getattr(output, "text_embeds", None)
        return torch.cat(states, -1), pooled


@torch.no_grad()
def sample(
    unet: Any, vae: Any, condition: Conditioner, captions: Sequence[str], noise: Tensor, steps: int, guidance: float
) -> Tensor:
    """Draws captions by DDIM with classifier-free guidance.

    Args:
        unet: The UNet.
        vae: The VAE of its latents.
        condition: The text encoders.
        captions: A caption a picture.
        noise: What the pictures begin as: (B, 8, s, s) on the device.
        steps: Denoising steps.
        guidance: Scale of the guidance.

    Returns:
        Pictures (B, 3, S, S), about [-1, 1], not clamped.
    """
    from diffusers import DDIMScheduler

    text, pooled = condition(captions)
    both, added = torch.cat([torch.zeros_like(text), text]), None
    if pooled is not None:
        size = int(vae.config.sample_size)
        ids = size_ids(size, size, 2 * len(noise)).to(noise.device)
        added = {"text_embeds": torch.cat([torch.zeros_like(pooled), pooled]), "time_ids": ids}
    scheduler: Any = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    latents = noise
    for timestep in scheduler.timesteps:
        output = unet(torch.cat([latents, latents]), timestep, both, added_cond_kwargs=added).sample
        negative, positive = output.chunk(2)
        latents = scheduler.step(negative + guidance * (positive - negative), timestep, latents).prev_sample
    pixels: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return pixels
