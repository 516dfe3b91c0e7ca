"""The full-size model with random weights on one GPU, beside the rooflines and the goals.

To run again, from the folder of the project (about ten minutes on an H200; no weights are needed):

    python benchmarks/gpu.py [stage1-256] [stage1-512] [stage1-1024] [stage2] [image] [text]

It writes ``benchmarks/results/gpu.json``. Before anything is timed, the loss and the M³Adapter's gradients in bf16 are
held against those in fp32. Without a GPU only what follows from arithmetic is printed: the work of each part, counted
on the meta device, and the roofline. ``--scale micro`` runs the same measurements on the shipped micro model, on any
device: it shows that the code works, and says nothing about speed.

Useful work counts, once: what is cached is not credited, nor is what is computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: parts, scale, device and rounds.

    Args:
        arguments: Arguments without the script's own name; None means those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="prefixes of the parts' names, as in the line above (default: all)")
    parser.add_argument("--scale", choices=("paper", "micro"), default="paper", help="(default: %(default)s)")
    parser.add_argument("--device", help="such as cuda, cpu or meta (default: cuda where there is one, else meta)")
    parser.add_argument("--rounds", type=int, default=50, help="timed rounds (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=20, help="rounds before them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json", help="file of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before what takes seconds to import
    read_arguments()

import torch  # noqa: E402

sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.models.blank import blank_m2chat, without_cached  # noqa: E402
from m2chat.models.config import BackboneConfig, M3AdapterConfig  # noqa: E402
from m2chat.models.decoding import ReplyCache  # noqa: E402
from m2chat.models.layouts import lay_out  # noqa: E402
from m2chat.models.m2chat import M2ChatModel  # noqa: E402
from m2chat.models.memory import lower_parameters  # noqa: E402
from m2chat.models.trainable import Stage, set_trainable, trainable_names  # noqa: E402
from m2chat.planning.gpus import GPUS, Gpu  # noqa: E402
from m2chat.planning.inference import half_bytes, plan_inference  # noqa: E402
from m2chat.planning.step import (  # noqa: E402
    BatchShape,
    blank_batch,
    blank_features,
    blank_noise,
    measure_step,
    step_loss,
)
from m2chat.schema import FrozenFeatures  # noqa: E402

PAPER = BackboneConfig("data/weights/llama-7b", "data/weights/BIAS-7B.pth", "ViT-L-14-quickgelu:openai",
                       "data/weights/stable-diffusion-xl-base-1.0", 32, "bgr")  # fmt: skip
# Batch, tokens, pixels, and the goal in samples/s at some 30 % of an H200's peak.
TRAINING: dict[str, tuple[Stage, BatchShape, bool, float]] = {
    "stage1-256-cached": ("align", BatchShape(64, 96, 256, 32), True, 335),
    "stage1-256": ("align", BatchShape(64, 96, 256, 32), False, 117),
    "stage1-512-cached": ("align", BatchShape(32, 96, 512, 32), True, 91),
    "stage1-1024-cached": ("align", BatchShape(8, 96, 1024, 32), True, 20),
    "stage2": ("m3ft", BatchShape(4, 256, 256, 32), False, 35),
}
GOALS = {"image": "2.2 s eager, 1.6 s compiled", "text": "197 tokens/s (256 tokens in 1.3 s)"}
SEQUENCE, SIDE, STEPS, WORDS = 384, 1024, 30, 256


class Bench:
    """Builds the model and times it.

    Args:
        scale: ``paper`` or ``micro``.
        device: Where to; ``meta`` measures nothing.
        rounds: Of each measurement, after as many warm-ups as `warm_up` says.
        warm_up: Rounds that do not count.
    """

    def __init__(self, scale: str, device: str, rounds: int, warm_up: int) -> None:
        self.device, self.rounds, self.warm_up, self.micro = device, rounds, warm_up, scale == "micro"
        micro = BackboneConfig(*(str(ROOT / "data/micro" / part) for part in ("llama", "adapter/BIAS-micro.pth", "clip",
                                                                             "sdxl")), num_image_tokens=8)  # fmt: skip
        backbone = micro if self.micro else PAPER
        numbers = M3AdapterConfig(width=192, heads=6) if self.micro else M3AdapterConfig(width=1536, heads=24)
        torch.manual_seed(0)
        self.blank, _ = blank_m2chat(backbone, numbers)
        self.model = blank_m2chat(backbone, numbers, device)[0] if device != "meta" else self.blank
        self.gpu = self._gpu()

    def _gpu(self) -> Gpu:
        name = torch.cuda.get_device_name().lower() if self.device == "cuda" else ""
        return next((gpu for key, gpu in GPUS.items() if key in name), GPUS["h200"])

    def shape(self, wanted: BatchShape) -> BatchShape:
        """The shape of a scenario, small at micro scale."""
        return BatchShape(2, 64, 32, 8) if self.micro else wanted

    def time(self, work: Callable[[], Any]) -> float:
        """The median time of some work in seconds, waiting for the device."""
        for _ in range(self.warm_up):
            work()
        times = []
        for _ in range(self.rounds):
            if self.device == "cuda":
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                work()
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
            else:
                begin = time.perf_counter()
                work()
                times.append(time.perf_counter() - begin)
        return median(times)

    def peak(self) -> float | None:
        """The most bytes of the device so far, from when it was last asked."""
        if self.device != "cuda":
            return None
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return float(most)

    def autocast(self) -> torch.autocast:
        """bf16 as in training; not on a CPU, where it is slower than fp32."""
        return torch.autocast("cuda" if self.device == "cuda" else "cpu", torch.bfloat16, self.device == "cuda")

    def check(self) -> dict[str, float]:
        """How far bf16 is from fp32, on one small batch: of the loss, and of the M³Adapter's gradients.

        Raises:
            SystemExit: If it is further than rounding explains; nothing is timed then.
        """
        set_trainable(self.model, trainable_names(self.model, "align"))
        batch = blank_batch(
            self.model, BatchShape(1, 64, 32 if self.micro else 256, 8 if self.micro else 32), self.device
        )
        noise = blank_noise(self.model, batch)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        found = []
        for half in (False, True):
            with torch.autocast("cpu" if self.device == "cpu" else "cuda", torch.bfloat16, half):
                loss = step_loss(self.model, batch, noise, "align")
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            found.append((loss.item(), torch.cat([g.flatten() for g in grads if g is not None])))
        (loss, exact), (lowered, rounded) = found
        result = {
            "loss_relative_error": abs(lowered - loss) / abs(loss),
            "gradient_relative_error": float((rounded - exact).norm() / exact.norm()),
        }
        if result["loss_relative_error"] > 0.02 or result["gradient_relative_error"] > 0.1:
            raise SystemExit(f"bf16 is too far from fp32: {result}")
        return result

    def training(self, name: str) -> dict[str, Any]:
        """A training step: forward, backward and AdamW."""
        stage, wanted, cached, goal = TRAINING[name]
        shape = self.shape(wanted)
        set_trainable(self.blank, trainable_names(self.blank, stage))
        lower_parameters((p for p in self.blank.parameters() if not p.requires_grad), torch.bfloat16)
        planned = measure_step(self.blank, stage, shape, torch.bfloat16, cached)
        useful = planned.flops
        useful = useful / shape.batch  # of the batch, since stage 1 looks at its empty picture once for all samples
        result: dict[str, Any] = {
            "batch": shape.batch,
            "useful_tflop_a_sample": round(useful / 1e12, 4),
            "roofline_samples_per_s": round(self.gpu.flops / useful, 1),
            "goal_samples_per_s": goal,
        }
        if self.device == "meta":
            return result
        seconds = self._step_seconds(stage, shape, cached)
        rate = shape.batch / seconds
        peak = self.peak()
        if peak is not None and cached:
            peak -= self._not_loaded()
        return result | {
            "samples_per_s": round(rate, 2),
            "mfu": round(rate * useful / self.gpu.flops, 4) if self.device == "cuda" else None,
            "peak_gb": None if peak is None else round(peak / 1e9, 1),
        }

    def _not_loaded(self) -> int:
        """Bytes of the networks that a training from a feature cache does without, and this process has."""
        kept = copy.deepcopy(self.blank)
        without_cached(kept)
        return sum(p.nbytes for p in self.blank.parameters()) - sum(p.nbytes for p in kept.parameters())

    def _step_seconds(self, stage: Stage, shape: BatchShape, cached: bool) -> float:
        model = self.model
        set_trainable(model, trainable_names(model, stage))
        if self.device == "cuda":
            lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
            trained = [p for p in model.parameters() if p.requires_grad]
            lower_parameters(trained, torch.float32)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=self.device == "cuda" or None)  # as training does
        batch = blank_batch(model, shape, self.device)
        noise = blank_noise(model, batch)
        features: FrozenFeatures | None = None
        if cached:  # as a feature cache in bf16 has them
            half = torch.bfloat16 if self.device == "cuda" else torch.float32
            features = blank_features(model, shape, self.device)
            features = replace(features, states=features.states.to(half), e_clip=features.e_clip.to(half))
        self.peak()

        def step() -> None:
            with self.autocast():
                loss = step_loss(model, batch, noise, stage, features=features)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self.time(step)

    def generation(self) -> dict[str, Any]:
        """The work of a reply and its limits, from the meta device."""
        side, tokens = (32, 64) if self.micro else (SIDE, SEQUENCE)
        self.blank.requires_grad_(False)
        lower_parameters(self.blank.parameters(), torch.bfloat16)
        plan = plan_inference(self.blank, tokens, side)
        flops = STEPS * plan.step.flops + plan.decode.flops
        return {
            "image": {"tflop": round(flops / 1e12, 1), "roofline_s": round(flops / self.gpu.flops, 3)},
            "text": {"roofline_tokens_per_s": round(self.gpu.memory / plan.token_bytes["high"], 1)},
            "weights_gb": round(half_bytes(self.blank) / 1e9, 1),
        }

    def image(self) -> dict[str, Any]:
        """Seconds of one picture with guidance, in bf16."""
        result = {**self.generation()["image"], "goal": GOALS["image"]}
        if self.device == "meta":
            return result
        model, side = self._generating(), 32 if self.micro else SIDE
        batch = blank_batch(model, BatchShape(1, 64, side, 8), self.device)
        decoder, dtype = model.decoder, next(model.parameters()).dtype
        h_align = torch.randn(1, decoder.queries, decoder.sequence_width, device=self.device, dtype=dtype)
        h_palign = torch.randn(1, decoder.pooled_width, device=self.device, dtype=dtype)
        seconds = self.time(lambda: decoder.sample(h_align, h_palign, batch.time_ids, [0], STEPS))
        peak = self.peak()
        return result | {
            "seconds": round(seconds, 3),
            "share_of_roofline": round(result["roofline_s"] / seconds, 3) if self.device == "cuda" else None,
            "peak_gb": None if peak is None else round(peak / 1e9, 1),
        }

    @torch.no_grad()
    def text(self) -> dict[str, Any]:
        """Tokens a second of one reply, in bf16, word by word with a cache."""
        result = {**self.generation()["text"], "goal": GOALS["text"]}
        if self.device == "meta":
            return result
        model, words = self._generating(), 16 if self.micro else WORDS
        shape = BatchShape(1, 64, 32, 8) if self.micro else BatchShape(1, SEQUENCE - WORDS, 256, 32)
        batch = blank_batch(model, shape, self.device)
        visual_query = model.visual_query(model.clip(batch.context_pixels))

        def decode() -> None:
            ids, cache, start = batch.input_ids, ReplyCache(model.llama), 0
            for _ in range(words):
                end = start + ids.shape[1]
                output = model.llama(
                    input_ids=ids, attention_mask=ids.new_ones(1, end), visual_query=visual_query, cache=cache,
                    position_ids=torch.arange(start, end, device=self.device)[None], logits_to_keep=1,
                )  # fmt: skip
                start, ids = end, output.logits[:, -1].argmax(-1, keepdim=True)

        rate = words / self.time(decode)
        limit = result["roofline_tokens_per_s"]
        share = round(rate / float(limit), 3) if self.device == "cuda" else None
        return result | {"tokens_per_s": round(rate, 1), "share_of_roofline": share}

    def _generating(self) -> M2ChatModel:
        self.model.requires_grad_(False).eval()
        if self.device == "cuda":
            lower_parameters(self.model.parameters(), torch.bfloat16)
        lay_out(self.model)
        self.peak()
        return self.model


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures some parts, all by default, prints them and writes them down."""
    options = read_arguments(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "meta")
    bench = Bench(options.scale, options.device, options.rounds, options.warm_up)
    chosen = [name for name in (*TRAINING, *GOALS) if not options.parts or name.startswith(tuple(options.parts))]
    results: dict[str, Any] = {
        "how_to_re_run": "python benchmarks/gpu.py",
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{options.device}: no GPU, no speed",
        "scale": options.scale,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "limits": vars(bench.gpu),
    }
    if options.device != "meta":
        results["bf16_against_fp32"] = bench.check()
    for name in chosen:
        results[name] = getattr(bench, name)() if name in GOALS else bench.training(name)
        print(name, json.dumps(results[name], ensure_ascii=False), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
