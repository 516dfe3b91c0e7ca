"""Shared parts of the commands that use a model: loading, progress, reading and writing pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.options import DTYPES, decoder_changes
from m2chat.errors import UserError
from m2chat.files import take_file, write_whole
from m2chat.shipped import MODELS, default_model, require_complete

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from m2chat.pipeline import M2ChatPipeline, PipelineOutput


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
