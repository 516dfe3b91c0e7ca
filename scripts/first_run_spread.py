"""How far the results of a first run spread: the same seed with other numbers of threads and other CPU instructions.

Trains stages 1 and 2 and evaluates, once for each setting (about 20 minutes each on two cores), and writes the range of
every headline metric. Goes on where it stopped. Run it in the folder of the project:

    python scripts/first_run_spread.py --out docs/results/first_run.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from itertools import product
from pathlib import Path

THREADS = ("1", "2")
CAPABILITIES = ("default", "avx2", "avx512")
"""Instructions that torch's kernels use (``ATEN_CPU_CAPABILITY``); a CPU without them falls back by itself."""
EVALUATIONS = ("eval_mmdialog", "eval_context", "eval_cc3m", "eval_coco")


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Calls `lightning` with a folder of its own, unless that run is finished."""
    done = folder / "done"
    if done.is_file():
        return
    logger = "--trainer.logger"
    place = [f"{logger}.save_dir", ".", f"{logger}.name", str(folder.parent), f"{logger}.version", folder.name]
    command = ["lightning", *arguments, "--seed_everything", "0", logger, "TensorBoardLogger", *place]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    done.touch()


def main() -> None:
    """Runs all settings, and writes what they gave."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/first_run"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/first_run.json"))
    options = parser.parse_args()
    from m2chat.evaluation.names import grouped, metric_name
    from m2chat.evaluation.results import RESULTS, read_results

    found: dict[str, dict[str, dict[str, float]]] = {}
    for threads, capability in product(THREADS, CAPABILITIES):
        name, root = f"threads_{threads}_{capability}", options.logs / f"threads_{threads}_{capability}"
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "ATEN_CPU_CAPABILITY": capability}
        run(["fit", "--config", "configs/stage1.yaml"], root / "stage1", environment)
        start = ["--model.init_args.checkpoint_root", str(root / "stage1")]
        run(["fit", "--config", "configs/stage2.yaml", *start], root / "stage2", environment)
        for evaluation in EVALUATIONS:
            start = ["--model.init_args.checkpoint_root", str(root / "stage2")]
            run(["test", "--config", f"configs/{evaluation}.yaml", *start], root / evaluation, environment)
            metrics, _ = read_results(root / evaluation / RESULTS)
            for metric in grouped(name for name in metrics if "/" not in name).get("headline", ()):
                found.setdefault(evaluation, {}).setdefault(metric, {})[name] = metrics[metric].value
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for evaluation, values in found.items():
        for metric, by_setting in values.items():
            low, high = min(by_setting.values()), max(by_setting.values())
            print(f"{evaluation:14} {metric_name(metric).plain:28} {low:7.2f} ... {high:7.2f}")


if __name__ == "__main__":
    main()
