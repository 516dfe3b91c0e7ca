"""`m2chat weights convert`: another form of weights; what comes out, loads with the same settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from m2chat.commands.arguments import CONFIG, existing
from m2chat.commands.weights.inspect import add_visual_heads


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "convert",
        help="LLaMA (a GGUF file too) to a transformers folder, an adapter to safetensors, SDXL in one file to a "
        "diffusers folder, a training checkpoint to a folder of weights with manifest and model card, one of stage 0 "
        "to an adapter",
    )
    parser.add_argument("source", type=existing(), help="a file or folder of weights")
    parser.add_argument("target", type=Path, help="what to write: a new folder; for an adapter a .safetensors file")
    parser.add_argument(
        "--channel-order", choices=("rgb", "bgr"), help="mark of an adapter: which pictures it was trained on"
    )
    parser.add_argument(
        "--with", dest="language_model", type=existing(), metavar="LLAMA", help="mark of an adapter: its language model"
    )
    add_visual_heads(parser)
    parser.add_argument(
        "--config", type=existing("file", CONFIG), help="of a checkpoint that does not hold it: the run's config.yaml"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Converts, and prints the setting that uses the result.

    Raises:
        UserError: If the source cannot be read or has no other form, or the target is there already.
    """
    from m2chat.commands.weights import conversions
    from m2chat.commands.weights.kinds import Kind, kind_of
    from m2chat.errors import UserError
    from m2chat.models.checkpoints import HEADER, read_checkpoint

    source, target = options.source, options.target
    conversions.require_new(target)
    kind = kind_of(source)
    if kind in (Kind.LLAMA, Kind.GGUF):
        conversions.llama(source, target)
        print(f"{target}: set model.init_args.backbone.language_model to it")
    elif kind is Kind.ADAPTER:
        order = conversions.adapter(source, target, options.channel_order, options.language_model, options.visual_heads)
        print(f"{target}: marked channel_order {order}; set model.init_args.backbone.adapter to it")
    elif kind is Kind.DIFFUSION and source.is_file():
        conversions.sdxl(source, target)
        print(f"{target}: set model.init_args.backbone.image_decoder to it")
    elif kind is Kind.CHECKPOINT and read_checkpoint(source)[HEADER]["stage"] == "describe":
        conversions.described(source, target)
        print(f"{target}: set model.init_args.backbone.adapter to it")
    elif kind is Kind.CHECKPOINT:
        manifest = conversions.checkpoint(source, target, options.config)
        print(f"{target}: stage {manifest.stage}, {manifest.numbers:,} numbers, with manifest.json and README.md")
    else:
        raise UserError(f"{source} ({kind.value}) is read as it is: there is no other form to convert it to")
