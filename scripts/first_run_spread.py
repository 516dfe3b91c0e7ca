"""How far the results of a first run spread: the same seed with other numbers of threads and other CPU instructions.

Does what `make train` does, and further evaluations, once for each setting (some 25 minutes of a core each), and writes
the range of every headline metric, also into docs/results.md. Started again, it goes on where it stopped, also in the
middle of a training. Run it in the folder of the project; further arguments go to every `lightning`:

    python scripts/first_run_spread.py --out docs/results/first_run.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

THREADS = ("1", "2")
CAPABILITIES = ("default", "avx2", "avx512")
"""Instructions that torch's kernels can use (``ATEN_CPU_CAPABILITY``), in the order in which CPUs got them."""
EVALUATIONS = ("eval_mmdialog", "eval_context", "eval_cc3m", "eval_coco")
PAGE = Path("docs/results.md")
BIN = Path(sys.executable).parent


def capabilities() -> tuple[str, ...]:
    """Those that this CPU has: without the last ones, torch would take the same kernels a second time."""
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    return CAPABILITIES[: CAPABILITIES.index(best) + 1] if best in CAPABILITIES else (best,)


def settings() -> list[tuple[str, str]]:
    """Each number of threads with the instructions that torch takes by itself; then the other ones with one thread."""
    *others, best = capabilities()
    return [*((threads, best) for threads in THREADS), *((THREADS[0], other) for other in others)]


def call(command: list[str], environment: dict[str, str]) -> None:
    """Runs a command, and ends with its exit code if it fails."""
    print("$", *command, flush=True)
    code = subprocess.run(command, env={**os.environ, **environment}).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Calls `lightning` for a run in a given folder, unless that is finished; goes on with a training."""
    done = folder / "done"
    if done.is_file():
        return
    checkpoints = sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if checkpoints and arguments[0] == "fit":
        arguments = [*arguments, "--ckpt_path", str(checkpoints[-1])]
    elif folder.exists():  # nothing of it can be gone on with
        shutil.rmtree(folder)
    logger = "--trainer.logger"
    place = [f"{logger}.save_dir", ".", f"{logger}.name", str(folder.parent), f"{logger}.version", folder.name]
    seed = ["--seed_everything", "0"]
    call([str(BIN / "lightning"), *arguments, *seed, logger, "TensorBoardLogger", *place], environment)
    done.touch()


def measure(root: Path, environment: dict[str, str], more: list[str]) -> dict[str, dict[str, float]]:
    """Trains and evaluates with one setting: evaluation to headline metric to value."""
    from m2chat.evaluation.names import grouped
    from m2chat.evaluation.results import RESULTS, read_results

    features = root / "features"
    if not (root / "stage1" / "done").is_file():
        call([str(BIN / "m2chat"), "data", "features", "--config", "configs/stage1.yaml", str(features)], environment)
    cached = ["--data.features", str(features)]
    run(["fit", "--config", "configs/stage1.yaml", *cached, *more], root / "stage1", environment)
    shutil.rmtree(features, ignore_errors=True)
    start = ["--model.init_args.checkpoint_root", str(root / "stage1")]
    run(["fit", "--config", "configs/stage2.yaml", *start, *more], root / "stage2", environment)
    found = {}
    for evaluation in EVALUATIONS:
        start = ["--model.init_args.checkpoint_root", str(root / "stage2")]
        run(["test", "--config", f"configs/{evaluation}.yaml", *start, *more], root / evaluation, environment)
        metrics, _ = read_results(root / evaluation / RESULTS)
        headline = grouped(name for name in metrics if "/" not in name).get("headline", [])
        found[evaluation] = {metric: metrics[metric].value for metric in headline}
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The ranges as a Markdown table."""
    from m2chat.evaluation.markup import aligned
    from m2chat.evaluation.names import metric_name

    cells = [("evaluation", "metric", "lowest", "highest")]
    for evaluation in EVALUATIONS:
        by_metric: dict[str, list[float]] = {}
        for values in found.values():
            for metric, value in values[evaluation].items():
                by_metric.setdefault(metric, []).append(value)
        cells += [
            (f"`{evaluation}`", metric_name(metric).plain, f"{min(values):.2f}", f"{max(values):.2f}")
            for metric, values in by_metric.items()
        ]
    return aligned(cells)


def main() -> None:
    """Runs all settings, and writes what they gave; after each of them, what there is so far."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/first_run"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/first_run.json"))
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file with a section for the table")
    options, more = parser.parse_known_args()
    from m2chat.evaluation.markup import write_section

    found = {}
    for threads, capability in settings():
        name = f"threads_{threads}_{capability}"
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "ATEN_CPU_CAPABILITY": capability}
        found[name] = measure(options.logs / name, environment, more)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        text = f"Written by `python scripts/first_run_spread.py`; edit nothing here. Settings: {', '.join(found)}."
        write_section(options.page, f"{text}\n\n{table(found)}\n", "first_run")
    print(table(found))


if __name__ == "__main__":
    main()
