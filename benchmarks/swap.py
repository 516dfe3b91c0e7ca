"""Four steps of the distilled micro decoder beside twenty-five of the one that it was distilled from.

To run again, from the folder of the project (a minute of one core):

    OMP_NUM_THREADS=1 python benchmarks/swap.py

It writes ``benchmarks/results/swap.json``. Both draw from the same given condition in the same process, in turn: the
UNet's steps and the VAE, without words. ``ours`` has ``configs/decoder/lcm.yaml``, ``theirs`` is ``data/micro/sdxl``.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from timing import chosen_parts, compare

if __name__ == "__main__":  # before what takes seconds to import
    chosen_parts(__doc__, ())

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.models.config import BackboneConfig  # noqa: E402
from m2chat.models.image_decoder import ImageDecoder  # noqa: E402
from m2chat.models.swap import with_decoder  # noqa: E402

STEPS, GUIDANCE = 25, 5.0


def main() -> None:
    """Measures and writes the file."""
    os.chdir(ROOT)
    torch.set_num_threads(1)
    plain = BackboneConfig("", "", "", "data/micro/sdxl", 8)
    distilled = with_decoder(plain, "configs/decoder/lcm.yaml")
    settings = distilled.decoder

    def drawn(backbone: BackboneConfig, batch: int, steps: int, guidance: float) -> Callable[[], int]:
        decoder = ImageDecoder(backbone.image_decoder, config=backbone.decoder)
        generator = torch.Generator().manual_seed(0)
        text = torch.randn(batch, decoder.queries, decoder.sequence_width, generator=generator)
        pooled = torch.randn(batch, decoder.pooled_width, generator=generator)
        side = decoder.image_size
        ids = torch.tensor([[side, side, 0, 0, side, side]] * batch, dtype=torch.float32)

        def work() -> int:
            return len(decoder.sample(text, pooled, ids, range(batch), steps, guidance))

        return work

    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread",
        "ours": f"configs/decoder/lcm.yaml: {settings.steps} steps, guidance {settings.guidance:g}",
        "theirs": f"data/micro/sdxl: {STEPS} steps, guidance {GUIDANCE:g}",
    }
    for batch in (1, 4, 16):
        ours = drawn(distilled, batch, settings.steps, settings.guidance)
        result[f"batch_{batch}"] = compare(ours, drawn(plain, batch, STEPS, GUIDANCE))
        print(f"batch {batch}: {json.dumps(result[f'batch_{batch}'])}", flush=True)
    path = ROOT / "benchmarks" / "results" / "swap.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
