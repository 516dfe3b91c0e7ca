"""A session: streamed, with memory of its pictures, edited, undone, regenerated, saved and loaded.

python examples/session.py
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from m2chat.pipeline import Drawn, M2ChatPipeline, Progress, Session, Words

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
parser.add_argument("--out", type=Path, default=Path("m2chat_pictures"), help="for pictures (default: %(default)s)")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

pipe = M2ChatPipeline.from_pretrained()
session = pipe.session(seed=0, steps=options.steps, preview_every=5)

# A reply as it comes: words, previews of the picture, the picture. `session.stop()` on another thread would end it.
for event in session.stream("please paint a large red circle on the left on a blue background", image="force"):
    match event:
        case Words(of="answer"):
            print(event.text, end="", flush=True)
        case Progress(preview=preview) if preview is not None:
            Image.fromarray(preview).save(options.out / f"session-preview-{event.step:02d}.png")
        case Drawn():
            print(f" [picture {len(session.images) + 1}: {event.caption}; g={event.gate:.2f}]")

# Every picture stays, and has a number.
print(session.edit("turn it into a ring").text)
print(session.edit("make picture 1 small").text)
session.undo()
list(session.regenerate(seed=1))

# Saved and loaded, the same seeded turn gives the same text and the same pixels.
session.save(options.out / "session")
again = Session.load(pipe, options.out / "session")
first, second = (own.edit("paint it white", seed=2) for own in (session, again))
assert first.text == second.text and np.array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))
for number, image in enumerate(session.images, 1):
    Image.fromarray(image.pixels).save(options.out / f"session-{number}.png")
    print(f"picture {number}: {image.caption}")
