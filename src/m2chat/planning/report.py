"""Plans as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m2chat.planning.gpus import SIZES, Gpu
from m2chat.planning.host import HostMemory
from m2chat.planning.inference import InferencePlan
from m2chat.planning.training import RESERVE, Placement, TrainingPlan

MFUS = (1.0, 0.4, 0.3)
"""Shares of the peak for which times are given; well-made training reaches the last two on such GPUs."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns line up; all but the first are numbers."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(map(_cell, row, widths, range(len(row)))) + " |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if not n else ":") for n, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column else text.ljust(width)


def training_report(
    plan: TrainingPlan, gpu: Gpu, devices: int, limit: float, samples: int | None, shard_frozen: bool
) -> str:
    """A training plan in words and tables.

    Args:
        plan: The plan.
        gpu: GPU whose limits bound the times.
        devices: GPUs.
        limit: Bytes of a GPU.
        samples: Number of samples of the whole recipe; None if it has no end.
        shard_frozen: Whether the configuration shards the frozen networks.
    """
    shape = plan.shape
    rows: list[tuple[str, ...]] = [
        (name, f"{trained:,}", f"{frozen:,}", f"{plan.forward[name] / 1e12:.3f}", f"{plan.backward[name] / 1e12:.3f}")
        for name, (trained, frozen) in plan.parameters.items()
    ]
    sums = [sum(column) for column in zip(*plan.parameters.values(), strict=True)]
    totals = [f"{sum(part.values()) / 1e12:.3f}" for part in (plan.forward, plan.backward)]
    rows.append(("together", f"{sums[0]:,}", f"{sums[1]:,}", *totals))
    parts = table(("component", "trained", "frozen", "forward, TFLOP", "backward"), rows)
    chosen, other = ("sharded", "whole") if shard_frozen else ("whole", "sharded")
    layouts = (plan.sharded, plan.whole) if shard_frozen else (plan.whole, plan.sharded)
    lines: list[tuple[str, ...]] = [
        (what, *(f"{getattr(layout.memory, field) / 1e9:.2f}" for layout in layouts))
        for what, field in (
            ("weights, GB", "weights"),
            ("gathered for a while", "gathered"),
            ("gradients", "gradients"),
            ("AdamW", "optimizer"),
            ("activations", "activations"),
        )
    ]
    lines.append(("reserve (assumed)", *(f"{RESERVE / 1e9:.2f}",) * 2))
    lines.append((f"together, of {limit / 1e9:g} GB", *(f"{layout.memory.total / 1e9:.2f}" for layout in layouts)))
    lines.append(("fits", *("yes" if layout.memory.total <= limit else "NO" for layout in layouts)))
    lines.append(("fits cards of, GB", *(_cards(layout.memory.total) for layout in layouts)))
    lines.append(("sent by each GPU a step, GB", *(f"{layout.wire / 1e9:.2f}" for layout in layouts)))
    lines += _times(plan, gpu, layouts, samples)
    return "\n".join(
        [
            f"\nWork of a sample: {plan.usual_tokens} tokens, {shape.image_size} pixels.\n",
            parts,
            f"\nEach of {devices} GPUs, {shape.batch} samples of at most {shape.tokens} tokens:\n",
            table((f"frozen networks: {chosen} (as configured)", chosen, other), lines),
            "\nTimes are lower bounds: work at that share of the peak, weights read, bytes sent. Nothing is measured.",
        ]
    )


def _cards(need: float) -> str:
    """The smallest cards that hold so much: the larger ones do, too."""
    return next((f"{size / 1e9:.0f} and more" for size in SIZES if need <= size), "none")


def host_report(host: HostMemory, processes: int, on_cpu: bool) -> str:
    """Memory of the computer in words.

    Args:
        host: Memory of a process.
        processes: Number of processes on a computer.
        on_cpu: Whether the CPU computes.
    """
    together = f", {processes * host.own / 1e9:.1f} GB for {processes}" if processes > 1 else ""
    when = "" if on_cpu else " until the GPU has taken it"
    return (
        f"\nMemory of the computer: {host.own / 1e9:.2f} GB for each process{together} (Python and libraries "
        f"{host.process / 1e9:.2f}, connector and adapter {host.whole / 1e9:.2f}{when}, small networks in fp32 "
        f"{host.lifted / 1e9:.2f}, at work {host.working / 1e9:.2f}); and files of {host.mapped / 1e9:.1f} GB, which "
        "are mapped once for all: what is free beside that keeps them fast. A reading process (data.num_workers) takes "
        "some 0.5 GB more."
    )


def _times(
    plan: TrainingPlan, gpu: Gpu, layouts: tuple[Placement, Placement], samples: int | None
) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for mfu in MFUS:
        name = "at the roofline" if mfu == 1 else f"at {mfu:.0%} of the peak"
        steps = [plan.step_seconds(gpu, layout, mfu) for layout in layouts]
        lines.append((f"{name}: step, ms", *(f"{1e3 * step:.1f}" for step in steps)))
        lines.append((f"{name}: samples/s of a GPU", *(f"{plan.shape.batch / step:.1f}" for step in steps)))
        if samples is not None:
            hours = [plan.gpu_hours(gpu, layout, samples, mfu) for layout in layouts]
            lines.append((f"{name}: GPU-hours of {samples:,} samples", *(f"{hour:.1f}" for hour in hours)))
    return lines


def inference_report(plan: InferencePlan, gpu: Gpu, steps: int, limit: float) -> str:
    """A plan of generation in tables.

    Args:
        plan: The plan.
        gpu: GPU whose limits bound the times.
        steps: Denoising steps of a picture.
        limit: Bytes of a GPU.
    """
    rows = [
        (
            mode,
            f"{plan.weights[mode] / 1e9:.1f}",
            f"{plan.needs[mode] / 1e9:.1f}",
            "yes" if plan.needs[mode] + RESERVE / 2 <= limit else "NO",
            f"{gpu.memory / plan.token_bytes[mode]:.0f}",
        )
        for mode in plan.weights
    ]
    picture = steps * plan.step.flops + plan.decode.flops
    return "\n".join(
        [
            "",
            table(
                ("--memory", "weights, GB", "most at once, GB", f"fits {limit / 1e9:g} GB", "tokens/s at most"), rows
            ),
            f"\nKeys and values {plan.cache / 1e9:.2f} GB, reading {plan.prefill.flops / 1e12:.2f} TFLOP, "
            f"a picture {picture / 1e12:.0f} TFLOP in {steps} steps: {picture / gpu.flops:.2f} s at the roofline, "
            f"{picture / gpu.flops / 0.3:.2f} s at 30 % of the peak. Computed, not measured; without the CUDA context.",
        ]
    )
