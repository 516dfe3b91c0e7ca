"""The micro backbones as parts: what each writes, what it rests on, how it is trained and measured.

Nothing here imports torch before a part is made, so that the command line can name the parts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
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


@dataclass(frozen=True)
class Recipe:
    """A function of a module beside this one, imported when it is called; processes can be sent it.

    Args:
        function: Module and name, such as ``vae.train_vae``; it takes a folder and returns facts.
        folder: The folder, relative to the root.
        settings: What else the function is called with.
    """

    function: str
    folder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, root: Path) -> Facts:
        """Runs it below the root."""
        module, name = self.function.split(".")
        facts: Facts = getattr(import_module(f"{__package__}.{module}"), name)(root / self.folder, **self.settings)
        return facts


DENSE_STEPS = 1500
"""Of the conditioning CLIP, in which all its tokens are read; the one that measures has none."""
_SDXL_TEXT = tuple(f"sdxl/{name}" for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"))
_UNET = ("sdxl/unet", "sdxl/scheduler", "sdxl/model_index.json")
_BEFORE_UNET = ("vae", "text_encoders")

# In the order in which they start: the long ones early, and what others rest on before them.
PARTS: dict[str, Part] = {
    "vae": Part(("sdxl/vae",), Recipe("vae.train_vae", "sdxl/vae"), (), Recipe("vae.measure_saved", "sdxl/vae")),
    # The heads that read the attributes off the states are thrown away, and with them the means to measure again.
    "text_encoders": Part(_SDXL_TEXT, Recipe("text_encoders.train_text_encoders", "sdxl")),
    "clip": Part(
        ("clip",),
        Recipe("clip.train_clip", "clip", {"dense_steps": DENSE_STEPS}),
        measure=Recipe("clip.measure_saved", "clip"),
    ),
    "metric_clip": Part(
        ("metric_clip",),
        Recipe("metric_clip.train_metric_clip", "metric_clip"),
        measure=Recipe("clip.measure_saved", "metric_clip"),
    ),
    "unet": Part(_UNET, Recipe("unet.train_unet", "sdxl"), _BEFORE_UNET, Recipe("unet.measure_unet", "sdxl")),
    "language": Part(
        ("llama", "adapter"), Recipe("llama.train_language"), ("clip", "text_encoders"), Recipe("reader.measure_saved")
    ),
    "sd15": Part(
        ("sd15",), Recipe("unet.train_sd15"), _BEFORE_UNET, Recipe("unet.measure_unet", "sd15", {"is_xl": False})
    ),
    # Decoders that replace the first one without training of the connector.
    "unet_small": Part(
        ("decoders/unet_small",), Recipe("unet.train_small"), (*_BEFORE_UNET, "unet"), Recipe("unet.measure_small")
    ),
    "lcm_lora": Part(
        ("decoders/lcm_lora",), Recipe("consistency.train_lora"), ("unet",), Recipe("consistency.measure_lora")
    ),
    "fid": Part(("fid",), Recipe("fid_net.train_fid_net", "fid"), (), Recipe("fid_net.measure_saved", "fid")),
}
