"""Makes the pictures of docs/chat.md with the shipped weights: ``python scripts/chat_pictures.py``.

Each part is a task of `m2chat.pipeline.tasks` as a program would call it, seed 0, without selection.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before what takes seconds to import
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()

import numpy as np
from PIL import Image

from m2chat.app.about import readings_of
from m2chat.evaluation.grid import grid
from m2chat.pipeline import M2ChatPipeline, OutputImage, PipelineOutput
from m2chat.pipeline.lens import figure, look_inside
from m2chat.pipeline.tasks import edit, similar, story, wish
from m2chat.worlds.shapes.scenes import Scene, Shape, render

OUT = Path(__file__).parents[1] / "docs" / "chat"


def drawn(outputs: list[PipelineOutput]) -> list[Any]:
    """The pictures of replies; prints their texts and captions."""
    for output in outputs:
        print(" ".join(f"[{part.caption}]" if isinstance(part, OutputImage) else part for part in output.segments))
    return [np.asarray(image) for output in outputs for image in output.images]


def save(name: str, *rows: list[Any]) -> None:
    """Rows of pictures as one."""
    Image.fromarray(grid(rows, 96)).save(OUT / f"{name}.png", optimize=True)


def main() -> None:
    """Draws them all."""
    OUT.mkdir(parents=True, exist_ok=True)
    pipe = M2ChatPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    first = render(Scene(Shape("circle", "orange"), "blue", None, "large", "left"), np.random.default_rng(1))
    save("wish", drawn(wish(pipe, "I dream of a ball like the sea in front of snow")))
    save("edit", [first, *drawn(edit(pipe, first, ["turn it into a ring", "make it small", "paint it white"]))])
    save("similar", [first, *drawn(similar(pipe, first, (0, 1, 2)))])
    told = story(pipe, "tell me of the magic of a small green circle on the left on a purple background")
    save("story", drawn(told.parts), told.decoder_alone)
    shown: Any = first
    for name, text in (("lens", "turn it into a ring"), ("lens-inverse", "turn it into a circle")):
        session = pipe.session(seed=0)
        session.edit(text, images=[shown])
        lens = look_inside(session)
        figure(lens, readings_of(pipe, lens)).savefig(OUT / f"{name}.png", dpi=70)
        shown = session.images[-1].pixels


if __name__ == "__main__":
    main()
