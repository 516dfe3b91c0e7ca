"""Plots as SVG texts, for a file or within a page: no scripts, and nothing to load from elsewhere."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT, _GREY, _BAR = "#222222", "#999999", "#4878a8"
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Bar:
    """One value of a bar chart.

    Args:
        label: Text to its left.
        value: Length; NaN draws the words "not run" instead.
        low: Lower end of its interval; NaN for none.
        high: Upper end.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan


def bar_charts(charts: Mapping[str, Sequence[Bar]]) -> str:
    """Horizontal bars with whiskers for their intervals, one chart below the other.

    Args:
        charts: Title to the bars of a chart, from top to bottom.
    """
    from matplotlib.figure import Figure

    sizes = [len(bars) + 1.5 for bars in charts.values()]  # in bars; a title needs one and a half
    figure = Figure((7, 0.25 * sum(sizes)), layout="constrained")
    grid = figure.subplots(len(charts), squeeze=False, height_ratios=sizes)[:, 0]
    for axes, (title, bars) in zip(grid, charts.items(), strict=True):
        _bars(axes, title, bars)
    return _svg(figure)


def _bars(axes: Axes, title: str, bars: Sequence[Bar]) -> None:
    _plain(axes, title)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)  # the first at the top
    for place, bar in enumerate(bars):
        if not math.isfinite(bar.value):
            _beside(axes, 0.0, place, "not run", _GREY)
            continue
        axes.barh(place, bar.value, height=0.65, color=_BAR)
        end = bar.value
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            axes.plot([bar.low, bar.high], [place, place], color=_TEXT, linewidth=1)
            end = max(end, bar.high)
        _beside(axes, max(0.0, end), place, f"{bar.value:.2f}", _TEXT)
    axes.set_xlim(left=0)


def _beside(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", color=color)


def histogram(title: str, values: ArrayLike, bins: int = 24) -> str:
    """The distribution of values; those that are not finite are left out."""
    from matplotlib.figure import Figure

    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    low, high = (float(array.min()), float(array.max())) if len(array) else (0.0, 1.0)
    margin = 0.5 if high - low < 1e-3 else 0.0  # equal values still need a width
    figure = Figure((3.6, 1.4), layout="constrained")
    axes = figure.subplots()
    _plain(axes, title)
    axes.set_yticks([])
    _, edges, _ = axes.hist(array, bins, range=(low - margin, high + margin), color=_BAR, rwidth=0.95)
    axes.set_xticks([edges[0], edges[-1]], [f"{edges[0]:.1f}", f"{edges[-1]:.1f}"], color=_GREY)
    return _svg(figure)


def _plain(axes: Axes, title: str) -> None:
    """Title and tick labels only: no frame, no ticks."""
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False)
    axes.set_xticks([])


def _svg(figure: Figure) -> str:
    """The ``<svg>`` element, without XML declaration and document type, so that a page can hold it."""
    import matplotlib

    file = io.StringIO()
    # Texts stay texts, and equal values give equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "m2chat"}):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]
