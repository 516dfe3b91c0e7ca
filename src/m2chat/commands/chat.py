"""`m2chat chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2chat.commands.arguments import existing, in_range, new_folder
from m2chat.commands.common import load_pipeline
from m2chat.commands.options import add_model_options, add_size_options


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("chat", help="chat in the terminal")
    parser.add_argument(
        "--load",
        type=existing("folder", "name one that `!save` has written"),
        metavar="FOLDER",
        help="load a saved session",
    )
    parser.add_argument("--seed", type=in_range("seed"), help="seed of the replies (default: random)")
    parser.add_argument("--steps", type=in_range("steps"), help="denoising steps (default: those of --preset, or 25)")
    add_size_options(parser)
    parser.add_argument(
        "--out",
        type=new_folder,
        default=Path("m2chat_pictures"),
        metavar="FOLDER",
        help="folder for generated pictures (default: %(default)s)",
    )
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Chats until the user ends the program.

    Raises:
        UserError: If the weights or the session cannot be loaded.
    """
    import sys
    from contextlib import suppress

    from rich.console import Console

    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history, where the platform has it
    console = Console()
    pipe = load_pipeline(options)
    from m2chat.app.about import examples_of
    from m2chat.app.terminal import TerminalChat
    from m2chat.pipeline import Session

    chat = TerminalChat(pipe, console, options.out, examples_of(pipe).get("chat", ()))
    if options.load is not None:
        chat.session = Session.load(pipe, options.load)
    chat.session.configure(seed=options.seed, steps=options.steps, height=options.height, width=options.width)
    chat.session.settings.drawing(pipe, 0)  # a size that cannot be drawn is an error now, not at the first picture
    chat.run(lambda: input("> " if sys.stdin.isatty() else ""))
