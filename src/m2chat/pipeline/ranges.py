"""Ranges of the pipeline's numbers."""

from __future__ import annotations

from numbers import Integral, Real

from m2chat.errors import UserError

_WHOLE: dict[str, tuple[int, int]] = {
    "steps": (1, 1000),
    "max_images": (1, 16),
    "max_new_tokens": (1, 100_000),
    "max_caption_tokens": (1, 100_000),
    "max_tokens": (1, 10_000_000),
    "preview_every": (0, 1000),
    "seed": (-(2**63), 2**63 - 1),
}
_REAL: dict[str, tuple[float, float]] = {"guidance": (0.0, 100.0), "temperature": (0.0, 100.0), "top_p": (0.0, 1.0)}
_HINTS = {
    "max_images": ", or image='never'",
    "temperature": "; 0 takes the likeliest token",
    "preview_every": "; 0 shows none",
}


def check_ranges(names: dict[str, str] | None = None, /, **values: object) -> None:
    """Checks numbers by the names of their settings.

    Args:
        names: Other names under which the caller knows settings.
        values: Numbers.

    Raises:
        UserError: If one is no number, or out of its range.
    """
    for name, value in values.items():
        least: float
        most: float
        if name in _WHOLE:
            (least, most), kind = _WHOLE[name], "a whole number from"
            fits = isinstance(value, Integral) and least <= int(value) <= most
        else:
            (least, most), kind = _REAL[name], "above" if name == "top_p" else "from"
            fits = isinstance(value, Real) and least <= float(value) <= most and bool(value or name != "top_p")
        if not fits or isinstance(value, bool):
            shown = (names or {}).get(name, name)
            raise UserError(f"{shown}={value!r}: choose {kind} {least:g} to {most:g}{_HINTS.get(name, '')}")
