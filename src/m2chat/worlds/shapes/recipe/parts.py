"""The micro backbones as parts: what each writes, what it rests on, how it is trained and measured.

Nothing here imports torch before a part is made, so that the command line can name the parts at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, object]
"""Seed, steps and quality, as the recipes return them."""


@dataclass(frozen=True)
class Part:
    """One recipe.

    Args:
        paths: Folders and files that it writes, relative to the root.
        train: Trains it below the root and saves it; returns seed, steps and quality.
        needs: Parts that must be there before.
        measure: Measures the saved part again; None where only training measures it.
    """

    paths: tuple[str, ...]
    train: Callable[[Path], Facts]
    needs: tuple[str, ...] = ()
    measure: Callable[[Path], Facts] | None = None


def _train_vae(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.vae import train_vae

    return train_vae(root / "sdxl" / "vae")


def _measure_vae(root: Path) -> Facts:
    from diffusers import AutoencoderKL

    from m2chat.worlds.shapes.recipe.vae import measure_vae

    vae: Any = AutoencoderKL.from_pretrained(root / "sdxl" / "vae", low_cpu_mem_usage=False)
    return measure_vae(vae.float().eval())


def _train_text_encoders(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.text_encoders import train_text_encoders

    return train_text_encoders(root / "sdxl")


def _train_unet(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.unet import train_unet

    return train_unet(root / "sdxl")


def _measure_unet(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.unet import measure_unet

    return measure_unet(root / "sdxl")


def _train_sd15(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.unet import train_unet

    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(root / "sdxl" / name, root / "sd15" / name, dirs_exist_ok=True)
    return train_unet(root / "sd15", steps=3500, is_xl=False)


def _measure_sd15(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.unet import measure_unet

    return measure_unet(root / "sd15", is_xl=False)


DENSE_STEPS = 1500
"""Of the conditioning CLIP, in which all its tokens are read; the one that measures has none."""


def _train_clip(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.clip import train_clip

    return train_clip(root / "clip", dense_steps=DENSE_STEPS)


def _measure_clip(folder: Path) -> Facts:
    import open_clip

    from m2chat.worlds.shapes.recipe.clip import measure_clip

    place = f"local-dir:{folder}"
    model: Any = open_clip.create_model(place)
    return measure_clip(model.float().eval(), open_clip.get_tokenizer(place))


def _train_metric_clip(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.metric_clip import train_metric_clip

    return train_metric_clip(root / "metric_clip")


def _train_language(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.llama import train_language

    return train_language(root)


def _measure_language(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.reader import load_reader, measure_language

    return measure_language(load_reader(root))


def _train_fid(root: Path) -> Facts:
    from m2chat.worlds.shapes.recipe.fid_net import train_fid_net

    return train_fid_net(root / "fid")


def _measure_fid(root: Path) -> Facts:
    from m2chat.metrics.feature_net import FeatureNet
    from m2chat.worlds.shapes.recipe.fid_net import measure_fid_net

    return measure_fid_net(FeatureNet.load(root / "fid"))


_SDXL_TEXT = tuple(f"sdxl/{name}" for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))

# In the order in which they start: the long ones early, and what others rest on before them.
PARTS: dict[str, Part] = {
    "vae": Part(("sdxl/vae",), _train_vae, measure=_measure_vae),
    # The heads that read the attributes off the states are thrown away, and with them the means to measure again.
    "text_encoders": Part(_SDXL_TEXT, _train_text_encoders),
    "clip": Part(("clip",), _train_clip, measure=lambda root: _measure_clip(root / "clip")),
    "metric_clip": Part(("metric_clip",), _train_metric_clip, measure=lambda root: _measure_clip(root / "metric_clip")),
    "unet": Part(
        ("sdxl/unet", "sdxl/scheduler", "sdxl/model_index.json"), _train_unet, ("vae", "text_encoders"), _measure_unet
    ),
    "language": Part(("llama", "adapter"), _train_language, ("clip", "text_encoders"), _measure_language),
    "sd15": Part(("sd15",), _train_sd15, ("vae", "text_encoders"), _measure_sd15),
    "fid": Part(("fid",), _train_fid, measure=_measure_fid),
}
