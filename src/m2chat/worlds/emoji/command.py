"""The emoji world's command: pictures out of packages, and every part of the pocket backbones."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

CACHE = Path(os.environ.get("M2CHAT_CACHE", "~/.cache/m2chat")).expanduser() / "pocket"
PARTS = ("vae", "text_encoders", "unet", "judge", "clip", "metric_clip", "fid")
_FURTHER = {"vae": ("encoder_steps",), "unet": ("styles", "new_latents")}  # options of some parts alone


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m m2chat.worlds.emoji", description=__doc__)
    options.add_argument("part", choices=("pictures", *PARTS), help="what to build")
    options.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of packages/ and pictures.npz (default: %(default)s)"
    )
    options.add_argument("--out", type=Path, default=Path("data/pocket/training"), help="folder (default: %(default)s)")
    options.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    options.add_argument("--steps", type=int, help="step at which the training ends; it may be raised later")
    options.add_argument("--decay", type=int, help="steps at the end in which the learning rate falls")
    options.add_argument("--lr", type=float, help="learning rate after the warm-up")
    options.add_argument("--batch", type=int, help="samples a step")
    options.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    options.add_argument("--encoder-steps", type=int, help="vae: step from which its encoder stays as it is")
    options.add_argument("--styles", nargs="+", help="unet: styles to learn (default: all)")
    options.add_argument(
        "--new-latents", action="store_true", help="unet: read the VAE again and go on with its latents"
    )
    return options


def run(options: argparse.Namespace) -> bool:
    """Builds what the options name.

    Returns:
        Whether it is finished; False if it was stopped before its end.
    """
    from m2chat.worlds.emoji.scenes import load_pictures, save_pictures

    if options.part == "pictures":
        from m2chat.worlds.emoji.packages import build_pictures

        save_pictures(options.cache / "pictures.npz", build_pictures(options.cache / "packages"))
        return True
    import torch

    torch.set_num_threads(options.threads)
    pictures = load_pictures(options.cache / "pictures.npz")
    module = import_module(f"m2chat.worlds.emoji.recipe.{options.part}")
    changes = {name: getattr(options, name) for name in ("steps", "decay", "lr") if getattr(options, name) is not None}
    further = {name: getattr(options, name) for name in _FURTHER.get(options.part, ())}
    if options.batch:
        further["batch"] = options.batch
    train: Callable[..., bool] = getattr(module, f"train_{options.part}")
    plan = replace(module.PLAN, **changes)
    return train(pictures, options.out, plan, seed=options.seed, device=options.device, **further)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    from m2chat.errors import UserError

    options = parser().parse_args(arguments)
    try:
        if not run(options):
            print("stopped: the same command goes on from here")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
