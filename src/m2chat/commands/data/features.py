"""`m2chat data features`: keeps the outputs of the frozen networks, so that training need not compute them again."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.commands.arguments import CONFIG, device, existing, in_range
from m2chat.commands.common import require_device
from m2chat.errors import UserError
from m2chat.shares import Share

if TYPE_CHECKING:
    from m2chat.data.datamodule import M2ChatDataModule
    from m2chat.data.dataset import Source
    from m2chat.data.feature_cache import FeatureManifest
    from m2chat.data.feature_file import FeaturePart
    from m2chat.data.feature_form import Form, Index

_EVERY = 5.0
"""Seconds between two lines of progress."""


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "features",
        help="keep the outputs of the frozen networks, from which training then starts",
        description="Computes the outputs of the frozen networks for every sample that a configuration of stage 1 "
        "trains and validates on: the language model's states at caption and image tokens, the picture's latents, the "
        "text encoders' targets; of stage 2, CLIP's tokens of the context picture in place of the states. "
        "`lightning fit --data.features OUT` then trains without loading those networks. A build that was interrupted "
        "goes on; the result is the same byte for byte. Further arguments override settings, as for `lightning`.",
    )
    parser.add_argument(
        "--config",
        action="append",
        type=existing("file", CONFIG),
        required=True,
        help="as for `lightning`; may be repeated",
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder of the cache (default: data/features/"
                        "NAME, where `--data.features auto` looks)")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help="precision of states and targets "
                        "(default: that of the training; int8 has a scale per token)")  # fmt: skip
    parser.add_argument("--text", choices=("kept", "recomputed"), default="kept", help="whether the text encoders' "
                        "targets are kept, or computed in every step (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--batch", type=in_range("batch_size"), default=32, metavar="N", help="samples at once (default: %(default)s)"
    )
    parser.add_argument(
        "--chunk",
        type=in_range("batch_size"),
        default=1024,
        metavar="N",
        help="samples per file (default: %(default)s)",
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N processes that share the work, on "
                        "several GPUs or machines (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--workers", type=in_range("num_workers"), default=0, metavar="N", help="processes that read (default: none)"
    )
    parser.add_argument("--device", type=device, help="device of the networks (default: cuda where there is one)")
    parser.add_argument("--replace", action="store_true", help="remove a cache of other inputs that is in the way")
    parser.add_argument("--estimate", action="store_true", help="print the size, and compute nothing")
    parser.set_defaults(run=run, rest=True)


def run(options: argparse.Namespace) -> None:
    """Builds a cache, or goes on with one.

    Raises:
        UserError: If a setting does not fit, a sample cannot be read, or the disk would not hold it.
    """
    from m2chat.commands.data.feature_work import manifest_of, parts_of, tokens_of_a_picture
    from m2chat.data.augment import Augmentation
    from m2chat.data.datamodule import M2ChatDataModule
    from m2chat.data.feature_cache import READING, ROOT, STAGES, create, is_other
    from m2chat.data.feature_plan import plan_part
    from m2chat.lightning_cli import read_config

    if (options.out or "").startswith("-"):  # argparse takes a setting with a blank for OUT
        raise UserError(f"OUT comes before the settings: m2chat data features --config FILE OUT '{options.out}'")
    share = Share.of(options.shard)
    if options.device is not None:
        require_device(options.device)
    settings, module = read_config(options.config, options.overrides)
    if module.stage not in STAGES:
        raise UserError(
            f"{options.config[-1]} trains {type(module).__name__}, which has no feature cache: name a configuration of "
            "stage 1 or 2, such as configs/stage1.yaml"
        )
    data = M2ChatDataModule(**{**settings.data.as_dict(), "features": None})
    if data.augmentation != Augmentation():
        raise UserError(
            "data.random_crop or data.flip is on, and a cache has one crop of each picture, the middle: set "
            "data.random_crop to false and data.flip to 0"
        )
    out = Path(options.out) if options.out else ROOT / Path(options.config[0]).stem
    for configs in (data.configs["train"], data.configs["val"]):
        for config in configs:
            config.generate()
    sources = data.cached_sources(module.stage, settings.trainer.limit_val_batches != 0)
    if not sources:
        raise UserError(f"{options.config[-1]} has no data.train with a weight above 0: nothing would be kept")
    looked = None if module.stage == READING else tokens_of_a_picture(module)
    indices = {}
    for name, source in sources.items():
        print(f"{time.strftime('%H:%M:%S')} {name}: counting the tokens of {len(source):,} samples", flush=True)
        indices[name] = plan_part(source, data.collator.layout, name.partition("/")[0], looked)
    dtype = options.dtype or ("bfloat16" if settings.trainer.precision == "bf16-mixed" else "float32")
    manifest = manifest_of(module, data, sources, dtype, options.text == "kept", options.chunk, options.batch)
    anew = bool(options.replace) and is_other(out, manifest)
    parts = parts_of(out, manifest, indices)
    _estimate(options, out, manifest, indices, parts, anew)
    if options.estimate:
        return
    if anew:  # not before it is known that the new one fits
        print(f"{out} was made for other inputs: it is made anew")
        shutil.rmtree(out)
    create(out, manifest, indices)
    _build(options, settings, module, data, sources, parts, share)
    left = sum(len(part.missing()) for part in parts.values())
    print(f"{out}: " + (f"{left} files are left to other processes" if left else f"done: --data.features {out}"))


def _estimate(
    options: argparse.Namespace,
    out: Path,
    manifest: FeatureManifest,
    indices: dict[str, Index],
    parts: dict[str, FeaturePart],
    anew: bool,
) -> None:
    """Prints the size of the cache; `anew` says whether it takes the place of the one that is there.

    Raises:
        UserError: If the disk does not have it.
    """
    from dataclasses import replace

    from m2chat.data.feature_form import DTYPES

    def size(form: Form) -> int:
        of_rows = sum(int(index.rows.sum(dtype="int64")) for index in indices.values()) * form.row.itemsize
        return of_rows + sum(len(index.turns) for index in indices.values()) * form.record.itemsize

    form, records = manifest.form, sum(map(len, parts.values()))
    rows = sum(int(index.rows.sum(dtype="int64")) for index in indices.values())
    whole = size(form)
    kept = () if anew else parts.values()
    there = sum(part.size(chunk) for part in kept for chunk in part.chunks if part.is_there(chunk))
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    freed = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if anew else 0
    free = shutil.disk_usage(place).free + freed
    print(
        f"{out}: {records:,} replies with {rows / max(1, records):.1f} "
        f"{'tokens that the M³Adapter reads' if form.whole else 'CLIP tokens'} each, {form.dtype}, targets "
        f"{options.text}: {_bytes(whole)} ({_bytes(there)} of it there), {_bytes(free)} free"
    )
    if whole - there > free:
        smaller = [
            f"{_bytes(size(other))} with --dtype {other.dtype}{'' if other.text else ' --text recomputed'}"
            for text in (True, False)
            for dtype in DTYPES
            if size(other := replace(form, dtype=dtype, text=text)) < whole
        ]
        raise UserError(
            f"{out} needs {_bytes(whole - there)} more, and {_bytes(free)} are free there: name another place, make "
            f"room, or keep less ({'; '.join(smaller) or 'no smaller form'})"
        )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _build(
    options: argparse.Namespace,
    settings: Any,
    module: Any,
    data: M2ChatDataModule,
    sources: dict[str, Source],
    parts: dict[str, FeaturePart],
    share: Share,
) -> None:
    """Computes the chunks of this process that are missing."""
    from m2chat.commands.data.feature_work import FeatureWork, Writer

    mine = share.of_these([(name, chunk) for name, part in parts.items() for chunk in part.chunks])
    out = next(iter(parts.values())).folder.parent
    with _alone(out, share):
        for name, chunk in mine:
            path = parts[name].path(chunk)
            for stale in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
                stale.unlink()
        todo = [(name, chunk) for name, chunk in mine if not parts[name].is_there(chunk)]
        if not todo:
            return
        work = FeatureWork(sources, parts, data.collator, todo, options.batch)
        writer = Writer(module, settings.trainer.precision, options.device, parts)
        for done in _with_progress(writer.write(work, options.workers), work.samples):
            del done


def _alone(out: Path, share: Share) -> Any:
    """Holds this process's share of the work, so that no other does the same."""
    from m2chat.files import locked

    # Beside the folder: the lock file of a killed process stays, and the folder is to hold the cache alone.
    whole = out.absolute()
    return locked(whole.with_name(f"{whole.name}-shard-{share.number}-of-{share.count}"), wait=False)


def _with_progress(counts: Iterator[int], total: int) -> Iterator[int]:
    """Prints from time to time how far the work is."""
    from m2chat.callbacks.progress import duration

    start = last = time.monotonic()
    done = 0
    for count in counts:
        done += count
        now = time.monotonic()
        if now - last > _EVERY or done == total:
            rate, last = done / max(now - start, 1e-9), now
            rest = f", {duration((total - done) / rate)} left" if done < total else ""
            print(f"{time.strftime('%H:%M:%S')} {done:,} of {total:,} samples, {rate:.0f}/s{rest}", flush=True)
        yield count
