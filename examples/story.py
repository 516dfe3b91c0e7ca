"""Storytelling (paper, Fig. 3): one opening line becomes four parts, beside the image decoder with the same captions.

python examples/story.py
"""

import argparse
from pathlib import Path

from PIL import Image

from m2chat.commands.common import show
from m2chat.evaluation.grid import grid
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import story

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()

pipe = M2ChatPipeline.from_pretrained()
opener = "tell me of the magic of a small green circle on the left on a purple background"
told = story(pipe, opener, frames=4, seed=0, steps=options.steps)
show(told.parts, options.out, "story")
ours = [as_pixels(image) for part in told.parts for image in part.images]
Image.fromarray(grid([ours, told.decoder_alone])).save(options.out / "story-beside-decoder.png")
