"""Saved conversations of every kind, as `Session.save` of commit 1fe35e7 writes them: `make.sh` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from m2chat.pipeline import M2ChatPipeline, Session

OUT = Path(sys.argv[1])
pipe = M2ChatPipeline.from_pretrained()
pipe.set_progress_bar_config(disable=True)
shown = Image.open(OUT.parent / "shown.png")


def new() -> Session:
    return pipe.session(seed=0, steps=2, preview_every=0)


session = new()
session.save(OUT / "empty")
session.reply("hello")
session.save(OUT / "words")

session = new()
session.reply("which colour does it have ?", [shown], image="never")
session.save(OUT / "uploaded")

session = new()
session.reply("please paint a large red circle on the left on a blue background", image="force", max_images=1)
session.save(OUT / "drawn")
session.edit("turn it into a ring")
session.edit("make picture 1 small")
session.save(OUT / "edited")
session.undo()
session.save(OUT / "undone")
list(session.regenerate(seed=5))
session.save(OUT / "regenerated")

session = new()
session.configure(image="force", max_images=1)
session.reply("tell me of the magic of a small green circle on the left on a purple background")
for _ in session.go_on():
    pass
session.save(OUT / "story")

session = new()
for event in session.stream("please paint a small blue ring at the top on a white background", image="force"):
    if type(event).__name__ == "Progress":
        session.stop()
session.save(OUT / "stopped")

session = new()
session.configure(temperature=0.7, top_p=0.9, guidance=3.0, max_new_tokens=20, size=None, image="never", seed=11)
session.reply("hello")
session.save(OUT / "settings")
