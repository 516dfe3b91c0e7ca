"""`m2chat lens`: pictures drawn from each layer, attention maps and gates (paper, Fig. 5)."""

from __future__ import annotations

import argparse
import io

from m2chat.commands.arguments import existing, in_range, new_folder
from m2chat.commands.common import load_pipeline, read_picture, watching, working
from m2chat.commands.options import add_drawing_options, add_model_options, how_to_draw
from m2chat.commands.tasks import PICTURE
from m2chat.errors import UserError
from m2chat.files import write_new


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("lens", help="inside a reply: pictures drawn from each layer, attention maps, gates")
    parser.add_argument("text", help="message, such as 'turn it into a ring'")
    parser.add_argument("--picture", type=existing("file", PICTURE), help="file of a picture that is sent with it")
    parser.add_argument(
        "--session",
        type=existing("folder", "name a saved session"),
        metavar="FOLDER",
        help="saved session that the message continues",
    )
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="seed of the reply (default: %(default)s)")
    parser.add_argument("--tensorboard", type=new_folder, metavar="FOLDER", help="folder for a TensorBoard log")
    add_drawing_options(parser, "m2chat_pictures")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Replies to the message, and draws the lens of the reply."""
    if not options.text.strip() and options.picture is None:
        raise UserError("text: it is empty: say something, or show a --picture")
    shown = [] if options.picture is None else [read_picture(options.picture)]
    pipe = load_pipeline(options)
    from m2chat.app.about import readings_of
    from m2chat.pipeline import Session
    from m2chat.pipeline.lens import figure, look_inside

    session = pipe.session() if options.session is None else Session.load(pipe, options.session)
    session.configure(**how_to_draw(options))
    with watching(pipe):
        session.reply(options.text, shown, image="force", max_images=1, seed=options.seed)
    with working("drawing from each layer"):
        lens = look_inside(session)
    page = figure(lens, readings_of(pipe, lens))
    drawn = io.BytesIO()
    page.savefig(drawn, dpi=110, format="png")
    path = write_new(options.out, "lens", ".png", drawn.getvalue())
    print(f"“{lens.answer}” [{lens.caption}], g={lens.gates[-1]:.2f}\n{path}")
    if options.tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(options.tensorboard)) as writer:
            writer.add_figure("lens", page)
            writer.add_text("lens/reply", f"{lens.answer} [{lens.caption}]")
            for layer, gate in enumerate(lens.by_layer):
                writer.add_scalar("lens/gate", gate, layer)
        print(f"tensorboard --logdir {options.tensorboard}")
