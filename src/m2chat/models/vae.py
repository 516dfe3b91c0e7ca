"""A VAE of the image decoder at work: both kinds of diffusers, and without the overflow of SDXL's in fp16."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError
from m2chat.models.precision import without_autocast

_LOG = logging.getLogger(__name__)


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures, scaled: of an `AutoencoderKL` the posterior's mean. Autocast does not lower them.

    Args:
        vae: `AutoencoderKL` or `AutoencoderTiny`.
        pixels: Pictures in [-1, 1], (B, 3, H, W).

    Returns:
        (B, c, h, w), in the precision of the VAE.
    """
    with without_autocast(pixels.device):
        encoded = vae.encode(pixels.to(_precision(vae, "encoder")))
        latents: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents * float(vae.config.scaling_factor)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures in [-1, 1] of scaled latents: (B, c, h, w) to (B, 3, H, W).

    SDXL's VAE overflows in fp16, and its pictures are black then: it works in fp32 where its configuration demands that
    (`force_upcast`), or as soon as a picture shows it.

    Args:
        vae: `AutoencoderKL` or `AutoencoderTiny`.
        latents: Latents.

    Raises:
        UserError: If latents in fp16 are not finite themselves, because the UNet has overflowed.
    """
    if latents.dtype == torch.float16 and not bool(latents.isfinite().all()):
        raise UserError(
            "the UNet's numbers are not finite in fp16, the picture would be black: load the model in bf16 or fp32 "
            "(torch_dtype=torch.bfloat16)"
        )
    scaled = latents / vae.config.scaling_factor
    pixels: Tensor = vae.decode(scaled.to(_precision(vae, "decoder"))).sample
    if pixels.dtype == torch.float16 and not bool(pixels.isfinite().all()):
        _LOG.warning("the VAE's numbers are not finite in fp16, and its force_upcast is off: it works in fp32 now")
        pixels = vae.to(torch.float32).decode(scaled.float()).sample
    return pixels.clamp(-1, 1)


def _precision(vae: Any, half: str) -> torch.dtype:
    """Precision of a half of a VAE; one in fp16 that is marked as overflowing is lifted to fp32 first."""
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    parameter: Tensor = next(getattr(vae, half).parameters())
    return parameter.dtype
