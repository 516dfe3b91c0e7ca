"""Training attention in bf16 on a CPU, forward and backward: plain products against PyTorch's fused attention.

To run again, from the folder of the project, on a CPU that multiplies in bf16 (AVX-512 BF16 or AMX; half a minute):

    OMP_NUM_THREADS=1 python benchmarks/attention.py

It writes ``benchmarks/results/attention.json``. The sizes are those of SmolLM2 in stage 2 of the pocket system: a
causal sequence, and the adapter's prompts. Results and gradients of both sides are compared first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from timing import chosen_parts, compare

if __name__ == "__main__":  # before what takes seconds to import
    chosen_parts(__doc__, ())

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from m2chat.models.attention import attend  # noqa: E402

HEADS, GROUPS, WIDTH, BATCH = 9, 3, 64, 4
CASES = {"64 tokens": (64, 64), "160 tokens": (160, 160), "64 tokens to 10 prompts": (64, 10)}
TIMES = 20


def one_case(queries: int, keys: int) -> tuple[Callable[[], int], Callable[[], int]]:
    """Both sides for some numbers of queries and keys, compared."""
    generator = torch.Generator().manual_seed(0)
    heads = ((HEADS, queries), (GROUPS, keys), (GROUPS, keys))
    leaves = [
        torch.randn(BATCH, count, length, WIDTH, generator=generator).bfloat16().requires_grad_()
        for count, length in heads
    ]
    upstream = torch.randn(BATCH, HEADS, queries, WIDTH, generator=generator).bfloat16()
    causal = queries == keys

    def side(attention: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        result = attention()
        return result.detach(), *torch.autograd.grad(result, leaves, upstream)

    def ours() -> Tensor:
        return attend(*leaves, causal=causal)

    def theirs() -> Tensor:
        return F.scaled_dot_product_attention(*leaves, is_causal=causal, enable_gqa=True)

    for a, b in zip(side(ours), side(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=0.06, rtol=0.05)  # bf16 has eight bits

    def repeated(attention: Callable[[], Tensor]) -> Callable[[], int]:
        def work() -> int:
            for _ in range(TIMES):
                side(attention)
            return TIMES

        return work

    return repeated(ours), repeated(theirs)


def main() -> None:
    """Times every case and writes the results."""
    results = {name: compare(*one_case(*sizes)) for name, sizes in CASES.items()}
    for name, result in results.items():
        print(f"{name}: {json.dumps(result['cpu'])}")
    path = ROOT / "benchmarks/results/attention.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
