"""The full-size model with random weights on one GPU, beside the rooflines and the goals.

To run again, from the folder of the project (about ten minutes on an H200; no weights are needed):

    python benchmarks/gpu.py [stage1-256] [stage1-512] [stage1-1024] [stage2] [image] [text] [memory]

It writes ``benchmarks/results/gpu.json`` after each part; a part for which the GPU has not enough memory is recorded as
such. Before anything is timed, the loss and the M³Adapter's gradients in bf16 are held against those in fp32. Without a
GPU only what follows from arithmetic is printed: the work of each part, counted on the meta device, and the roofline of
an H200. ``--scale micro`` runs the same measurements on the shipped micro model, on any device: it shows that the code
works, and says nothing about speed.

Useful work counts, once: what is cached is not credited, nor is what is computed again. A card whose data sheet
`m2chat.planning.gpus` does not have gets times, and no share of a peak.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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

from m2chat.batch import FrozenFeatures  # noqa: E402
from m2chat.errors import UserError  # noqa: E402
from m2chat.models.blank import blank_m2chat, without_cached  # noqa: E402
from m2chat.models.config import BackboneConfig, M3AdapterConfig  # noqa: E402
from m2chat.models.denoising import size_ids  # noqa: E402
from m2chat.models.generation import Decoding, SpecialTokens, stream_replies  # noqa: E402
from m2chat.models.layouts import lay_out  # noqa: E402
from m2chat.models.m2chat import M2ChatModel  # noqa: E402
from m2chat.models.memory import MODES, MemoryMode, fit_to_memory, lower_parameters  # noqa: E402
from m2chat.models.precision import lowered_in_training  # noqa: E402
from m2chat.models.trainable import Stage, set_trainable, trainable_names  # noqa: E402
from m2chat.planning.gpus import GPUS, Gpu, gpu_of_driver  # noqa: E402
from m2chat.planning.inference import half_bytes, plan_inference  # noqa: E402
from m2chat.planning.step import (  # noqa: E402
    BatchShape,
    blank_batch,
    blank_features,
    blank_noise,
    measure_step,
    step_loss,
)

PAPER = BackboneConfig("data/weights/llama-7b", "data/weights/BIAS-7B.pth", "ViT-L-14-quickgelu:openai",
                       "data/weights/stable-diffusion-xl-base-1.0", 32, "bgr")  # fmt: skip
# Batch, tokens, pixels, and the goal in samples/s at some 30 % of an H200's peak; batches of configs/paper have none.
TRAINING: dict[str, tuple[Stage, BatchShape, bool, float | None]] = {
    "stage1-256-cached": ("align", BatchShape(64, 96, 256, 32), True, 335),
    "stage1-256-cached-config": ("align", BatchShape(8, 96, 256, 32), True, None),
    "stage1-256": ("align", BatchShape(64, 96, 256, 32), False, 117),
    "stage1-256-config": ("align", BatchShape(8, 96, 256, 32), False, None),
    "stage1-512-cached": ("align", BatchShape(32, 96, 512, 32), True, 91),
    "stage1-1024-cached": ("align", BatchShape(8, 96, 1024, 32), True, 20),
    "stage2": ("m3ft", BatchShape(4, 256, 256, 32), False, 35),
    "stage2-config": ("m3ft", BatchShape(1, 256, 256, 32), False, None),
}
MEMORY = {f"memory-{mode}": mode for mode in MODES}
GOALS = {"image": "2.2 s eager, 1.6 s compiled", "text": "197 tokens/s (256 tokens in 1.3 s)"}
SEQUENCE, SIDE, STEPS, WORDS = 384, 1024, 30, 256


class Bench:
    """Builds the model and times it.

    Args:
        scale: ``paper`` or ``micro``.
        device: Device of the measurements; ``meta`` measures nothing.
        rounds: Timed rounds of each measurement.
        warm_up: Rounds before them that do not count.
    """

    def __init__(self, scale: str, device: str, rounds: int, warm_up: int) -> None:
        self.device, self.rounds, self.warm_up, self.micro = device, rounds, warm_up, scale == "micro"
        micro = BackboneConfig(*(str(ROOT / "data/micro" / part) for part in ("llama", "adapter/BIAS-micro.pth", "clip",
                                                                             "sdxl")), num_image_tokens=8)  # fmt: skip
        self.backbone = micro if self.micro else PAPER
        self.numbers = M3AdapterConfig(width=192, heads=6) if self.micro else M3AdapterConfig(width=1536, heads=24)
        self.blank, _ = blank_m2chat(self.backbone, self.numbers)
        self.gpu: Gpu | None = GPUS["h200"]
        if device == "cuda":
            self.gpu = gpu_of_driver(torch.cuda.get_device_name())
        self._built: M2ChatModel | None = None

    @property
    def model(self) -> M2ChatModel:
        """The model with random weights on the device, built at its first use; in bf16 on a GPU."""
        if self._built is None:
            torch.manual_seed(0)
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16 if self.device == "cuda" else torch.float32)
            try:
                self._built, _ = blank_m2chat(self.backbone, self.numbers, self.device)
            finally:
                torch.set_default_dtype(before)
        return self._built

    def forget(self) -> None:
        """Frees the model and what else is left on the device."""
        self._built = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def share(self, rate: float, limit: float | None) -> float | None:
        """A rate as a share of its limit; None where nothing runs on a GPU, or its limits are not known."""
        return round(rate / limit, 4) if self.device == "cuda" and limit else None

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
        lower_parameters(self.model.parameters(), torch.float32)
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
        _as_in_training(self.blank, stage)
        planned = measure_step(self.blank, stage, shape, torch.bfloat16, cached)
        useful = planned.flops
        useful = useful / shape.batch  # of the batch, since stage 1 looks at its empty picture once for all samples
        result: dict[str, Any] = {
            "batch": shape.batch,
            "useful_tflop_a_sample": round(useful / 1e12, 4),
            "roofline_samples_per_s": self.gpu and round(self.gpu.flops / useful, 1),
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
            "mfu": self.share(rate * useful, self.gpu and self.gpu.flops),
            "peak_gb": None if peak is None else round(peak / 1e9, 1),
        }

    def _not_loaded(self) -> int:
        """Bytes of the networks that a training from a feature cache does without, and this process has."""
        kept = copy.deepcopy(self.blank)
        without_cached(kept)
        return sum(p.nbytes for p in self.blank.parameters()) - sum(p.nbytes for p in kept.parameters())

    def _step_seconds(self, stage: Stage, shape: BatchShape, cached: bool) -> float:
        model = self.model
        if self.device == "cuda":
            _as_in_training(model, stage)
        else:
            set_trainable(model, trainable_names(model, stage))
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
            "image": {"tflop": round(flops / 1e12, 1), "roofline_s": self.gpu and round(flops / self.gpu.flops, 3)},
            "text": {"roofline_tokens_per_s": self.gpu and round(self.gpu.memory / plan.token_bytes["high"], 1)},
            "weights_gb": round(half_bytes(self.blank) / 1e9, 1),
        }

    def image(self) -> dict[str, Any]:
        """Seconds of one picture with guidance, in bf16."""
        result = {**self.generation()["image"], "goal": GOALS["image"]}
        if self.device == "meta":
            return result
        seconds = self.time(self._drawing(self._generating()))
        roofline = result["roofline_s"]
        return result | {
            "seconds": round(seconds, 3),
            "share_of_roofline": self.share(roofline or 0.0, seconds),
            "peak_gb": self._peak_gb(),
        }

    def text(self) -> dict[str, Any]:
        """Tokens a second of one reply, in bf16, as replies are streamed."""
        result = {**self.generation()["text"], "goal": GOALS["text"]}
        if self.device == "meta":
            return result
        words, reply = self._replying(self._generating())
        rate = words / self.time(reply)
        return result | {
            "tokens_per_s": round(rate, 1),
            "share_of_roofline": self.share(rate, result["roofline_tokens_per_s"]),
            "peak_gb": self._peak_gb(),
        }

    def memory(self, mode: MemoryMode) -> dict[str, Any]:
        """A picture, a reply and the most memory of a mode of `m2chat.models.memory`."""
        if self.device == "meta":
            return {}
        self.forget()  # a mode cannot be taken back
        try:
            model = fit_to_memory(self.model, mode, self.device)
            lay_out(model)
            self.peak()
            words, reply = self._replying(model)
            rate, seconds = words / self.time(reply), self.time(self._drawing(model))
            return {"tokens_per_s": round(rate, 1), "seconds": round(seconds, 3), "peak_gb": self._peak_gb()}
        finally:
            self.forget()

    def _peak_gb(self) -> float | None:
        peak = self.peak()
        return None if peak is None else round(peak / 1e9, 1)

    def _drawing(self, model: M2ChatModel) -> Callable[[], object]:
        """The drawing of a picture from a random condition."""
        side, decoder = 32 if self.micro else SIDE, model.decoder
        dtype = model.m3adapter.queries.dtype
        h_align = torch.randn(1, decoder.queries, decoder.sequence_width, device=self.device, dtype=dtype)
        h_palign = torch.randn(1, decoder.pooled_width, device=self.device, dtype=dtype)
        ids = size_ids(side, side, 1).to(self.device)
        return lambda: decoder.sample(h_align, h_palign, ids, [0], STEPS)

    def _replying(self, model: M2ChatModel) -> tuple[int, Callable[[], object]]:
        """How many tokens a reply has, and its decoding by the loop that streams replies."""
        words = 16 if self.micro else WORDS
        prompt = list(range(3, 3 + (48 if self.micro else SEQUENCE - WORDS)))
        first = int(model.llama.lm_head.start)
        # As the end stands a token that may not come, so that the reply is as long as it may be.
        special = SpecialTokens(ic=first, img=first + 1, eos=first)
        decoding = Decoding(max_text_tokens=words, max_pictures=0)
        size = model.clip.visual.image_size
        side = size[0] if isinstance(size, tuple) else size
        pixels = torch.zeros(1, 3, side, side, device=self.device)

        def reply() -> None:
            *_, segments = stream_replies(model, [prompt], pixels, special, decoding)
            assert len(segments[0][0].answer) == words

        return words, reply

    def _generating(self) -> M2ChatModel:
        self.model.requires_grad_(False).eval()
        if self.device == "cuda":
            lower_parameters(self.model.parameters(), torch.bfloat16)
        lay_out(self.model)
        self.peak()
        return self.model


def _as_in_training(model: M2ChatModel, stage: Stage) -> None:
    """Sets what is trained, and every precision, as under ``bf16-mixed``."""
    set_trainable(model, trainable_names(model, stage))
    lowered = set(lowered_in_training(model))
    lower_parameters(lowered, torch.bfloat16)
    lower_parameters((p for p in model.parameters() if p not in lowered), torch.float32)


def attempt(bench: Bench, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part has measured, or why it could not: one that fails leaves the others alone."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        result = {"out_of_memory": str(error).splitlines()[0]}
    except UserError as error:
        result = {"not_possible": str(error)}
    bench.forget()  # here, where the error no longer holds what its functions had
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures some parts, all by default, prints them and writes them down after each."""
    options = read_arguments(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "meta")
    bench = Bench(options.scale, options.device, options.rounds, options.warm_up)
    parts: dict[str, Callable[[], dict[str, Any]]] = {name: partial(bench.training, name) for name in TRAINING}
    parts |= {"image": bench.image, "text": bench.text}
    parts |= {name: partial(bench.memory, mode) for name, mode in MEMORY.items()}
    chosen = [name for name in parts if not options.parts or name.startswith(tuple(options.parts))]
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.device}: no GPU, no speed"
    results: dict[str, Any] = {
        "how_to_re_run": "python benchmarks/gpu.py",
        "device": name,
        "scale": options.scale,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "limits": bench.gpu and {key: value for key, value in vars(bench.gpu).items() if key != "names"},
    }
    if options.device != "meta":
        results["bf16_against_fp32"] = attempt(bench, bench.check)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        results[part] = attempt(bench, parts[part])
        print(part, json.dumps(results[part], ensure_ascii=False), flush=True)
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        options.out.write_text(text, encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
