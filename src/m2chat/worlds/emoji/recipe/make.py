"""Makes and measures a part of the pocket backbones: trained in ``training/``, copied beside it when it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.worlds.emoji.decoder import evaluate
from m2chat.worlds.emoji.judge import PictureJudge
from m2chat.worlds.emoji.pictures import read_pictures
from m2chat.worlds.emoji.recipe import clip, fid
from m2chat.worlds.emoji.recipe.course import FINISHED
from m2chat.worlds.emoji.recipe.few_step import FOLDER as FEW_STEP
from m2chat.worlds.emoji.recipe.judge import measure_judge
from m2chat.worlds.emoji.recipe.parts import PARTS
from m2chat.worlds.emoji.recipe.unet import newest_vae
from m2chat.worlds.emoji.recipe.vae import measure_saved_vae
from m2chat.worlds.emoji.scenes import CACHE, Pictures, load_pictures
from m2chat.worlds.parts import Facts

TRAINING = "training"
"""Folder below the root with what is not finished, as ``python -m m2chat.worlds.emoji PART --out`` makes it."""


SHARED = {f"sd15/{name}": f"sdxl/{name}" for name in ("vae", "text_encoder", "tokenizer")}
"""Folders of the SD 1.5 twin that are SDXL's, linked: what two decoders share is shipped once."""


@lru_cache(1)
def world_pictures(root: Path, cache: Path = CACHE) -> Pictures:
    """All pictures: those that were read from the packages if they are there, else the shipped ones.

    Args:
        root: Folder with the shipped ``pictures/``.
        cache: Folder of ``pictures.npz``.
    """
    if (path := cache / "pictures.npz").is_file() or not (root / "pictures").is_dir():
        return load_pictures(path)
    return read_pictures(root / "pictures")


def train(part: str, pictures: Pictures, out: Path, plan: dict[str, Any] | None = None, **settings: Any) -> bool:
    """Trains a part until it is finished or stopped.

    Args:
        part: Name of the part.
        pictures: The whole world.
        out: Folder of the training; the weights go into its ``weights/``.
        plan: Fields of the part's plan to change.
        settings: Further arguments of the part's training.

    Returns:
        Whether it is finished; False if it was stopped before its end.
    """
    module = import_module(f"{__package__}.{part}")
    finished: bool = getattr(module, f"train_{part}")(pictures, out, replace(module.PLAN, **(plan or {})), **settings)
    return finished


def make(root: Path, part: str, paths: Sequence[str]) -> Facts:
    """Trains a part below ``<root>/training``, unless it is finished there, and copies its weights into the root.

    The parts that it needs are taken from the root where they were not trained here, as in a clone.

    Args:
        root: Folder of the backbones, such as ``data/pocket``.
        part: Name of the part.
        paths: Folders and files that it writes, relative to the root.

    Returns:
        Seed, steps, cost and quality.

    Raises:
        UserError: If it was stopped before its end, or rests on latents that the VAE has left behind.
    """
    training = root / TRAINING
    for path in (path for need in PARTS[part].needs for path in PARTS[need].paths):
        if not (copy := training / "weights" / path).exists():
            _copy(root / path, copy)
    if not (training / part / FINISHED).is_file():
        if not train(part, world_pictures(root), training):
            raise UserError(f"{part} was stopped: the same command goes on from here")
    _require_final_vae(training, part)
    for path in paths:
        _copy(training / "weights" / path, root / path)
    for path, original in SHARED.items():
        if path.startswith(f"{part}/") and (root / original).is_dir():
            shutil.rmtree(root / path)
            (root / path).symlink_to(Path("..") / original)
    facts: Facts = json.loads((training / part / FINISHED).read_text())
    return {**facts, **measure(root, part)}


def _copy(source: Path, target: Path) -> None:
    """Copies a folder or file; a folder takes the place of an older one."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _require_final_vae(training: Path, part: str) -> None:
    """Checks that a decoder was trained on the latents of the VAE that is shipped with it.

    Raises:
        UserError: If it was not.
    """
    of = {"unet": "unet", "few_step": "unet", "sd15": "sd15"}.get(part)
    vae = training / "weights" / "sdxl" / "vae"
    if of is not None and newest_vae(vae, training / of / "vae") != vae:
        raise UserError(
            f"{part} has learned latents of another VAE than {vae}: train {of} on with "
            f"`python -m m2chat.worlds.emoji {of} --new-latents --steps N --decay M`"
        )


def measure(root: Path, part: str, count: int = 200) -> Facts:
    """Quality of a saved part.

    Args:
        root: Folder of the backbones, such as ``data/pocket``.
        part: Name of the part.
        count: Pictures of each set that a decoder draws.

    Returns:
        Facts; of the text encoders those that their training has logged, for their readers are thrown away after it.
    """
    if part == "text_encoders":
        return _logged(root / TRAINING / part / "log.jsonl")
    pictures = world_pictures(root)
    if part in ("unet", "sd15", "few_step"):
        return _drawing(root, part, pictures, count)
    if part == "vae":
        return measure_saved_vae(pictures, root / "sdxl" / "vae")
    if part == "judge":
        return measure_judge(PictureJudge.load(root / "judge", pictures), pictures)
    module = clip if part in ("clip", "metric_clip") else fid
    measured: dict[str, object] = module.measure_saved(pictures, root / part)
    return measured


def _drawing(root: Path, part: str, pictures: Pictures, count: int) -> Facts:
    """Rates of a decoder by set, such as ``core_top1``."""
    folder = root / ("sd15" if part == "sd15" else "sdxl")
    lora = root / FEW_STEP if part == "few_step" else None
    by_set, _ = evaluate(folder, root, pictures, count, lora=lora)
    quoted = ("top1", "top5", "style", "attributes", "nearest_top1")
    facts: Facts = {f"{name}_{key}": row[key] for name, row in by_set.items() for key in quoted if key in row}
    return facts


def _logged(log: Path) -> Facts:
    """The last measurement of a training."""
    if not log.is_file():
        return {}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    measured = [row for row in rows if "loss" not in row]
    return {k: v for k, v in measured[-1].items() if k not in ("step", "cpu_s", "time")} if measured else {}
