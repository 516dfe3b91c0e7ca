"""Noise schedulers by name, and presets of drawing; nothing heavy is imported before a scheduler is made.

Every scheduler named here draws the same picture as `StableDiffusionXLPipeline` does with it; tests hold all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal, TypeAlias

from m2chat.errors import UserError

Spacing = Literal["leading", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing")
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Schedulers that may draw: name in configurations, and class in diffusers."""
OWN_SPACING = ("dpmpp_2s", "lcm")
"""Schedulers whose timesteps are fixed by their method, so that a spacing would have no effect."""
_OTHER_FAMILIES = {
    "EDM": "the EDM family, whose networks predict by other rules (Playground v2.5, CosXL)",
    "Flow": "flow matching, by which SD3, FLUX and Sana are trained",
}
DEFAULT_STEPS, DEFAULT_GUIDANCE = 25, 5.0
"""Steps and guidance without a preset."""


Interval: TypeAlias = tuple[float, float]
"""Two shares of the noise schedule, 0 (pure noise) to 1 (the picture), between which guidance acts."""
WHOLE: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """Settings that belong together.

    Args:
        scheduler: Name of the scheduler.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; 1 is none.
        spacing: Spacing of the timesteps; None leaves the scheduler's.
        learned: Number of timesteps, spread evenly, that a network of few steps was distilled on; None for a network
            that was trained on the whole schedule.
        interval: Shares of the noise schedule between which guidance acts.
    """

    scheduler: str
    steps: int
    guidance: float
    spacing: Spacing | None = None
    learned: int | None = None
    interval: Interval = WHOLE


PRESETS = {
    "turbo": Preset("euler_a", 1, 1.0, "trailing", 4),
    "lightning-4": Preset("euler", 4, 1.0, "trailing", 4),
    "lcm-4": Preset("lcm", 4, 1.0, None, 50),
    "fast": Preset("dpmpp_2m", 12, 5.0, "trailing", interval=(0.0, 0.7)),
}
"""``turbo``: SDXL-Turbo (arXiv:2311.17042); ``lightning-4``: SDXL-Lightning's four-step files (arXiv:2402.13929);
``lcm-4``: an LCM-LoRA (arXiv:2311.05556); ``fast``: any SDXL in half of the steps, guided until 70 % of the noise
schedule is done (docs/performance.md)."""


def one_of(value: str, choices: Mapping[str, Any] | tuple[str, ...], setting: str) -> str:
    """The value, if it is one of the choices.

    Raises:
        UserError: That names the setting, the choices and the nearest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    meant = get_close_matches(str(value), list(choices), n=1)
    raise UserError(
        f"{setting}={value!r}: choose one of {', '.join(choices)}" + (f". Did you mean {meant[0]!r}?" if meant else "")
    )


def checked_interval(value: Sequence[float], setting: str) -> Interval:
    """An interval of guidance, if it is one.

    Raises:
        UserError: That names the setting, if these are not two shares, the smaller one first.
    """
    numbers = isinstance(value, Sequence) and all(isinstance(n, Real) and not isinstance(n, bool) for n in value)
    if not numbers or len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
        shown = list(value) if numbers else value
        raise UserError(
            f"{setting}={shown!r}: give two shares of the noise schedule, 0 to 1, the smaller one first: [0, 0.7] "
            "guides until 70 % of the noise schedule is done"
        )
    return float(value[0]), float(value[1])


def scheduler_name(class_name: str, where: str) -> str:
    """The name of a scheduler of diffusers.

    Args:
        class_name: Name of its class.
        where: Source of it, for messages.

    Raises:
        UserError: If it is of another family, or not known to draw as in diffusers.
    """
    for name, known in SCHEDULERS.items():
        if class_name == known:
            return name
    family = next((text for mark, text in _OTHER_FAMILIES.items() if class_name.startswith(mark)), None)
    if family is not None:
        raise UserError(
            f"{where}: its scheduler {class_name} belongs to {family}; M²Chat draws with SDXL and SD 1.5, which "
            "predict noise or velocity"
        )
    raise UserError(
        f"{where}: its scheduler {class_name} is not supported; set backbone.decoder.scheduler to one of "
        f"{', '.join(SCHEDULERS)}"
    )


def make_scheduler(name: str, config: Mapping[str, Any], spacing: Spacing | None = None) -> Any:
    """A scheduler of diffusers.

    Args:
        name: Name in `SCHEDULERS`.
        config: Noise schedule and the like, from the image decoder's own scheduler.
        spacing: Spacing of the timesteps; None leaves that of `config`.
    """
    import diffusers

    changes = {} if spacing is None else {"timestep_spacing": spacing}
    return getattr(diffusers, SCHEDULERS[name]).from_config(dict(config), **changes)
