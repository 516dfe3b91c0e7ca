"""The `lightning` command: `fit`, `validate` and `test` from YAML files.

This file answers `--help` and `--version` in a blink; everything that needs torch is in `lightning_cli`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from glob import glob

SUBCOMMANDS = ("fit", "validate", "test")
HELP = """\
M²Chat's command for training and evaluation.

usage: lightning {fit,validate,test} --config FILE [--config FILE ...] [--KEY VALUE ...]

  lightning fit  --config configs/stage1.yaml           train stage 1, the alignment (micro scale, on a laptop)
  lightning fit  --config configs/stage2.yaml           train stage 2, the conversation
  lightning test --config configs/eval_mmdialog.yaml    evaluate (also eval_coco, eval_cc3m, eval_story, eval_edit)
  lightning fit  --config configs/paper/stage1.yaml     the paper's run, on eight GPUs

  --config FILE        settings; a later file, and then the command line, overrides an earlier one
  --KEY VALUE          one setting, for example --trainer.max_steps 100 or --model.init_args.m3adapter.gate.mode paper
  --ckpt_path FILE     go on with training, or evaluate, from a checkpoint
  --print_config       show every setting with its value, and do nothing
  fit --help           every setting of trainer, model and data (takes some seconds)
  --version            version of m2chat, torch and lightning

Curves and pictures: tensorboard --logdir lightning_logs. To chat and to prepare data: m2chat --help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the name of the program; None takes those of the process.

    Returns:
        Exit code: 0, 1 when training diverged, 2 for a mistake of the user's.

    Raises:
        SystemExit: 128 + the signal's number when a signal ended the run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(", ".join(f"{name} {version(name)}" for name in ("m2chat", "torch", "lightning")))
        return 0
    if any(argument.startswith(("-h", "--help", "--print_config")) for argument in arguments):  # nothing is computed
        from m2chat._compat import quick_torchmetrics

        quick_torchmetrics()
    if fault := _fault(arguments):
        print(f"error: {fault}", file=sys.stderr)
        return 2
    if arguments[0] in SUBCOMMANDS and not any(argument.startswith("--print_config") for argument in arguments):
        from m2chat.early_checks import check_run
        from m2chat.errors import UserError

        try:
            check_run(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    from m2chat.lightning_cli import run

    before = sys.argv
    sys.argv = [before[0], *arguments]  # where Lightning reads them, and what it starts other processes with
    try:
        return run()
    finally:
        sys.argv = before


def _fault(arguments: Sequence[str]) -> str:
    """A mistake that is seen without importing anything: the subcommand, and files that are not there."""
    if not arguments[0].startswith("-") and arguments[0] not in SUBCOMMANDS:
        meant = get_close_matches(arguments[0], SUBCOMMANDS, n=1)
        more = f". Did you mean {meant[0]!r}?" if meant else "; m2chat --help lists what writes replies to prompts"
        return f"{arguments[0]!r}: choose one of {', '.join(SUBCOMMANDS)}{more}"
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c", "--ckpt_path"):
            continue
        value = value if equals else "".join(arguments[number + 1 : number + 2])
        chosen = name == "--ckpt_path" and value in ("best", "last", "hpc", "registry")
        if chosen or "://" in value or os.path.exists(value) or "\n" in value:
            continue
        if name == "--ckpt_path":
            return f"{name} {value}: there is no such checkpoint; name a .ckpt file, or last or best"
        project = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        there = os.path.exists(os.path.join(project, value))
        near = get_close_matches(value, glob("configs/**/*.yaml", recursive=True), n=1)
        remedy = f"the project has it: cd {project}" if there else "name a file such as configs/stage1.yaml"
        if not there and not os.path.isdir("configs"):
            remedy = "the configurations are in configs/ of a clone of the project: cd to it"
        return f"{name} {value}: there is no such file here; " + (f"did you mean {near[0]!r}?" if near else remedy)
    return ""


if __name__ == "__main__":
    sys.exit(main())
