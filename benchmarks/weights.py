"""Memory and time of loading a LLaMA from Meta's files, beside the ordinary way: build a network, then load into it.

To run again, from the folder of the project (a minute, 2 GB of memory, 0.3 GB of disk in TMPDIR):

    OMP_NUM_THREADS=1 python benchmarks/weights.py

It writes ``benchmarks/results/weights.json``. The network has 0.15 billion random numbers in fp16. Each load is a
process of its own; "anonymous" is its peak memory that no file stands behind, above that before loading. Pages of a
mapped file are not in it: the system takes them back at will, and all processes of a machine share them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from timing import chosen_parts

if __name__ == "__main__":  # before what takes seconds to import
    chosen_parts(__doc__, ())

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from m2chat.host_memory import anonymous_bytes  # noqa: E402
from m2chat.models.weights.llama import open_llama  # noqa: E402
from m2chat.models.weights.loading import fill, on_meta  # noqa: E402

WIDTH, INNER, LAYERS, HEADS, VOCAB, ROUNDS = 1536, 4096, 2, 16, 32000, 3


def write(folder: Path) -> int:
    """Meta's folder, and how many bytes its tensors have."""
    shapes = {"tok_embeddings.weight": (VOCAB, WIDTH), "norm.weight": (WIDTH,), "output.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.w{kind}.weight": (WIDTH, WIDTH) for kind in "qkvo"}
        shapes |= {f"{at}feed_forward.w{kind}.weight": (INNER, WIDTH) for kind in (1, 3)}
        shapes |= {f"{at}feed_forward.w2.weight": (WIDTH, INNER)}
        shapes |= {f"{at}{kind}_norm.weight": (WIDTH,) for kind in ("attention", "ffn")}
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    torch.save(tensors, folder / "consolidated.00.pth")
    params = {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "norm_eps": 1e-6, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    return sum(2 * tensor.numel() for tensor in tensors.values())


def ours(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Meta device, mapped file."""
    source = open_llama(folder, "benchmark")
    network = on_meta(lambda: LlamaForCausalLM(LlamaConfig(**source.settings)))
    return fill(network, source.state, "benchmark", dtype)


def ordinary(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The file into memory, a network beside it, and a copy from one to the other."""
    from m2chat.models.weights.llama import from_meta

    official = torch.load(folder / "consolidated.00.pth", weights_only=True)
    network = LlamaForCausalLM(LlamaConfig(**open_llama(folder, "benchmark").settings)).to(dtype)
    network.load_state_dict(from_meta(official, HEADS, HEADS)[0])
    return network


def anonymous() -> int:
    """Bytes of memory that this process has to itself."""
    found = anonymous_bytes()
    assert found is not None
    return found


def measure(load: Callable[[Path, torch.dtype], nn.Module], folder: Path, dtype: torch.dtype, answer: Any) -> None:
    """Peak above the start, seconds, and a checksum of what was loaded."""
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    network = load(folder, dtype)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    answer.put({"anonymous": max(peak[0], anonymous()) - before, "seconds": seconds, "sha256": digest.hexdigest()})


def main() -> None:
    """Runs it."""
    context = multiprocessing.get_context("fork")
    results: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "rounds": ROUNDS}
    with tempfile.TemporaryDirectory() as name:
        size = write(Path(name))
        results["file_gb"] = round(size / 1e9, 3)
        for dtype in (torch.float16, torch.float32):
            found: dict[str, list[dict[str, Any]]] = {"ours": [], "ordinary": []}
            for _ in range(ROUNDS):
                for side, load in (("ours", ours), ("ordinary", ordinary)):
                    answer = context.Queue()
                    process = context.Process(target=measure, args=(load, Path(name), dtype, answer))
                    process.start()
                    found[side].append(answer.get())
                    process.join()
            assert len({one["sha256"] for side in found.values() for one in side}) == 1, "both load the same numbers"
            network = size * dtype.itemsize / 2
            results[str(dtype).removeprefix("torch.")] = {
                side: {
                    "anonymous_over_network": round(median(one["anonymous"] for one in runs) / network, 2),
                    "seconds": round(median(one["seconds"] for one in runs), 2),
                }
                for side, runs in found.items()
            }
    (ROOT / "benchmarks" / "results" / "weights.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
