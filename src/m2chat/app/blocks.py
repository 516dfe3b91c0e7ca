"""Pictures in a terminal: two pixels a character, as coloured half blocks."""

from __future__ import annotations

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from m2chat.schema import Picture


def blocks(picture: Picture, columns: int = 32) -> Text:
    """A picture as text.

    Args:
        picture: RGB, (H, W, 3), 0-255.
        columns: Widest that it may become, in characters.
    """
    height, width = picture.shape[:2]
    wide = min(columns, width)
    high = max(2, round(height * wide / width) // 2 * 2)
    small = np.asarray(Image.fromarray(picture).resize((wide, high), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text
