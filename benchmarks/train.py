"""CPU time and results of `make train` in this checkout and in another one, on the same machine.

To run again, from the folder of the project (an hour of one core for two checkouts, of which the second is optional):

    git worktree add ../before 1fe35e7
    python benchmarks/train.py . ../before

Each command of `make train`, as the checkout's own Makefile lists them, is run in a fresh process tree with one thread
(``OMP_NUM_THREADS=1``) and the code of the checkout, by the environment that runs this script. CPU time is that of the
whole tree, user and system, data loader workers too. Both start without a feature cache, so what the building of one
takes is counted: `data/features/stage1` is removed first. The generated shards of the micro world are no part of it and
are made before, if they are missing.
It adds to ``benchmarks/results/train.json``: the seconds of each command, and the metrics that the last one wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def commands(checkout: Path, arguments: str, kind: str = "") -> list[str]:
    """The commands of `make train` of a checkout, without those that set it up.

    Args:
        checkout: Folder of the checkout.
        arguments: More arguments for its `lightning` commands.
        kind: Text that the chosen commands contain.
    """
    make = ["make", "-n", "-o", "install", "-o", "data", "train", f"BIN={BIN}", f"RUN_ARGS={arguments}"]
    lines = subprocess.run(make, cwd=checkout, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.strip() for line in lines if line.startswith(str(BIN)) and kind in line]


def run(checkout: Path, command: str) -> dict[str, Any]:
    """Runs a command and measures its process tree.

    Args:
        checkout: Folder it runs in; its code is the one that is used.
        command: Line for the shell.

    Returns:
        The command without the folder of the environment, and its seconds of CPU and on the clock.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, shell=True, cwd=checkout, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command": command.replace(f"{BIN}/", ""),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - clock, 1),
    }


def measure(checkout: Path, arguments: str, kind: str) -> dict[str, Any]:
    """Runs `make train` in a checkout.

    Args:
        checkout: Folder of the checkout.
        arguments: More arguments for its `lightning` commands.
        kind: Text that the chosen commands contain.

    Returns:
        Its commit, the seconds of each command and of all, and the metrics of its evaluation.
    """
    if not (checkout / "data/micro/shards/version.json").is_file():
        run(checkout, f"{BIN}/m2chat data micro")
    shutil.rmtree(checkout / "data/features/stage1", ignore_errors=True)
    logs = checkout / "lightning_logs"
    written = set(logs.rglob("results.json"))
    steps = [run(checkout, command) for command in commands(checkout, arguments, kind)]
    newest = sorted(set(logs.rglob("results.json")) - written, key=lambda path: path.stat().st_mtime)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "load_average": round(os.getloadavg()[0], 1),
        "steps": steps,
        "cpu_seconds": round(sum(step["cpu_seconds"] for step in steps), 1),
        "wall_seconds": round(sum(step["wall_seconds"] for step in steps), 1),
        "results": json.loads(newest[-1].read_text()).get("metrics") if newest else None,
    }


def main() -> None:
    """Measures the checkouts in turn and writes down what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="folders of the checkouts, this one as `.`")
    parser.add_argument("--run-args", default="", help="more arguments for every lightning command")
    parser.add_argument("--only", default="", help="run the commands alone that contain this, such as stage1")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/train.json", help="file of the results")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for checkout in given.checkouts:
        measured = measure(checkout.resolve(), given.run_args, given.only)
        found[measured["commit"]] = measured
        given.out.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
