"""Multi-round editing (paper, Figs. 1 and 6): each instruction changes the picture before it; then pictures like it.

python examples/edit.py
"""

import argparse
from pathlib import Path

from m2chat.commands.common import show
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.inputs import as_pixels
from m2chat.pipeline.tasks import edit, similar, text_to_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()

pipe = M2ChatPipeline.from_pretrained()
# It starts from a picture of its own; any other would do: as_pixels(PIL.Image.open("picture.png")).
(drawn,) = text_to_image(pipe, "a large orange circle on the left on a blue background", steps=options.steps)
first = as_pixels(drawn.images[0])
rounds = edit(pipe, first, ["turn it into a ring", "make it small"], seed=0, steps=options.steps)
show(rounds, options.out, "edit", before=first)
show(similar(pipe, first, (0, 1), steps=options.steps), options.out, "similar", before=first)
