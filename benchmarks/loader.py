"""The loader beside webdataset, beside the published code's way to read a tar, and in a training step.

To run again, from the folder of the project (some five minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/loader.py [webdataset] [tarfile] [step] ['step, one worker']

It writes ``benchmarks/results/loader.json``. Pictures are noise with the spectrum of photographs (1/f), JPEG quality
85. Our side does everything that training needs (read, decode, crop, resize to 256 pixels, tokenise for three encoders,
make a batch of tensors, its pictures as bytes, or where it says so also as floats, which is the device's work);
webdataset's only reads and decodes (``decode("pil")``), at the pictures' own size.
"""

from __future__ import annotations

import io
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from timing import chosen_parts, compare

PARTS = ("webdataset", "tarfile", "step", "step, one worker")
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

from m2chat.data import images  # noqa: E402
from m2chat.data.collate import Collator  # noqa: E402
from m2chat.data.dataset import Source, SourceConfig  # noqa: E402
from m2chat.data.images import VisionInput  # noqa: E402
from m2chat.data.loader import Skips, StreamLoader  # noqa: E402
from m2chat.data.shards import write_groups  # noqa: E402
from m2chat.data.stream import ShardStream  # noqa: E402
from m2chat.schema import Batch  # noqa: E402
from m2chat.text import CaptionTokens, Layout, M2ChatTokenizer  # noqa: E402

MICRO = ROOT / "data" / "micro"
SIZES = {"480x640": (480, 640), "256x256": (256, 256)}


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


def loader_of(folder: Path, samples: int) -> StreamLoader:
    """Our loader, in this process."""
    source = Source(SourceConfig("cc3m", str(folder)))
    return StreamLoader(ShardStream([source], 32, samples_per_epoch=samples), collator(), Skips(0.05))


def check(loader: StreamLoader, shard: Path) -> None:
    """Asserts that our batches hold what stands in the shard."""
    import webdataset

    theirs = {row["__key__"]: row for row in webdataset.WebDataset([str(shard)], shardshuffle=False).decode("pil")}
    seen = set()
    for batch in map(Batch.ready, loader):
        for k, sample in enumerate(batch.samples):
            row = theirs[key := sample.id.partition("/")[2]]
            assert row["txt"] == sample.images[0].caption and bool(batch.has_target[k])
            whole, side = row["jpg"], min(row["jpg"].size)
            left, top = (whole.width - side) // 2, (whole.height - side) // 2
            square = whole.crop((left, top, left + side, top + side)).resize((256, 256), Pillow.Resampling.BICUBIC)
            ours = ((batch.target_pixels[k].permute(1, 2, 0) + 1) * 127.5).round()
            assert (ours - torch.from_numpy(np.array(square)).float()).abs().max() <= 2
            seen.add(key)
    assert seen == theirs.keys()


def beside_webdataset(folder: Path) -> dict[str, Any]:
    """R7, with either decoder and for two sizes of pictures."""
    import webdataset

    found: dict[str, Any] = {}
    fast = images.simplejpeg
    for name, (height, width) in SIZES.items():
        count = 192 if height > 256 else 512
        (shard,) = write_groups(pairs(count, height, width), folder / name, "cc3m", count)
        loader = loader_of(folder / name, count)

        def ours(loader: StreamLoader = loader) -> int:
            return sum(len(batch) for batch in loader)

        def ready(loader: StreamLoader = loader) -> int:
            return sum(len(batch.ready()) for batch in loader)

        def theirs(shard: Path = shard) -> int:
            return sum(1 for _ in webdataset.WebDataset([str(shard)], shardshuffle=False).decode("pil"))

        for decoder, module in (("pillow", None), ("simplejpeg", fast)):
            if decoder == "simplejpeg" and fast is None:
                continue
            images.simplejpeg = module
            check(loader, shard)
            found[f"{name}, {decoder}"] = compare(ours, theirs)
        found[f"{name}, simplejpeg, as floats"] = compare(ready, theirs)
    return found


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


def in_a_step(folder: Path, workers: int = 0, steps: int = 5) -> dict[str, Any]:
    """R8: a step of micro stage 1, uncached, with the configuration's own loader and with one batch that is there.

    The ratio is the time with the loader over the time without: 1 is the best. CPU time is the training process's own;
    a worker reads beside it, on another core.
    """
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
    resident = next(iter(data.train_dataloader())).ready()
    assert len(resident) == 64

    class Resident:
        """The same batch again and again."""

        def __len__(self) -> int:
            return steps + 1

        def __iter__(self) -> Iterator[Any]:
            return iter([resident] * (steps + 1))

    class Clock(Callback):
        """Times steps, the first left out."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            import time

            self.marks.append((time.process_time(), time.perf_counter()))

        marks: list[tuple[float, float]]

    def run(batches: Any) -> tuple[float, float]:
        clock = Clock()
        clock.marks = []
        trainer = Trainer(
            default_root_dir=folder, accelerator="cpu", devices=1, max_steps=steps + 1, limit_val_batches=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[clock], gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(module, train_dataloaders=batches)
        (cpu, wall), (cpu_end, wall_end) = clock.marks[0], clock.marks[-1]
        return (cpu_end - cpu) / steps, (wall_end - wall) / steps

    rounds = [(run(data.train_dataloader()), run(Resident())) for _ in range(9)][2:]
    result: dict[str, Any] = {"rounds": len(rounds)}
    for place, clock in enumerate(("cpu", "wall")):
        ratios = sorted(loaded[place] / there[place] for loaded, there in rounds)
        result[clock] = {
            "with_loader_ms": round(1e3 * sorted(loaded[place] for loaded, _ in rounds)[len(rounds) // 2], 1),
            "resident_ms": round(1e3 * sorted(there[place] for _, there in rounds)[len(rounds) // 2], 1),
            "ratio": round(ratios[len(ratios) // 2], 3),
            "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
        }
    return result


def main(parts: list[str]) -> None:
    """Measures some parts, and writes them down beside what was measured before."""
    import webdataset

    measures = (beside_webdataset, beside_tarfile, in_a_step, partial(in_a_step, workers=1))
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
