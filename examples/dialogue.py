"""Multimodal dialogue (paper, Fig. 1): text and pictures in both directions; the model decides when to draw.

python examples/dialogue.py
"""

import argparse
from pathlib import Path

from m2chat.commands.common import show
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import dialogue, text_to_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()

pipe = M2ChatPipeline.from_pretrained()
(drawn,) = text_to_image(pipe, "a large yellow square in the middle on a black background", steps=options.steps)
shown = as_pixels(drawn.images[0])
lines = ["hello", ("which colour does it have ?", shown), "please paint a small red ring on a white background"]
show(dialogue(pipe, lines, seed=0, steps=options.steps), options.out, "dialogue", before=shown)
