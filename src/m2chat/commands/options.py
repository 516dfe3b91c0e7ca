"""Options of the commands that use a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from m2chat.commands.arguments import backbone_file, device_or_auto, in_range, model_or_path, new_folder
from m2chat.errors import UserError
from m2chat.shipped import MODELS

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precisions of ``--dtype`` by torch's names."""


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds options of device and precision."""
    parser.add_argument("--device", type=device_or_auto, default="auto", help="device, such as cpu or cuda:1; auto is "
                        "the GPU if there is one (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="precision of the weights; auto is "
                        "bf16 on a GPU, and fp32 on a CPU, where bf16 is slow (default: %(default)s)")  # fmt: skip


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds options of model and device."""
    parser.add_argument("--model", "--weights", type=model_or_path, metavar="NAME|PATH", help="model that answers: "
                        f"{' or '.join(MODELS)}, which come with the project, a checkpoint, or a folder of weights "
                        "(default: the first that is here)")  # fmt: skip
    parser.add_argument("--backbone", type=backbone_file, metavar="YAML", help="backbones, such as "
                        "configs/backbone/paper.yaml (default: those of the training)")  # fmt: skip
    parser.add_argument("--decoder", metavar="PATH", help="image decoder with the same text encoders: a diffusers "
                        "folder, SDXL in one file, a UNet, a LoRA, or settings such as configs/decoder/lcm.yaml "
                        "(default: that of the training)")  # fmt: skip
    drawing = parser.add_argument_group("image decoder", "in place of what the training or --backbone states")
    drawing.add_argument("--preset", metavar="NAME", help="scheduler, spacing, steps and guidance that belong "
                         "together: turbo, lightning-4, lcm-4 or fast")  # fmt: skip
    drawing.add_argument("--scheduler", metavar="NAME", help="scheduler, such as ddim, euler, dpmpp_2m or lcm "
                         "(docs/chat.md lists all)")  # fmt: skip
    drawing.add_argument("--spacing", metavar="NAME", help="spacing of the timesteps: leading or trailing")
    drawing.add_argument("--guidance-interval", type=in_range("share"), nargs=2, metavar=("FROM", "UNTIL"),
                         help="shares of the "
                         "noise schedule, 0 to 1, between which guidance acts; steps outside take half as long "
                         "(default: all of it)")  # fmt: skip
    drawing.add_argument("--lora", action="append", default=[], metavar="FILE[=WEIGHT]", help="LoRA, with its factor "
                         "(default: 1); may be given several times")  # fmt: skip
    add_device_options(parser)
    parser.add_argument("--memory", choices=("high", "balanced", "low"), help="high: bf16 on a GPU; balanced: int8 "
                        "language model; low: int4, parts moved to the GPU in turn, tiled decoding; on a CPU high is "
                        "fp32 in memory, and low leaves large weights in their files")  # fmt: skip


def add_drawing_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds options of drawing and output."""
    parser.add_argument("--steps", type=in_range("steps"), help="denoising steps (default: those of --preset, or 25)")
    parser.add_argument(
        "--guidance", type=in_range("guidance"), help="guidance scale (default: that of --preset, or 5, for wish 2)"
    )
    add_size_options(parser)
    parser.add_argument(
        "--out", type=new_folder, default=Path(out), metavar="FOLDER", help="folder for pictures (default: %(default)s)"
    )


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Adds options of the pictures' size."""
    parser.add_argument(
        "--height", type=in_range("side"), metavar="PIXELS", help="height of the pictures (default: the model's)"
    )
    parser.add_argument(
        "--width", type=in_range("side"), metavar="PIXELS", help="width of the pictures (default: the model's)"
    )


def decoder_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the image decoder that are given, by their names in `DecoderConfig`.

    Raises:
        UserError: If the factor of a LoRA is no number.
    """
    names = ("preset", "scheduler", "spacing", "guidance_interval")
    changes = {name: getattr(options, name) for name in names if getattr(options, name)}
    loras = []
    for item in options.lora:
        path, _, weight = item.partition("=")
        try:
            loras.append({"path": path, "weight": float(weight or 1)})
        except ValueError:
            raise UserError(f"--lora {item}: write FILE=WEIGHT with a number, such as style.safetensors=0.8") from None
    return changes | ({"lora": loras} if loras else {})


def how_to_draw(options: argparse.Namespace) -> dict[str, Any]:
    """Steps, guidance and size, as far as the options give them; the task has defaults for the rest."""
    given = {name: getattr(options, name) for name in ("steps", "guidance", "height", "width")}
    return {name: value for name, value in given.items() if value is not None}
