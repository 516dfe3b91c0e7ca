"""Typical mistakes on the command line: one line that names what was given and what to do, never a traceback."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from m2chat import cli
from m2chat.commands import main

ROOT = Path(__file__).parent.parent
STAGE1 = ("fit", "--config", "configs/stage1.yaml", "--trainer.max_steps", "1")
PLAN = ("plan", "--config", "configs/paper/stage1.yaml")
VAL = "data/micro/shards/cc3m/val"
EDIT = ("edit", "pic.png")
Row = tuple[tuple[str, ...], str, str, str]
"""Arguments; then what the error names: the setting, its value, and choices or remedy."""

# What is seen where arguments are parsed costs milliseconds; what needs torch comes in as few rows as there are kinds.
M2CHAT: list[Row] = [
    (("chta",), "COMMAND", "'chta'", "Did you mean 'chat'?"),
    (("train",), "'train'", "no command of m2chat", "lightning fit --config configs/stage1.yaml"),
    (("predict", "a cat"), "'predict'", "no command of m2chat", "m2chat draw"),
    (("data", "convrt"), "ACTION", "'convrt'", "Did you mean 'convert'?"),
    (("data", "convert", "cocoo", "a", "b"), "KIND", "'cocoo'", "coco-captions"),
    (("eval", "tabel"), "COMMAND", "'tabel'", "Did you mean 'table'?"),
    (("draw",), "prompt", "required", "m2chat draw --help"),
    (("draw", "x", "--stps", "3"), "--stps", "no argument", "Did you mean '--steps'?"),
    (("draw", "x", "--step", "3"), "--step", "no argument", "Did you mean '--steps'?"),
    (("draw", "x", "--steps", "0"), "--steps", "'0'", "a whole number from 1 to 1000"),
    (("draw", "x", "--steps", "-3"), "--steps", "'-3'", "a whole number from 1 to 1000"),
    (("draw", "x", "--steps", "many"), "--steps", "'many'", "a whole number from 1 to 1000"),
    (("draw", "x", "--guidance", "-1"), "--guidance", "'-1'", "from 0 to 100"),
    (("draw", "x", "--guidance", "nan"), "--guidance", "'nan'", "from 0 to 100"),
    (("draw", "x", "--height", "0"), "--height", "'0'", "a whole number from 1"),
    (("draw", "x", "--seeds", "9" * 30), "--seeds", "9999", "a whole number from"),
    (("draw", "x", "--seeds"), "--seeds", "expected at least one", "m2chat draw --help"),
    (("draw", ""), "prompt", "''", "write something"),
    (("draw", "x", "--device", "gpu"), "--device", "'gpu'", "Did you mean 'cuda'?"),
    (("draw", "x", "--device", "meta"), "--device", "'meta'", "choose cpu, cuda"),
    (("draw", "x", "--device", "cuda:97"), "--device", "cuda:97", "choose cpu"),
    (("draw", "x", "--backbone", "configs/stage1.yaml"), "--backbone", "model, data", "configs/backbone/micro.yaml"),
    (("draw", "x", "--backbone", "nope.yaml"), "--backbone", "'nope.yaml'", "configs/backbone/micro.yaml"),
    (("draw", "x", "--backbone", "README.md"), "--backbone", "'README.md'", "configs/backbone/micro.yaml"),
    (("draw", "x", "--backbone", "empty"), "--backbone", "is a folder", "configs/backbone/micro.yaml"),
    (("draw", "x", "--model", "REDME.md"), "--model", "'REDME.md'", "Did you mean 'README.md'?"),
    (("draw", "x", "--model", "empty"), "weights", "empty", "manifest.json"),
    (("draw", "x", "--out", "README.md"), "--out", "'README.md'", "name a folder"),
    (("draw", "x", "--out", "README.md/b"), "--out", "README.md", "name a folder"),
    (("draw", "x", "--decoder", "nope"), "--decoder", "nope", "configs/decoder/lcm.yaml"),
    (("draw", "x", "--preset", "quick"), "preset", "'quick'", "turbo, lightning-4"),
    (("draw", "x", "--scheduler", "eulr"), "scheduler", "'eulr'", "Did you mean 'euler'?"),
    (("draw", "x", "--spacing", "middle"), "spacing", "'middle'", "leading, trailing"),
    (("draw", "x", "--guidance-interval", "0.8", "0.2"), "guidance_interval", "[0.8, 0.2]", "the smaller one first"),
    (("draw", "x", "--guidance-interval", "0", "7"), "--guidance-interval", "'7'", "from 0 to 1"),
    (("draw", "x", "--lora", "a=b"), "--lora", "a=b", "style.safetensors=0.8"),
    (("draw", "x", "--memory", "tiny"), "--memory", "'tiny'", "high, balanced, low"),
    (("wish", "x", "--candidates", "0"), "--candidates", "'0'", "a whole number from 1"),
    (("wish", " "), "prompt", "' '", "write something"),
    (("edit", "nope.png", "x"), "picture", "'nope.png'", "JPEG, PNG"),
    (("edit", "README.md", "x"), "README.md", "undecodable", "JPEG, PNG"),
    (("edit", "empty", "x"), "picture", "'empty'", "JPEG, PNG"),
    ((*EDIT, " "), "instructions", "empty", "paint it red"),
    (EDIT, "instructions", "required", "m2chat edit --help"),
    (("similar", "nope.png"), "picture", "'nope.png'", "JPEG, PNG"),
    (("story", ""), "opener", "''", "write something"),
    (("story", "x", "--frames", "0"), "--frames", "'0'", "a whole number from 1"),
    (("dialogue", "nope.png::hello"), "picture", "nope.png", "JPEG, PNG"),
    (("lens", ""), "text", "empty", "--picture"),
    (("lens", "x", "--session", "nope"), "--session", "'nope'", "a saved session"),
    (("chat", "--load", "nope"), "--load", "'nope'", "!save"),
    (("chat", "--out", "README.md"), "--out", "'README.md'", "name a folder"),
    (("serve", "--port", "80000"), "--port", "'80000'", "from 0 to 65535"),
    (("serve", "--port", "TAKEN"), "--port", "in use", "another --port"),
    (("serve", "--api", "--port", "TAKEN"), "--port", "in use", "another --port"),
    (("serve", "--host", "no.host.invalid"), "--host", "no.host.invalid", "127.0.0.1"),
    (("serve", "--time-limit", "0"), "--time-limit", "'0'", "above 0"),
    (("report", "nope.json"), "paths", "'nope.json'", "name one that is there"),
    (("report", "empty"), "empty", "is a folder", "results.json"),
    (("report", "--root", "nope"), "results.json", "'nope'", "lightning test --config"),
    (("measure", "--count", "0"), "--count", "'0'", "a whole number from 1"),
    (("measure", "--world", "shape"), "--world", "'shape'", "choose one of emoji, shapes"),
    (("plan",), "--config", "required", "m2chat plan --help"),
    (("plan", "--config", "nope.yaml"), "--config", "'nope.yaml'", "configs/stage1.yaml"),
    (("plan", "--config", "configs/rows/sd15.yaml"), "model.backbone", "BackboneConfig", "configs/eval_coco.yaml"),
    ((*PLAN, "--devices", "0"), "--devices", "'0'", "a whole number from 1"),
    ((*PLAN, "--memory", "-80"), "--memory", "'-80'", "above 0"),
    ((*PLAN, "--gpu", "h900"), "--gpu", "h900", "choose one of a10, a100"),
    ((*PLAN, "--memry", "80"), "--memry", "unrecognized", "--help"),
    (("weights", "inspect", "nope"), "source", "'nope'", "name one that is there"),
    (("weights", "inspect", "empty"), "empty", "nothing that is known", "LLaMA"),
    (("weights", "check", "README.md"), "README.md", "not opened", ".safetensors"),
    (("weights", "convert", "data/micro/llama", "README.md"), "README.md", "there already", "name a new one"),
    (("weights", "fetch", "smollm3", "x"), "name", "'smollm3'", "Did you mean 'smollm2'?"),
    (("release-weights", "aling", "x", "y"), "stage", "'aling'", "Did you mean 'align'?"),
    (("consolidate", "empty", "out.ckpt"), "empty", "no checkpoint in shares", ".distcp"),
    (("backbones", "--only", "lama"), "--only", "lama", "vae, text_encoders"),
    (("data", "micro", "--world", "shaps"), "--world", "'shaps'", "choose one of emoji, shapes"),
    (("data", "stats", "README.md"), "PATH", "'README.md'", "a .tar shard"),
    (("data", "inspect", "README.md"), "PATH", "'README.md'", "a .tar shard"),
    (("data", "inspect", VAL, "-n", "-1"), "-n", "'-1'", "a whole number from 0"),
    (("data", "inspect", VAL, "--html", "README.md/x.html"), "--html", "README.md", "name a folder"),
    (("data", "validate", "nope"), "PATH", "'nope'", "m2chat data"),
    (("data", "subset", VAL, "out", "--share", "2"), "--share", "'2'", "above 0 to 1"),
    (("data", "subset", VAL, "out"), "nothing to choose by", "--count", "--share"),
    (("data", "convert", "folder", "nope", "out"), "SRC", "'nope'", "name the raw data"),
    (("data", "convert", "folder", "empty", "README.md"), "DST", "'README.md'", "name a folder"),
    (("data", "convert", "folder", "empty", "out", "--workers", "0"), "--workers", "'0'", "a whole number from 1"),
    (("data", "caption", VAL, "out", "--adapter", "nope"), "--adapter", "'nope'", "name one that is there"),
    (("data", "features", "--config", "configs/stage1.yaml", "--chunk", "0"), "--chunk", "'0'", "a whole number"),
    (("eval", "compare", "empty", "empty"), "predictions.jsonl", "empty", "lightning test"),
    (("eval", "page", "empty", "--beside", "x"), "--beside", "'x'", "NAME=RUN"),
    (("eval", "moments", "empty", "out.npz"), "empty", "no pictures", ".png"),
    (("eval", "rows", "m3fd"), "row", "m3fd", "choose from sd15"),
    (("bench", "genevall", "x", "y"), "KIND", "'genevall'", "Did you mean 'geneval'?"),
    (("bench", "geneval", "README.md", "out", "--limit", "0"), "--limit", "'0'", "a whole number from 1"),
]  # fmt: skip
LIGHTNING: list[Row] = [
    (("fti",), "choose one of", "'fti'", "Did you mean 'fit'?"),
    (("predict", "--config", "configs/stage1.yaml"), "choose one of", "'predict'", "m2chat --help"),
    (("fit",), "fit.model", "required", "configs/stage1.yaml"),
    (("fit", "--config", "nope.yaml"), "--config", "nope.yaml", "configs/stage1.yaml"),
    (("fit", "--config", "configs/stage11.yaml"), "--config", "stage11.yaml", "did you mean 'configs/stage1.yaml'?"),
    (("fit", "--config", "configs/backbone/micro.yaml"), "fit", "'language_model'", "Did you mean"),
    (("fit", "--config", "configs/eval_coco.yaml"), "data.train", "data.test", "configs/stage1.yaml"),
    (("fit", "--config", "configs/paper/stage1.yaml"), "trainer.accelerator", "'gpu'", "m2chat plan"),
    (("test", "--config", "configs/stage1.yaml"), "data.test", "data.train", "configs/eval_mmdialog.yaml"),
    (("test", "--config", "configs/eval_coco.yaml", "--ckpt_path", "nope.ckpt"), "--ckpt_path", "nope.ckpt", "last"),
    ((*STAGE1, "--trainer.accelerator", "tpuu"), "trainer", "'tpuu'", "Available names"),
    ((*STAGE1, "--trainer.devices", "-5"), "trainer", "devices", "int > 0"),
    ((*STAGE1, "--trainer.max_step", "10"), "--trainer.max_step", "unrecognized", "'trainer.max_steps'?"),
    ((*STAGE1, "--trainer.max_epochs", "-7"), "max_epochs", "-7", "non-negative"),
    ((*STAGE1, "--ckpt_path", "last"), "--ckpt_path", "last", "name a file"),
    ((*STAGE1, "--seed_everything", "-3"), "seed_everything", "-3", "a whole number from 0"),
    ((*STAGE1, "--data.batch_size", "0"), "data.batch_size", "0", "a whole number from 1"),
    ((*STAGE1, "--data.train", "[{name: a, path: data/micro, weight: -1}]"), "weight", "-1", "0 leaves the source out"),
    ((*STAGE1, "--model.init_args.optim.lr", "-1"), "optim.lr", "-1", "from 0 to 10"),
    ((*STAGE1, "--model.init_args.phi", "-1"), "phi", "-1", "from 0"),
    ((*STAGE1, "--model.init_args.drop_condition", "3"), "drop_condition", "3", "from 0 to 1"),
    ((*STAGE1, "--model.init_args.m3adapter.heads", "7"), "m3adapter.heads", "7", "must divide m3adapter.width"),
    ((*STAGE1, "--model.init_args.evaluation.steps", "0"), "evaluation.steps", "0", "a whole number from 1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder like the project's, in which mistakes may leave what they like; yields a port that is taken."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", "data"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "README.md").write_text("# no data\n\nkey: [", encoding="utf-8")
    (folder / "empty").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "pic.png")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        patch.chdir(folder)
        yield str(server.getsockname()[1])


@pytest.mark.parametrize("row", M2CHAT, ids=lambda row: " ".join(row[0])[:60])
def test_m2chat(row: Row, workplace: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([workplace if argument == "TAKEN" else argument for argument in row[0]])
    _check(row, code, capsys.readouterr().err)


@pytest.mark.parametrize("row", LIGHTNING, ids=lambda row: " ".join(row[0][2:])[:60])
def test_lightning(
    row: Row, workplace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning"])
    _check(row, cli.main(list(row[0])), capsys.readouterr().err)


def _check(row: Row, code: int, stderr: str) -> None:
    assert code == 2
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    for column in row[1:]:
        assert column in errors[0], (column, errors[0])


def test_outside_the_project_it_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning"])
    assert cli.main(["fit", "--config", "configs/stage1.yaml"]) == 2
    assert f"cd {ROOT}" in capsys.readouterr().err
    assert cli.main(["fit", "--config", str(ROOT / "configs/stage1.yaml")]) == 2
    assert f"cd {ROOT}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_there_are_enough_of_them() -> None:
    assert len({row[0] for row in (*M2CHAT, *LIGHTNING)}) == len(M2CHAT) + len(LIGHTNING) >= 80
