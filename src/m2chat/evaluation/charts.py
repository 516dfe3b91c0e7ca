"""Plots as SVG: small enough to write by hand, and a page that holds them needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike

_INK, _SOFT, _BAR, _OTHER = "#222", "#999", "#4878a8", "#d08030"
_FONT = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Bar:
    """One value of a bar chart.

    Args:
        label: What it is of.
        value: NaN draws no bar, but ``not run``.
        low: Lower end of its interval; NaN for none.
        high: Upper end.
        other: Whether it is someone else's number, drawn in another colour.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    other: bool = False


def bars(title: str, items: Sequence[Bar]) -> str:
    """Horizontal bars with whiskers for intervals, as one ``<svg>``."""
    left, wide, step, top = 250, 330, 22, 28
    ends = [value for item in items for value in (item.value, item.high) if math.isfinite(value)]
    scale = wide / max([*ends, 1e-9])
    height = top + step * len(items) + 6
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 70}" height="{height}" {_FONT} role="img">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="4" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for index, item in enumerate(items):
        y = top + index * step
        lines.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end" fill="{_INK}">{escape(item.label)}</text>')
        if not math.isfinite(item.value):
            lines.append(f'<text x="{left}" y="{y + 13}" fill="{_SOFT}">not run</text>')
            continue
        length = max(0.0, item.value * scale)
        colour = _OTHER if item.other else _BAR
        lines.append(f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="14" fill="{colour}"/>')
        end = length
        if math.isfinite(item.low) and math.isfinite(item.high):
            low, end = max(0.0, item.low * scale), max(length, item.high * scale)
            lines.append(f'<path d="M{left + low:.1f} {y + 9}H{left + item.high * scale:.1f}" stroke="{_INK}"/>')
        lines.append(f'<text x="{left + end + 5:.1f}" y="{y + 13}" fill="{_INK}">{item.value:.2f}</text>')
    return "\n".join([*lines, "</svg>"])


def histogram(title: str, values: ArrayLike, count: int = 24) -> str:
    """How values are spread, as one ``<svg>``."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    wide, tall, top = 320, 90, 24
    low, high = (float(array.min()), float(array.max())) if len(array) else (0.0, 1.0)
    room = 0.5 if high - low < 1e-3 else 0.0  # values that are all alike still need a width
    heights, edges = np.histogram(array, count, (low - room, high + room))
    step = wide / len(heights)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide + 20}" height="{tall + top + 20}" {_FONT} role="img">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="4" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for index, number in enumerate(heights):
        length = tall * number / max(1, heights.max())
        x, y = 10 + index * step, top + tall - length
        lines.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{length:.1f}" fill="{_BAR}"/>')
    lines.append(f'<text x="10" y="{top + tall + 14}" fill="{_SOFT}">{edges[0]:.1f}</text>')
    lines.append(f'<text x="{10 + wide}" y="{top + tall + 14}" fill="{_SOFT}" text-anchor="end">{edges[-1]:.1f}</text>')
    return "\n".join([*lines, "</svg>"])
