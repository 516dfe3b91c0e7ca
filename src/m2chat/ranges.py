"""Ranges of numbers by the names of their settings: one table for command lines, configurations and Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from m2chat.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have.

    Args:
        least: Smallest number.
        most: Largest number.
        whole: Whether it is a whole number.
        above: Whether `least` itself is left out.
        hint: What else the error says, such as the meaning of a special number.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    hint: str = ""

    def __str__(self) -> str:
        kind = "above" if self.above else "a whole number from" if self.whole else "from"
        return f"{kind} {_shown(self.least)} to {_shown(self.most)}{self.hint}"

    def has(self, value: object) -> bool:
        """Whether a value is a number of the range."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        return bool(self.least <= number <= self.most and not (self.above and number == self.least))


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


SHARE = Range(0.0, 1.0, whole=False)
WEIGHT = Range(0.0, 1e6, whole=False)
COUNT = Range(1, 2**31 - 1)
NUMBER = Range(0, 2**31 - 1)

RANGES: dict[str, Range] = {
    # Generation
    "steps": Range(1, 1000),
    "guidance": Range(0.0, 100.0, whole=False),
    "temperature": Range(0.0, 100.0, whole=False, hint="; 0 takes the likeliest token"),
    "top_p": Range(0.0, 1.0, whole=False, above=True),
    "max_images": Range(1, 16, hint=", or image='never'"),
    "max_new_tokens": Range(1, 100_000),
    "max_caption_tokens": Range(1, 100_000),
    "max_text_tokens": Range(1, 100_000),
    "max_tokens": Range(1, 10_000_000),
    "run_seed": Range(0, 2**32 - 1),
    "preview_every": Range(0, 1000, hint="; 0 shows none"),
    "seed": Range(-(2**63), 2**63 - 1),
    "side": Range(1, 65_536),
    "image_size": Range(1, 65_536),
    "candidates": Range(1, 64),
    "frames": Range(1, 1000),
    # Training
    "lr": Range(0.0, 10.0, whole=False, hint="; AdamW's usual rates lie between 1e-6 and 1e-2"),
    "weight_decay": Range(0.0, 10.0, whole=False),
    "beta": Range(0.0, 0.999999, whole=False),
    "frozen_layers": NUMBER,
    "warmup_steps": NUMBER,
    "drop_every_epochs": COUNT,
    "loss_weight": WEIGHT,
    "drop_condition": SHARE,
    "ddpm_samples": Range(1, 2**31 - 1, hint="; null takes all"),
    "ddpm_draws": Range(1, 1000),
    "read_parts": Range(1, 1000),
    # The model's sizes
    "num_image_tokens": Range(1, 4096),
    "width": Range(1, 65_536),
    "heads": Range(1, 1024),
    "blocks": Range(1, 256),
    "positions": Range(0, 4096),
    # Data
    "batch_size": Range(1, 1_000_000),
    "samples": Range(1, 2**63 - 1, hint="; null takes all"),
    "num_workers": Range(0, 1024, hint="; 0 reads in the training process"),
    "length_bucketing": Range(0, 1_000_000, hint="; 0 leaves the order as it is"),
    "prefetch_factor": Range(1, 1000),
    "source_weight": Range(0.0, 1e6, whole=False, hint="; 0 leaves the source out"),
    "shuffle_buffer": Range(1, 10_000_000),
    "share": SHARE,
    "part": Range(0.0, 1.0, whole=False, above=True),
    # The machine
    "port": Range(0, 65_535, hint="; 0 takes a free one"),
    "seconds": Range(0.0, 1e7, whole=False, above=True),
    "gigabytes": Range(0.0, 1e6, whole=False, above=True),
    "devices": Range(1, 1_000_000),
    "workers": Range(1, 1024),
    "points": Range(0.0, 100.0, whole=False),
    "score": Range(-1e6, 1e6, whole=False),
    "count": COUNT,
    "number": NUMBER,
}
"""Range of each kind of number."""


def check_number(setting: str, value: object, kind: str) -> None:
    """Checks a number.

    Args:
        setting: Name of the setting, as the user writes it.
        value: Its value.
        kind: Name of the range in `RANGES`.

    Raises:
        UserError: If it is no number, or out of its range.
    """
    if not RANGES[kind].has(value):
        raise UserError(f"{setting}={value!r}: choose {RANGES[kind]}")


def check_settings(place: str, settings: object, kinds: Mapping[str, str]) -> None:
    """Checks the numbers of a configuration where it is made, so that a wrong one is an error before anything runs.

    Args:
        place: Name of the configuration in the user's files, such as ``optim``.
        settings: Object with the numbers; those that are None are left to their defaults.
        kinds: Name of each number to the name of its range.

    Raises:
        UserError: If one is no number, or out of its range.
    """
    for name, kind in kinds.items():
        if (value := getattr(settings, name)) is not None:
            check_number(f"{place}.{name}" if place else name, value, kind)


def check_ranges(names: dict[str, str] | None = None, /, **values: object) -> None:
    """Checks numbers by the names of their settings.

    Args:
        names: Other names under which the caller knows settings.
        values: Numbers.

    Raises:
        UserError: If one is no number, or out of its range.
    """
    for name, value in values.items():
        check_number((names or {}).get(name, name), value, name)
