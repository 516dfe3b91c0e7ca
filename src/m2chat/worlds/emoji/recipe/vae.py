"""The pocket VAE: diffusers' `AutoencoderKL`, 64 x 64 to 8 x 8 with eight latent channels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.worlds.emoji.recipe.course import Course, Plan, save_half
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.scenes import SIZE, Pictures
from m2chat.worlds.small_sdxl import build_vae, to_pixels

WIDTHS = (16, 32, 64, 128)
"""Few channels at 64 x 64, which is most of the cost on a CPU."""
_NOISE = 0.02
_SHIFT = 4
_LEAST_ERROR = 1e-5
"""Squared error, 56 dB, below which a picture is right: its logarithm's gradient would grow without limit."""
PLAN = Plan(steps=60000, lr=2e-3, decay=3000)


def varied(pixels: Tensor, rng: random.Random) -> Tensor:
    """A batch (B, 3, H, W) moved by up to four pixels, half of it mirrored, a part with its colours exchanged.

    The pictures are few: without this the VAE learns them by heart, and unseen ones stay soft.
    """
    size, rows = pixels.shape[-1], []
    for picture in F.pad(pixels, (_SHIFT,) * 4, value=1.0):
        top, left = rng.randint(0, 2 * _SHIFT), rng.randint(0, 2 * _SHIFT)
        picture = picture[:, top : top + size, left : left + size]
        if rng.random() < 0.5:
            picture = picture.flip(-1)
        if rng.random() < 0.2:
            picture = picture[rng.sample(range(3), 3)]
        rows.append(picture)
    return torch.stack(rows)


def psnr(output: Tensor, pixels: Tensor) -> float:
    """Mean of the pictures' PSNR in dB; both (B, 3, H, W) in [-1, 1]."""
    error = ((output.clamp(-1, 1) - pixels) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


def picture_weights(pictures: Pictures) -> list[float]:
    """How often each picture is drawn: the five tones of a person count together as much as the rest of it."""
    tones: dict[tuple[str, str], int] = {}
    for scene in pictures.scenes:
        if scene.tone:
            key = (scene.style, scene.label)
            tones[key] = tones.get(key, 0) + 1
    return [1 / tones[scene.style, scene.label] if scene.tone else 1.0 for scene in pictures.scenes]


def train_vae(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 12,
    seed: int = 0,
    device: str = "auto",
    widths: tuple[int, ...] = WIDTHS,
    encoder_steps: int | None = None,
) -> bool:
    """Trains the VAE and saves it, with the averaged weights, into ``<out>/weights/sdxl/vae``.

    Reconstructions are from the latent mode with a little noise, so that latents near each other decode alike. The loss
    is L1 + L2 while the rate is high, and the logarithm of each picture's error, which is its PSNR, in the decay: 500
    steps of it brought 0.14 dB, 500 steps of L1 + L2 0.11 dB from the same weights.

    Args:
        pictures: The whole world; what is held out is measured on and never trained on.
        out: Folder of the training.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        widths: Channels of each level.
        encoder_steps: Steps after which the encoder stays as it is, so that latents are final and a UNet can be
            trained on them while the decoder goes on getting sharper; None trains both to the end.

    Returns:
        Whether the plan's end was reached.
    """
    torch.manual_seed(seed)
    where = device_of(device)
    vae = build_vae(widths, SIZE, groups=4).to(where)
    course = Course(out / "vae", {"vae": vae}, plan, seed, {"widths": list(widths), "batch": batch})
    seen, unseen = pictures.of("train"), pictures.of("pair", "combination")
    weights, held_out = picture_weights(seen), to_pixels(unseen.pixels[:: max(1, len(unseen) // 256)])
    encoder = [p for name, p in vae.named_parameters() if name.startswith(("encoder", "quant_conv"))]

    def loss_of(rng: random.Random) -> Tensor:
        is_final = encoder_steps is not None and course.step >= encoder_steps
        if is_final and encoder[0].requires_grad:
            course.freeze(encoder)
        chosen = rng.choices(range(len(seen)), weights, k=batch)
        pixels = varied(to_pixels(seen.pixels[chosen]), rng).to(where)
        with precision(where):
            posterior = vae.encode(pixels).latent_dist
            latents = posterior.mean + _NOISE * torch.randn_like(posterior.mean)
            output = vae.decode(latents).sample.float()
        # A weak pull towards unit size and a small fixed posterior width keep `sample()` close to `mode()`.
        prior = 1e-4 * posterior.mean.square().mean() + 1e-4 * (posterior.logvar + 8).square().mean()
        if course.step >= plan.steps - plan.decay:
            error = (output - pixels).square().mean((1, 2, 3)).clamp_min(_LEAST_ERROR)
            loss = 0.1 * error.log().mean()
        else:
            loss = F.l1_loss(output, pixels) + F.mse_loss(output, pixels)
        total: Tensor = loss + prior
        return total

    def measure() -> dict[str, object]:
        save_vae(vae, seen, out / "weights" / "sdxl" / "vae")
        return {"psnr_unseen_db": round(measure_vae(vae, held_out), 2)}

    finished = course.run(loss_of, measure, every=100, measure_every=500)
    with course.averaged():
        save_vae(vae, seen, out / "weights" / "sdxl" / "vae")
    return finished


@torch.no_grad()
def save_vae(vae: Any, pictures: Pictures, folder: Path) -> None:
    """Saves the VAE with the scale of its latents as `scaling_factor`, as in real VAEs."""
    latents = latents_of(vae, to_pixels(pictures.pixels[:: max(1, len(pictures) // 512)]))
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    save_half(vae, folder)


@torch.no_grad()
def latents_of(vae: Any, pixels: Tensor) -> Tensor:
    """Latent modes of pictures, not scaled: (B, 8, 8, 8) on the CPU."""
    where = next(vae.parameters()).device
    return torch.cat([vae.encode(chunk.to(where)).latent_dist.mean.cpu() for chunk in pixels.split(64)])


@torch.no_grad()
def measure_vae(vae: Any, pixels: Tensor) -> float:
    """PSNR in dB of reconstructions from the mode."""
    where = next(vae.parameters()).device
    output = torch.cat([vae.decode(latents_of(vae, chunk).to(where)).sample.cpu() for chunk in pixels.split(64)])
    return psnr(output, pixels)


def measure_saved_vae(pictures: Pictures, folder: Path) -> dict[str, object]:
    """PSNR in dB of a saved VAE on pictures that no training has seen."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    unseen = pictures.of("pair", "combination")
    held_out = to_pixels(unseen.pixels[:: max(1, len(unseen) // 512)])
    return {"psnr_unseen_db": round(measure_vae(vae.float().eval(), held_out), 2)}
