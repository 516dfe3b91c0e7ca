"""The loader beside the same work in webdataset, beside the published code's way to read a tar, and in a training step.

To run again, from the folder of the project (some eight minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/loader.py [webdataset] [tarfile] [step] ['step, one worker'] [profile]

It writes ``benchmarks/results/loader.json``. Pictures are noise with the spectrum of photographs (1/f), JPEG quality
85. Both sides do everything that training needs: read, decode, crop, resize to 256 pixels, tokenise for three encoders,
make a batch of tensors with its pictures as bytes. Where simplejpeg is installed (``pip install 'm2chat[fast]'``), the
loader is measured with it, too; ``only decoded`` is webdataset's ``decode("pil")`` without anything else.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from timing import chosen_parts, compare

PARTS = ("webdataset", "tarfile", "step", "step, one worker", "profile")
if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, PARTS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from baselines import tar_per_sample  # noqa: E402
from PIL import Image as Pillow  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from baselines.webdataset_batches import batches, img2dataset, tokens, torchvision  # noqa: E402

from m2chat.data import images  # noqa: E402
from m2chat.data.collate import Collator  # noqa: E402
from m2chat.data.dataset import Source, SourceConfig  # noqa: E402
from m2chat.data.loader import Skips, StreamLoader  # noqa: E402
from m2chat.data.network_inputs import VisionInput  # noqa: E402
from m2chat.data.shards import write_groups  # noqa: E402
from m2chat.data.stream import ShardStream  # noqa: E402
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer  # noqa: E402

MICRO = ROOT / "data" / "micro"
SIZES = {"480x640": (480, 640), "256x256": (256, 256), "768x1024": (768, 1024)}
"""Height and width of the pictures; 256 x 256 needs no resize, 768 x 1024 may be decoded at half its size."""


def photograph(height: int, width: int, rng: np.random.Generator) -> bytes:
    """A JPEG whose spectrum falls as that of photographs does."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    stacked = np.stack([(plane - plane.min()) / np.ptp(plane) * 255 for plane in planes], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(stacked).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def pairs(count: int, height: int, width: int, different: int = 64) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Caption pairs as img2dataset writes them."""
    rng = np.random.default_rng(0)
    pictures = [photograph(height, width, rng) for _ in range(min(count, different))]
    for k in range(count):
        caption = f"shot of the full tree number {k} on a green hill ."
        meta = {"caption": caption, "original_width": width, "original_height": height}
        yield (
            f"{k:09d}",
            {"jpg": pictures[k % different], "txt": caption.encode(), "json": json.dumps(meta).encode()},
        )


def collator() -> Collator:
    """Batches as the paper's stage 1 wants them: 256 pixels, 32 image tokens."""
    layout = Layout(M2ChatTokenizer(MICRO / "llama"), 32, 256)
    return Collator(layout, CaptionTokens(MICRO / "sdxl"), VisionInput(224), 256)


def loader_of(folder: Path, samples: int, scaled: bool = False) -> StreamLoader:
    """The loader, in this process.

    Args:
        folder: Folder of the shards.
        samples: Samples of an iteration.
        scaled: Whether JPEGs are decoded at a smaller scale where one fits.
    """
    source = Source(SourceConfig("cc3m", str(folder)))
    if scaled:
        source.load = partial(images.load_scaled, side=256)
    return StreamLoader(ShardStream([source], 32, samples_per_epoch=samples), collator(), Skips(0.05))


def check(loader: StreamLoader, theirs: Iterable[dict[str, Any]], exact: bool) -> None:
    """Asserts that both sides make the same of the same shard: words, sizes and pixels.

    Args:
        loader: Our side.
        theirs: Batches of the other side.
        exact: Whether pixels are equal to two grey levels; else they may be decoded at a scale, or shifted by half a
            pixel: torchvision rounds the place of its crop after resizing, where we cut first.
    """
    rows = {}
    for batch in theirs:
        for k, ids in enumerate(batch["input_ids"]):
            rows[tuple(ids[ids != 0].tolist())] = (batch["pixels"][k].int(), batch["caption_ids"][k], batch["sizes"][k])
    seen = 0
    for batch in loader:
        for k in range(len(batch)):
            ids = batch.input_ids[k][batch.attention_mask[k]]
            pixels, caption, size = rows[tuple(ids[ids != 0].tolist())]
            assert torch.equal(batch.caption_ids[k], caption) and batch.time_ids[k, :2].tolist() == size.tolist()
            difference = (batch.target_pixels[k].int() - pixels).abs()
            assert difference.max() <= 2 if exact else difference.float().mean() < 8
            seen += 1
    assert seen == len(rows)


def floor(shard: Path, fast: bool, words: Collator) -> Callable[[], int]:
    """What neither side can do without: the decoder itself, the resize and the tokenizers, on bytes that are there.

    Args:
        shard: Shard of the pairs.
        fast: Whether simplejpeg decodes; else Pillow.
        words: Collator with the tokenizers.
    """
    import webdataset

    rows = [(row["jpg"], row["txt"].decode()) for row in webdataset.WebDataset([str(shard)], shardshuffle=False)]

    def work() -> int:
        for begin in range(0, len(rows), 32):
            for data, _ in rows[begin : begin + 32]:
                pixels = (
                    images.simplejpeg.decode_jpeg(data, "RGB") if fast else np.asarray(Pillow.open(io.BytesIO(data)))
                )
                images.resize_crop(pixels, 256)
            tokens([caption for _, caption in rows[begin : begin + 32]], words)
        return len(rows)

    return work


def count_of(make: Callable[[], Iterable[dict[str, Any]]]) -> int:
    """Number of samples of the other side's batches."""
    return sum(len(batch["pixels"]) for batch in make())


def beside_webdataset(folder: Path) -> dict[str, Any]:
    """Equal work in webdataset, with either decoder, for three sizes of pictures."""
    import webdataset

    measured: dict[str, Any] = {}
    fast = images.simplejpeg
    if fast is None:
        print("webdataset: without simplejpeg, which is not installed: pip install 'm2chat[fast]'", flush=True)
    for name, (height, width) in SIZES.items():
        count = {256: 512, 480: 192, 768: 96}[height]
        (shard,) = write_groups(pairs(count, height, width), folder / name, "cc3m", count)
        sides: dict[str, Callable[[], Iterable[Any]]] = {
            "torchvision": lambda s=shard: batches([s], torchvision(256), collator()),
            "img2dataset": lambda s=shard: batches([s], img2dataset(256), collator()),
        }
        for decoder, module in (("pillow", None), ("simplejpeg", fast)):
            if decoder == "simplejpeg" and fast is None:
                continue
            images.simplejpeg = module
            for scaled in (False, True) if min(height, width) >= 512 else (False,):
                loader = loader_of(folder / name, count, scaled)

                def ours(loader: StreamLoader = loader) -> int:
                    return sum(len(batch) for batch in loader)

                least = None
                if not scaled:
                    least = compare(ours, floor(shard, decoder == "simplejpeg", collator()))["cpu"]["theirs_ms"]
                for other, theirs in sides.items():
                    check(loader, theirs(), exact=not scaled and other == "img2dataset")
                    key = f"{name}, {decoder}{', scaled' if scaled else ''}, {other}"
                    measured[key] = compare(ours, partial(count_of, theirs))
                    if least is not None:
                        measured[key] |= {"floor_ms": least, "limit": measured[key]["cpu"]["theirs_ms"] / least}
        images.simplejpeg = fast

        def decoded(shard: Path = shard) -> int:
            return sum(1 for _ in webdataset.WebDataset([str(shard)], shardshuffle=False).decode("pil"))

        measured[f"{name}, {'pillow' if fast is None else 'simplejpeg'}, only decoded"] = compare(ours, decoded)
    return measured


def beside_tarfile(folder: Path) -> dict[str, Any]:
    """R7b: samples in random order from a shard of 5000."""
    (shard,) = write_groups(pairs(5000, 256, 256), folder / "large", "cc3m", 5000)
    loader, rng = loader_of(folder / "large", 256), random.Random(0)
    name = "000000321.jpg"
    data = next(row for key, row in islice(pairs(5000, 256, 256), 321, 322) if key == name[:9])["jpg"]
    assert (np.abs(tar_per_sample.read(shard, name).astype(int) - images.load_image(data).astype(int)) <= 2).all()

    def theirs() -> int:
        names = [f"{rng.randrange(5000):09d}.jpg" for _ in range(4)]
        return sum(len(tar_per_sample.read(shard, name)) == 256 for name in names)

    return compare(lambda: sum(len(batch) for batch in loader), theirs)


def where_time_goes(folder: Path, rounds: int = 6) -> dict[str, Any]:
    """Microseconds a sample of the loader's parts, 256 x 256 pixels, on the clock within whole runs.

    A part that contains others counts them, too: `item` all that is read, `compact` all that is done with it.
    """
    import time
    from collections import Counter

    from m2chat.batch import Batch
    from m2chat.data import collate, dataset
    from m2chat.data.index import Shard
    from m2chat.text.layout import Layout as Sequences

    spent: Counter[str] = Counter()

    def timed(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*values: Any, **more: Any) -> Any:
            begin = time.perf_counter_ns()
            result = function(*values, **more)
            spent[name] += time.perf_counter_ns() - begin
            return result

        setattr(owner, name, call)

    count = 512
    write_groups(pairs(count, 256, 256), folder / "profile", "cc3m", count)
    loader = loader_of(folder / "profile", count)
    (source,) = loader.stream.sources  # type: ignore[union-attr]
    parts: list[tuple[Any, str]] = [
        (ShardStream, "item"), (Shard, "members"), (dataset, "sample_of"), (source, "load"), (Collator, "compact"),
        (Collator, "_row"), (Collator, "_padded"), (collate, "_stacked"), (Sequences, "encode"), (Batch, "located"),
        (CaptionTokens, "__call__"),
    ]  # fmt: skip
    if images.simplejpeg is not None:
        parts.append((images.simplejpeg, "decode_jpeg"))
    before = [(owner, name, vars(owner)[name]) for owner, name in parts]
    try:
        for owner, name in parts:
            timed(owner, name)
        for _ in range(2):
            sum(len(batch) for batch in loader)
        spent.clear()
        begin = time.perf_counter_ns()
        for _ in range(rounds):
            sum(len(batch) for batch in loader)
        spent["whole"] = time.perf_counter_ns() - begin
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
    return {name: round(value / rounds / count / 1e3, 1) for name, value in spent.most_common()}


def in_a_step(folder: Path, workers: int = 0, steps: int = 40) -> dict[str, Any]:
    """R8: a step of micro stage 1, uncached, with the configuration's own loader and with the same batch once more.

    The ratio is the time with the loader over the time without: 1 is the best; neighbouring steps are compared, since
    the machine may be faster a minute later. CPU time is the training process's own; a worker reads beside it, on
    another core.
    """
    import time

    from lightning import Callback, Trainer

    from m2chat.data.datamodule import M2ChatDataModule
    from m2chat.models.config import BackboneConfig, M3AdapterConfig
    from m2chat.training.align_module import AlignModule
    from m2chat.training.config import OptimConfig
    from m2chat.worlds.shapes.shards import write_world

    write_world(MICRO / "shards")
    parts = [str(MICRO / name) for name in ("llama", "adapter/BIAS-micro.pth", "clip", "sdxl")]
    module = AlignModule(
        backbone=BackboneConfig(*parts, num_image_tokens=8), m3adapter=M3AdapterConfig(width=192, heads=6),
        ddpm_samples=8,
        optim=OptimConfig(lr=2e-3), init_from="none",
    )  # fmt: skip
    data = M2ChatDataModule(
        train=[
            SourceConfig("cc3m", str(MICRO / "shards/cc3m/train"), 0.75),
            SourceConfig("laion", str(MICRO / "shards/laion/train"), 0.25),
        ],
        language_model=parts[0], vision_encoder=parts[2], image_decoder=parts[3], batch_size=64, samples_per_epoch=6400,
        num_image_tokens=8, num_workers=workers,
    )  # fmt: skip

    class Twice:
        """Every batch of the loader, and once more as the step before left it: ready, and in memory."""

        def __len__(self) -> int:
            return 2 * (steps + 1)

        def __iter__(self) -> Iterator[Any]:
            for batch in islice(iter(data.train_dataloader()), steps + 1):
                assert len(batch) == 64
                yield batch
                yield clock.batch

    class Clock(Callback):
        """Keeps a step's batch, and what the clocks say at its end."""

        def __init__(self) -> None:
            self.batch: Any = None
            self.marks: list[tuple[float, float]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.batch = batch

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.marks.append((time.process_time(), time.perf_counter()))

    clock = Clock()
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=1, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[clock], gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=Twice())
    result: dict[str, Any] = {"steps": steps}
    for place, name in enumerate(("cpu", "wall")):
        spent = np.diff([mark[place] for mark in clock.marks[1:]])  # the first pair is left out
        loaded, there = spent[0::2], spent[1::2]
        low, middle, high = np.quantile(loaded / there, (0.25, 0.5, 0.75))
        result[name] = {
            "with_loader_ms": round(1e3 * float(np.median(loaded)), 1),
            "resident_ms": round(1e3 * float(np.median(there)), 1),
            "ratio": round(float(middle), 3),
            "quartiles": [round(float(low), 3), round(float(high), 3)],
        }
    return result


def main(parts: list[str]) -> None:
    """Measures some parts, and writes them down beside what was measured before."""
    import webdataset

    measures = (beside_webdataset, beside_tarfile, in_a_step, partial(in_a_step, workers=1), where_time_goes)
    measure = dict(zip(PARTS, measures, strict=True))

    torch.set_num_threads(1)
    target = ROOT / "benchmarks" / "results" / "loader.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    results |= {
        "how_to_re_run": "OMP_NUM_THREADS=1 python benchmarks/loader.py",
        "protocol": "one process, one thread, sides in turn, 2 rounds of warm-up, medians of the rounds' ratios",
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "pillow": Pillow.__version__,
            "webdataset": webdataset.__version__, "simplejpeg": getattr(images.simplejpeg, "__version__", None),
        },
    }  # fmt: skip
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            results[part] = {"load_average": round(os.getloadavg()[0], 1), **measure[part](Path(folder))}
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part], indent=2), flush=True)


if __name__ == "__main__":
    main(CHOSEN)
