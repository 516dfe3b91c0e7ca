"""The pocket backbones as parts; each can be stopped and goes on by the same command."""

from __future__ import annotations

from pathlib import Path

from m2chat.worlds.parts import Backbones, Part, Recipe

_SDXL_TEXT = tuple(f"sdxl/{name}" for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
_UNET = ("sdxl/unet", "sdxl/scheduler", "sdxl/model_index.json")
_BEFORE_UNET = ("judge", "vae", "text_encoders")


def _part(name: str, paths: tuple[str, ...], needs: tuple[str, ...] = (), is_measured: bool = True) -> Part:
    """A part that the module of its name trains."""
    make = Recipe(f"{__package__}.make.make", settings={"part": name, "paths": paths})
    return Part(
        paths, make, needs, Recipe(f"{__package__}.make.measure", settings={"part": name}) if is_measured else None
    )


# In the order in which they are made: the judge first, which measures the others; the long ones before the twins.
PARTS: dict[str, Part] = {
    "judge": _part("judge", ("judge",)),
    "vae": _part("vae", ("sdxl/vae",)),
    # The heads that compare the states with pictures are thrown away, and with them the means to measure again.
    "text_encoders": _part("text_encoders", _SDXL_TEXT, is_measured=False),
    "clip": _part("clip", ("clip",)),
    "metric_clip": _part("metric_clip", ("metric_clip",)),
    "fid": _part("fid", ("fid",)),
    "unet": _part("unet", _UNET, _BEFORE_UNET),
    "sd15": _part("sd15", ("sd15",), _BEFORE_UNET),
    "few_step": _part("few_step", ("decoders/lcm_lora",), (*_BEFORE_UNET, "unet")),
}
BACKBONES = Backbones(
    root=Path("data/pocket"),
    parts=PARTS,
    limit=64 * 2**20,
    # What is trained on these backbones and SmolLM2: adapter and connector.
    further={"m2chat": ("m2chat",)},
    # The pictures have a limit of their own, and each its checksum beside it.
    not_shipped=("pictures", "pictures.part", "read.txt", "training", "shards", "shards.part"),
    at_once=1,
)
