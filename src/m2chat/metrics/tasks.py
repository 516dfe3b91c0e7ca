"""Story and edit: numbers for the two tasks that the paper shows in pictures only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m2chat.metrics.clip_score import cosines


def consistency(frames: NDArray[np.floating]) -> NDArray[np.float64]:
    """How alike the consecutive pictures of a story are: CLIP-I between each and the next.

    Args:
        frames: Embeddings in the order of the story, (n, D).

    Returns:
        Cosines, (n - 1,), none for fewer than two; NaN where an embedding is not finite.
    """
    return cosines(frames[:-1], frames[1:]) if len(frames) > 1 else np.zeros(0)


def direction_similarity(
    source_image: NDArray[np.floating],
    image: NDArray[np.floating],
    source_text: NDArray[np.floating],
    text: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Whether a picture changed in the direction in which its caption did.

    Args:
        source_image: Embeddings of the pictures before, (n, D).
        image: Of the edited ones, (n, D).
        source_text: Of the captions before, (n, D).
        text: Of the captions after, (n, D).

    Returns:
        Cosines of the two changes, (n,); 0 where the picture stayed as it was, NaN where the captions are the same or
        an embedding is not finite.
    """
    moved, wanted = image.astype(np.float64) - source_image, text.astype(np.float64) - source_text
    values = cosines(moved, wanted)
    return np.where((moved == 0).all(-1) & (wanted != 0).any(-1) & np.isfinite(wanted).all(-1), 0.0, values)
