"""The emoji world's command: pictures out of packages, one part of the pocket backbones, what the decoder draws.

``m2chat backbones --world emoji`` makes all parts in order; here a part can be given its own length and rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2chat.worlds.emoji.recipe.parts import PARTS
from m2chat.worlds.emoji.scenes import CACHE, STYLES, Pictures

_FURTHER = {"vae": ("encoder_steps",), "unet": ("styles", "new_latents"), "sd15": ("new_latents",)}
"""Options that some parts alone have."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m m2chat.worlds.emoji", description=__doc__)
    options.add_argument(
        "part",
        choices=("pictures", "shards", *PARTS, "visual_query", "decoder"),
        help="pictures: read them from their packages; shards: write them as they are shipped; decoder: draw and "
        "judge; visual_query: prepare the adapter of stage 0 (needs `make smollm2`); anything else: train that part",
    )
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
    options.add_argument("--styles", nargs="+", help="unet, decoder: styles that it learns (default: all)")
    options.add_argument(
        "--new-latents", action="store_true", help="unet, sd15: read the VAE again and go on with its latents"
    )
    options.add_argument("--count", type=int, default=400, help="decoder: pictures of each set (default: %(default)s)")
    options.add_argument(
        "--of",
        choices=("sdxl", "sd15", "few_step"),
        default="sdxl",
        help="decoder: which one, as trained here, else as shipped (default: %(default)s)",
    )
    options.add_argument("--into", type=Path, help="decoder: document that gets the table, such as docs/pocket.md")
    options.add_argument("--sheets", type=Path, help="decoder: folder of results.json and of sheets to look at")
    return options


def run(options: argparse.Namespace) -> bool:
    """Does what the options name.

    Returns:
        Whether it is finished; False if it was stopped before its end.
    """
    from m2chat.worlds.emoji.scenes import save_pictures

    if options.part == "pictures":
        from m2chat.worlds.emoji.packages import build_pictures
        from m2chat.worlds.emoji.provenance import DIGESTS, READ, write_read

        pictures = build_pictures(options.cache / "packages")
        save_pictures(options.cache / "pictures.npz", pictures)
        write_read(READ, pictures, DIGESTS)
        return True
    import torch

    from m2chat.worlds.emoji.pictures import write_pictures
    from m2chat.worlds.emoji.recipe.make import train, world_pictures

    torch.set_num_threads(options.threads)
    pictures = world_pictures(Path("data/pocket"), options.cache)
    if options.part == "shards":
        write_pictures(pictures, Path("data/pocket/pictures"))
        return True
    if options.part == "decoder":
        _draw(options, pictures)
        return True
    plan = {name: getattr(options, name) for name in ("steps", "decay", "lr") if getattr(options, name) is not None}
    further = {name: getattr(options, name) for name in _FURTHER.get(options.part, ())}
    if options.batch:
        further["batch"] = options.batch
    return train(options.part, pictures, options.out, plan, seed=options.seed, device=options.device, **further)


def _draw(options: argparse.Namespace, pictures: Pictures) -> None:
    """Draws with the weights as they were trained here, else as shipped, judges, and writes what is wanted."""
    import json

    from m2chat.worlds.emoji.decoder import evaluate, save_sheets, write_report
    from m2chat.worlds.emoji.recipe.few_step import FOLDER
    from m2chat.worlds.emoji.recipe.unet import newest_vae

    weights, shipped, styles = options.out / "weights", Path("data/pocket"), options.styles or list(STYLES)
    name = "sd15" if options.of == "sd15" else "sdxl"
    root = next((folder / name for folder in (weights, shipped) if (folder / name / "unet").is_dir()), weights / name)
    judges = weights if (weights / "judge").is_dir() else shipped
    print(f"Decoder: {root}")
    vae = newest_vae(root / "vae", options.out / ("sd15" if options.of == "sd15" else "unet") / "vae")
    lora = root.parent / FOLDER if options.of == "few_step" else None
    facts, drawn = evaluate(root, judges, pictures, options.count, styles, seed=options.seed, lora=lora, vae=vae)
    if options.sheets:
        for name, of in drawn.items():
            save_sheets(of, options.sheets / name)
        (options.sheets / "results.json").write_text(json.dumps(facts, indent=2) + "\n")
    if options.into:
        how = {"decoder": options.of, "styles": " and ".join(STYLES[style] for style in styles), "seed": options.seed}
        write_report(facts, how, options.into)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    from m2chat.errors import UserError

    options = parser().parse_args(arguments)
    try:
        if not run(options):
            print("stopped: the same command goes on from here")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
