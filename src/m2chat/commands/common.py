"""Shared parts of the commands that use a model: options, loading, reading and writing pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import backbone_file, device_or_auto, in_range, model_or_path, new_folder
from m2chat.errors import UserError
from m2chat.files import take_file, write_whole
from m2chat.shipped import MODELS, default_model, require_complete

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from m2chat.pipeline import M2ChatPipeline, PipelineOutput

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


def device_of(options: argparse.Namespace) -> torch.device:
    """The device of the options.

    Raises:
        UserError: If torch sees no such device.
    """
    import torch

    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_device(options.device)
    return torch.device(options.device)


def dtype_of(options: argparse.Namespace, device: torch.device) -> torch.dtype | None:
    """The precision of the options on a device: never fp32 on a GPU unless it is asked for.

    Returns:
        The precision; None where the computation is in fp32 and large weights stay as their files have them.
    """
    import torch

    if options.dtype == "auto":
        return None if device.type == "cpu" else torch.bfloat16
    return getattr(torch, DTYPES[options.dtype])  # type: ignore[no-any-return]


def load_pipeline(options: argparse.Namespace, default: str | None = None) -> M2ChatPipeline:
    """The model of the options, without progress bars; which it is goes to stderr in a line.

    Wrong options are refused before anything heavy is imported.

    Args:
        options: Those of `add_model_options`.
        default: Model that answers where none is named; None for the first shipped one that is complete.

    Raises:
        UserError: If an option of the image decoder, the device or a file does not fit.
    """
    from m2chat.models.config import BackboneConfig
    from m2chat.models.decoder_config import decoder_config

    changes = decoder_changes(options)
    decoder_config(changes)  # names and numbers
    backbone = None
    if options.backbone is not None:
        import yaml

        settings = yaml.safe_load(options.backbone.read_text(encoding="utf-8"))
        try:
            backbone = BackboneConfig(**settings)
        except TypeError as error:
            raise UserError(
                f"--backbone {options.backbone}: {error}; configs/backbone/micro.yaml is an example"
            ) from None
    lacks = ""
    if options.model is None and (options.backbone or options.decoder or options.lora):
        default = default or "micro"  # of a command from before there was another, whose networks these are
    if options.model is None:
        options.model, lacks = (default, "") if default else default_model()
    if options.model in MODELS:
        require_complete(options.model)
    with working("loading the model"):
        where = device_of(options)
        if options.memory:
            from m2chat.models.memory import options_of

            options_of(options.memory, where)  # a mode that this computer does not have is refused first
        from m2chat.pipeline import M2ChatPipeline

        dtype = dtype_of(options, where)
        pipe = M2ChatPipeline.from_pretrained(
            options.model, backbone=backbone, image_decoder=options.decoder, decoder=changes or None
        )
        try:
            pipe = pipe.fit_to_memory(options.memory, where, dtype) if options.memory else pipe.to(where, dtype)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {where}: {str(error).splitlines()[0]}; cpu is always there") from error
    pipe.set_progress_bar_config(disable=True)
    from m2chat.app.about import about

    print(about(pipe) + (f" ({lacks})" if lacks else ""), file=sys.stderr, flush=True)
    return pipe


def require_device(name: str) -> None:
    """Makes sure that there is a device.

    Raises:
        UserError: If torch cannot use it.
    """
    import torch

    kind, _, number = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = there.get(kind, torch.xpu.device_count() if kind == "xpu" else 0)
    if int(number or 0) >= count:
        has = f"sees {count} of this kind" if count else "sees none here"
        choices = [kind for kind, count in there.items() if count]
        raise UserError(f"--device {name}: torch {torch.__version__} {has}; choose {' or '.join(choices)}")


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done on the terminal's last line, until it is done; nothing where stderr is no terminal.

    Args:
        text: What is being done.

    Yields:
        A function that shows another text.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(text)) as status:
        yield lambda text: status.update(escape(text))


@contextmanager
def watching(pipe: M2ChatPipeline) -> Iterator[None]:
    """Shows the text and the denoising steps of replies on the terminal's last line while they are generated."""
    from m2chat.pipeline import Drawn, Event, Progress, Words

    with working("reading") as show:
        written, drawn = "", 0

        def hear(event: Event) -> None:
            nonlocal written, drawn
            if isinstance(event, Words):
                written = (written + event.text)[-60:]
                show(f"writing: {written.strip()}")
            elif isinstance(event, Progress):
                written = ""
                show(f"drawing picture {drawn + 1}, step {event.step} of {event.steps}")
                drawn += event.step == event.steps
            elif isinstance(event, Drawn):
                show("writing")

        pipe.listener = hear
        try:
            yield
        finally:
            pipe.listener = None


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture from a file, RGB uint8 (H, W, 3).

    Raises:
        UserError: If there is none, or it cannot be decoded.
    """
    from m2chat.data.images import BadImage, load_image

    if not path.is_file():
        raise UserError(f"there is no picture {path}: name a JPEG, PNG, WebP or GIF file")
    try:
        return load_image(path.read_bytes())
    except BadImage as error:
        raise UserError(f"{path}: {error}; give a JPEG, PNG, WebP or GIF file") from error


def show(outputs: Sequence[PipelineOutput], folder: Path, name: str, before: Any = None) -> str:
    """Prints replies, and writes their pictures one by one and side by side.

    Args:
        outputs: The replies.
        folder: Folder of the pictures; made if it does not exist.
        name: Stem of the files, ``<name>.png`` and ``<name>-<n>.png``; ``<name>_1``, … where an earlier command has
            left such files.
        before: A picture to set before the others.

    Returns:
        The stem that the files have got.
    """
    import numpy as np

    from m2chat.data.images import save_png
    from m2chat.evaluation.grid import grid
    from m2chat.pipeline import OutputImage

    whole = take_file(folder, name, ".png")
    row = [] if before is None else [before]
    drawn = 0
    try:
        for output in outputs:
            for part in output.segments:
                if isinstance(part, OutputImage):
                    path = folder / f"{whole.stem}-{drawn}.png"
                    row.append(np.asarray(part.image))
                    write_whole(path, save_png(row[-1]))
                    print(f"[{path}: {part.caption}; g={part.gate:.2f}]")
                    drawn += 1
                else:
                    print(part)
        if row:
            write_whole(whole, save_png(grid([row])))
            print(f"All of them: {whole}")
    finally:
        if not whole.stat().st_size:  # the name was taken, and nothing came of it
            whole.unlink()
    return whole.stem
