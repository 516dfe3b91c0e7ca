"""What `m2chat` runs, a module a command: each adds its arguments and imports torch only when it is called."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from m2chat.commands.arguments import CommandParser

COMMANDS = (
    "chat", "serve", "tasks", "lens", "data", "evaluation", "bench", "report", "measure", "plan", "weights",
    "release_weights", "consolidate", "backbones",
)  # fmt: skip
"""Modules of this package in the order of the help."""
_TRAIN = "`lightning fit --config configs/stage1.yaml` trains"
_EVALUATE = "`lightning test --config configs/eval_mmdialog.yaml` evaluates"
_REPLY = "`m2chat draw`, `wish`, `edit` and `story` reply to a prompt, `m2chat chat` to many"
_ELSEWHERE = {
    "fit": _TRAIN, "train": _TRAIN, "test": _EVALUATE, "validate": _EVALUATE, "predict": _REPLY, "generate": _REPLY,
}  # fmt: skip
"""Names that other programs give to what is done by another command here, and that command."""


def command_parser() -> CommandParser:
    """The parser of all commands; each sets ``run``, the function that carries it out."""
    from m2chat import __version__

    parser = CommandParser(
        prog="m2chat",
        description="Conversations in which both sides send text and pictures.",
        epilog="To train and to evaluate: lightning --help",
    )
    parser.add_argument("--version", action="version", version=f"m2chat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"m2chat.commands.{name}").add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `m2chat` command.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.

    Returns:
        Exit code: 0, 2 for a mistake of the user's, or that of the command.

    Raises:
        SystemExit: For ``--help`` and ``--version``.
    """
    from m2chat.errors import UserError
    from m2chat.files import is_full, of_full_disk

    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser()
    try:
        if arguments and (remedy := _ELSEWHERE.get(arguments[0])):
            raise UserError(f"{arguments[0]!r} is no command of m2chat: {remedy} (`m2chat --help` lists the commands)")
        options, rest = parser.parse_known_args(arguments)
        if getattr(options, "rest", False):
            options.overrides = rest
        if "run" not in options:
            parser.print_help()
            return 0
        code = int(options.run(options) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not is_full(error):
            raise
        print(f"error: {of_full_disk(error)}", file=sys.stderr)
        return 2
