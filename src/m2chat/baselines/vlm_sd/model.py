"""Model of the row "VLM + SD finetune" of Table 2: the text of a language model is the prompt of a Stable Diffusion.

There is no connector. Shapes as in `m2chat.models.image_decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.batch import Batch
from m2chat.models.adapter_file import adapter_parameter_names
from m2chat.models.build import load_reader
from m2chat.models.config import BackboneConfig
from m2chat.models.image_decoder import ImageDecoder
from m2chat.models.m2chat import DiffusionNoise
from m2chat.models.visual_encoder import ClipTokens, VisualQueryEncoder
from m2chat.text.clip_tokenizers import clip_tokenizers


@dataclass
class VLMSDOutput:
    """What the losses need.

    Args:
        prediction: Output of the UNet, (n, c, h, w).
        diffusion_target: Target of the prediction, (n, c, h, w).
        logits: Logits at the scored positions only, (scored, V).
        logit_labels: Tokens at these positions, (scored,).
    """

    prediction: Tensor
    diffusion_target: Tensor
    logits: Tensor
    logit_labels: Tensor


class VLMSDModel(nn.Module):
    """Vision encoder and language model as in M²Chat, and a Stable Diffusion whose UNet is trained.

    Args:
        llama: `AdapterLlamaForCausalLM`.
        clip: Frozen vision encoder.
        visual_query: Encoder of the adapter's prompts.
        decoder: The Stable Diffusion.
        folder: Diffusers folder of the Stable Diffusion, for its tokenizers.
    """

    def __init__(
        self, llama: Any, clip: ClipTokens, visual_query: VisualQueryEncoder, decoder: ImageDecoder, folder: str
    ) -> None:
        super().__init__()
        self.llama, self.clip, self.visual_query, self.decoder = llama, clip, visual_query, decoder
        self.tokenizers = clip_tokenizers(Path(folder))

    def trained_names(self) -> set[str]:
        """Names of the trained parameters: the UNet, LLaMA-Adapter's tensors and the rows of the two tokens."""
        names = {f"decoder.unet.{name}" for name, _ in self.decoder.unet.named_parameters()}
        names |= adapter_parameter_names(self.llama, self.visual_query)
        return names | {"llama.model.embed_tokens.extra", "llama.lm_head.extra"}

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Output of the frozen text encoders for prompts: (n, Q, C), and (n, P) of SDXL."""
        device = next(self.decoder.parameters()).device
        ids = [
            tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
            for tokenizer in self.tokenizers
        ]
        return self.decoder.encode_text(ids[0], ids[-1])

    def forward(self, batch: Batch, prompts: Sequence[str], noise: DiffusionNoise) -> VLMSDOutput:
        """One training pass.

        Args:
            batch: The samples.
            prompts: Prompt of each sample of the noise, from the reference reply.
            noise: Noise of the samples that L_ddpm uses.
        """
        visual_query = self.visual_query(self.clip(batch.context_pixels))
        last = self.llama.model(batch.input_ids, visual_query=visual_query).last_hidden_state
        scored = batch.labels[:, 1:] >= 0
        text, pooled = self.encode_prompts(prompts)
        chosen = torch.arange(len(prompts), device=last.device).repeat(noise.draws)
        keep = (~noise.drop).to(text.dtype)[:, None]
        latents = self.decoder.encode_pixels(batch.target_pixels[noise.samples])
        noisy, target = self.decoder.diffuse(latents[chosen], noise.noise, noise.timesteps)
        prediction = self.decoder.predict(
            noisy,
            noise.timesteps,
            text[chosen] * keep[..., None],
            None if pooled is None else pooled[chosen] * keep,
            batch.time_ids[noise.samples][chosen],
        )
        return VLMSDOutput(prediction, target, self.llama.lm_head(last[:, :-1][scored]), batch.labels[:, 1:][scored])


def build_vlm_sd(backbone: BackboneConfig) -> VLMSDModel:
    """Loads the backbones; nothing is frozen yet but the vision encoder.

    Raises:
        UserError: As `m2chat.models.build.build_m2chat`.
    """
    llama, visual_query, clip = load_reader(backbone)
    decoder = ImageDecoder(backbone.image_decoder, config=backbone.decoder)
    return VLMSDModel(llama, clip, visual_query, decoder, backbone.image_decoder)
