"""The micro backbones as parts: what each writes, what it rests on, how it is trained and measured.

Nothing here imports torch before a part is made, so that the command line can name the parts at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2chat.worlds.parts import Backbones, Part, Recipe

DENSE_STEPS = 1500
"""Of the conditioning CLIP, in which all its tokens are read; the one that measures has none."""
_SDXL_TEXT = tuple(f"sdxl/{name}" for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
_UNET = ("sdxl/unet", "sdxl/scheduler", "sdxl/model_index.json")
_BEFORE_UNET = ("vae", "text_encoders")


def _recipe(function: str, folder: str = "", settings: dict[str, Any] | None = None) -> Recipe:
    """A recipe of a module beside this one."""
    return Recipe(f"{__package__}.{function}", folder, settings or {})


# In the order in which they start: the long ones early, and what others rest on before them.
PARTS: dict[str, Part] = {
    "vae": Part(("sdxl/vae",), _recipe("vae.train_vae", "sdxl/vae"), (), _recipe("vae.measure_saved", "sdxl/vae")),
    # The heads that read the attributes off the states are thrown away, and with them the means to measure again.
    "text_encoders": Part(_SDXL_TEXT, _recipe("text_encoders.train_text_encoders", "sdxl")),
    "clip": Part(
        ("clip",),
        _recipe("clip.train_clip", "clip", {"dense_steps": DENSE_STEPS}),
        measure=_recipe("clip.measure_saved", "clip"),
    ),
    "metric_clip": Part(
        ("metric_clip",),
        _recipe("metric_clip.train_metric_clip", "metric_clip"),
        measure=_recipe("clip.measure_saved", "metric_clip"),
    ),
    "unet": Part(_UNET, _recipe("unet.train_unet", "sdxl"), _BEFORE_UNET, _recipe("unet.measure_unet", "sdxl")),
    "language": Part(
        ("llama", "adapter"),
        _recipe("llama.train_language"),
        ("clip", "text_encoders"),
        _recipe("reader.measure_saved"),
    ),
    "sd15": Part(
        ("sd15",), _recipe("unet.train_sd15"), _BEFORE_UNET, _recipe("unet.measure_unet", "sd15", {"is_xl": False})
    ),
    # Decoders that replace the first one without training of the connector.
    "unet_small": Part(
        ("decoders/unet_small",), _recipe("unet.train_small"), (*_BEFORE_UNET, "unet"), _recipe("unet.measure_small")
    ),
    "lcm_lora": Part(
        ("decoders/lcm_lora",), _recipe("consistency.train_lora"), ("unet",), _recipe("consistency.measure_lora")
    ),
    "fid": Part(("fid",), _recipe("fid_net.train_fid_net", "fid"), (), _recipe("fid_net.measure_saved", "fid")),
}
BACKBONES = Backbones(
    root=Path("data/micro"),
    parts=PARTS,
    limit=24 * 2**20,  # a clone must stay quick
    further={"m2chat": ("m2chat",)},
    not_shipped=("shards", "shards.part"),
)
