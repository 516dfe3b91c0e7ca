"""Stage 1 from a feature cache beside stage 1 that asks the frozen networks, at micro scale.

To run again, from the folder of the project (some three minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/features.py [step] [shipped] [run] [memory]

It writes ``benchmarks/results/features.json``. Before anything is timed, the losses of both sides are held against each
other. ``step`` is forward, backward and AdamW on a batch that is there, of which every sample is drawn, as at the
paper's scale; ``shipped`` the same with the batch of ``configs/stage1.yaml``, of which an eighth is drawn; ``run`` is
four epochs of the former with the loader, and on our side with the building of the cache too. Beside each ratio stands
the limit that follows from the floating-point operations, counted on the meta device with the very shapes of the
batches. ``memory`` is the bytes of the parameters at the paper's sizes, from the descriptions.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timing import chosen_parts, compare

PARTS = ("step", "shipped", "run", "memory")
if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, PARTS)

import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.chdir(ROOT)  # paths of the configurations are relative

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from lightning.pytorch.trainer.states import TrainerFn  # noqa: E402

from m2chat.batch import Batch  # noqa: E402
from m2chat.commands.data.feature_work import FeatureWork, Writer, manifest_of, parts_of  # noqa: E402
from m2chat.data.datamodule import M2ChatDataModule  # noqa: E402
from m2chat.data.dataset import Source, SourceConfig  # noqa: E402
from m2chat.data.feature_cache import create  # noqa: E402
from m2chat.data.feature_plan import plan_part  # noqa: E402
from m2chat.data.shards import write_shards  # noqa: E402
from m2chat.lightning_cli import read_config  # noqa: E402
from m2chat.losses import align_loss, ddpm_loss  # noqa: E402
from m2chat.models.blank import blank_m2chat, without_cached  # noqa: E402
from m2chat.models.config import BackboneConfig, M3AdapterConfig  # noqa: E402
from m2chat.models.memory import lower_parameters  # noqa: E402
from m2chat.models.trainable import set_trainable, trainable_names  # noqa: E402
from m2chat.planning.meter import Meter  # noqa: E402
from m2chat.planning.rules import GpuRules  # noqa: E402
from m2chat.planning.step import blank_noise  # noqa: E402

BATCH, SAMPLES, EPOCHS = 16, 128, 4
PAPER = BackboneConfig("data/weights/llama-7b", "data/weights/BIAS-7B.pth", "ViT-L-14-quickgelu:openai",
                       "data/weights/stable-diffusion-xl-base-1.0", 32, "bgr")  # fmt: skip


class Side:
    """A module of stage 1 with its data and optimiser.

    Args:
        shards: Folder of the samples.
        features: Feature cache; None asks the networks.
        batch: Samples of a batch.
        drawn: Samples of a batch that L_ddpm uses; None for all.
    """

    def __init__(
        self, shards: Path, features: Path | None = None, batch: int = BATCH, drawn: int | None = None
    ) -> None:
        overrides = (
            f"--model.init_args.ddpm_samples={'null' if drawn is None else drawn}",
            f"--data.batch_size={batch}",
            f"--data.samples_per_epoch={SAMPLES}",
            f"--data.train={json.dumps([{'name': 'cc3m', 'path': str(shards)}])}",
            "--data.val=[]",
        )
        settings, self.module = read_config(["configs/stage1.yaml"], overrides)
        self.data = M2ChatDataModule(**{**settings.data.as_dict(), "features": features and str(features)})
        # What the module asks of a trainer.
        self.module._trainer = SimpleNamespace(
            datamodule=self.data, state=SimpleNamespace(fn=TrainerFn.FITTING), ckpt_path=None, testing=False,
            validating=False, precision="32-true", limit_val_batches=0, global_step=0,
        )  # fmt: skip
        self.module.configure_model()
        trained = [p for p in self.module.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self, batch: Batch) -> float:
        """A training step; the loss."""
        loss = self.module.losses(batch)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def losses(self, epochs: int) -> list[float]:
        """Trains for some epochs; the losses."""
        loader = self.data.train_dataloader()
        return [self.step(batch.ready()) for _ in range(epochs) for batch in loader]

    def batch(self) -> Batch:
        """The first batch."""
        return next(iter(self.data.train_dataloader())).ready()


class Cache:
    """The building of a feature cache, with networks that are loaded already.

    Args:
        side: Side whose configuration asks for it.
    """

    def __init__(self, side: Side) -> None:
        self.side, self.sources = side, side.data.cached_sources("align", False)
        self.writer = Writer(side.module, "32-true", "cpu", {})

    def build(self, out: Path) -> Path:
        """Builds one, from the planning of its records to its last file."""
        data = self.side.data
        indices = {name: plan_part(source, data.collator.layout, "train") for name, source in self.sources.items()}
        manifest = manifest_of(self.side.module, data, self.sources, "float32")
        self.writer.parts = parts = parts_of(out, manifest, indices)
        create(out, manifest, indices)
        chunks = [(name, chunk) for name, part in parts.items() for chunk in part.chunks]
        for _ in self.writer.write(FeatureWork(self.sources, parts, data.collator, chunks, 32), 0):
            pass
        return out


def flops(batch: Batch, side: Side) -> int:
    """Floating-point operations of a step on a batch, counted on the meta device."""
    model, _ = blank_m2chat(side.module.backbone, side.module.m3adapter)
    blank = batch._each(lambda tensor: tensor.to("meta"))
    if blank.features is not None:
        without_cached(model)
    set_trainable(model, trainable_names(model, "align"))
    noise = blank_noise(model, blank.select(list(range(side.module.ddpm_samples or len(batch)))))
    with Meter() as meter, GpuRules():
        output = model(blank, noise, use_image=False, with_text=False)
        condition = output.condition
        loss = ddpm_loss(output.prediction, output.diffusion_target, blank.has_target[: len(noise.samples)])
        loss = loss + align_loss(condition.h_align, output.e_clip, condition.h_palign, output.e_pclip, blank.has_target)
        loss.backward()
    return meter.total


def agree(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of losses.

    Raises:
        AssertionError: If it is more than rounding; nothing is timed then.
    """
    difference = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    assert difference < 1e-5, f"the losses differ by {difference}"
    return difference


def steps(ours: Side, theirs: Side) -> dict[str, Any]:
    """A step of both, on the first batch."""
    batches = {side: side.batch() for side in (ours, theirs)}
    limit = flops(batches[theirs], theirs) / flops(batches[ours], ours)

    def four(side: Side) -> int:
        for _ in range(4):
            side.step(batches[side])
        return 4 * len(batches[side])

    found = compare(lambda: four(ours), lambda: four(theirs))
    return {**found, "flop_limit": round(limit, 3), "of_limit": round(found["cpu"]["ratio"] / limit, 3)}


def measure(parts: list[str]) -> dict[str, Any]:
    """Step and run."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = Source(SourceConfig("cc3m", "data/micro/shards/cc3m/train"))
        write_shards((source.read(*source.place(k)) for k in range(SAMPLES)), root / "shards")
        whole = Side(root / "shards")
        cache = Cache(whole)
        kept = Side(root / "shards", cache.build(root / "cache"))
        batches = {side: side.batch() for side in (kept, whole)}
        work = {side: flops(batches[side], side) for side in (kept, whole)}
        results["equality"] = {"largest_relative_difference": agree(kept.losses(2), whole.losses(2))}
        if "step" in parts:
            results["step"] = steps(kept, whole)
        if "shipped" in parts:
            results["shipped"] = steps(*(Side(root / "shards", of, 64, 8) for of in (root / "cache", None)))
        if "run" in parts:
            # Of a sample: building is what the cached step leaves out, once.
            formula = EPOCHS * work[whole] / (work[whole] - work[kept] + EPOCHS * work[kept])
            number = 0

            def ours() -> int:
                nonlocal number
                number += 1
                kept.data.features = str(cache.build(root / f"cache-{number}"))
                kept.data.open_features("align", kept.module.backbones().outputs, kept.module.m3adapter.layers)
                kept.losses(EPOCHS)
                return EPOCHS * SAMPLES

            def theirs() -> int:
                whole.losses(EPOCHS)
                return EPOCHS * SAMPLES

            found = compare(ours, theirs, rounds=5)
            results["run"] = {
                **found, "epochs": EPOCHS, "formula": round(formula, 3),
                "of_formula": round(found["cpu"]["ratio"] / formula, 3),
            }  # fmt: skip
    return results


def memory() -> dict[str, Any]:
    """Bytes of the parameters at the paper's sizes under bf16-mixed: frozen ones in bf16, trained ones in fp32."""
    model, _ = blank_m2chat(PAPER, M3AdapterConfig(width=1536, heads=24))
    set_trainable(model, trainable_names(model, "align"))
    lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
    needed = sum(p.nbytes for part in (model.decoder.unet, model.m3adapter) for p in part.parameters())
    whole = sum(p.nbytes for p in model.parameters())
    without_cached(model)
    kept = sum(p.nbytes for p in model.parameters())
    return {"whole_gb": round(whole / 1e9, 2), "cached_gb": round(kept / 1e9, 2), "ratio": round(kept / whole, 3),
            "unet_and_connector": round(needed / whole, 3)}  # fmt: skip


def main(parts: list[str]) -> None:
    """Measures and writes down."""
    torch.set_num_threads(1)
    target = ROOT / "benchmarks" / "results" / "features.json"
    results = json.loads(target.read_text()) if target.is_file() else {}
    results |= {
        "how_to_re_run": "OMP_NUM_THREADS=1 python benchmarks/features.py",
        "protocol": "one process, one thread, sides in turn, 2 rounds of warm-up, medians of the rounds' ratios; "
        f"micro backbones, batches of {BATCH}, all drawn, fp32",
    }
    if set(parts) - {"memory"}:
        results |= {"load_average": round(os.getloadavg()[0], 1), **measure(parts)}
    if "memory" in parts:
        results["memory"] = memory()
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main(CHOSEN)
