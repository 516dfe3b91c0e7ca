"""Shared parts of the commands that use a model: options, loading, reading and writing pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.errors import UserError
from m2chat.files import take_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from m2chat.pipeline import M2ChatPipeline, PipelineOutput


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds options of weights and device."""
    parser.add_argument("--weights", type=Path, metavar="PATH", help="checkpoint or folder of weights (default: the "
                        "shipped micro weights)")  # fmt: skip
    parser.add_argument("--backbone", type=Path, metavar="YAML", help="backbones, such as "
                        "configs/backbone/paper.yaml (default: those of the training)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="device, such as cuda (default: %(default)s)")
    parser.add_argument("--memory", choices=("high", "balanced", "low"), help="high: bf16 on a GPU; balanced: int8 "
                        "language model; low: int4, parts moved to the GPU in turn, tiled decoding")  # fmt: skip


def add_drawing_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds options of drawing and output."""
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: 2 for wish, else 5)")
    parser.add_argument(
        "--out", type=Path, default=Path(out), metavar="FOLDER", help="folder for pictures (default: %(default)s)"
    )


def how_to_draw(options: argparse.Namespace) -> dict[str, Any]:
    """Steps and guidance, as far as the options give them; the task has defaults for the rest."""
    given = {"steps": options.steps, "guidance": options.guidance}
    return {name: value for name, value in given.items() if value is not None}


def load_pipeline(options: argparse.Namespace) -> M2ChatPipeline:
    """The model of the options, without progress bars."""
    from transformers.utils.logging import disable_progress_bar

    from m2chat.models.config import BackboneConfig
    from m2chat.pipeline import M2ChatPipeline

    disable_progress_bar()
    backbone = None
    if options.backbone is not None:
        import yaml

        if not options.backbone.is_file():
            raise UserError(f"--backbone: there is no {options.backbone}")
        backbone = BackboneConfig(**yaml.safe_load(options.backbone.read_text()))
    pipe = M2ChatPipeline.from_pretrained(options.weights, backbone=backbone)
    pipe = pipe.fit_to_memory(options.memory, options.device) if options.memory else pipe.to(options.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture from a file, RGB uint8 (H, W, 3).

    Raises:
        UserError: If there is none, or it cannot be decoded.
    """
    from m2chat.data.images import BadImage, load_image

    if not path.is_file():
        raise UserError(f"there is no picture {path}")
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
    from PIL import Image

    from m2chat.evaluation.grid import grid
    from m2chat.pipeline import OutputImage

    whole = take_file(folder, name, ".png")
    row = [] if before is None else [before]
    drawn = 0
    for output in outputs:
        for part in output.segments:
            if isinstance(part, OutputImage):
                path = folder / f"{whole.stem}-{drawn}.png"
                part.image.save(path)
                print(f"[{path}: {part.caption}; g={part.gate:.2f}]")
                row.append(np.asarray(part.image))
                drawn += 1
            else:
                print(part)
    if row:
        Image.fromarray(grid([row])).save(whole)
        print(f"All of them: {whole}")
    else:
        whole.unlink()
    return whole.stem
