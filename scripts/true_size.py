"""Random files of the paper's sizes in the layouts of the real ones, and what the commands need on them.

``python scripts/true_size.py files FOLDER`` makes LLaMA 7B as Meta's folder, BIAS-7B, CLIP ViT-L/14 as OpenAI's archive
and SDXL base as a diffusers folder in fp16, and trained weights of M²Chat on them: 26 GB of random numbers, whose
pictures are noise and whose losses are finite. ``python scripts/true_size.py rows FOLDER`` runs the rows of
docs/scaling.md on them, one after the other, each in processes of its own, and prints the most memory that a process
had to itself at any time (RssAnon in /proc: mapped files do not count, since Linux drops their pages when it needs
them), beside what `m2chat plan` computes for it. ``--size small`` is the same with 3 GB, to try it; two processes that
share the networks always take those, since all shares of the true ones together are 22 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2chat.host_memory import anonymous_bytes

ROOT = Path(__file__).parents[1]
GB = 10**9
BYTES = {"true": 26 * GB, "small": 4 * GB}
"""Bytes of the files, and a little; those of true size have small ones beside them."""
SMALL = "small"
"""Folder of the small files within that of the true ones."""
RESULTS = ROOT / "benchmarks/results/true_size.json"
TITLE = (
    "| row | what | GB of a process | planned | of all | CPU s | seconds | must | |\n"
    "|---|---|---:|---:|---:|---:|---:|---|---|"
)
NEAR = 0.15
"""How far a plan may be from what is measured."""
M2CHAT = [sys.executable, "-c", "import sys; from m2chat.commands import main; sys.exit(main())"]
LIGHTNING = [sys.executable, "-m", "m2chat.cli"]


def main() -> int:
    """Makes the files, or runs the rows."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("files", "make the files"), ("rows", "run the rows")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, help="folder of the files, outside the repository")
        command.add_argument("--size", choices=tuple(BYTES), default="true", help="sizes (default: %(default)s)")
        if name == "rows":
            command.add_argument("--only", nargs="+", metavar="ROW", help="rows to run (default: all)")
            command.add_argument("--out", type=Path, default=RESULTS, metavar="FILE",
                                 help="results; rows that are not run keep theirs (default: %(default)s)")  # fmt: skip
    table = commands.add_parser("table", help="print the results as the table of docs/scaling.md")
    table.add_argument("folder", type=Path, nargs="?", default=RESULTS, metavar="FILE", help="results")
    for name in ("_build", "_sharded"):  # of the rows themselves
        commands.add_parser(name).add_argument("folder", type=Path)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.command == "files":
        return make_files(folder, options.size)
    if options.command == "table":
        print(TITLE, *map(line, json.loads(folder.read_text())), sep="\n")
        return 0
    if options.command == "rows":
        return run_rows(folder, options.size, options.only, options.out)
    sys.path.insert(0, str(Path(__file__).parent))
    import true_size_files as files

    return files.build(folder) if options.command == "_build" else files.build_sharded(folder)


def make_files(folder: Path, size: str) -> int:
    """Makes the files that are not there yet; says what they take, and refuses where the disk has less."""
    if folder.is_relative_to(ROOT):
        print(f"{folder} is in the repository: name a folder outside it", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = max(0, BYTES[size] - there), shutil.disk_usage(folder).free
    print(f"{folder}: {needed / GB:.1f} GB to write, {free / GB:.1f} GB are free", flush=True)
    if needed + 2 * GB > free:
        print("2 GB more than that must be free: name a folder on another disk, or remove something", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent))
    import true_size_files

    true_size_files.make(folder, size)
    if size == "true":
        true_size_files.make(folder / SMALL, "small")
    return 0


# Rows


@dataclass
class Row:
    """A row of the table.

    Args:
        name: Short name, for ``--only``.
        what: What it shows.
        command: Command.
        limit: Most memory of a process, in GB; None if the row is only a preparation.
        seconds: Most seconds of a processor, which other work on the computer does not change; None for any.
        code: Exit code that is right.
        says: What the output must contain.
        plan: Arguments of `m2chat plan` for the same; none if it is not planned.
    """

    name: str
    what: str
    command: Sequence[str]
    limit: float | None = None
    seconds: float | None = None
    code: int = 0
    says: str = ""
    plan: Sequence[str] = ()


def rows(folder: Path, size: str) -> list[Row]:
    """The rows, in an order in which each finds what it needs."""
    f, cache = str(folder), str(folder / "features")
    here = [sys.executable, __file__]
    draw = [*M2CHAT, "draw", "a cat", "--model", f"{f}/connector", "--height", "256", "--width", "256"]
    draw += ["--steps", "2", "--out", f"{f}/pictures"]
    one_gpu, stage1 = (["--config", str(ROOT / f"configs/paper/{name}.yaml")] for name in ("one_gpu_24", "stage1"))
    m3adapter = str(ROOT / "configs/m3adapter" / ("paper.yaml" if size == "true" else "micro.yaml"))
    data = ["--data.train", json.dumps([{"name": "pairs", "path": f"{f}/pairs"}]), "--data.num_workers", "0"]
    model = ["--model.init_args.backbone", f"{f}/backbone.yaml", "--model.init_args.m3adapter", m3adapter]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "2",
           "--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--data.batch_size", "1",
           "--data.global_batch", "1", "--trainer.precision", "32-true", "--trainer.callbacks", "[]"]  # fmt: skip
    few = ["--data.samples_per_epoch", "2"]
    paper = [f"--model.init_args.backbone={f}/backbone.yaml", f"--model.init_args.m3adapter={m3adapter}",
             "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]  # fmt: skip
    training = [*paper, "--data.batch_size=1", "--data.global_batch=1"]
    drawing = ["--config", str(ROOT / "configs/paper/eval_coco.yaml"), *paper, "--tokens", "64", "--image-size", "256"]
    shared = folder if size == "small" else folder / SMALL
    return [
        Row("build", "whole system built for drawing on a CPU", [*here, "_build", f], 4),
        Row("draw", "`m2chat draw`, 256 pixels, 2 steps", draw, 18, says="a cat", plan=drawing),
        Row("low", "the same with --memory low", [*draw, "--memory", "low"], 12, says="a cat", plan=drawing),
        Row("features", "`m2chat data features` of 2 pairs",
            [*M2CHAT, "data", "features", *stage1, cache, *model, *data, *few, "--trainer.precision", "32-true",
             "--device", "cpu", "--batch", "1"]),
        Row("cached", "two steps of one_gpu_24.yaml from them",
            [*LIGHTNING, "fit", *one_gpu, *model, *data, *few, *cpu, "--data.features", cache], 16, says="max_steps=2",
            plan=[*one_gpu, *training]),
        Row("stage1", "two steps of stage1.yaml on one device",
            [*LIGHTNING, "fit", *stage1, *model, *data, *few, *cpu], 16, says="max_steps=2",
            plan=[*stage1, *training]),
        Row("sharded", "3.5 GB built under FSDP by 2 processes with gloo", [*here, "_sharded", str(shared)]),
        Row("stage", "refused: a checkpoint of other backbones",
            [*M2CHAT, "draw", "a cat", "--model", str(ROOT / "data/micro/m2chat/m3ft.ckpt"), "--backbone",
             f"{f}/backbone.yaml"], 1, 5, 2, "trained on"),
        Row("torchao", "refused: a memory mode without torchao", [*draw, "--memory", "balanced"], 1, 5, 2, "torchao"),
        Row("tag", "refused: a tag that CLIP does not have",
            [*LIGHTNING, "fit", *stage1, *model, *data, *few, *cpu, "--model.init_args.backbone.vision_encoder",
             "ViT-L-14-quickgelu:opanai"], 1, 5, 2, "opanai"),
        Row("missing", "refused: an adapter that is not there",
            [*LIGHTNING, "fit", *stage1, *model, *data, *few, *cpu, "--model.init_args.backbone.adapter", "gone.pth"],
            1, 5, 2, "gone.pth"),
        Row("unet", "refused: a UNet that is not there",
            [*draw, "--decoder", f"{f}/broken"], 1, 5, 2, "unet"),
    ]  # fmt: skip


def run_rows(folder: Path, size: str, only: Sequence[str] | None, out: Path) -> int:
    """Runs rows, prints them as a table, and writes it as JSON after each."""
    if not (folder / "backbone.yaml").is_file():
        print(f"{folder} has no files yet: python scripts/true_size.py files {folder}", file=sys.stderr)
        return 2
    chosen = [row for row in rows(folder, size) if only is None or row.name in only]
    if only and (lost := set(only) - {row.name for row in chosen}):
        known = ", ".join(row.name for row in rows(folder, size))
        print(f"there is no row {lost.pop()}; choose from {known}", file=sys.stderr)
        return 2
    order = [row.name for row in rows(folder, size)]
    kept = {result["name"]: result for result in (json.loads(out.read_text()) if out.is_file() else [])}
    print(TITLE, flush=True)
    for row in chosen:
        if row.name == "features":
            shutil.rmtree(folder / "features", ignore_errors=True)
        described = {name: value for name, value in asdict(row).items() if name not in ("command", "plan")}
        result = kept[row.name] = {**described, "size": size, **measured(row, folder)}
        print(line(result), flush=True)
        out.write_text(json.dumps([kept[name] for name in order if name in kept], indent=2) + "\n")
        if not result["holds"]:
            print((folder / "logs" / f"{row.name}.txt").read_text()[-2000:], file=sys.stderr, flush=True)
    return 0 if all(kept[row.name]["holds"] for row in chosen) else 1


def line(result: Mapping[str, Any]) -> str:
    """A result as a line of the table."""
    limit, seconds = result["limit"], result["seconds"]
    planned = f"{result['planned'] / GB:.2f}" if result.get("planned") else ""
    cpu = f"{result['cpu']:.1f}" if "cpu" in result else ""  # results of earlier versions have none
    must = "" if limit is None else f"≤ {limit:g} GB" + (f", {seconds:g} s" if seconds else "")
    return (
        f"| {result['name']} | {result['what']} | {result['process'] / GB:.2f} | {planned} | "
        f"{result['together'] / GB:.2f} | {cpu} | {result['wall']:.1f} | {must} | "
        f"{'yes' if result['holds'] else 'NO'} |"
    )


def measured(row: Row, folder: Path) -> dict[str, Any]:
    """Runs a row and its plan; peaks in bytes, seconds, and whether it does what it must."""
    log = folder / "logs" / f"{row.name}.txt"
    log.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}
    started, before = time.monotonic(), cpu_seconds()
    with log.open("w+") as file:
        process = subprocess.Popen(
            row.command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
        peaks = Peaks(process.pid)
        code = process.wait()
        wall, cpu = time.monotonic() - started, cpu_seconds() - before
        process_peak, together = peaks.stop()
        file.seek(0)
        output = file.read()
    holds = code == row.code and row.says in output
    holds &= row.limit is None or process_peak <= row.limit * GB
    holds &= row.seconds is None or cpu <= row.seconds
    planned = planned_bytes(row.plan, environment, folder) if row.plan else None
    holds &= planned is None or abs(planned - process_peak) <= NEAR * process_peak
    return {"process": process_peak, "planned": planned, "together": together, "cpu": round(cpu, 2),
            "wall": round(wall, 2), "exit": code, "holds": holds}  # fmt: skip


def planned_bytes(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """What `m2chat plan` prints as the memory that a process has to itself, in bytes."""
    command = [*M2CHAT, "plan", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    found = re.search(r"Memory of the computer: ([\d.]+) GB", printed.stdout)
    if found is None:
        raise SystemExit(f"no plan: {printed.stderr[-2000:]}")
    return float(found[1]) * GB


def cpu_seconds() -> float:
    """Seconds of processors that ended commands have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Peaks:
    """Watches the memory of a process and of its children until it is stopped.

    Args:
        pid: Process, the first of its session.
        alone: Whether it is the only one that is watched.
    """

    def __init__(self, pid: int, alone: bool = False) -> None:
        self.pid, self.alone, self.process, self.together = pid, alone, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        """Most bytes of one process, and of all at once."""
        self._done.set()
        self._thread.join()
        return self.process, self.together

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            sizes = [anonymous(pid) for pid in self._session()]
            self.process = max(self.process, *sizes, 0)
            self.together = max(self.together, sum(sizes))

    def _session(self) -> list[int]:
        if self.alone:
            return [self.pid]
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.pid:
                        pids.append(int(entry.name))
                except ProcessLookupError:
                    continue
        return pids


def anonymous(pid: int) -> int:
    """Bytes of memory that a process has to itself; 0 if it has ended."""
    return anonymous_bytes(pid) or 0


if __name__ == "__main__":
    sys.exit(main())
