"""Chat-based generation: the model makes a caption of a vague wish, and draws it once for each seed.

python examples/wish.py
"""

import argparse
from pathlib import Path

from m2chat.commands.common import show
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.tasks import wish

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()

pipe = M2ChatPipeline.from_pretrained()
outputs = wish(pipe, "I dream of a ball like the sea in front of snow", (0, 1, 2, 3), steps=options.steps)
show(outputs, options.out, "wish")
