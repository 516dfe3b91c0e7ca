"""Text-to-image (paper, Fig. 4): draws a caption as it stands, once for each seed.

python examples/text_to_image.py
"""

import argparse
from pathlib import Path

from m2chat.commands.common import show
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.tasks import text_to_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()

pipe = M2ChatPipeline.from_pretrained()
outputs = text_to_image(pipe, "a small red ring at the top on a white background", (0, 1, 2), steps=options.steps)
show(outputs, options.out, "text-to-image")
