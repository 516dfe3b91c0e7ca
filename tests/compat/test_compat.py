"""What commit 1fe35e7 has written still loads, and holds what it held then.

The files lie in ``1fe35e7/``, made by its ``make.sh``; ``expected.json`` holds what that commit read in them, written
by ``PYTHONPATH=src python tests/compat/test_compat.py`` at that commit and not to be written again. Everything goes
through console commands, and `M2ChatPipeline` and `Session`, so that modules may be renamed. Where words or keys may be
others by now, numbers are compared and not their names.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from m2chat import cli, commands

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).with_name("1fe35e7")
EXPECTED = FILES / "expected.json"
HERE = "tests/compat/1fe35e7"
"""Where the files lie in the workplace, as in the repository: configurations name them so."""
TAR_TIME = 1_700_000_000
"""Modification time of ``caches/talk.tar``, which its caches hold, and git does not keep."""

WEIGHTS = (
    "checkpoints/align.ckpt", "checkpoints/m3ft.ckpt", "exported",
    "backbone/BIAS-small.pth", "backbone/BIAS-small.safetensors", "backbone/clip",
)  # fmt: skip
CONVERTED = {
    "folder": "raw/folder", "coco-captions": "raw/coco-captions", "mmdialog": "raw/mmdialog", "vist": "raw/vist",
    "instructpix2pix": "raw/instructpix2pix", "magicbrush": "raw/magicbrush", "llava": "raw/llava.json",
    "alpaca": "raw/alpaca.json",
}  # fmt: skip
DRAWN = (f"{HERE}/exported", "run/checkpoints/last.ckpt")
"""Weights to draw with; the second lie in the folder of their run, whose ``config.yaml`` names the networks."""
OPTIONS = {"mmdialog": ("--text-as-caption",), "llava": ("--images", f"{HERE}/raw/folder")}
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
LOGGED = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--trainer.logger.name=out")
SMALL = (
    "--model.init_args.m3adapter.width=8", "--model.init_args.m3adapter.heads=2",
    "--model.init_args.m3adapter.blocks=1", f"--model.init_args.backbone.adapter={HERE}/backbone/BIAS-small.pth",
    f"--model.init_args.backbone.vision_encoder={HERE}/backbone/clip",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")


# What is read in the files; the working directory is the workplace


def run(*arguments: str) -> str:
    """What `m2chat` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main(arguments) == 0
    return out.getvalue()


def numbers(text: str) -> list[str]:
    """The numbers of a text in an order that does not depend on its words."""
    return sorted(re.findall(r"(?<![\w.])-?\d+(?:[.,]\d+)*(?![\w.])", text))


def leaves(item: Any) -> list[Any]:
    """Strings and numbers of nested data, without their keys and without nulls."""
    if isinstance(item, dict):
        return [leaf for value in item.values() for leaf in leaves(value)]
    if isinstance(item, list | tuple):
        return [leaf for value in item for leaf in leaves(value)]
    return [] if item is None else [item]


def tensors(state: dict[str, torch.Tensor]) -> list[Any]:
    """Shape and sum of each tensor, whatever it is called."""
    return sorted([[list(tensor.shape), tensor.double().sum().item()] for tensor in state.values()])


def seen(pixels: Any) -> list[Any]:
    """Size of a picture and the means of its quarters, which rounding hardly moves."""
    image = np.asarray(pixels, dtype=np.float64)
    height, width = image.shape[0] // 2, image.shape[1] // 2
    quarters = (image[y : y + height, x : x + width] for y in (0, height) for x in (0, width))
    return [list(image.shape), [round(quarter.mean(), 3) for quarter in quarters]]


def pictures(folder: Path) -> list[Any]:
    """What a folder's pictures look like, by their names."""
    return [seen(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]


def weights(name: str) -> list[str]:
    """Numbers in `m2chat weights inspect`."""
    return numbers(run("weights", "inspect", f"{HERE}/{name}"))


def consolidated() -> list[Any]:
    """Tensors of the sharded checkpoint as one file."""
    if not Path("whole.ckpt").exists():
        run("consolidate", f"{HERE}/checkpoints/align-fsdp.ckpt", "whole.ckpt")
    return tensors(torch.load("whole.ckpt", weights_only=True)["state_dict"])


def losses(config: str, checkpoint: str) -> list[float]:
    """Losses of the steps behind a checkpoint, by the configuration that its run has written."""
    ends = ("--trainer.max_epochs=2", "--trainer.max_steps=4", "--model.init_args.init_from=gone.ckpt")
    return fitted(config, f"--config={HERE}/configs/{config}.yaml", f"--ckpt_path={checkpoint}", *ends)


def started() -> list[float]:
    """Losses of a stage 2 that starts from the weights of stage 1."""
    start = f"--model.init_args.init_from={HERE}/checkpoints/align.ckpt"
    return fitted("started", f"--config={HERE}/configs/fit-m3ft.yaml", start, "--trainer.max_steps=2")


def fitted(name: str, *arguments: str) -> list[float]:
    """Losses of the steps of a `lightning fit`, in one process."""
    shutil.rmtree(f"out/{name}", ignore_errors=True)
    one = ("--trainer.strategy=auto", "--trainer.devices=1", "--trainer.callbacks=[]")
    more = ("--trainer.enable_checkpointing=false", f"--trainer.logger.version={name}")
    assert cli.main(["fit", *arguments, *one, *LOGGED, *QUIET, *more]) == 0
    with Path(f"out/{name}/metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def evaluated(name: str, *arguments: str) -> dict[str, float]:
    """Metrics of a `lightning test`."""
    shutil.rmtree(f"out/{name}", ignore_errors=True)
    assert cli.main(["test", *arguments, *LOGGED, *QUIET, f"--trainer.logger.version={name}"]) == 0
    content = json.loads(Path(f"out/{name}/results.json").read_text(encoding="utf-8"))
    return {metric: item["value"] for metric, item in content["metrics"].items() if item["value"] is not None}


def evaluated_checkpoint() -> dict[str, float]:
    """The small stage-2 checkpoint, with stored moments for FID."""
    checkpoint = f"{HERE}/checkpoints/m3ft.ckpt"
    metrics = evaluated(
        "checkpoint", "--config=configs/eval_context.yaml", *SMALL, f"--ckpt_path={checkpoint}",
        f"--data.test=[{{name: talk, path: {HERE}/shards/mmdialog-test}}]", "--data.test_samples=3",
        "--model.init_args.evaluation.steps=2", "--trainer.callbacks="
        f"[{{class_path: FID, init_args: {{reference: {HERE}/caches/moments.npz}}}}, CLIPScore, Predictions]",
    )  # fmt: skip
    protocol = json.loads(Path("out/checkpoint/results.json").read_text(encoding="utf-8"))["protocol"]
    assert protocol["weights"] == f"checkpoint {checkpoint}"
    return metrics


def drawn(name: str) -> list[Any]:
    """A picture by weights of ours."""
    out = Path("drawn", Path(name).name)
    run("draw", "a ring", "--weights", name, "--steps", "2", "--out", str(out))
    return pictures(out)


def printed_config(command: str, *files: str) -> Any:
    """Every setting of a configuration, by `--print_config`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            assert cli.main([command, *(f"--config={name}" for name in files), "--print_config"]) == 0
        except SystemExit as done:
            assert not done.code, out.getvalue()
    return yaml.safe_load(out.getvalue())


def stats(path: str) -> list[str]:
    """Numbers and words of `m2chat data stats` that the version of the reference had too."""
    run("data", "stats", path, "--json", "stats.json")
    record = json.loads(Path("stats.json").read_text(encoding="utf-8"))
    del record["user_texts"]  # new since
    return sorted(str(leaf) for leaf in leaves(record))


def conversation(session: Any) -> list[Any]:
    """Who said and showed what in a session."""
    return [
        [
            role,
            [part if isinstance(part, str) else [part.caption, part.caption_by, seen(part.pixels)] for part in parts],
        ]
        for role, parts in session.messages()
    ]


def again(session: Any) -> list[Any]:
    """The last turn, made anew by its own seed."""
    seed = session.notes[-1]["seed"]
    for _ in session.regenerate(seed=seed):
        pass
    return conversation(session)[-1]


def sessions() -> list[str]:
    """Names of the saved conversations."""
    return sorted(path.name for path in (FILES / "sessions").iterdir())


def load_pipeline() -> Any:
    """The shipped weights."""
    from m2chat.pipeline import M2ChatPipeline

    pipe = M2ChatPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(pipe: Any, name: str) -> Any:
    """A saved conversation."""
    from m2chat.pipeline import Session

    return Session.load(pipe, f"{HERE}/sessions/{name}")


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """A folder that looks like the repository's root, with a copy of the files."""
    for name in ("configs", "data", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(FILES, folder / HERE)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(FILES / "checkpoints" / "m3ft.ckpt", folder / "run" / "checkpoints" / "last.ckpt")
    shutil.copy(FILES / "configs" / "fit-m3ft.yaml", folder / "run" / "config.yaml")
    os.utime(folder / HERE / "caches" / "talk.tar", (TAR_TIME, TAR_TIME))
    with contextlib.chdir(folder):
        yield


def write_expected() -> None:
    """Writes down what this commit reads in the files."""
    assert Path(cli.__file__).is_relative_to(ROOT), "PYTHONPATH names another checkout"
    with tempfile.TemporaryDirectory() as folder, workplace(Path(folder)):
        pipe = load_pipeline()
        found: dict[str, Any] = {
            "weights": {name: weights(name) for name in WEIGHTS},
            "consolidated": consolidated(),
            "losses": {
                "fit-m3ft": losses("fit-m3ft", f"{HERE}/checkpoints/m3ft.ckpt"),
                "fit-fsdp": losses("fit-fsdp", "whole.ckpt"),
            },
            "started": started(),
            "evaluated": evaluated_checkpoint(),
            "drawn": {name: drawn(name) for name in DRAWN},
            "stats": {
                path: stats(f"{HERE}/{path}") for path in ("shards/edit-train", "shards/cc3m-train", "captioned")
            },
            "sessions": {name: conversation(load(pipe, name)) for name in sessions()},
            "settings": sorted(map(str, leaves(vars(load(pipe, "settings").settings)))),
            "again": {name: again(load(pipe, name)) for name in ("words", "drawn")},
            "report": numbers(run("report", f"{HERE}/evaluations/test/results.json")),
            "compare": numbers(run("eval", "compare", f"{HERE}/evaluations/test", f"{HERE}/evaluations/blank")),
        }
    EXPECTED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# The tests


def close(found: Any, expected: Any) -> bool:
    """Whether nested data are equal, numbers nearly."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, rel=1e-3, abs=0.3 if abs(expected) > 1 else 1e-4))
    return bool(found == expected)


@pytest.fixture(scope="module")
def expected() -> Any:
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _in_the_workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with workplace(tmp_path_factory.mktemp("workplace")):
        yield


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, expected: Any) -> None:
    assert not Counter(expected["weights"][name]) - Counter(weights(name))


def test_weights_are_exported_as_then() -> None:
    from safetensors.torch import load_file

    run("weights", "check", f"{HERE}/exported")
    run("release-weights", "m3ft", f"{HERE}/checkpoints/m3ft.ckpt", "released.ckpt")
    run("weights", "convert", "released.ckpt", "exported-again")
    before, now = load_file(f"{HERE}/exported/model.safetensors"), load_file("exported-again/model.safetensors")
    assert tensors(now) == tensors(before)


def test_a_sharded_checkpoint_becomes_one_file(expected: Any) -> None:
    assert close(consolidated(), expected["consolidated"])


@pytest.mark.parametrize(("config", "checkpoint"), [("fit-m3ft", "m3ft"), ("fit-fsdp", "")])
def test_training_goes_on(config: str, checkpoint: str, expected: Any) -> None:
    if not checkpoint:
        consolidated()
    path = f"{HERE}/checkpoints/{checkpoint}.ckpt" if checkpoint else "whole.ckpt"
    found = losses(config, path)
    assert len(found) == len(expected["losses"][config]) > 0
    assert found == pytest.approx(expected["losses"][config], rel=1e-3)


def test_stage_2_starts_from_stage_1(expected: Any) -> None:
    assert started() == pytest.approx(expected["started"], rel=1e-3)


def test_a_checkpoint_is_evaluated_with_stored_moments(expected: Any) -> None:
    assert close(evaluated_checkpoint(), expected["evaluated"])


@pytest.mark.parametrize("name", DRAWN)
def test_weights_draw(name: str, expected: Any) -> None:
    assert close(drawn(name), expected["drawn"][name])


@pytest.mark.parametrize("name", sessions())
def test_a_conversation(name: str, pipe: Any, expected: Any) -> None:
    assert close(conversation(load(pipe, name)), expected["sessions"][name])


def test_settings_of_a_conversation(pipe: Any, expected: Any) -> None:
    kept = json.loads(Path(HERE, "sessions", "settings", "session.json").read_text("utf-8"))["settings"]
    settings = load(pipe, "settings").settings
    assert sorted(map(str, leaves({name: getattr(settings, name) for name in kept}))) == expected["settings"]


@pytest.mark.parametrize("name", ["words", "drawn"])
def test_a_reply_is_made_anew(name: str, pipe: Any, expected: Any) -> None:
    assert close(again(load(pipe, name)), expected["again"][name])


def test_the_terminal_goes_on_with_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("!save saved\n!exit\n"))
    run("chat", "--load", f"{HERE}/sessions/edited", "--seed", "0", "--steps", "2")
    before, now = (json.loads(Path(f, "session.json").read_text("utf-8")) for f in (f"{HERE}/sessions/edited", "saved"))
    assert {key: now[key] for key in ("turns", "pictures")} == {key: before[key] for key in ("turns", "pictures")}
    assert pictures(Path("saved")) == pictures(Path(HERE, "sessions", "edited"))


def test_results_are_reported_and_compared(expected: Any) -> None:
    # Its tables are others now, with whole counts as such; every number is still there.
    report = {float(number) for number in numbers(run("report", f"{HERE}/evaluations/test/results.json"))}
    assert {float(number) for number in expected["report"]} - report == set()
    compared = numbers(run("eval", "compare", f"{HERE}/evaluations/test", f"{HERE}/evaluations/blank"))
    assert {float(number) for number in expected["compare"]} - set(map(float, compared)) == set()


def test_predictions_become_a_page() -> None:
    run("eval", "page", f"{HERE}/evaluations/test", "--beside", f"blank={HERE}/evaluations/blank", "--out", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    lines = Path(HERE, "evaluations", "test", "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    named = {row["id"] for row in map(json.loads, lines)}
    assert len(named) == 3 and sum(name in page for name in named) >= 2  # the worst, the median and the best
    assert page.count("data:image/png") >= 4


def test_an_interrupted_evaluation_goes_on(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(
        "resumed", "--config=configs/eval_mmdialog.yaml", "--data.test_samples=3",
        "--model.init_args.evaluation.steps=2", f"--model.init_args.evaluation.resume={HERE}/evaluations/interrupted",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert "2 replies" in caplog.text + captured.out + captured.err
    content = json.loads(Path(HERE, "evaluations", "test", "results.json").read_text(encoding="utf-8"))
    before = {metric: item["value"] for metric, item in content["metrics"].items() if item["value"] is not None}
    assert close(found, before)


USER = {"m3ft": "fit", "align": "fit", "vlm_sd": "fit", "diffusers": "test"}


@pytest.mark.parametrize("name", USER)
def test_a_users_configuration(name: str) -> None:
    path = Path(HERE, "user", f"{name}.yaml")
    wanted = leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    found = leaves(printed_config(USER[name], str(path)))
    # Classes are written with the modules in which they stand by now: their names alone are compared.
    wanted, found = (Counter(re.sub(r"^m2chat(\.\w+)+\.", "", str(leaf)) for leaf in side) for side in (wanted, found))
    assert not wanted - found


def test_a_users_overlay() -> None:
    found = printed_config("fit", "configs/stage2.yaml", f"{HERE}/user/overlay.yaml")
    wanted = yaml.safe_load(Path(HERE, "user", "overlay.yaml").read_text(encoding="utf-8"))
    assert not Counter(map(str, leaves(wanted))) - Counter(map(str, leaves(found)))


@pytest.mark.parametrize("name", sorted(path.stem for path in (FILES / "configs").glob("*.yaml")))
def test_the_configuration_that_a_run_has_written(name: str) -> None:
    path = Path(HERE, "configs", f"{name}.yaml")
    before, now = yaml.safe_load(path.read_text(encoding="utf-8")), printed_config(name.partition("-")[0], str(path))
    for content in (before, now):
        content["model"]["class_path"] = content["model"]["class_path"].rpartition(".")[2]
    assert now["model"]["class_path"] == before["model"]["class_path"]
    assert now["seed_everything"] == before["seed_everything"]
    # The names of shards, networks and runs are the run's own: each must have kept its place somewhere.
    named = {leaf for leaf in leaves(before) if isinstance(leaf, str) and "/" in leaf}
    assert named and named <= set(map(str, leaves(now)))


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_conversion_gives_the_same_bytes(kind: str) -> None:
    target = Path("converted", kind)
    options = ("--workers", "1", *OPTIONS.get(kind, ()))
    run("data", "convert", kind, f"{HERE}/{CONVERTED[kind]}", str(target), *options)
    before = Path(HERE, "converted", kind)
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in before.iterdir())
    for path in before.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("path", ["shards/cc3m-train", "shards/mmdialog-train", "shards/edit-train", "captioned",
                                  *(f"converted/{kind}" for kind in CONVERTED)])  # fmt: skip
def test_shards_are_whole(path: str) -> None:
    run("data", "validate", f"{HERE}/{path}")


@pytest.mark.parametrize("path", ["shards/edit-train", "shards/cc3m-train", "captioned"])
def test_shards_hold_the_same(path: str, expected: Any) -> None:
    assert stats(f"{HERE}/{path}") == expected["stats"][path]


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("talk.tar.idx.json", lambda tar: run("data", "stats", tar)),
        (
            "talk.tar.prints.npz",
            lambda tar: run("data", "subset", f"{HERE}/shards/mmdialog-train", "without", "--without", tar),
        ),
    ],
)
def test_a_cache_is_used(name: str, use: Callable[[str], str]) -> None:
    path = Path(HERE, "caches", name)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    use(f"{HERE}/caches/talk.tar")
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_the_reference_values_have_sections() -> None:
    script = str(Path(__file__).with_name("reference.py"))
    assert subprocess.run([sys.executable, script, "--help"], capture_output=True, check=False).returncode == 0
    listed = subprocess.run([sys.executable, script, "--list"], capture_output=True, text=True, check=True).stdout
    stored = json.loads((FILES / "reference.json").read_text(encoding="utf-8"))["values"]
    assert [line.split()[0] for line in listed.splitlines()] == list(stored)
    assert {name for name, values in stored.items() if not values} <= {"eval_context"}


if __name__ == "__main__":
    sys.exit(write_expected())
