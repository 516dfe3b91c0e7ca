"""See inside (paper, Fig. 5): what each layer of the language model would paint, for an edit and for its inverse.

python examples/lens.py
"""

import argparse
from pathlib import Path

from m2chat.app.about import readings_of
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.lens import figure, look_inside
from m2chat.pipeline.tasks import text_to_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

pipe = M2ChatPipeline.from_pretrained()
(drawn,) = text_to_image(pipe, "a large orange circle on the left on a blue background", steps=options.steps)
shown = drawn.images[0]
for name, text in (("lens", "turn it into a ring"), ("lens-inverse", "turn it into a circle")):
    session = pipe.session(seed=0, steps=options.steps)
    (shown,) = session.edit(text, images=[shown]).images
    lens = look_inside(session)
    # The judge of the world that the model was trained in reads the pictures.
    figure(lens, readings_of(pipe, lens)).savefig(options.out / f"{name}.png", dpi=110)
    print(f"{text}: “{lens.answer}” [{lens.caption}], g={lens.gates[-1]:.2f}, {options.out / name}.png")
