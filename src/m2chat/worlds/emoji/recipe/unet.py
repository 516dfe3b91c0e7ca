"""The UNets of the pocket SDXL and of its SD 1.5 twin: v-prediction on the VAE's latents, on frozen text encoders."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m2chat.errors import UserError
from m2chat.worlds.emoji.captions import caption_of, draw_caption
from m2chat.worlds.emoji.recipe.course import CHECKPOINT, Course, Plan, save_half
from m2chat.worlds.emoji.recipe.device import device_of, precision
from m2chat.worlds.emoji.recipe.drawing import FACTOR, draw, nearest_rates, save_sheet
from m2chat.worlds.emoji.recipe.vae import latents_of, picture_weights
from m2chat.worlds.emoji.scenes import SIZE, STYLES, Pictures, core_concepts
from m2chat.worlds.small_sdxl import (
    SCHEDULER,
    Conditioner,
    build_unet,
    random_time_ids,
    to_pixels,
    write_model_index,
)

WIDTHS = {True: (128, 192), False: (64, 96)}
"""Channels of the two levels, of SDXL and of SD 1.5."""
PLAN = Plan(steps=60000, lr=4e-4, warmup=100, decay=8000, ema=0.9995)
"""At 1e-3 the loss falls quicker for the first 1,500 steps, and hardly after them."""
_DROPPED = 0.1
_ENCODER = ("encoder", "quant_conv")
_CORE_WEIGHT = 1.5
"""How much oftener a core concept is drawn: people speak of these."""


class Latents:
    """The training pictures' latents, scaled, and the VAE that they belong to: a copy that later training leaves alone.

    Args:
        folder: Where they are kept.
        vae: Folder of the VAE as it is now.
        pictures: The training pictures.
        again: Whether to read the VAE anew although there are latents already.
        device: Where to compute.
    """

    def __init__(self, folder: Path, vae: Path, pictures: Pictures, again: bool, device: torch.device) -> None:
        from diffusers import AutoencoderKL

        copy, path, order = folder / "vae", folder / "latents.pt", folder / "latents.json"
        # Latents of the pictures in another order would be taken for those of others.
        digest = hashlib.sha256("\n".join(scene.file for scene in pictures.scenes).encode()).hexdigest()
        known = json.loads(order.read_text())["pictures"] if order.is_file() else digest
        if again or not path.is_file():
            newest: Any = AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
            folder.mkdir(parents=True, exist_ok=True)
            newest.save_pretrained(copy)
            path.unlink(missing_ok=True)
        self.vae: Any = AutoencoderKL.from_pretrained(copy, low_cpu_mem_usage=False).float().eval().to(device)
        if path.is_file():
            self.values: Tensor = torch.load(path, weights_only=True)
        else:
            parts = [latents_of(self.vae, to_pixels(pictures.pixels[i : i + 64])) for i in range(0, len(pictures), 64)]
            self.values = torch.cat(parts) * self.vae.config.scaling_factor
            torch.save(self.values, path)
            known = digest
        if len(self.values) != len(pictures) or known != digest:
            raise UserError(f"{path} has latents of other pictures than these {len(pictures)}: add --new-latents")
        order.write_text(json.dumps({"pictures": digest}) + "\n")


def newest_vae(newest: Path, snapshot: Path) -> Path:
    """The VAE to decode with: the newest one if its latents are still those of the snapshot that a UNet has learned.

    Args:
        newest: Folder of the VAE as it is now; its decoder may have been trained on.
        snapshot: Folder of the VAE whose latents the UNet has learned.
    """
    from safetensors.torch import load_file

    if not (snapshot / "config.json").is_file():
        return newest
    first, second = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (newest, snapshot))
    is_same = all(torch.equal(tensor, second[name]) for name, tensor in first.items() if name.startswith(_ENCODER))
    return newest if is_same else snapshot


def train_unet(
    pictures: Pictures,
    out: Path,
    plan: Plan = PLAN,
    batch: int = 32,
    seed: int = 0,
    device: str = "auto",
    styles: Collection[str] | None = None,
    new_latents: bool = False,
    widths: tuple[int, ...] | None = None,
    is_xl: bool = True,
) -> bool:
    """Trains a UNet on cached latents and completes ``<out>/weights/sdxl``, or ``<out>/weights/sd15``.

    A tenth of the conditions are zeros, as SDXL was trained; the saved weights are the averaged ones. Styles and the
    VAE may change from one run to the next: the weights go on from where they are. So do saved ones whose checkpoint is
    not there, such as those that are shipped; steps and cost then count from zero.

    Args:
        pictures: The whole world; only what is not held out is learned.
        out: Folder of the training, with its VAE and text encoders.
        plan: How long and how fast.
        batch: Pictures a step.
        seed: Seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        styles: Keys of the styles to learn; all if None.
        new_latents: Whether to read the VAE again and go on with its latents.
        widths: Channels of the two levels; those of the shipped UNet of this kind by default.
        is_xl: Whether it is SDXL; if not, SD 1.5, with the VAE and the first text encoder of SDXL.

    Returns:
        Whether the plan's end was reached.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    if unknown := sorted(set(styles or ()) - STYLES.keys()):
        raise UserError(f"--styles {' '.join(unknown)}: choose of {', '.join(STYLES)}")
    name, where = "unet" if is_xl else "sd15", device_of(device)
    root = require_parts(out / "weights", is_xl)
    seen = pictures.of("train")
    latents = Latents(out / name, root / "vae", seen, new_latents, where)
    condition = Conditioner(root, is_xl, where)
    text, pooled = condition(["a"])
    torch.manual_seed(seed)
    widths = widths or WIDTHS[is_xl]
    heads = tuple(width // 32 for width in widths)
    unet = build_unet(widths, SIZE // FACTOR, heads, text.shape[-1], None if pooled is None else pooled.shape[-1])
    if not (out / name / CHECKPOINT).is_file() and (root / "unet" / "config.json").is_file():
        print(f"{name}: there is no checkpoint in {out / name}; it begins with the weights in {root / 'unet'}")
        begin_with(unet, root / "unet")
    course = Course(out / name, {"unet": unet.to(where)}, plan, seed, {"widths": list(widths)})
    noiser: Any = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})
    wanted = [index for index, scene in enumerate(seen.scenes) if scene.style in (styles or STYLES)]
    weight_of = picture_weights_of(seen)
    weights = [weight_of[i] for i in wanted]

    def loss_of(rng: random.Random) -> Tensor:
        chosen = rng.choices(wanted, weights, k=batch)
        text, pooled = condition([draw_caption(seen.scenes[i], rng).text for i in chosen])
        clean = latents.values[chosen].to(where)
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (batch,), device=where)
        keep = (torch.rand(batch, 1, device=where) >= _DROPPED).float()
        added = None
        if pooled is not None:
            added = {"text_embeds": pooled * keep, "time_ids": random_time_ids(batch, SIZE, rng).to(where)}
        with precision(where):
            noisy = noiser.add_noise(clean, noise, timesteps)
            output = unet(noisy, timesteps, text * keep[..., None], added_cond_kwargs=added).sample
        return F.mse_loss(output.float(), noiser.get_velocity(clean, noise, timesteps))

    def measure() -> dict[str, object]:
        save_half(unet, root / "unet")
        return measure_unet(unet, latents.vae, condition, seen.of("train", styles=styles or STYLES), out / name)

    DDIMScheduler(**SCHEDULER).save_pretrained(root / "scheduler")
    write_model_index(root, is_xl)
    finished = course.run(loss_of, measure, every=50, measure_every=1000)
    with course.averaged():
        save_half(unet, root / "unet")
    return finished


def begin_with(unet: Any, folder: Path) -> None:
    """Gives a UNet the saved weights of another.

    Raises:
        UserError: If these are of other sizes.
    """
    from safetensors.torch import load_file

    saved = load_file(folder / "diffusion_pytorch_model.safetensors")
    own = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in saved.items()}:
        raise UserError(
            f"{folder} is a UNet of other sizes than the one to train: move it away, or choose another --out"
        )
    unet.load_state_dict(saved)


def picture_weights_of(pictures: Pictures) -> list[float]:
    """How often each picture is drawn: the tones of a person together as often as a thing, core concepts oftener."""
    core = set(core_concepts())
    return [
        weight * (_CORE_WEIGHT if scene.concept in core else 1.0)
        for weight, scene in zip(picture_weights(pictures), pictures.scenes, strict=True)
    ]


def require_parts(weights: Path, is_xl: bool = True) -> Path:
    """The diffusers folder of a UNet, with the VAE and the text encoders that it is trained on.

    Raises:
        UserError: If one of these is not there yet.
    """
    sdxl = weights / "sdxl"
    for part, name in {"vae": "vae", "text_encoder": "text_encoders", "text_encoder_2": "text_encoders"}.items():
        if not (sdxl / part / "config.json").is_file():
            raise UserError(f"there is no {sdxl / part}: train the part {name} first")
    if is_xl:
        return sdxl
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(sdxl / part, weights / "sd15" / part, dirs_exist_ok=True)
    return weights / "sd15"


def measure_unet(
    unet: Any, vae: Any, condition: Conditioner, pictures: Pictures, folder: Path | None = None, count: int = 48
) -> dict[str, object]:
    """Nearest true picture by pixels of what is drawn for exact captions: core concepts, and any.

    Args:
        unet: With the averaged weights.
        vae: The VAE of its latents.
        condition: The text encoders.
        pictures: Pictures that it has learned from.
        folder: Where a sheet of what was drawn for core concepts is put, above it the true pictures.
        count: Pictures of each kind.
    """
    plain = pictures.take([i for i, scene in enumerate(pictures.scenes) if scene.is_plain])
    core = plain.take([i for i, scene in enumerate(plain.scenes) if scene.concept in set(core_concepts())])
    result: dict[str, object] = {}
    for name, of in (("core", core), ("all", plain)):
        chosen = of.take(random.Random(1).sample(range(len(of)), min(count, len(of))))
        drawn = draw(unet, vae, condition, [caption_of(scene) for scene in chosen.scenes])
        result |= {f"{name}_{k}": round(v, 4) for k, v in nearest_rates(drawn, chosen.scenes, plain).items()}
        if folder is not None and name == "core":
            rows = [row for i in range(0, len(drawn), 16) for row in (chosen.pixels[i : i + 16], drawn[i : i + 16])]
            save_sheet(folder / "sheet.png", rows)
    return result
