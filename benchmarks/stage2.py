"""Stage 2 on sequences of their real lengths beside stage 2 on sequences padded to `data.max_tokens`, at micro scale.

To run again, from the folder of the project (some three minutes of one core):

    OMP_NUM_THREADS=1 python benchmarks/stage2.py [reading] [step]

It writes ``benchmarks/results/stage2.json``. Both sides train on the same samples of `configs/stage2.yaml`, in batches
of 16. Ours are brought together by length (``data.length_bucketing``) and padded to the longest of a batch; ``parts``
leaves the order as it is and reads a batch in three parts of like length (``read_parts: 3``, as shipped).
The sums of L_text over all samples are held against each other first. ``reading`` is the language model's forward and
backward pass with the head, whose limit is the ratio of tokens; ``step`` a whole step without AdamW, whose limit is the
ratio of floating-point operations, since UNet and connector have no padding.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timing import chosen_parts, compare

PARTS = ("reading", "step")
if __name__ == "__main__":  # before what takes seconds to import
    CHOSEN = chosen_parts(__doc__, PARTS)

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.chdir(ROOT)  # paths of the configurations are relative

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from lightning.pytorch.trainer.states import TrainerFn  # noqa: E402

from m2chat.batch import Batch  # noqa: E402
from m2chat.data.datamodule import M2ChatDataModule  # noqa: E402
from m2chat.lightning_cli import read_config  # noqa: E402
from m2chat.losses import text_loss  # noqa: E402
from m2chat.planning.meter import Meter  # noqa: E402

BATCH, BATCHES = 16, 6
TOKENS = ("input_ids", "attention_mask", "labels", "answer_mask", "caption_mask", "image_mask")


class Side:
    """Stage 2 on the same samples in one order or another.

    Args:
        module: The module, built.
        batches: Its batches.
        parts: Parts in which it reads a batch.
    """

    def __init__(self, module: Any, batches: list[Batch], parts: int) -> None:
        self.module, self.batches, self.parts = module, batches, parts

    @property
    def tokens(self) -> int:
        """Tokens that the language model reads, padding included."""
        if self.parts == 1:
            return sum(batch.input_ids.numel() for batch in self.batches)
        count = 0
        for batch in self.batches:
            places = batch.located()
            lengths = sorted(places.lengths)
            for rows in torch.arange(len(lengths)).tensor_split(self.parts):
                count += len(rows) * lengths[int(rows[-1])]
        return count

    def text(self) -> float:
        """The sum of L_text over all tokens that are scored, with a backward pass of each batch."""
        model, total = self.module.model, 0.0
        model.read_parts = self.parts
        for batch in self.batches:
            places = batch.located()
            _, _, last = model.read(batch.input_ids, batch.context_pixels, places)
            logits, labels = model.scored(batch, last)
            loss = text_loss(logits, labels)
            loss.backward()
            model.zero_grad(set_to_none=True)
            total += float(loss.detach()) * len(labels)
        return total

    def steps(self) -> None:
        """Forward and backward pass of each batch."""
        self.module.model.read_parts = self.parts
        for batch in self.batches:
            self.module.losses(batch)[0]["loss"].backward()
            self.module.model.zero_grad(set_to_none=True)


def padded(batch: Batch, length: int) -> Batch:
    """The batch with sequences of a given length."""
    more = length - batch.input_ids.shape[1]
    fill = {"labels": -100}
    changed = {name: F.pad(getattr(batch, name), (0, more), value=fill.get(name, 0)) for name in TOKENS}
    return replace(batch, **changed)


def sides() -> dict[str, Side]:
    """The three of them."""
    made: dict[str, Side] = {}
    module: Any = None
    for name, bucketing, parts in (("padded", 0, 1), ("bucketed", 100, 1), ("parts", 0, 3)):
        settings, fresh = read_config(
            ["configs/stage2.yaml"],
            ("--data.val=[]", f"--data.batch_size={BATCH}", f"--data.samples_per_epoch={BATCH * BATCHES}",
             f"--data.length_bucketing={bucketing}", "--model.init_args.init_from=none",
             f"--model.init_args.ddpm_samples={BATCH // 2}"),
        )  # fmt: skip
        data = M2ChatDataModule(**settings.data.as_dict())
        if module is None:
            module = fresh
            module._trainer = SimpleNamespace(  # what the module asks of a trainer
                datamodule=data, state=SimpleNamespace(fn=TrainerFn.FITTING), ckpt_path=None, testing=False,
                validating=False, precision="32-true", limit_val_batches=0, global_step=0,
            )  # fmt: skip
            module.configure_model()
        batches = [batch.ready() for batch in data.train_dataloader()]
        if name == "padded":
            batches = [padded(batch, data.max_tokens) for batch in batches]
        made[name] = Side(module, batches, parts)
    return made


def samples(run: Callable[[], Any]) -> Callable[[], int]:
    """The same work, which returns its number of samples."""

    def work() -> int:
        run()
        return BATCH * BATCHES

    return work


def work_of(side: Side, run: Callable[[], Any]) -> int:
    """Floating-point operations."""
    with Meter() as meter:
        run()
    return meter.total


def measure(parts: list[str]) -> dict[str, Any]:
    """Holds the losses against each other, then times each side beside the padded one."""
    all_sides = sides()
    theirs, results = all_sides["padded"], {}
    expected = theirs.text()
    results["real_tokens"] = sum(sum(batch.located().lengths) for batch in theirs.batches)
    for name in ("bucketed", "parts"):
        ours = all_sides[name]
        difference = abs(ours.text() - expected) / expected
        assert difference < 1e-5, f"the losses differ by {difference}"
        found: dict[str, Any] = {"relative_difference": difference, "tokens": [ours.tokens, theirs.tokens]}
        for part in parts:
            run, reference = (ours.text, theirs.text) if part == "reading" else (ours.steps, theirs.steps)
            limit = theirs.tokens / ours.tokens
            if part == "step":
                limit = work_of(theirs, reference) / work_of(ours, run)
            timed = compare(samples(run), samples(reference), rounds=5)
            of_limit = round(timed["cpu"]["ratio"] / limit, 3)
            found[part] = {**timed, "limit": round(limit, 3), "of_limit": of_limit}
            print(name, part, json.dumps(found[part]), flush=True)
        results[name] = found
    return results


def main(parts: list[str]) -> None:
    """Measures and writes down."""
    torch.set_num_threads(1)
    target = ROOT / "benchmarks" / "results" / "stage2.json"
    results = {
        "how_to_re_run": "OMP_NUM_THREADS=1 python benchmarks/stage2.py",
        "protocol": "one process, one thread, sides in turn, medians of the rounds' ratios; the samples of "
        f"configs/stage2.yaml, {BATCHES} batches of {BATCH}, fp32",
        "load_average": round(os.getloadavg()[0], 1),
        **measure(parts),
    }
    target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(CHOSEN)
