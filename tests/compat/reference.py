"""Reference values: what the commands compute, as hashes and numbers, to be compared before and after a refactor.

    python tests/compat/reference.py --check                # everything; prints each line as equal or different
    python tests/compat/reference.py --check --only draw    # one section (`--list` names them)
    python tests/compat/reference.py --write                # after a change that is meant to alter the values

Only the console commands are called, in processes of their own with one thread, in a temporary folder that looks like
the repository's root. Pictures are compared by their pixels, not by their files. Hashes must be equal, numbers agree
to 1e-6. Floating point sums depend on the version of torch and on the processor's vector instructions, so both are
stored with the values; with others, differences in `golden`, pictures and metrics may be theirs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("1fe35e7") / "reference.json"
TOLERANCE = 1e-6
PACKAGES = ("torch", "numpy", "diffusers", "transformers", "lightning", "torchmetrics", "pillow", "matplotlib")

RING = "a small red ring at the top on a white background"
WISH = "I dream of a ball like the sea in front of snow"
STORY = "tell me of the magic of a small green circle on the left on a purple background"
EVALUATIONS = ("mmdialog", "coco", "cc3m", "story", "edit", "context")
PROTOCOL = ("stage", "fingerprint", "weights_digest", "trainable_parameters", "generation", "config_hash")

Values = dict[str, str | float]
Section = Callable[[Path], Values]


class CommandError(RuntimeError):
    """A command ended with another exit code than 0."""


def execute(folder: Path, *arguments: str) -> str:
    """Runs the interpreter on this checkout's code, with one thread and without network.

    Args:
        folder: Working directory.
        arguments: Arguments of the interpreter.

    Returns:
        Its standard output.

    Raises:
        CommandError: If it fails; the message ends with what it printed.
    """
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"[-4000:])
    return done.stdout


def command(name: str, folder: Path, *arguments: str) -> str:
    """Runs a console command of `pyproject.toml`, wherever its function is by now; returns its standard output."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"][name].partition(":")
    start = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return execute(folder, "-c", start, *arguments)


def digest(data: str | bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def pixels(path: Path) -> bytes:
    """Size and RGB values of a picture file."""
    import numpy as np
    from PIL import Image

    image = np.asarray(Image.open(path).convert("RGB"))
    return str(image.shape).encode() + image.tobytes()


def texts(name: str, text: str) -> Values:
    """A text as two lines: its hash, and that of its numbers alone, which survives other words around them."""
    return {f"{name} text": digest(text), f"{name} numbers": digest(" ".join(re.findall(r"-?\d+(?:[.,]\d+)*", text)))}


def _pictures(name: str, folder: Path, printed: str) -> Values:
    """The pictures of a task and what it said: replies, captions and gates, without paths and closing lines."""
    said = []
    for line in printed.splitlines():
        if reply := re.fullmatch(r"\[\S+?\.png: (.*)\]", line):
            said.append(reply[1])
        elif ".png" not in line:
            said.append(line)
    found: Values = {f"{name} replies": " | ".join(said)}
    paths = sorted(folder.glob("*.png"))
    return found | {f"{name} pixels of {path.name}": digest(pixels(path)) for path in paths}


# Sections


def shards(work: Path) -> Values:
    """The generated micro data, a hash a shard."""
    root = work / "generated"
    command("m2chat", work, "data", "micro", "--root", str(root))
    return {
        f"shards {path.relative_to(root).as_posix()}": digest(path.read_bytes()) for path in sorted(root.rglob("*.tar"))
    }


def _task(name: str, work: Path, *arguments: str) -> Values:
    out = work / name
    return _pictures(name, out, command("m2chat", work, name, *arguments, "--out", str(out)))


def draw(work: Path) -> Values:
    """`m2chat draw`."""
    return _task("draw", work, RING, "--seeds", "0", "1", "2")


def wish(work: Path) -> Values:
    """`m2chat wish`."""
    return _task("wish", work, WISH)


def story(work: Path) -> Values:
    """`m2chat story`."""
    return _task("story", work, STORY)


def edit(work: Path) -> Values:
    """`m2chat edit`."""
    return _task("edit", work, _shown(work), "turn it into a ball", "move it to the left", "paint it blue")


def similar(work: Path) -> Values:
    """`m2chat similar`."""
    return _task("similar", work, _shown(work))


def dialogue(work: Path) -> Values:
    """`m2chat dialogue`."""
    lines = ("hello", f"{_shown(work)}::which colour does it have ?", WISH, "make picture 1 large")
    return _task("dialogue", work, *lines)


def lens(work: Path) -> Values:
    """`m2chat lens`, without its plot, which belongs to matplotlib."""
    out = work / "lens"
    said = command("m2chat", work, "lens", "turn it into a ball", "--picture", _shown(work), "--out", str(out))
    return {"lens reply": said.splitlines()[0]}


def _shown(work: Path) -> str:
    """A picture to show; a copy, so that the paths in what a command prints are the workplace's."""
    return str(shutil.copy(STORED.with_name("shown.png"), work))


def golden(work: Path) -> Values:
    """The losses of the first steps of both stages, and the files in which they are written down."""
    folder = ROOT / "tests" / "golden"
    start = (
        f"import json, runpy; made = runpy.run_path({str(folder / 'make.py')!r}); "
        "print('\\n' + json.dumps({stage: made['train'](stage) for stage in made['NAMES']}))"
    )
    losses = json.loads(execute(ROOT, "-c", start).splitlines()[-1])
    found: Values = {f"golden file {path.name}": digest(path.read_bytes()) for path in sorted(folder.glob("*.txt"))}
    for stage, steps in losses.items():
        for number, step in enumerate(steps):
            found |= {f"golden stage {stage} step {number} {name}": value for name, value in step.items()}
    return found


def evaluation(name: str) -> Section:
    """`lightning test` with one of the evaluations on the shipped weights."""

    def run(work: Path) -> Values:
        command("lightning", work, "test", f"--config=configs/eval_{name}.yaml", "--trainer.enable_progress_bar=false")
        (path,) = work.glob("lightning_logs/*/results.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (path.parent / "predictions.jsonl").read_text("utf-8").splitlines()]
        said, drawn = hashlib.sha256(), hashlib.sha256()
        for segment in (segment for row in rows for segment in row["generated"]):
            said.update(json.dumps([segment["answer"], segment["caption"]]).encode())
            drawn.update(b"none" if segment["image"] is None else pixels(path.parent / segment["image"]))
        start = f"eval_{name}"
        found: Values = {f"{start} generated texts": said.hexdigest(), f"{start} generated pixels": drawn.hexdigest()}
        found[f"{start} scores of samples"] = digest(json.dumps([row["scores"] for row in rows], sort_keys=True))
        for metric, item in content["metrics"].items():
            for part in ("value", "n", "low", "high"):
                found[f"{start} {metric} {part}"] = "null" if item[part] is None else float(item[part])
        protocol = content["protocol"]
        found |= {f"{start} protocol {key}": str(protocol.get(key)) for key in PROTOCOL}
        return found | {f"{start} protocol samples": protocol["samples"]["sha256"]}

    run.__doc__ = f"`lightning test --config configs/eval_{name}.yaml` on the shipped weights."
    return run


def tables(work: Path) -> Values:
    """`m2chat eval table` in both formats, its plot, the list of rows, and the tables of `make seeds`."""
    markdown = command("m2chat", work, "eval", "table", "--plot", str(work / "plot.svg"))
    found = texts("table markdown", markdown)
    found |= texts("table latex", command("m2chat", work, "eval", "table", "--format", "latex"))
    # matplotlib writes the time, its version and random ids; lines and words are ours.
    plot = re.findall(r' d="([^"]*)"|<!-- (.*?) -->', (work / "plot.svg").read_text("utf-8"))
    found["table plot"] = digest(json.dumps(plot))
    found |= texts("rows", command("m2chat", work, "eval", "rows", "--list"))
    for path in (work / "docs" / "results" / "m3ft").glob("seed_*/*.json"):
        target = work / "seeds" / path.parent.name / path.stem / "results.json"
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    seeds = command("m2chat", work, "eval", "table", "--group", "seeds", "--seeds", "0", "1", "2", "--results", "seeds")
    found |= texts("seed tables", seeds)
    return found | texts("report", command("m2chat", work, "report", "--root", "seeds/seed_0/eval_mmdialog"))


def plan(work: Path) -> Values:
    """`m2chat plan` of both stages at the paper's scale."""
    found: Values = {}
    for stage in (1, 2):
        options = (f"configs/paper/stage{stage}.yaml", "--devices", "8", "--memory", "80")
        found |= texts(f"plan stage {stage}", command("m2chat", work, "plan", "--config", *options))
    return found


def measure(work: Path) -> Values:
    """`m2chat measure` on few conversations."""
    few = ("--count", "20", "--wishes", "2", "--steps", "8", "--out", "measure.json")
    command("m2chat", work, "measure", *few)
    rows = json.loads((work / "measure.json").read_text("utf-8"))["rows"]
    return {f"measure {row['measure']} {part}": float(row[part]) for row in rows for part in ("percent", "n")}


def data(work: Path) -> Values:
    """`m2chat data stats`, `validate` and `subset` on the micro data."""
    found: Values = {}
    for name in ("cc3m/val", "mmdialog/test", "story/val"):
        path = f"data/micro/shards/{name}"
        command("m2chat", work, "data", "stats", path, "--json", "stats.json")
        numbers = json.loads((work / "stats.json").read_text("utf-8"))
        found |= {f"stats {name}{key}": value for key, value in _flat(numbers)}
        command("m2chat", work, "data", "validate", path, "--json", "faults.json")
        found[f"validate {name}"] = digest((work / "faults.json").read_bytes())
        target = work / "subset" / name.replace("/", "-")
        command("m2chat", work, "data", "subset", path, str(target), "--count", "9")
        found |= {f"subset {name} {path.name}": digest(path.read_bytes()) for path in sorted(target.glob("*.tar"))}
    return found


def _flat(item: Any, name: str = "") -> Iterator[tuple[str, str | float]]:
    """Leaves of nested JSON by their keys."""
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from _flat(value, f"{name} {key}")
    elif isinstance(item, int | float):
        yield name, float(item)
    else:
        yield name, json.dumps(item)


SECTIONS: dict[str, Section] = {
    "shards": shards,
    "golden": golden,
    **{f"eval_{name}": evaluation(name) for name in EVALUATIONS},
    **{task.__name__: task for task in (draw, wish, edit, similar, story, dialogue, lens, tables, plan, measure, data)},
}


# To run them


def made_with() -> dict[str, Any]:
    """What the values may depend on beside the code."""
    import torch

    model = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "threads": 1,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": model[1] if model else platform.processor(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def compute(name: str) -> Values:
    """The values of a section, from a workplace of its own: its runs are not seen by others."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in ("configs", "data", "docs"):
            (work / part).symlink_to(ROOT / part)
        try:
            return SECTIONS[name](work)
        except CommandError as error:
            return {f"{name} failed": str(error)}


def is_equal(first: str | float | None, second: str | float | None) -> bool:
    """Whether two values agree: texts exactly, numbers to `TOLERANCE`, relative to those above 1."""
    if isinstance(first, float | int) and isinstance(second, float | int):
        return abs(first - second) <= TOLERANCE * max(1.0, abs(first))
    return first == second


def compare(stored: Values, found: Values, names: list[str]) -> int:
    """Prints each line of some sections as equal or different.

    Returns:
        How many differ.
    """
    differ = 0
    for line in dict.fromkeys((*stored, *found)):
        before, now = stored.get(line), found.get(line)
        if is_equal(before, now):
            print(f"equal      {line}")
        else:
            differ += 1
            print(f"DIFFERENT  {line}: {before} before, {now} now")
    print(f"{differ} of {len({*stored, *found})} lines differ ({', '.join(names)})")
    return differ


def main() -> int:
    """Computes, and writes or compares; returns 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with the stored values")
    what.add_argument("--write", action="store_true", help="store the values")
    what.add_argument("--list", action="store_true", help="only list the sections")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="some sections; all by default")
    parser.add_argument("--file", type=Path, default=STORED, help="the stored values (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="sections at once (default: %(default)s)")
    options = parser.parse_args()
    if options.list:
        for name, section in SECTIONS.items():
            print(f"{name:14} {(section.__doc__ or '').splitlines()[0]}")
        return 0
    names = list(options.only or SECTIONS)
    stored = json.loads(options.file.read_text("utf-8")) if options.file.is_file() else {"made_with": {}, "values": {}}
    now = made_with()
    for key, value in now.items():
        if stored["made_with"].get(key, value) != value:
            print(f"note: {key} is {value}, the values were stored with {stored['made_with'][key]}")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(names, pool.map(compute, names), strict=True))
    if options.check:
        if unknown := [name for name in names if not stored["values"].get(name)]:
            print(f"note: nothing is stored of {', '.join(unknown)}: not compared")
            found = {name: part for name, part in found.items() if name not in unknown}
        before = {line: value for name in names for line, value in stored["values"].get(name, {}).items()}
        return int(compare(before, {line: value for part in found.values() for line, value in part.items()}, names) > 0)
    failed = [line for part in found.values() for line in part.items() if line[0].endswith(" failed")]
    for line, message in failed:
        print(f"{line}: {message}", file=sys.stderr)
    if failed:
        return 1
    values = {name: found.get(name, stored["values"].get(name, {})) for name in SECTIONS}
    options.file.write_text(json.dumps({"made_with": now, "values": values}, indent=1) + "\n", encoding="utf-8")
    print(f"{options.file}: {sum(map(len, values.values()))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
