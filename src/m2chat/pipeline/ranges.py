"""Ranges of the pipeline's numbers."""

from __future__ import annotations

import math
from numbers import Integral, Real

from m2chat.errors import UserError

_WHOLE: dict[str, tuple[int, int]] = {
    "steps": (1, 1000),
    "max_images": (1, 16),
    "max_new_tokens": (1, 100_000),
    "max_caption_tokens": (1, 100_000),
    "preview_every": (0, 1000),
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
        least, most = _WHOLE.get(name) or _REAL[name]
        kind = Integral if name in _WHOLE else Real
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not least <= value <= most or (name == "top_p" and not value):  # type: ignore[arg-type, operator]
            what = "a whole number from" if name in _WHOLE else "above" if name == "top_p" else "from"
            shown = (names or {}).get(name, name)
            raise UserError(f"{shown}={value!r}: choose {what} {least:g} to {most:g}{_HINTS.get(name, '')}")
